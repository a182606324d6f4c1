use std::collections::HashMap;

use super::*;

/// An image as a map.
#[derive(Default)]
struct Image {
    paths: HashMap<String, PathFact>,
    files: HashMap<String, String>,
}

impl Image {
    fn debian() -> Self {
        let mut image = Self::default();
        for path in [
            "/usr", "/etc", "/opt", "/srv", "/var", "/var/log", "/var/tmp", "/tmp", "/run",
            "/usr/bin",
        ] {
            image.dir(path, 0);
        }
        for (link, real) in [("/bin", "/usr/bin"), ("/lib", "/usr/lib"), ("/sbin", "/usr/sbin")] {
            image.dir(link, 0);
            image.paths.get_mut(link).unwrap().real = real.to_owned();
        }
        image.files.insert("/etc/passwd".to_owned(), "root:x:0:0:root:/root:/bin/sh\n".to_owned());
        image
    }

    fn dir(&mut self, path: &str, uid: u32) {
        let fact = PathFact { real: path.to_owned(), directory: true, uid, gid: uid, mode: 0o755 };
        self.paths.insert(path.to_owned(), fact);
    }
}

impl ImageView for Image {
    fn look(&self, path: &str) -> Option<PathFact> {
        self.paths.get(path).cloned()
    }
    fn read(&self, path: &str) -> Option<String> {
        self.files.get(path).cloned()
    }
    fn list(&self, path: &str) -> Vec<String> {
        if path == "/usr/bin" { vec!["gcc-12".to_owned(), "curl".to_owned()] } else { Vec::new() }
    }
}

fn spec(change: impl FnOnce(&mut serde_json::Value)) -> Spec {
    let mut json = serde_json::json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {
            "cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0},
            "env": ["PATH=/usr/bin:/bin", "LD_PRELOAD=/tmp/x.so"],
            "capabilities": {"bounding": ["CAP_NET_RAW", "CAP_CHOWN"]}
        },
        "mounts": [],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "rootfsPropagation": "rslave"
        }
    });
    change(&mut json);
    serde_json::from_value(json).unwrap()
}

fn host() -> HostFacts {
    HostFacts {
        landlock_abi: 7,
        pids_controller: true,
        nofile_max: 1_048_576,
        ..HostFacts::default()
    }
}

fn baseline() -> Policy {
    Policy::baseline().unwrap()
}

#[test]
fn a_root_image_is_mapped_to_a_fixed_user_with_a_home() {
    let spec = spec(|_| {});
    let plan = Plan::resolve(&spec, &baseline(), &Image::debian(), &host()).unwrap();
    assert_eq!((plan.identity.uid, plan.identity.gid), (10_001, 10_001));
    assert_eq!(plan.identity.home, "/sandbox");
    assert_eq!(
        plan.make_directories,
        [MakeDirectory { path: "/sandbox".to_owned(), uid: 10_001, gid: 10_001 }]
    );
    assert!(plan.landlock.read_write.contains(&"/sandbox".to_owned()));
    assert!(plan.landlock.read_only.contains(&"/usr".to_owned()));
    assert!(plan.masked.contains(&"/usr/bin/gcc-12".to_owned()));
    assert_eq!(plan.read_only_mounts, ["/usr", "/etc", "/opt", "/srv", "/var/log"]);
}

#[test]
fn the_hardened_spec_has_no_capability_and_no_way_to_get_one() {
    let spec = spec(|_| {});
    let plan = Plan::resolve(&spec, &baseline(), &Image::debian(), &host()).unwrap();
    let hardened = harden(spec, &plan, "/images/x", "/nemoclaw/x", true);
    let process = hardened.process().as_ref().unwrap();
    let caps = process.capabilities().as_ref().unwrap();
    for set in
        [caps.bounding(), caps.effective(), caps.inheritable(), caps.permitted(), caps.ambient()]
    {
        assert!(set.as_ref().unwrap().is_empty());
    }
    assert_eq!(process.no_new_privileges(), Some(true));
    assert_eq!(process.user().uid(), 10_001);
    let env = process.env().as_ref().unwrap();
    assert!(env.contains(&"HOME=/sandbox".to_owned()));
    assert!(!env.iter().any(|entry| entry.starts_with("LD_")));
    let linux = hardened.linux().as_ref().unwrap();
    assert_eq!(linux.resources().as_ref().unwrap().pids().as_ref().unwrap().limit(), 512);
    assert_eq!(linux.rootfs_propagation().as_deref(), Some("slave"));
    assert!(linux.readonly_paths().as_ref().unwrap().contains(&"/sys/fs/cgroup/pids".to_owned()));
    let last = hardened.mounts().as_ref().unwrap().last().unwrap();
    assert_eq!(last.source().as_ref().unwrap().to_str(), Some("/images/x/var/log"));
}

#[test]
fn hardening_twice_changes_nothing() {
    let spec = spec(|_| {});
    let plan = Plan::resolve(&spec, &baseline(), &Image::debian(), &host()).unwrap();
    let mut plan = plan;
    plan.read_only_mounts.clear();
    let once = harden(spec, &plan, "/r", "/c", true);
    let twice = harden(once.clone(), &plan, "/r", "/c", true);
    assert_eq!(serde_json::to_value(once).unwrap(), serde_json::to_value(twice).unwrap());
}

#[test]
fn the_owner_of_the_workspace_is_who_works_in_it() {
    let spec = spec(|json| {
        json["process"]["cwd"] = "/sandbox/src".into();
        json["mounts"] = serde_json::json!([
            {"destination": "/sandbox", "type": "bind", "source": "/home/ann/p", "options": ["rbind", "rw"]}]);
    });
    let mut host = host();
    let mount = MountFact {
        source: "/home/ann/p".to_owned(),
        directory: true,
        uid: 1000,
        gid: 1001,
        ..MountFact::default()
    };
    host.mounts = vec![mount];
    let plan = Plan::resolve(&spec, &baseline(), &Image::debian(), &host).unwrap();
    assert_eq!((plan.identity.uid, plan.identity.gid), (1000, 1001));
    assert!(plan.make_directories.is_empty());
    // A volume of the engine is nobody's workspace, nor is a system account's.
    for (source, uid) in [("/var/lib/docker/volumes/v/_data", 1000), ("/srv/p", 33), ("/srv/p", 0)]
    {
        host.mounts[0].source = source.to_owned();
        host.mounts[0].uid = uid;
        let plan = Plan::resolve(&spec, &baseline(), &Image::debian(), &host).unwrap();
        assert_eq!(plan.identity.uid, 10_001, "{source} {uid}");
    }
}

#[test]
fn users_of_the_image_stay_and_group_root_does_not() {
    let spec = spec(|json| {
        json["process"]["user"] =
            serde_json::json!({"uid": 1234, "gid": 0, "additionalGids": [0, 4]});
    });
    let plan = Plan::resolve(&spec, &baseline(), &Image::debian(), &host()).unwrap();
    assert_eq!((plan.identity.uid, plan.identity.gid), (1234, 1234));
    let hardened = harden(spec, &plan, "/r", "/c", false);
    assert!(hardened.process().as_ref().unwrap().user().additional_gids().is_none());
}

#[test]
fn a_volume_never_lifts_a_read_only_path() {
    let spec = spec(|json| {
        json["mounts"] = serde_json::json!([
            {"destination": "/etc", "type": "bind", "source": "x", "options": ["rbind"]},
            {"destination": "/var/lib/data", "type": "bind", "source": "y", "options": ["rbind"]},
            {"destination": "/opt/tools", "type": "bind", "source": "z", "options": ["rbind"]}]);
    });
    let mut host = host();
    for source in
        ["/var/lib/docker/volumes/a/_data", "/var/lib/docker/volumes/b/_data", "/srv/tools"]
    {
        host.mounts.push(MountFact {
            source: source.to_owned(),
            directory: true,
            ..MountFact::default()
        });
    }
    let plan = Plan::resolve(&spec, &baseline(), &Image::debian(), &host).unwrap();
    assert!(!plan.landlock.read_write.contains(&"/etc".to_owned()));
    assert!(plan.landlock.read_write.contains(&"/var/lib/data".to_owned()));
    assert!(plan.landlock.read_write.contains(&"/opt/tools".to_owned()));
}

#[test]
fn what_cannot_be_confined_is_refused_with_every_reason() {
    let spec = spec(|json| {
        json["process"]["capabilities"]["bounding"] = serde_json::json!(["CAP_SYS_ADMIN"]);
        json["linux"]["namespaces"] = serde_json::json!([{"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "network", "path": "/x"}]);
        json["linux"]["devices"] =
            serde_json::json!([{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]);
        json["linux"]["sysctl"] = serde_json::json!({"kernel.core_pattern": "|/x"});
        json["mounts"] = serde_json::json!([{"destination": "/h", "type": "bind", "source": "/var/run", "options": ["rbind"]}]);
        json["hooks"] = serde_json::json!({"startContainer": [{"path": "/x"}]});
    });
    let mut host = host();
    host.host_namespaces = vec!["network".to_owned()];
    host.mounts = vec![MountFact {
        source: "/run".to_owned(),
        exposes: vec!["/run/docker.sock".to_owned()],
        ..MountFact::default()
    }];
    let invalid = Plan::resolve(&spec, &baseline(), &Image::debian(), &host).unwrap_err();
    let steps: Vec<&str> = invalid.refusals.iter().map(|refusal| refusal.step).collect();
    assert_eq!(
        steps,
        ["capabilities", "namespaces", "namespaces", "mounts", "devices", "sysctls", "hooks"]
    );
    assert!(invalid.refusals.iter().all(|refusal| !refusal.fix.is_empty()));
}

#[test]
fn no_landlock_no_start_unless_the_operator_wrote_so() {
    let mut host = host();
    host.landlock_abi = 0;
    assert!(Plan::resolve(&spec(|_| {}), &baseline(), &Image::debian(), &host).is_err());
    let mut policy = baseline();
    policy.landlock = LandlockMode::BestEffort;
    assert!(Plan::resolve(&spec(|_| {}), &policy, &Image::debian(), &host).is_ok());
}

#[test]
fn exec_gets_no_more_than_init() {
    let plan = Plan::resolve(&spec(|_| {}), &baseline(), &Image::debian(), &host()).unwrap();
    let process: Process = serde_json::from_value(serde_json::json!({
        "cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
        "env": ["LD_PRELOAD=x"], "noNewPrivileges": false,
        "capabilities": {"bounding": ["CAP_SYS_ADMIN"], "effective": ["CAP_SYS_ADMIN"]}}))
    .unwrap();
    let confined = plan.confine_process(process).unwrap();
    assert_eq!(confined.user().uid(), 10_001);
    assert!(confined.capabilities().as_ref().unwrap().bounding().as_ref().unwrap().is_empty());
    assert_eq!(confined.no_new_privileges(), Some(true));
    assert!(!confined.env().as_ref().unwrap().iter().any(|entry| entry.starts_with("LD_")));
    let worker: Process = serde_json::from_value(serde_json::json!({
        "cwd": "/", "args": ["sh"], "user": {"uid": 0x7000_0001_u32, "gid": 1}}))
    .unwrap();
    assert!(plan.confine_process(worker).is_err());
}

#[test]
fn a_stored_plan_reads_back() {
    let plan = Plan::resolve(&spec(|_| {}), &baseline(), &Image::debian(), &host()).unwrap();
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
}
