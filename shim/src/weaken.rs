//! Leaving controls away, for tests of the tests: an attempt that is refused
//! proves something only if it succeeds without the control it tries, and
//! `verify` only if it notices.
//!
//! SECURITY: exists in builds with the feature `weaken` only, which `hack/build`
//! refuses and the suite `cli` looks for in the release binaries.

#[cfg(feature = "weaken")]
mod enabled {
    use std::sync::OnceLock;

    use nemoclaw_spec::plan::Plan;
    use oci_spec::runtime::Spec;

    static LEFT_AWAY: OnceLock<Vec<String>> = OnceLock::new();

    /// Whether a control is left away in this process and those it forks.
    pub(crate) fn left_away(control: &str) -> bool {
        LEFT_AWAY.get().is_some_and(|names| names.iter().any(|name| name == control))
    }

    /// The plan to carry out instead, where the container's environment names
    /// controls to leave away.
    pub(crate) fn plan(plan: &Plan, spec: &Spec) -> Option<Plan> {
        let process = spec.process().as_ref()?;
        let env = process.env().clone().unwrap_or_default();
        let names = env.iter().find_map(|entry| entry.strip_prefix("NEMOCLAW_WEAKEN="))?;
        let names = LEFT_AWAY.get_or_init(|| names.split(',').map(str::to_owned).collect());
        let mut weak = plan.clone();
        for name in names {
            match name.as_str() {
                "capabilities" => {
                    let sets = process.capabilities().clone().unwrap_or_default();
                    weak.capabilities = sets
                        .bounding()
                        .iter()
                        .flatten()
                        .map(|name| name.to_string().trim_start_matches("CAP_").to_owned())
                        .collect();
                }
                // As many as this machine's root has.
                "all_capabilities" => {
                    let all = caps::read(None, caps::CapSet::Bounding).unwrap_or_default();
                    weak.capabilities = all
                        .iter()
                        .map(|name| name.to_string().trim_start_matches("CAP_").to_owned())
                        .collect();
                }
                "user" => (weak.identity.uid, weak.identity.gid, weak.allow_root) = (0, 0, true),
                "read_only_mounts" => weak.read_only_mounts.clear(),
                "masked_paths" => weak.masked.clear(),
                "no_exec_mounts" => weak.no_exec_mounts.clear(),
                "pids" => weak.pids = 0,
                _ => {}
            }
        }
        Some(weak)
    }

    /// The spec to carry out instead.
    pub(crate) fn spec(spec: &mut Spec) {
        if let Some(process) = spec.process_mut() {
            if left_away("core") {
                process.set_rlimits(None);
            }
            if left_away("no_new_privs") {
                process.set_no_new_privileges(Some(false));
            }
        }
        let Some(linux) = spec.linux_mut() else { return };
        if left_away("proc_paths") {
            linux.set_masked_paths(None).set_readonly_paths(None);
        }
        if left_away("devices")
            && let Some(resources) = linux.resources_mut()
        {
            resources.set_devices(None);
        }
    }
}

#[cfg(feature = "weaken")]
pub(crate) use enabled::{left_away, plan, spec};

#[cfg(not(feature = "weaken"))]
mod disabled {
    use nemoclaw_spec::plan::Plan;
    use oci_spec::runtime::Spec;

    /// Nothing is.
    pub(crate) const fn left_away(_: &str) -> bool {
        false
    }

    /// The plan as it is.
    pub(crate) const fn plan(_: &Plan, _: &Spec) -> Option<Plan> {
        None
    }

    /// The spec as it is.
    pub(crate) const fn spec(_: &mut Spec) {}
}

#[cfg(not(feature = "weaken"))]
pub(crate) use disabled::{left_away, plan, spec};
