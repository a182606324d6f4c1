//! Facts about the host and the engine's request, gathered before planning.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use libcgroups::common::{CgroupSetup, get_cgroup_setup};
use nemoclaw_spec::plan::{DeviceFact, HostFacts, Ids, MountFact};
use nemoclaw_spec::policy::{Policy, ToolFiles};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use rustix::process::{Resource, getrlimit};

use crate::image::Image;
use crate::{origin, proxy, sys, workspace};

/// Longest hosts or resolver file read, in bytes.
const MAX_FILE_BYTES: usize = 256 * 1024;

/// Paths of the host that lead out of any sandbox: control sockets, and what
/// belongs to the kernel or to us.
const SENSITIVE: [&str; 20] = [
    "/proc",
    "/sys",
    "/etc/nemoclaw",
    "/run/nemoclaw",
    "/var/lib/nemoclaw",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/containerd/containerd.sock.ttrpc",
    "/run/containerd/s",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/buildkit/buildkitd.sock",
    "/run/systemd/private",
    "/run/systemd/notify",
    "/run/systemd/journal/socket",
    "/run/dbus/system_bus_socket",
    "/run/user",
    "/run/snapd.socket",
    "/run/libvirt/libvirt-sock",
    "/tmp/.X11-unix",
];

/// Gathers everything planning needs to know.
pub(crate) fn gather(spec: &Spec, policy: &Policy, image: &Image, id: &str) -> HostFacts {
    let ids = Ids::of(spec);
    let locks = policy.options.tool_files == ToolFiles::ReadOnly;
    let ways = ways_out();
    let mounts: Vec<MountFact> =
        spec.mounts().iter().flatten().map(|own| mount(own, &ids, locks, &ways)).collect();
    HostFacts {
        shields: workspace::shields(spec, policy, image, &mounts),
        image: origin::digests(spec, &policy.options, id),
        landlock_abi: sys::landlock_abi(),
        nofile_max: getrlimit(Resource::Nofile).maximum.unwrap_or(1_048_576),
        cgroup_v1: cgroup_v1(),
        pids_controller: pids_controller(),
        mounts,
        host_namespaces: host_namespaces(spec),
        foreign_namespaces: joined(spec)
            .into_iter()
            .filter(|(_, pid)| !ours(*pid))
            .map(|(name, _)| name.to_owned())
            .collect(),
        shares_pids_beyond: shares_pids_beyond(spec),
        devices: policy.options.devices.iter().filter_map(|path| device(path)).collect(),
    }
}

fn device(path: &str) -> Option<DeviceFact> {
    let metadata = fs::metadata(path).ok()?;
    let kind = metadata.file_type();
    (kind.is_block_device() || kind.is_char_device()).then(|| DeviceFact {
        block: kind.is_block_device(),
        major: rustix::fs::major(metadata.rdev()).into(),
        minor: rustix::fs::minor(metadata.rdev()).into(),
    })
}

/// Whether controllers are managed through cgroup v1.
pub(crate) fn cgroup_v1() -> bool {
    !matches!(get_cgroup_setup(), Ok(CgroupSetup::Unified))
}

/// Whether the number of processes of a cgroup can be limited.
pub(crate) fn pids_controller() -> bool {
    if cgroup_v1() {
        return Path::new("/sys/fs/cgroup/pids/cgroup.procs").exists();
    }
    fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
        .is_ok_and(|text| text.split_whitespace().any(|controller| controller == "pids"))
}

fn mount(mount: &Mount, ids: &Ids, locks: bool, ways: &[WayOut]) -> MountFact {
    let options = mount.options().as_deref().unwrap_or_default();
    let bind = mount.typ().as_deref() == Some("bind")
        || options.iter().any(|option| option == "bind" || option == "rbind");
    let Some(source) = mount.source().as_ref().filter(|source| bind && source.is_absolute()) else {
        return MountFact::default();
    };
    // A source that does not exist fails later, with the runtime's own words.
    let Ok(real) = fs::canonicalize(source) else { return MountFact::default() };
    let Ok(metadata) = fs::metadata(&real) else { return MountFact::default() };
    let (uid, gid) = ids.inside(metadata.uid(), metadata.gid());
    MountFact {
        directory: metadata.is_dir(),
        socket: metadata.file_type().is_socket(),
        exposes: {
            let mut exposes = exposed_by(&real, (metadata.dev(), metadata.ino()), ways);
            if exposes.is_empty() && metadata.is_dir() {
                exposes = listeners_below(&real);
            }
            exposes
        },
        device: metadata.dev(),
        inode: metadata.ino(),
        uid,
        gid,
        tools: if locks && metadata.is_dir() { workspace::tools(&real) } else { Vec::new() },
        source: real.display().to_string(),
    }
}

/// Sockets in a directory that some program of the host listens on
/// (proc_net_unix(5)): no Landlock ABI here governs connecting to them.
fn listeners_below(directory: &Path) -> Vec<String> {
    const LISTENING: &str = "00010000";
    let text = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let listening = fields.nth(3)? == LISTENING;
            let path = fields.nth(3)?;
            listening.then_some(path)
        })
        .filter(|path| path.starts_with('/'))
        .filter(|path| fs::canonicalize(path).is_ok_and(|real| real.starts_with(directory)))
        .take(4)
        .map(str::to_owned)
        .collect()
}

/// One of [`SENSITIVE`], as the host has it.
struct WayOut {
    path: &'static str,
    exists: bool,
    /// Device and inode of it and of every directory above it.
    leads_through: Vec<(u64, u64)>,
}

fn ways_out() -> Vec<WayOut> {
    let identity =
        |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    let way = |path: &'static str| {
        let exists = Path::new(path).symlink_metadata().is_ok();
        let above = Path::new(path).ancestors().filter(|_| exists);
        WayOut { path, exists, leads_through: above.filter_map(identity).collect() }
    };
    SENSITIVE.into_iter().map(way).collect()
}

/// By path, and by what the path leads to: a volume may be a bind of `/`.
fn exposed_by(source: &Path, identity: (u64, u64), ways: &[WayOut]) -> Vec<String> {
    ways.iter()
        .filter(|way| {
            (way.exists && Path::new(way.path).starts_with(source))
                || source.starts_with(way.path)
                || way.leads_through.contains(&identity)
        })
        .take(4)
        .map(|way| way.path.to_owned())
        .collect()
}

/// Namespaces of the spec that have a path and are the host's all the same:
/// engines write `--network host` so.
fn host_namespaces(spec: &Spec) -> Vec<String> {
    let mut shared = Vec::new();
    for namespace in spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten()) {
        let Some(path) = namespace.path() else { continue };
        let (name, file) = match namespace.typ() {
            LinuxNamespaceType::Network => ("network", "net"),
            LinuxNamespaceType::Pid => ("pid", "pid"),
            LinuxNamespaceType::Ipc => ("ipc", "ipc"),
            LinuxNamespaceType::Uts => ("uts", "uts"),
            LinuxNamespaceType::Mount => ("mount", "mnt"),
            LinuxNamespaceType::Cgroup | LinuxNamespaceType::User | LinuxNamespaceType::Time => {
                continue;
            }
        };
        let inode = |path: &Path| fs::metadata(path).map(|metadata| metadata.ino()).ok();
        let wanted = inode(path);
        let hosts =
            ["self", "1"].map(|process| inode(Path::new(&format!("/proc/{process}/ns/{file}"))));
        if wanted.is_some() && hosts.contains(&wanted) {
            shared.push(name.to_owned());
        }
    }
    shared
}

/// Pid, ipc and uts namespaces that the spec takes from a process, and its pid.
/// (The network namespace is examined when it is joined.)
fn joined(spec: &Spec) -> Vec<(&'static str, i32)> {
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    namespaces
        .filter_map(|namespace| {
            let name = match namespace.typ() {
                LinuxNamespaceType::Pid => "pid",
                LinuxNamespaceType::Ipc => "ipc",
                LinuxNamespaceType::Uts => "uts",
                _ => return None,
            };
            Some((name, process_of(namespace.path().as_deref()?)?))
        })
        .collect()
}

/// PID of a path `/proc/PID/ns/...`.
fn process_of(path: &Path) -> Option<i32> {
    let mut parts = path.strip_prefix("/proc").ok()?.components();
    parts.next()?.as_os_str().to_str()?.parse().ok()
}

/// Whether a process lives in a sandbox of ours.
fn ours(pid: i32) -> bool {
    proxy::inode(Path::new(&format!("/proc/{pid}/ns/net")))
        .is_ok_and(|inode| proxy::alive(&proxy::directory(inode)))
}

/// A pid namespace taken from a process whose network namespace is not taken.
fn shares_pids_beyond(spec: &Spec) -> bool {
    let namespaces = || spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    let network = namespaces()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Network)
        .and_then(|namespace| proxy::inode(namespace.path().as_deref()?).ok());
    namespaces().filter(|namespace| namespace.typ() == LinuxNamespaceType::Pid).any(|namespace| {
        let Some(pid) = namespace.path().as_deref().and_then(process_of) else { return false };
        let theirs = proxy::inode(Path::new(&format!("/proc/{pid}/ns/net"))).ok();
        network.is_none() || network != theirs
    })
}

/// Source of the engine's mount at `destination`.
fn engine_file(spec: &Spec, destination: &str) -> Option<String> {
    let mount = spec
        .mounts()
        .iter()
        .flatten()
        .rev()
        .find(|mount| mount.destination() == Path::new(destination))?;
    read_bounded(mount.source().as_ref()?)
}

fn read_bounded(path: &Path) -> Option<String> {
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut bytes = fs::read(path).ok()?;
    bytes.truncate(MAX_FILE_BYTES);
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Names in the hosts file the engine wrote, read before user code runs.
pub(crate) fn hosts(spec: &Spec) -> Vec<(IpAddr, Vec<String>)> {
    parse_hosts(&engine_file(spec, "/etc/hosts").unwrap_or_default())
}

fn parse_hosts(text: &str) -> Vec<(IpAddr, Vec<String>)> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next()?.parse::<IpAddr>().ok()?;
            let names: Vec<String> = words.take(64).map(str::to_owned).collect();
            let outside =
                !address.is_loopback() && !address.is_multicast() && !address.is_unspecified();
            (outside && !names.is_empty()).then_some((address, names))
        })
        .take(4096)
        .collect()
}

/// Resolvers and search domains: the resolver file the engine wrote, else the
/// host's own.
pub(crate) fn resolvers(spec: &Spec) -> (Vec<SocketAddr>, Vec<String>) {
    let text = engine_file(spec, "/etc/resolv.conf")
        .or_else(|| read_bounded(Path::new("/etc/resolv.conf")))
        .unwrap_or_default();
    parse_resolvers(&text)
}

fn parse_resolvers(text: &str) -> (Vec<SocketAddr>, Vec<String>) {
    let mut servers = Vec::new();
    let mut search = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                // A loopback resolver other than the engine's own would be the
                // sandbox answering itself.
                let usable = address.filter(|address| {
                    *address == IpAddr::from([127, 0, 0, 11])
                        || nemoclaw_spec::address::classify(*address)
                            != nemoclaw_spec::address::AddressClass::Never
                });
                servers.extend(usable.map(|address| SocketAddr::new(address, 53)));
            }
            Some("search" | "domain") => search = words.take(6).map(str::to_owned).collect(),
            _ => {}
        }
    }
    servers.truncate(3);
    (servers, search)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_file_gives_names_outside_the_sandbox_only() {
        let text = "127.0.0.1 localhost\n::1 ip6-localhost\n203.0.113.9 db db.corp.example # c\nbad line\n";
        let hosts = parse_hosts(text);
        assert_eq!(
            hosts,
            [("203.0.113.9".parse().unwrap(), vec!["db".to_owned(), "db.corp.example".to_owned()])]
        );
    }

    #[test]
    fn a_resolver_file_gives_three_servers_at_most() {
        let text = "# c\nnameserver 127.0.0.11\nnameserver x\nsearch a.example b.example\noptions ndots:0\n";
        let (servers, search) = parse_resolvers(text);
        assert_eq!(servers, ["127.0.0.11:53".parse().unwrap()]);
        assert_eq!(search, ["a.example", "b.example"]);
    }

    #[test]
    fn a_parent_of_a_control_path_exposes_it() {
        let ways = ways_out();
        assert_eq!(exposed_by(Path::new("/proc/1"), (0, 0), &ways), ["/proc"]);
        assert!(exposed_by(Path::new("/"), (0, 0), &ways).contains(&"/proc".to_owned()));
        assert!(exposed_by(Path::new("/home"), (0, 0), &ways).is_empty());
        // By another name for the same directory.
        let root = fs::metadata("/").unwrap();
        let found = exposed_by(Path::new("/mnt"), (root.dev(), root.ino()), &ways);
        assert!(found.contains(&"/proc".to_owned()), "{found:?}");
    }
}
