//! Memory and processors: never more than the policy gives.

use oci_spec::runtime::LinuxResources;

use super::Plan;

/// Period of the scheduler's quota in microseconds where the engine names none
/// (cpu.cfs_period_us, cpu.max).
const PERIOD: u64 = 100_000;

/// Lowers what `resources` ask for to the plan's limits. What they do not name is
/// limited too where `complete`; an update leaves it as it is.
pub fn limit(resources: &mut LinuxResources, plan: &Plan, complete: bool) {
    if let Some(most) = plan.memory {
        let mut memory = resources.memory().unwrap_or_default();
        let asked = memory.limit();
        if complete || asked.is_some() {
            let lowered = asked.filter(|asked| (1..=most).contains(asked)).unwrap_or(most);
            memory.set_limit(Some(lowered));
            resources.set_memory(Some(memory));
        }
    }
    if let Some(most) = plan.millicpus {
        let mut cpu = resources.cpu().clone().unwrap_or_default();
        if complete || cpu.quota().is_some() || cpu.period().is_some() {
            let period = cpu.period().filter(|period| *period > 0).unwrap_or(PERIOD);
            let most = i64::try_from(period).unwrap_or(i64::MAX).saturating_mul(most) / 1000;
            let quota = cpu.quota().filter(|quota| (1..=most).contains(quota)).unwrap_or(most);
            cpu.set_period(Some(period));
            // The kernel takes no less than a millisecond.
            cpu.set_quota(Some(quota.max(1000)));
            resources.set_cpu(Some(cpu));
        }
    }
}
