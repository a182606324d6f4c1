//! update: resource limits of a running container, never above the policy's.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use libcgroups::common::{CgroupManager as _, ControllerOpt};
use nemoclaw_spec::plan::limit;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::signal;
use crate::cli::Update;
use crate::store::Entry;

/// The `update` verb.
pub(super) fn update(root: &Path, args: &Update) -> Result<()> {
    let entry = Entry::new(root, &args.id)?;
    let container = entry.load()?;
    let plan = entry.plan()?;
    let mut resources = requested(args)?;
    drop_zeros(&mut resources);
    if plan.confined {
        let asked = resources.pids().as_ref().map(LinuxPids::limit);
        if let Some(asked) = asked.filter(|_| plan.pids > 0) {
            let mut pids = LinuxPids::default();
            pids.set_limit(if asked <= 0 { plan.pids } else { asked.min(plan.pids) });
            resources.set_pids(Some(pids));
        }
        limit(&mut resources, &plan, false);
        // Devices are the plan's, not an update's.
        resources.set_devices(None);
    }
    let options = ControllerOpt {
        resources: &resources,
        disable_oom_killer: false,
        oom_score_adj: None,
        freezer_state: None,
    };
    signal::cgroup(&container)?.apply(&options).context("cannot apply the new limits")
}

/// Docker sends 0 for "unchanged"; libcgroups' v2 half would write it.
fn drop_zeros(resources: &mut LinuxResources) {
    let Some(mut cpu) = resources.cpu().clone() else { return };
    let period = cpu.period().filter(|value| *value != 0);
    let quota = cpu.quota().filter(|value| *value != 0);
    let shares = cpu.shares().filter(|value| *value != 0);
    cpu.set_period(period);
    cpu.set_quota(quota);
    cpu.set_shares(shares);
    resources.set_cpu(Some(cpu));
}

fn requested(args: &Update) -> Result<LinuxResources> {
    if let Some(file) = &args.resources {
        let text = if file == "-" {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("cannot read resources from stdin")?;
            text
        } else {
            fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?
        };
        return serde_json::from_str(&text).context("the resources make no sense");
    }
    let mut resources = LinuxResources::default();
    let cpu_given = args.cpu_period.is_some()
        || args.cpu_quota.is_some()
        || args.cpu_shares.is_some()
        || args.cpuset_cpus.is_some()
        || args.cpuset_mems.is_some();
    if cpu_given {
        let mut cpu = LinuxCpu::default();
        cpu.set_period(args.cpu_period);
        cpu.set_quota(args.cpu_quota);
        cpu.set_shares(args.cpu_shares);
        cpu.set_cpus(args.cpuset_cpus.clone());
        cpu.set_mems(args.cpuset_mems.clone());
        resources.set_cpu(Some(cpu));
    }
    if args.memory.is_some() || args.memory_reservation.is_some() || args.memory_swap.is_some() {
        let mut memory = LinuxMemory::default();
        memory.set_limit(args.memory);
        memory.set_reservation(args.memory_reservation);
        memory.set_swap(args.memory_swap);
        resources.set_memory(Some(memory));
    }
    if let Some(limit) = args.pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    if let Some(weight) = args.blkio_weight {
        let mut block = LinuxBlockIo::default();
        block.set_weight(Some(weight));
        resources.set_block_io(Some(block));
    }
    Ok(resources)
}
