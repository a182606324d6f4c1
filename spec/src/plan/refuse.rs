//! What a container may not ask for at all.

use oci_spec::runtime::{Capability, LinuxDeviceType, LinuxNamespaceType, Spec};

use super::{HostFacts, Refusals};
use crate::control::{WORKER_UID_BASE, WORKER_UID_END};
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

/// Character devices every container has, by major and minor number. The path
/// an engine gives a device inside says nothing.
pub(super) const STANDARD_DEVICES: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];
/// Major numbers of graphics devices: NVIDIA's first and DRI.
const GRAPHICS: [i64; 2] = [195, 226];

const SYSCTLS: [&str; 19] = [
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
    "net.core.somaxconn",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv6.conf.all.disable_ipv6",
    "net.ipv6.conf.default.disable_ipv6",
];

pub(super) fn check(
    spec: &Spec,
    policy: &Policy,
    host: &HostFacts,
    refusals: &mut Refusals,
    notes: &mut Vec<String>,
) {
    for finding in &policy.unenforced.0 {
        refusals.add("policy", finding.to_string(), "or select another policy");
    }
    capabilities(spec, policy, refusals, notes);
    namespaces(spec, host, refusals);
    id_mappings(spec, refusals);
    mounts(spec, policy, host, refusals);
    devices_and_sysctls(spec, host, refusals);
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
        .filter(|name| {
            let name = name.strip_prefix("CAP_").unwrap_or(name);
            !policy.options.keep_capabilities.iter().any(|kept| kept == name)
        })
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
            "start it without --cap-add and --privileged, or write `nemoclaw: {capabilities: {excess: strip}}` in the policy to start it without them",
        ),
    }
}

fn namespaces(spec: &Spec, host: &HostFacts, refusals: &mut Refusals) {
    for name in &host.foreign_namespaces {
        refusals.add(
            "namespaces",
            format!("the {name} namespace belongs to a container that nemoclaw does not confine"),
            "start both containers with this runtime",
        );
    }
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

/// A user namespace must not map a container's ids onto those of the proxies.
fn id_mappings(spec: &Spec, refusals: &mut Refusals) {
    let Some(linux) = spec.linux() else { return };
    let mappings =
        linux.uid_mappings().iter().flatten().chain(linux.gid_mappings().iter().flatten());
    for mapping in mappings {
        let end = u64::from(mapping.host_id()) + u64::from(mapping.size());
        if u64::from(mapping.host_id()) < u64::from(WORKER_UID_END)
            && end > u64::from(WORKER_UID_BASE)
        {
            refusals.add(
                "user namespace",
                format!(
                    "it maps onto the ids of nemoclaw's proxies (host ids {} to {})",
                    mapping.host_id(),
                    end - 1
                ),
                "give the container other subordinate ids",
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

fn devices_and_sysctls(spec: &Spec, host: &HostFacts, refusals: &mut Refusals) {
    let Some(linux) = spec.linux() else { return };
    let mut refused = Vec::new();
    for device in linux.devices().iter().flatten() {
        let path = device.path().display().to_string();
        let harmless = matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U)
            && (GRAPHICS.contains(&device.major())
                || STANDARD_DEVICES.iter().any(|(major, minor)| {
                    *major == device.major() && minor.is_none_or(|minor| minor == device.minor())
                }));
        let named = host.devices.iter().any(|known| {
            (known.block == (device.typ() == LinuxDeviceType::B))
                && (known.major, known.minor) == (device.major(), device.minor())
        });
        if !harmless && !named {
            refused.push(format!("`{}`", path.escape_debug()));
        }
    }
    // --privileged asks for every device of the host.
    let more = refused.len().saturating_sub(3);
    refused.truncate(3);
    if !refused.is_empty() {
        let further = if more > 0 { format!(" and {more} more") } else { String::new() };
        refusals.add(
            "devices",
            format!("a sandbox does not get the device {}{further}", refused.join(", ")),
            "start the container without --device and --privileged, or name the host's device under `nemoclaw: {devices: [...]}` in the policy",
        );
    }
    for name in linux.sysctl().iter().flat_map(std::collections::HashMap::keys) {
        let fine = SYSCTLS.contains(&name.as_str()) || name.starts_with("fs.mqueue.");
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
