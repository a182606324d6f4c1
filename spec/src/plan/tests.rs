use std::collections::HashMap;
use std::path::Path;

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

struct NoFiles;

impl ContentView for NoFiles {
    fn content(&self, _: &str) -> Result<Vec<u8>, String> {
        Err("is not there".to_owned())
    }
    fn sha256(&self, _: &str) -> Result<String, String> {
        Err("is not there".to_owned())
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
    let plan = Plan::resolve(&spec, &baseline(), &Image::debian(), &host(), &NoFiles).unwrap();
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
    let plan = Plan::resolve(&spec, &baseline(), &Image::debian(), &host(), &NoFiles).unwrap();
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
    assert!(linux.readonly_paths().as_ref().unwrap().contains(&"/proc/sys".to_owned()));
}

#[test]
fn hardening_twice_changes_nothing() {
    let spec = spec(|_| {});
    let plan = Plan::resolve(&spec, &baseline(), &Image::debian(), &host(), &NoFiles).unwrap();
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
    let plan = Plan::resolve(&spec, &baseline(), &Image::debian(), &host, &NoFiles).unwrap();
    assert_eq!((plan.identity.uid, plan.identity.gid), (1000, 1001));
    assert!(plan.make_directories.is_empty());
    // A volume of the engine is nobody's workspace, nor is a system account's.
    for (source, uid) in [("/var/lib/docker/volumes/v/_data", 1000), ("/srv/p", 33), ("/srv/p", 0)]
    {
        host.mounts[0].source = source.to_owned();
        host.mounts[0].uid = uid;
        let plan = Plan::resolve(&spec, &baseline(), &Image::debian(), &host, &NoFiles).unwrap();
        assert_eq!(plan.identity.uid, 10_001, "{source} {uid}");
    }
}

#[test]
fn users_of_the_image_stay_and_group_root_does_not() {
    let spec = spec(|json| {
        json["process"]["user"] =
            serde_json::json!({"uid": 1234, "gid": 0, "additionalGids": [0, 4]});
    });
    let plan = Plan::resolve(&spec, &baseline(), &Image::debian(), &host(), &NoFiles).unwrap();
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
    let plan = Plan::resolve(&spec, &baseline(), &Image::debian(), &host, &NoFiles).unwrap();
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
    });
    let mut host = host();
    host.host_namespaces = vec!["network".to_owned()];
    host.mounts = vec![MountFact {
        source: "/run".to_owned(),
        exposes: vec!["/run/docker.sock".to_owned()],
        ..MountFact::default()
    }];
    let invalid = Plan::resolve(&spec, &baseline(), &Image::debian(), &host, &NoFiles).unwrap_err();
    let steps: Vec<&str> = invalid.refusals.iter().map(|refusal| refusal.step).collect();
    assert_eq!(steps, ["capabilities", "namespaces", "namespaces", "mounts", "devices", "sysctls"]);
    assert!(invalid.refusals.iter().all(|refusal| !refusal.fix.is_empty()));
}

#[test]
fn no_landlock_no_start_unless_the_operator_wrote_so() {
    let mut host = host();
    host.landlock_abi = 0;
    assert!(Plan::resolve(&spec(|_| {}), &baseline(), &Image::debian(), &host, &NoFiles).is_err());
    let mut policy = baseline();
    policy.landlock = LandlockMode::BestEffort;
    assert!(Plan::resolve(&spec(|_| {}), &policy, &Image::debian(), &host, &NoFiles).is_ok());
}

#[test]
fn exec_gets_no_more_than_init() {
    let plan =
        Plan::resolve(&spec(|_| {}), &baseline(), &Image::debian(), &host(), &NoFiles).unwrap();
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
    let plan =
        Plan::resolve(&spec(|_| {}), &baseline(), &Image::debian(), &host(), &NoFiles).unwrap();
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
}

fn policy(nemoclaw: &str) -> Policy {
    Policy::parse(&format!("version: 1\nnemoclaw: {nemoclaw}\n"), "test").unwrap()
}

fn step_down_image() -> Image {
    let mut image = Image::debian();
    let accounts = "root:x:0:0::/root:/bin/sh\ngateway:x:997:996::/sandbox:/bin/sh\nsandbox:x:998:998::/sandbox:/bin/sh\n";
    image.files.insert("/etc/passwd".to_owned(), accounts.to_owned());
    image
}

fn with_capabilities(names: &[&str]) -> Spec {
    spec(|json| json["process"]["capabilities"]["bounding"] = serde_json::json!(names))
}

const ENGINE: [&str; 6] =
    ["CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_FOWNER", "CAP_KILL", "CAP_NET_RAW"];

fn held(spec: &Spec) -> Vec<String> {
    let sets = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
    let mut names: Vec<String> =
        sets.bounding().iter().flatten().map(ToString::to_string).collect();
    assert_eq!(sets.bounding(), sets.effective());
    assert_eq!(sets.bounding(), sets.permitted());
    names.sort_unstable();
    names
}

#[test]
fn an_entry_point_steps_down_from_root_and_exec_never_is_root() {
    let policy = policy("{capabilities: {profile: step-down, identities: [gateway, 1234]}}");
    let spec = with_capabilities(&ENGINE);
    let plan = Plan::resolve(&spec, &policy, &step_down_image(), &host(), &NoFiles).unwrap();
    assert!(plan.step_down && plan.filter.root_possible);
    assert_eq!(plan.filter.identities, Some(vec![0, 996, 997, 998, 1234]));
    let init = harden(spec.clone(), &plan, "/r", "/c", false);
    assert_eq!(init.process().as_ref().unwrap().user().uid(), 0);
    assert_eq!(held(&init).len(), 5);
    assert!(!held(&init).iter().any(|name| name.contains("NET_RAW")));
    let exec = plan.confine_process(spec.process().clone().unwrap()).unwrap();
    assert_eq!((exec.user().uid(), exec.user().gid()), (998, 998));
    assert_eq!(exec.capabilities().as_ref().unwrap().bounding().as_ref().unwrap().len(), 0);
}

#[test]
fn a_step_down_the_engine_forbids_or_that_names_a_stranger_is_refused() {
    let stepping = policy("{capabilities: {profile: step-down, identities: [nobody-here]}}");
    let error = Plan::resolve(
        &with_capabilities(&ENGINE[..3]),
        &stepping,
        &step_down_image(),
        &host(),
        &NoFiles,
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("FOWNER, KILL"), "{error}");
    assert!(error.contains("nobody-here"), "{error}");
    let mut user = with_capabilities(&ENGINE[..1]);
    user.process_mut().as_mut().unwrap().user_mut().set_uid(1000);
    let stepping = policy("{capabilities: {profile: step-down}}");
    let plan = Plan::resolve(&user, &stepping, &step_down_image(), &host(), &NoFiles).unwrap();
    assert!(!plan.step_down, "an image with a user of its own steps down from nothing");
}

#[test]
fn capabilities_are_kept_only_where_policy_and_engine_agree() {
    let keeping = policy("{capabilities: {keep: [CAP_NET_BIND_SERVICE, SETUID, SYS_NICE]}}");
    let spec = with_capabilities(&["CAP_SYS_NICE", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW"]);
    let plan = Plan::resolve(&spec, &keeping, &Image::debian(), &host(), &NoFiles).unwrap();
    assert_eq!(plan.capabilities, ["NET_BIND_SERVICE", "SYS_NICE"]);
    assert!(!plan.filter.root_possible);
    let init = harden(spec.clone(), &plan, "/r", "/c", false);
    assert_eq!(held(&init).len(), 2);
    let ambient = |process: &Process| {
        process.capabilities().as_ref().unwrap().ambient().as_ref().unwrap().len()
    };
    assert_eq!(ambient(init.process().as_ref().unwrap()), 2);
    let exec = plan.confine_process(spec.process().clone().unwrap()).unwrap();
    assert_eq!(ambient(&exec), 2);
}

#[test]
fn system_only_leaves_no_writable_place_executable() {
    let spec = spec(|json| {
        json["mounts"] = serde_json::json!([
            {"destination": "/work", "type": "bind", "source": "/w", "options": ["rbind", "exec"]},
            {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs"},
        ]);
    });
    let plan =
        Plan::resolve(&spec, &policy("{exec: system-only}"), &Image::debian(), &host(), &NoFiles);
    let plan = plan.unwrap();
    assert!(plan.landlock.system_only && plan.filter.system_only);
    for path in ["/tmp", "/var/tmp", "/sandbox"] {
        assert!(plan.no_exec_mounts.iter().any(|own| own == path), "{path}");
    }
    let mounts = harden(spec, &plan, "/r", "/c", false).mounts().clone().unwrap();
    for path in ["/tmp", "/var/tmp", "/sandbox", "/work", "/scratch"] {
        let of_path = |mount: &&oci_spec::runtime::Mount| mount.destination() == Path::new(path);
        let options = mounts.iter().rev().find(of_path).unwrap().options().clone().unwrap();
        assert!(options.iter().any(|option| option == "noexec"), "{path} {options:?}");
        assert!(!options.iter().any(|option| option == "exec"), "{path} {options:?}");
    }
}

#[test]
fn a_device_is_given_when_the_policy_names_the_same_one_of_the_host() {
    let fuse = |json: &mut serde_json::Value| {
        json["linux"]["devices"] =
            serde_json::json!([{"path": "/dev/x", "type": "c", "major": 10, "minor": 229}]);
    };
    let refused =
        Plan::resolve(&spec(fuse), &baseline(), &Image::debian(), &host(), &NoFiles).unwrap_err();
    assert!(refused.to_string().contains("/dev/x"), "{refused}");
    let device = DeviceFact { block: false, major: 10, minor: 229 };
    let named = HostFacts { devices: vec![device], ..host() };
    let plan = Plan::resolve(&spec(fuse), &baseline(), &Image::debian(), &named, &NoFiles).unwrap();
    assert!(plan.landlock.read_write.iter().any(|path| path == "/dev/x"));
}

#[test]
fn the_engine_may_lower_the_process_limit_and_raise_it_to_the_policy_s_most() {
    let asking = |limit: i64| {
        spec(|json| json["linux"]["resources"] = serde_json::json!({"pids": {"limit": limit}}))
    };
    let pids = |limit: i64, text: &str| {
        Plan::resolve(&asking(limit), &policy(text), &Image::debian(), &host(), &NoFiles)
            .unwrap()
            .pids
    };
    assert_eq!(pids(100, "{}"), 100);
    assert_eq!(pids(4000, "{}"), 512);
    assert_eq!(pids(4000, "{resources: {pids_max: 1024}}"), 1024);
    assert_eq!(pids(0, "{resources: {pids_max: 1024}}"), 512);
    // `--ulimit nproc` means the sandbox as well.
    let limited = |number: u64, text: &str| {
        let spec = spec(|json| {
            let limit = serde_json::json!({"type": "RLIMIT_NPROC", "soft": number, "hard": number});
            json["process"]["rlimits"] = serde_json::json!([limit]);
        });
        Plan::resolve(&spec, &policy(text), &Image::debian(), &host(), &NoFiles).unwrap().pids
    };
    assert_eq!(limited(100, "{}"), 100);
    assert_eq!(limited(4000, "{}"), 512);
    assert_eq!(limited(4000, "{resources: {pids_max: 1024}}"), 1024);
}

#[test]
fn start_container_hooks_are_ours_to_run() {
    let spec = spec(|json| {
        json["hooks"] = serde_json::json!({
            "startContainer": [{"path": "/x"}], "poststop": [{"path": "/y"}]
        });
    });
    let plan = Plan::resolve(&spec, &baseline(), &Image::debian(), &host(), &NoFiles).unwrap();
    assert_eq!(plan.start_hooks.len(), 1);
    let hooks = harden(spec, &plan, "/r", "/c", false).hooks().clone().unwrap();
    assert!(hooks.start_container().is_none());
    assert_eq!(hooks.poststop().as_ref().unwrap().len(), 1);
}

#[test]
fn files_of_the_engine_are_mounted_read_only() {
    let spec = spec(|json| {
        json["mounts"] = serde_json::json!([
            {"destination": "/etc/hosts", "type": "bind", "source": "/x", "options": ["rbind", "rw"]}
        ]);
    });
    let plan = Plan::resolve(&spec, &baseline(), &Image::debian(), &host(), &NoFiles).unwrap();
    let mounts = harden(spec, &plan, "/r", "/c", false).mounts().clone().unwrap();
    let options = mounts[0].options().clone().unwrap();
    assert!(options.iter().any(|option| option == "ro") && !options.iter().any(|o| o == "rw"));
}

#[test]
fn a_landlock_that_cannot_do_what_the_plan_means_is_refused() {
    for (abi, fine) in [(1, false), (2, false), (3, false), (4, false), (5, true), (7, true)] {
        let host = HostFacts { landlock_abi: abi, ..host() };
        let resolve = |policy: &Policy| {
            Plan::resolve(&spec(|_| {}), policy, &Image::debian(), &host, &NoFiles)
        };
        assert_eq!(resolve(&baseline()).is_ok(), fine, "ABI {abi}");
        assert_eq!(resolve(&policy("{isolate_exec: true}")).is_ok(), abi >= 6, "ABI {abi}");
        let mut accepting = baseline();
        accepting.landlock = LandlockMode::BestEffort;
        let accepted = resolve(&accepting).unwrap();
        // What is lost is said.
        let said = accepted.notes.iter().any(|note| note.starts_with("Landlock: this kernel"));
        assert_eq!(said, abi < 6, "ABI {abi}");
    }
}

#[test]
fn what_gives_files_to_root_keeps_set_id_bits_away_and_rings_and_namespaces_too() {
    let spec = with_capabilities(&["CAP_CHOWN", "CAP_FOWNER", "CAP_NET_BIND_SERVICE"]);
    let resolve =
        |text: &str| Plan::resolve(&spec, &policy(text), &Image::debian(), &host(), &NoFiles);
    for kept in ["CHOWN", "FOWNER"] {
        let keep = format!("capabilities: {{keep: [{kept}]}}");
        assert!(resolve(&format!("{{{keep}}}")).unwrap().filter.root_possible);
        for word in ["io_uring", "userns"] {
            let error = resolve(&format!("{{{keep}, seccomp: {{allow: [{word}]}}}}")).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
    let harmless = "{capabilities: {keep: [NET_BIND_SERVICE]}, seccomp: {allow: [io_uring]}}";
    assert!(!resolve(harmless).unwrap().filter.root_possible);
}

#[test]
fn memory_and_processors_are_the_lesser_of_engine_s_and_policy_s() {
    let limited = policy("{resources: {memory: 1GiB, cpus: 1.5}}");
    let hardened = |resources: serde_json::Value| {
        let spec = spec(|json| json["linux"]["resources"] = resources);
        let plan = Plan::resolve(&spec, &limited, &Image::debian(), &host(), &NoFiles).unwrap();
        let resources = harden(spec, &plan, "/r", "/c", false);
        let resources = resources.linux().as_ref().unwrap().resources().clone().unwrap();
        let cpu = resources.cpu().clone().unwrap();
        (resources.memory().unwrap().limit().unwrap(), cpu.quota().unwrap(), cpu.period().unwrap())
    };
    assert_eq!(hardened(serde_json::json!({})), (1 << 30, 150_000, 100_000));
    let less =
        serde_json::json!({"memory": {"limit": 4096}, "cpu": {"quota": 1000, "period": 50_000}});
    assert_eq!(hardened(less), (4096, 1000, 50_000));
    let more =
        serde_json::json!({"memory": {"limit": -1}, "cpu": {"quota": 400_000, "period": 200_000}});
    assert_eq!(hardened(more), (1 << 30, 300_000, 200_000));
    let plan = Plan::resolve(&spec(|_| {}), &limited, &Image::debian(), &host(), &NoFiles).unwrap();
    let mut update = oci_spec::runtime::LinuxResources::default();
    limit(&mut update, &plan, false);
    assert!(update.memory().is_none() && update.cpu().is_none());
}

fn with_workspace(spec: &mut serde_json::Value) {
    spec["mounts"] = serde_json::json!([
        {"destination": "/sandbox", "type": "bind", "source": "/home/p", "options": ["rbind"]},
    ]);
    spec["process"]["cwd"] = "/sandbox".into();
}

fn workspace_host(tools: &[(&str, bool, bool, bool)]) -> HostFacts {
    let tools = tools.iter().map(|(path, pin, linked, hard_linked)| ToolFact {
        path: (*path).to_owned(),
        pin: *pin,
        linked: *linked,
        hard_linked: *hard_linked,
        device: 1,
        inode: 2,
    });
    let fact = MountFact {
        source: "/home/p".to_owned(),
        directory: true,
        uid: 1500,
        gid: 1501,
        tools: tools.collect(),
        ..MountFact::default()
    };
    HostFacts { mounts: vec![fact], ..host() }
}

#[test]
fn tool_files_of_a_workspace_are_watched_or_read_only() {
    let tools = [(".git", true, false, false), (".git/hooks", false, false, false)];
    let resolve = |words: &str, tools: &[(&str, bool, bool, bool)]| {
        Plan::resolve(
            &spec(with_workspace),
            &policy(words),
            &Image::debian(),
            &workspace_host(tools),
            &NoFiles,
        )
    };
    let plan = resolve("{}", &tools).unwrap();
    assert_eq!(plan.guard.watched, ["/sandbox"]);
    assert!(plan.guard.own_mounts.is_empty());
    assert_eq!(resolve("{tool_files: 'off'}", &tools).unwrap().guard, GuardPlan::default());
    let plan = resolve("{tool_files: read-only}", &tools).unwrap();
    let own: Vec<_> =
        plan.guard.own_mounts.iter().map(|own| (own.path.as_str(), own.read_only)).collect();
    assert_eq!(own, [("/sandbox/.git", false), ("/sandbox/.git/hooks", true)]);
    let hardened = harden(spec(with_workspace), &plan, "/images/x", "/x", true);
    let last = hardened.mounts().as_ref().unwrap().last().unwrap().clone();
    assert_eq!(last.destination(), Path::new("/sandbox/.git/hooks"));
    assert!(last.options().as_ref().unwrap().contains(&"ro".to_owned()));
    // What is mounted deeper comes along.
    assert_eq!(last.source().as_ref().unwrap(), Path::new("/images/x/sandbox/.git/hooks"));
    for (linked, hard_linked, told) in [(true, false, "symbolic"), (false, true, "hard link")] {
        let tools = [(".envrc", false, linked, hard_linked)];
        let refused = resolve("{tool_files: read-only}", &tools).unwrap_err().to_string();
        assert!(refused.contains(told), "{refused}");
        assert!(resolve("{}", &tools).is_ok());
    }
}

#[test]
fn ids_are_exchanged_where_the_container_s_user_is_not_the_workspace_s() {
    let resolve = |uid: u32, words: &str| {
        let spec = spec(|spec| {
            with_workspace(spec);
            spec["process"]["user"] = serde_json::json!({"uid": uid, "gid": uid});
        });
        let host = workspace_host(&[]);
        let plan = Plan::resolve(&spec, &policy(words), &Image::debian(), &host, &NoFiles);
        plan.unwrap().guard.id_map
    };
    // Root becomes the owner.
    assert_eq!(resolve(0, "{}"), None);
    assert_eq!(resolve(1500, "{}").unwrap().container, (1500, 1500));
    assert_eq!(resolve(0, "{allow_root: true}"), None);
    assert_eq!(
        resolve(1000, "{}"),
        Some(IdMap { path: "/sandbox".to_owned(), host: (1500, 1501), container: (1000, 1000) })
    );
}

#[test]
fn groups_are_kept_where_policy_names_them_and_the_engine_gives_them() {
    let spec = spec(|spec| {
        spec["process"]["user"] =
            serde_json::json!({"uid": 1000, "gid": 1000, "additionalGids": [0, 44, 29]});
    });
    let resolve =
        |words: &str| Plan::resolve(&spec, &policy(words), &Image::debian(), &host(), &NoFiles);
    let plan = resolve("{groups: ['44', '45']}").unwrap();
    assert_eq!(plan.identity.groups, [44, 45]);
    let hardened = harden(spec.clone(), &plan, "/images/x", "/x", true);
    let user = hardened.process().as_ref().unwrap().user().clone();
    assert_eq!(user.additional_gids().as_deref(), Some(&[44][..]));
    let process = plan.confine_process(spec.process().clone().unwrap()).unwrap();
    assert_eq!(process.user().additional_gids().as_deref(), Some(&[44][..]));
    for (words, told) in
        [("{groups: [nosuch]}", "no such group"), ("{groups: ['00']}", "root's group")]
    {
        let refused = resolve(words).unwrap_err().to_string();
        assert!(refused.contains(told), "{refused}");
    }
    let plan = resolve("{}").unwrap();
    let process = plan.confine_process(spec.process().clone().unwrap()).unwrap();
    assert_eq!(process.user().additional_gids().as_deref(), None);
}

#[test]
fn a_tmp_in_memory_has_its_size_unless_the_engine_mounts_one() {
    let policy = policy("{resources: {tmp: 8MiB}}");
    let plain = spec(|_| {});
    let plan = Plan::resolve(&plain, &policy, &Image::debian(), &host(), &NoFiles).unwrap();
    let hardened = harden(plain, &plan, "/images/x", "/x", true);
    let first = hardened.mounts().as_ref().unwrap().first().unwrap().clone();
    assert_eq!(first.destination(), Path::new("/tmp"));
    assert!(first.options().as_ref().unwrap().contains(&"size=8388608".to_owned()));
    let mounted = spec(|spec| {
        spec["mounts"] = serde_json::json!([{"destination": "/tmp", "type": "tmpfs"}]);
    });
    let plan = Plan::resolve(&mounted, &policy, &Image::debian(), &host(), &NoFiles).unwrap();
    assert_eq!(plan.tmp, None);
}

#[test]
fn shields_are_mounts_of_their_own() {
    let fact = |path: &str, pin: bool, found: Result<(), &str>| ShieldFact {
        path: path.to_owned(),
        pin,
        found: found.map_err(str::to_owned),
        device: 1,
        inode: 2,
    };
    let resolve = |state: &str, shields: Vec<ShieldFact>| {
        let policy = policy(&format!("{{shields: {{paths: [/sandbox/a/b], state: {state}}}}}"));
        let mut image = Image::debian();
        image.dir("/sandbox", 10_001);
        let host = HostFacts { shields, ..host() };
        Plan::resolve(&spec(|_| {}), &policy, &image, &host, &NoFiles)
    };
    let facts = || vec![fact("/sandbox/a", true, Ok(())), fact("/sandbox/a/b", false, Ok(()))];
    let locked = |state: &str| -> Vec<bool> {
        let plan = resolve(state, facts()).unwrap();
        plan.guard.own_mounts.iter().map(|own| own.read_only).collect()
    };
    assert_eq!(locked("up"), [false, true]);
    assert_eq!(locked("down"), [false, false]);
    let refused = resolve("up", vec![fact("/sandbox/a/b", false, Err("is not there"))]);
    assert!(refused.unwrap_err().to_string().contains("is not there"));
    let refused = resolve("up", vec![fact("/usr", false, Ok(()))]);
    assert!(refused.unwrap_err().to_string().contains("not writable"));
}

#[test]
fn an_image_is_known_by_its_digest() {
    let digest = |n: u32| format!("sha256:{n:0>64}");
    let resolve = |words: &str, known: &[u32]| {
        let policy = policy(&format!("{{images: {{digests: ['{}'], {words}}}}}", digest(1)));
        let image = known.iter().map(|n| digest(*n)).collect();
        let host = HostFacts { image, ..host() };
        Plan::resolve(&spec(|_| {}), &policy, &Image::debian(), &host, &NoFiles)
    };
    assert!(resolve("unknown: refuse", &[2, 1]).is_ok());
    assert!(resolve("unknown: warn", &[2]).unwrap_err().to_string().contains("does not name"));
    assert!(resolve("unknown: refuse", &[]).unwrap_err().to_string().contains("does not tell"));
    let plan = resolve("unknown: warn", &[]).unwrap();
    assert!(plan.notes.iter().any(|note| note.contains("not compared")), "{:?}", plan.notes);
}
