//! What a container's processes may do beyond an ordinary user: capabilities
//! that the policy keeps, and the step-down of an entry point that starts as root.

use oci_spec::runtime::{Capability, Process, Spec};

use super::identity::{self, Account};
use super::{ImageView, Refusals, RunAs, STEP_DOWN};
use crate::policy::Policy;
use crate::seccomp::{FilterPlan, Relaxation};

/// The part of the plan that this module works out.
pub(super) struct Privileges {
    pub(super) step_down: bool,
    pub(super) capabilities: Vec<String>,
    pub(super) filter: FilterPlan,
}

pub(super) fn resolve(
    spec: &Spec,
    policy: &Policy,
    image: &dyn ImageView,
    identity: Option<&RunAs>,
    refusals: &mut Refusals,
) -> Privileges {
    let options = &policy.options;
    let process = spec.process().as_ref();
    let given = given(process);
    let mut capabilities: Vec<String> = options
        .keep_capabilities
        .iter()
        .filter(|name| given.iter().any(|capability| capability == *name))
        .cloned()
        .collect();
    capabilities.sort_unstable();
    capabilities.dedup();
    // An image with a user of its own has nothing to step down from.
    let step_down = options.step_down && process.is_some_and(|process| process.user().uid() == 0);
    if step_down {
        let missing: Vec<&str> = STEP_DOWN
            .into_iter()
            .filter(|name| !given.iter().any(|capability| capability == name))
            .collect();
        if !missing.is_empty() {
            refusals.add(
                "capabilities",
                format!(
                    "stepping down needs {}, which the engine does not give",
                    missing.join(", ")
                ),
                "start the container without --cap-drop, or without `profile: step-down`",
            );
        }
    }
    let changes_ids = capabilities.iter().any(|name| matches!(name.as_str(), "SETUID" | "SETGID"));
    // With any of these a process makes, or takes over, files of root.
    let owns_files = capabilities
        .iter()
        .any(|name| matches!(name.as_str(), "CHOWN" | "FOWNER" | "FSETID" | "DAC_OVERRIDE"));
    let root_possible =
        step_down || changes_ids || owns_files || identity.is_some_and(|run_as| run_as.uid == 0);
    for word in [Relaxation::IoUring, Relaxation::Userns] {
        if root_possible && options.relaxed.contains(&word) {
            // A ring opens files, and a user namespace maps ids, past the filter
            // that keeps set-user-ID bits and ids.
            refusals.add(
                "seccomp",
                format!(
                    "`seccomp: {{allow: [{}]}}` cannot be had together with root or with capabilities over files and ids",
                    word.word()
                ),
                "take one of the two out of the policy",
            );
        }
    }
    let identities = (step_down && !changes_ids)
        .then(|| identities(&options.identities, image, identity, refusals));
    Privileges {
        step_down,
        capabilities,
        filter: FilterPlan {
            relaxed: options.relaxed.clone(),
            root_possible,
            system_only: options.system_only,
            identities,
        },
    }
}

/// The engine's bounding set, without `CAP_`.
fn given(process: Option<&Process>) -> Vec<String> {
    process
        .and_then(|process| process.capabilities().as_ref())
        .and_then(|capabilities| capabilities.bounding().clone())
        .unwrap_or_default()
        .iter()
        .map(|capability| name(*capability))
        .collect()
}

fn name(capability: Capability) -> String {
    let name = capability.to_string();
    name.strip_prefix("CAP_").unwrap_or(&name).to_owned()
}

/// Ids that the entry point may take: root, the container's own user and its
/// group, and those the policy names.
fn identities(
    named: &[String],
    image: &dyn ImageView,
    identity: Option<&RunAs>,
    refusals: &mut Refusals,
) -> Vec<u32> {
    let accounts = identity::accounts(&image.read("/etc/passwd").unwrap_or_default());
    let mut ids = vec![0];
    ids.extend(identity.iter().flat_map(|run_as| [run_as.uid, run_as.gid]));
    for name in named {
        let of_account = |account: &&Account| account.name == *name;
        match (name.parse::<u32>(), accounts.iter().find(of_account)) {
            (Ok(id), _) => ids.push(id),
            (_, Some(account)) => ids.extend([account.uid, account.gid]),
            _ => refusals.add(
                "user",
                format!(
                    "the policy names the identity `{}`, and the image has no such user",
                    name.escape_debug()
                ),
                "add the user to the image, or write a number in the policy",
            ),
        }
    }
    ids.sort_unstable();
    ids.dedup();
    if let Some(id) = ids.iter().find(|id| identity::check_worker_range(**id, 0, None).is_err()) {
        refusals.add(
            "user",
            format!("the id {id} is no container's"),
            "choose another identity in the policy",
        );
    }
    ids
}
