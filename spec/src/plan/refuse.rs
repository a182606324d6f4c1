//! What a container may not ask for at all.

use oci_spec::runtime::{Capability, LinuxNamespaceType, Spec};

use super::{HostFacts, Refusals};
use crate::policy::{Excess, Policy};

/// What engines ask for without anybody having said so (Docker, podman and
/// containerd); dropped without a word because nobody chose it.
const ENGINE_DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Devices that make a file system boundary meaningless are not the only ones
/// refused: everything is, but for what harms nobody.
const HARMLESS_DEVICES: [&str; 12] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/console",
    "/dev/ptmx",
    "/dev/dri",
    "/dev/nvidia",
    "/dev/kfd",
    "/dev/dxg",
];

const SYSCTLS: [&str; 11] = [
    "kernel.domainname",
    "kernel.hostname",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "net.",
];

pub(super) fn check(
    spec: &Spec,
    policy: &Policy,
    host: &HostFacts,
    refusals: &mut Refusals,
    notes: &mut Vec<String>,
) {
    for finding in &policy.unenforced {
        refusals.add("policy", finding.to_string(), "or select another policy");
    }
    capabilities(spec, policy, refusals, notes);
    namespaces(spec, host, refusals);
    mounts(spec, policy, host, refusals);
    devices_and_sysctls(spec, refusals);
    hooks(spec, refusals);
}

fn capabilities(spec: &Spec, policy: &Policy, refusals: &mut Refusals, notes: &mut Vec<String>) {
    let bounding = spec
        .process()
        .as_ref()
        .and_then(|process| process.capabilities().as_ref())
        .and_then(|capabilities| capabilities.bounding().clone())
        .unwrap_or_default();
    let mut excess: Vec<String> = bounding
        .iter()
        .filter(|capability| !ENGINE_DEFAULT.contains(capability))
        .map(ToString::to_string)
        .collect();
    if excess.is_empty() {
        return;
    }
    excess.sort_unstable();
    let all = excess.len() > 20;
    let named = if all {
        "all capabilities (--privileged or --cap-add ALL)".to_owned()
    } else {
        excess.join(", ")
    };
    match policy.options.excess {
        Excess::Strip => notes.push(format!("stripped {named}")),
        Excess::Refuse => refusals.add(
            "capabilities",
            format!("the container asks for {named}, which the policy does not allow"),
            "start it without --cap-add and --privileged, or write `nemoclaw: {excess_capabilities: strip}` in the policy to start it without them",
        ),
    }
}

fn namespaces(spec: &Spec, host: &HostFacts, refusals: &mut Refusals) {
    let own =
        spec.linux().as_ref().and_then(|linux| linux.namespaces().clone()).unwrap_or_default();
    let wanted = [
        (LinuxNamespaceType::Network, "network", "--network host"),
        (LinuxNamespaceType::Pid, "pid", "--pid host"),
        (LinuxNamespaceType::Ipc, "ipc", "--ipc host"),
        (LinuxNamespaceType::Uts, "uts", "--uts host"),
        (LinuxNamespaceType::Mount, "mount", "the mount namespace of the host"),
    ];
    for (kind, name, flag) in wanted {
        let listed = own.iter().any(|namespace| namespace.typ() == kind);
        let hosts = host.host_namespaces.iter().any(|shared| shared == name);
        if !listed || hosts {
            refusals.add(
                "namespaces",
                format!("the container would share the host's {name} namespace"),
                &format!("start it without {flag}; nothing could be enforced there"),
            );
        }
    }
}

fn mounts(spec: &Spec, policy: &Policy, host: &HostFacts, refusals: &mut Refusals) {
    for (mount, fact) in spec.mounts().iter().flatten().zip(&host.mounts) {
        let named = |path: &str| policy.options.sockets.iter().any(|socket| socket == path);
        if fact.socket && !named(&fact.source) {
            refusals.add(
                "mounts",
                format!("`{}` is a socket that leads out of the sandbox", fact.source.escape_debug()),
                "remove the mount, or name the path under `nemoclaw: {sockets: [...]}` in the policy",
            );
        }
        for exposed in fact.exposes.iter().filter(|exposed| !named(exposed)) {
            refusals.add(
                "mounts",
                format!(
                    "mounting `{}` at `{}` would expose `{exposed}` of the host",
                    fact.source.escape_debug(),
                    mount.destination().display().to_string().escape_debug(),
                ),
                "mount a smaller directory, or name the exposed path under `nemoclaw: {sockets: [...]}` in the policy",
            );
        }
    }
}

fn devices_and_sysctls(spec: &Spec, refusals: &mut Refusals) {
    let Some(linux) = spec.linux() else { return };
    for device in linux.devices().iter().flatten() {
        let path = device.path().display().to_string();
        let harmless =
            HARMLESS_DEVICES.iter().any(|known| path.starts_with(known)) && !path.contains("..");
        if !harmless {
            refusals.add(
                "devices",
                format!("the device `{}` is not one a sandbox gets", path.escape_debug()),
                "start the container without it",
            );
        }
    }
    for name in linux.sysctl().iter().flat_map(std::collections::HashMap::keys) {
        let fine = SYSCTLS
            .iter()
            .any(|known| name == known || (known.ends_with('.') && name.starts_with(known)))
            || name.starts_with("fs.mqueue.");
        if !fine {
            refusals.add(
                "sysctls",
                format!("the sysctl `{}` is not one a sandbox gets", name.escape_debug()),
                "start the container without --sysctl",
            );
        }
    }
    if linux.rootfs_propagation().as_deref().is_some_and(|word| word.contains("shared")) {
        refusals.add(
            "mounts",
            "the root file system would propagate mounts to the host".to_owned(),
            "mount volumes without :shared and :rshared",
        );
    }
}

fn hooks(spec: &Spec, refusals: &mut Refusals) {
    let has = spec
        .hooks()
        .as_ref()
        .is_some_and(|hooks| hooks.start_container().as_ref().is_some_and(|list| !list.is_empty()));
    if has {
        refusals.add(
            "hooks",
            "startContainer hooks would run in the container before it is confined".to_owned(),
            "use createRuntime hooks, which run on the host",
        );
    }
}
