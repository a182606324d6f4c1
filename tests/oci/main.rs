//! The runtime driven as engines drive it, without an engine: bundles over a
//! busybox root file system.

#![expect(clippy::indexing_slicing, reason = "a trial that panics has failed")]

mod confine;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use libtest_mimic::Failed;
use nemoclaw_tests::{
    Done, Outcome, binary, contains, equal, eventually, full, run_as_root, run_command, sh, unique,
    work,
};
use serde_json::{Value, json};

fn main() -> ExitCode {
    run_as_root(vec![
        ("a_container_lives_from_create_to_delete", lifecycle),
        ("exit_codes_are_runc_s", exit_codes),
        ("errors_reach_the_engine_s_log_as_one_json_line", log_line),
        ("ids_that_are_paths_are_refused", bad_ids),
        ("deleting_twice_is_no_error", delete_twice),
        ("exec_gives_exit_codes_and_words_of_runc", exec_codes),
        ("exec_is_confined_like_init", exec_confined),
        ("exec_in_a_created_or_stopped_container", exec_states),
        ("pause_resume_update_events_ps_list", other_verbs),
        ("checkpoint_and_restore_are_refused_in_words", checkpoint),
        ("an_image_with_dev_as_a_symbolic_link_is_refused", linked_dev),
        ("a_policy_is_made_of_files_that_only_root_can_write", extended_policy),
        ("a_policy_others_can_write_is_refused", writable_policy),
        ("a_policy_this_version_cannot_enforce_is_refused_by_name", unenforced_policy),
        ("without_the_proxy_s_binary_nothing_starts", no_proxy),
        ("a_profile_with_a_listener_is_refused", notify_profile),
        ("the_engine_s_seccomp_profile_applies_to_init_and_exec", engine_profile),
        ("killed_at_any_step_of_create_nothing_is_left", killed_in_create),
        ("killed_at_any_step_of_exec_nothing_is_left", killed_in_exec),
        ("many_cycles_leave_nothing", cycles),
        ("a_container_whose_creation_was_cut_short_does_not_start", cut_short),
        ("the_id_that_means_unchanged_is_refused", unchanged_id),
        ("start_container_hooks_run_confined", confine::hooks),
        ("a_start_container_hook_that_fails_stops_the_program", confine::failing_hook),
        ("a_pid_namespace_can_be_joined_whatever_pid_init_gets", confine::joined_pids),
        ("files_that_are_not_as_policy_says_stop_the_start", confine::contents),
        ("a_program_gets_ordinary_signals_and_its_own_pipes", signals_and_pipes),
    ])
}

/// A bundle over the tiny image, and a state root of its own.
struct Bundle {
    directory: tempfile::TempDir,
    id: String,
}

impl Bundle {
    fn new(args: &[&str]) -> Result<Self, Failed> {
        Self::with(args, |_| {})
    }

    fn with(args: &[&str], change: impl FnOnce(&mut Value)) -> Result<Self, Failed> {
        let directory = tempfile::tempdir()?;
        let mut config = json!({
            "ociVersion": "1.0.2",
            "root": {"path": tiny_root()?},
            "hostname": "oci",
            "process": {
                "cwd": "/", "args": args, "user": {"uid": 0, "gid": 0},
                "env": ["PATH=/bin:/usr/bin"],
                "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]}
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}
            ],
            "linux": {
                "cgroupsPath": format!("/nemoclaw-test/{}", unique("c")),
                "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]
            }
        });
        change(&mut config);
        fs::write(directory.path().join("config.json"), serde_json::to_vec(&config)?)?;
        Ok(Self { directory, id: unique("c") })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("nemoclaw"));
        command.arg("--root").arg(self.path().join("root"));
        if let Some(policy) = without_pids() {
            command.arg("--policy").arg(policy);
        }
        command.args(args);
        command
    }

    /// Without the policy that [`Bundle::command`] may add.
    fn bare(&self, args: &[&str]) -> Done {
        let root = self.path().join("root");
        run_command(Command::new(binary("nemoclaw")).arg("--root").arg(root).args(args))
    }

    fn nemoclaw(&self, args: &[&str]) -> Done {
        run_command(&mut self.command(args))
    }

    fn run(&self) -> Done {
        self.nemoclaw(&["run", "--bundle", &self.path().display().to_string(), &self.id])
    }

    fn create(&self) -> Done {
        // Its init must not hold our pipes.
        let log = self.path().join("log");
        let command = format!(
            "{}{} --root {}/root --log {} --log-format json create --bundle {} {} </dev/null >/dev/null 2>{}/stderr",
            binary("nemoclaw").display(),
            without_pids()
                .map(|policy| format!(" --policy {}", policy.display()))
                .unwrap_or_default(),
            self.path().display(),
            log.display(),
            self.path().display(),
            self.id,
            self.path().display(),
        );
        let mut done = sh(&command);
        done.err = fs::read_to_string(self.path().join("stderr")).unwrap_or_default();
        done
    }

    fn start(&self) -> Result<(), Failed> {
        self.create().ok()?;
        self.nemoclaw(&["start", &self.id]).ok()?;
        Ok(())
    }

    fn state(&self) -> Result<Value, Failed> {
        Ok(serde_json::from_str(&self.nemoclaw(&["state", &self.id]).ok()?.out)?)
    }

    /// The directory of the container's sandbox and the pids of its proxy.
    fn sandbox(&self) -> Result<(PathBuf, Vec<i32>), Failed> {
        let pid = self.state()?["pid"].as_i64().unwrap_or_default();
        let inode = sh(&format!("stat -Lc %i /proc/{pid}/ns/net")).ok()?.out.trim().to_owned();
        let directory = PathBuf::from("/run/nemoclaw/sandboxes").join(&inode);
        let pids = sh(&format!(
            "cat /sys/fs/cgroup/pids/nemoclaw/{inode}/cgroup.procs /sys/fs/cgroup/nemoclaw/{inode}/cgroup.procs 2>/dev/null || true"
        ));
        Ok((directory, pids.out.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()))
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.nemoclaw(&["delete", "--force", &self.id]);
    }
}

/// The policy for machines whose cgroup has no pids controller (a cgroup v2
/// view of a v1 machine); they are refused otherwise.
fn without_pids() -> Option<PathBuf> {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok()?;
    if controllers.split_whitespace().any(|controller| controller == "pids") {
        return None;
    }
    let policy = work().join("policy/no-pids.yaml");
    if !policy.exists() {
        fs::create_dir_all(policy.parent()?).ok()?;
        fs::write(&policy, "version: 1\nnemoclaw: {resources: {pids: 0}}\n").ok()?;
    }
    Some(policy)
}

/// The tiny image, unpacked once.
fn tiny_root() -> Result<PathBuf, Failed> {
    let root = work().join("rootfs/tiny");
    if !root.join("bin/busybox").exists() {
        return Err(format!("{} is missing; run hack/test, which makes it", root.display()).into());
    }
    Ok(root)
}

fn lifecycle() -> Outcome {
    let bundle = Bundle::new(&["sleep", "100"])?;
    bundle.create().ok()?;
    let state = bundle.state()?;
    equal("status", &state["status"], &json!("created"))?;
    equal(
        "bundle",
        &state["bundle"],
        &json!(fs::canonicalize(bundle.path())?.display().to_string()),
    )?;
    equal("creating again", &bundle.create().code, &1)?;
    let (sandbox, proxies) = bundle.sandbox()?;
    equal("proxy processes", &proxies.len(), &2)?;
    bundle.nemoclaw(&["start", &bundle.id]).ok()?;
    equal("status", &bundle.state()?["status"], &json!("running"))?;
    equal("starting again", &bundle.nemoclaw(&["start", &bundle.id]).code, &1)?;
    equal("deleting a running container", &bundle.nemoclaw(&["delete", &bundle.id]).code, &1)?;
    bundle.nemoclaw(&["kill", &bundle.id, "KILL"]).ok()?;
    eventually(Duration::from_secs(5), "stopped", || {
        bundle.state().is_ok_and(|state| state["status"] == "stopped")
    })?;
    bundle.nemoclaw(&["delete", &bundle.id]).ok()?;
    equal("state of a deleted container", &bundle.nemoclaw(&["state", &bundle.id]).code, &1)?;
    nothing_left(&sandbox, &proxies)
}

/// No proxy process, no sandbox directory, no cgroup.
fn nothing_left(sandbox: &Path, proxies: &[i32]) -> Outcome {
    eventually(Duration::from_secs(5), "no proxy left", || proxies.iter().all(|pid| !alive(*pid)))?;
    eventually(Duration::from_secs(5), "no sandbox directory left", || !sandbox.exists())?;
    let name = sandbox.file_name().unwrap_or_default().to_string_lossy().into_owned();
    eventually(Duration::from_secs(5), "no cgroup left", || {
        sh(&format!(
            "ls -d /sys/fs/cgroup/*/nemoclaw/{name} /sys/fs/cgroup/nemoclaw/{name} 2>/dev/null"
        ))
        .out
        .is_empty()
    })
}

/// Running, and not only waiting to be reaped by somebody else.
fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    })
}

fn exit_codes() -> Outcome {
    for (args, code) in [
        (vec!["sh", "-c", "exit 7"], 7),
        (vec!["true"], 0),
        (vec!["/no/such"], 127),
        (vec!["nosuch"], 127),
        (vec!["/etc/passwd"], 126),
        (vec!["/etc"], 126),
    ] {
        equal(&format!("{args:?}"), &Bundle::new(&args)?.run().code, &code)?;
    }
    let bare =
        Bundle::with(&["/bin/busybox", "true"], |config| config["process"]["env"] = json!([]))?;
    equal("no PATH, absolute program", &bare.run().code, &0)
}

fn log_line() -> Outcome {
    let bundle = Bundle::new(&["/no/such"])?;
    equal("create", &bundle.create().code, &127)?;
    let log = fs::read_to_string(bundle.path().join("log"))?;
    let line: Value = serde_json::from_str(log.lines().last().unwrap_or_default())?;
    equal("level", &line["level"], &json!("error"))?;
    contains(
        "message",
        line["msg"].as_str().unwrap_or_default(),
        "exec: \"/no/such\": stat /no/such: no such file or directory",
    )
}

fn bad_ids() -> Outcome {
    let bundle = Bundle::new(&["true"])?;
    let path = bundle.path().display().to_string();
    for id in ["../x", "/abs", "a/b", "..", ".", "a b"] {
        for verb in [
            vec!["create", "--bundle", &path],
            vec!["state"],
            vec!["delete", "--force"],
            vec!["kill"],
        ] {
            let done = bundle.nemoclaw(&[&verb[..], &[id]].concat());
            equal(&format!("{verb:?} {id}"), &done.code, &1)?;
            contains("words", &done.err, "invalid container id")?;
        }
    }
    Ok(())
}

fn delete_twice() -> Outcome {
    let bundle = Bundle::new(&["true"])?;
    equal("missing, forced", &bundle.nemoclaw(&["delete", "--force", &bundle.id]).code, &0)?;
    equal("missing", &bundle.nemoclaw(&["delete", &bundle.id]).code, &1)
}

fn exec_codes() -> Outcome {
    let bundle = Bundle::new(&["sleep", "100"])?;
    bundle.start()?;
    let exec = |args: &[&str]| bundle.nemoclaw(&[&["exec", &bundle.id][..], args].concat());
    equal("true", &exec(&["true"]).code, &0)?;
    equal("exit 9", &exec(&["sh", "-c", "exit 9"]).code, &9)?;
    equal("signal", &exec(&["sh", "-c", "kill -15 $$"]).code, &143)?;
    let missing = exec(&["nosuch"]);
    equal("missing", &missing.code, &127)?;
    contains("words", &missing.err, "exec: \"nosuch\": executable file not found in $PATH")?;
    equal("hostname", &exec(&["hostname"]).out, &"oci\n".to_owned())?;
    equal(
        "environment and directory",
        &bundle
            .nemoclaw(&[
                "exec",
                "-e",
                "A=b",
                "--cwd",
                "/tmp",
                &bundle.id,
                "sh",
                "-c",
                "echo $A; pwd",
            ])
            .out,
        &"b\n/tmp\n".to_owned(),
    )
}

const STATUS: &str = "grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Seccomp_filters):' /proc/self/status";

fn exec_confined() -> Outcome {
    let init = Bundle::new(&["sh", "-c", STATUS])?.run().ok()?.out;
    let bundle = Bundle::new(&["sleep", "100"])?;
    bundle.start()?;
    let process = bundle.path().join("process.json");
    let all: Vec<String> =
        ["SYS_ADMIN", "NET_RAW", "NET_ADMIN", "CHOWN"].map(|name| format!("CAP_{name}")).to_vec();
    fs::write(
        &process,
        serde_json::to_vec(&json!({
            "cwd": "/", "args": ["sh", "-c", STATUS], "user": {"uid": 0, "gid": 0, "additionalGids": [0, 1]},
            "env": ["PATH=/bin", "LD_PRELOAD=/tmp/x"], "noNewPrivileges": false,
            "capabilities": {"bounding": all, "effective": all, "permitted": all, "inheritable": all, "ambient": all}
        }))?,
    )?;
    let exec = bundle
        .nemoclaw(&["exec", "--process", &process.display().to_string(), &bundle.id])
        .ok()?
        .out;
    equal("exec against init", &exec, &init)?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        contains("capabilities", &exec, &format!("{set}:\t0000000000000000"))?;
    }
    contains("no_new_privs", &exec, "NoNewPrivs:\t1")?;
    contains("seccomp", &exec, "Seccomp:\t2")?;
    contains("user", &exec, "Uid:\t10001\t10001\t10001\t10001")
}

fn exec_states() -> Outcome {
    let bundle = Bundle::new(&["true"])?;
    bundle.create().ok()?;
    equal("created", &bundle.nemoclaw(&["exec", &bundle.id, "true"]).code, &0)?;
    bundle.nemoclaw(&["start", &bundle.id]).ok()?;
    eventually(Duration::from_secs(5), "stopped", || {
        bundle.state().is_ok_and(|state| state["status"] == "stopped")
    })?;
    let done = bundle.nemoclaw(&["exec", &bundle.id, "true"]);
    equal("stopped", &done.code, &1)?;
    contains("words", &done.err, "cannot exec in a stopped container")
}

fn other_verbs() -> Outcome {
    let bundle = Bundle::new(&["sleep", "100"])?;
    bundle.start()?;
    let id = bundle.id.as_str();
    bundle.nemoclaw(&["pause", id]).ok()?;
    equal("paused", &bundle.state()?["status"], &json!("paused"))?;
    equal("exec while paused", &bundle.nemoclaw(&["exec", id, "true"]).code, &1)?;
    bundle.nemoclaw(&["resume", id]).ok()?;
    equal("resumed", &bundle.state()?["status"], &json!("running"))?;
    equal("resume again", &bundle.nemoclaw(&["resume", id]).code, &1)?;
    if without_pids().is_none() {
        bundle.nemoclaw(&["update", "--pids-limit", "20", id]).ok()?;
        bundle.nemoclaw(&["update", "--pids-limit", "100000", id]).ok()?;
    }
    let pids: Vec<i32> =
        serde_json::from_str(&bundle.nemoclaw(&["ps", "--format", "json", id]).ok()?.out)?;
    equal("processes", &pids.len(), &1)?;
    contains("ps", &bundle.nemoclaw(&["ps", id]).ok()?.out, "sleep")?;
    if without_pids().is_none() {
        stats_are_bounded(&bundle)?;
    }
    contains("list", &bundle.nemoclaw(&["list"]).ok()?.out, id)?;
    equal("list -q", &bundle.nemoclaw(&["list", "-q"]).ok()?.out, &format!("{id}\n"))?;
    let list: Value =
        serde_json::from_str(&bundle.nemoclaw(&["list", "--format", "json"]).ok()?.out)?;
    equal("list json", &list[0]["id"], &json!(id))
}

/// libcgroups gives all statistics or none, so this needs all controllers.
fn stats_are_bounded(bundle: &Bundle) -> Outcome {
    let id = bundle.id.as_str();
    let stats: Value =
        serde_json::from_str(&bundle.nemoclaw(&["events", "--stats", id]).ok()?.out)?;
    equal("events", &stats["type"], &json!("stats"))?;
    let limit = &stats["data"]["pids"]["limit"];
    if limit.is_number() {
        equal("the policy bounds an update", limit, &json!(512))?;
    }
    Ok(())
}

fn checkpoint() -> Outcome {
    let bundle = Bundle::new(&["true"])?;
    for verb in ["checkpoint", "restore"] {
        let done = bundle.nemoclaw(&[verb, "--image-path", "/x", "c"]);
        equal(verb, &done.code, &1)?;
        contains("words", &done.err, "not supported")?;
    }
    Ok(())
}

fn linked_dev() -> Outcome {
    let image = tempfile::tempdir()?;
    let host = tempfile::tempdir()?;
    sh(&format!("cp -a {}/. {}/", tiny_root()?.display(), image.path().display())).ok()?;
    fs::remove_dir_all(image.path().join("dev")).ok();
    symlink(host.path(), image.path().join("dev"))?;
    let bundle = Bundle::with(&["true"], |config| config["root"]["path"] = json!(image.path()))?;
    let done = bundle.create();
    equal("create", &done.code, &1)?;
    contains("words", &done.err, "/dev of the image is no directory but a symbolic link")?;
    equal("files on the host", &fs::read_dir(host.path())?.count(), &0)
}

fn with_policy(bundle: &Bundle, text: &str, mode: &str) -> Result<Done, Failed> {
    let policy = bundle.path().join("policy.yaml");
    let text = if without_pids().is_some() {
        text.replace("nemoclaw: {}", "nemoclaw: {resources: {pids: 0}}")
    } else {
        text.to_owned()
    };
    fs::write(&policy, text)?;
    sh(&format!("chmod {mode} {}", policy.display())).ok()?;
    Ok(bundle.bare(&[
        "--policy",
        &policy.display().to_string(),
        "run",
        "--bundle",
        &bundle.path().display().to_string(),
        &bundle.id,
    ]))
}

fn writable_policy() -> Outcome {
    let bundle = Bundle::new(&["true"])?;
    let done = with_policy(&bundle, "version: 1\nnemoclaw: {}\n", "666")?;
    equal("run", &done.code, &1)?;
    contains("words", &done.err, "must belong to root and be writable by nobody else")?;
    equal("run", &with_policy(&bundle, "version: 1\nnemoclaw: {}\n", "644")?.code, &0)
}

/// A file of the operator's, gone when the trial is.
struct OperatorFile(PathBuf);

impl Drop for OperatorFile {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

fn extended_policy() -> Outcome {
    let bundle = Bundle::new(&["true"])?;
    let name = unique("preset");
    let directory = Path::new("/etc/nemoclaw/presets");
    fs::create_dir_all(directory)?;
    let preset = OperatorFile(directory.join(format!("{name}.yaml")));
    let pids = if without_pids().is_some() { 0 } else { 99 };
    let text =
        format!("version: 1\nnemoclaw: {{presets: [{name}], resources: {{pids: {pids}}}}}\n");
    let rule = "{endpoints: [{host: a.example, port: 9}], binaries: any}";
    fs::write(
        &preset.0,
        format!("preset: {{name: {name}}}\nnemoclaw: {{}}\nnetwork_policies: {{p: {rule}}}\n"),
    )?;
    sh(&format!("chmod 644 {}", preset.0.display())).ok()?;
    equal("run", &with_policy(&bundle, &text, "644")?.code, &0)?;
    sh(&format!("chmod 666 {}", preset.0.display())).ok()?;
    let done = with_policy(&bundle, &text, "644")?;
    equal("run", &done.code, &1)?;
    contains("words", &done.err, "must belong to root and be writable by nobody else")?;
    drop(preset);
    let done = with_policy(&bundle, &text, "644")?;
    equal("run", &done.code, &1)?;
    contains("words", &done.err, &format!("there is no preset `{name}`"))
}

fn unenforced_policy() -> Outcome {
    let bundle = Bundle::new(&["true"])?;
    let text = "version: 1\nnemoclaw: {}\nnetwork_policies: {a: {endpoints: [{host: a.example, port: 443, protocol: rest, access: read-only}]}}\n";
    let done = with_policy(&bundle, text, "644")?;
    equal("run", &done.code, &3)?;
    contains("words", &done.err, "`protocol: rest` is not enforced by this version")
}

fn no_proxy() -> Outcome {
    let bundle = Bundle::new(&["true"])?;
    let alone = tempfile::tempdir()?;
    let copy = alone.path().join("nemoclaw");
    fs::copy(binary("nemoclaw"), &copy)?;
    let root = bundle.path().join("root");
    let policy = without_pids().map(|policy| [PathBuf::from("--policy"), policy]);
    let done = run_command(
        Command::new(&copy)
            .arg("--root")
            .arg(&root)
            .args(policy.iter().flatten())
            .arg("run")
            .arg("--bundle")
            .arg(bundle.path())
            .arg(&bundle.id),
    );
    equal("run", &done.code, &1)?;
    contains("words", &done.err, "install it beside nemoclaw")
}

fn notify_profile() -> Outcome {
    let bundle = Bundle::with(&["true"], |config| {
        config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
    })?;
    let done = bundle.create();
    equal("create", &done.code, &1)?;
    contains("words", &done.err, "answers `mkdir` with SCMP_ACT_NOTIFY")
}

fn engine_profile() -> Outcome {
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]});
    let script = "mkdir /tmp/x 2>&1; true";
    let init =
        Bundle::with(&["sh", "-c", script], |config| config["linux"]["seccomp"] = profile.clone())?;
    contains("init", &init.run().ok()?.out, "No space left")?;
    let bundle = Bundle::with(&["sleep", "100"], |config| config["linux"]["seccomp"] = profile)?;
    bundle.start()?;
    contains(
        "exec",
        &bundle.nemoclaw(&["exec", &bundle.id, "sh", "-c", script]).ok()?.out,
        "No space left",
    )
}

fn cut_short() -> Outcome {
    for step in ["pid-saved", "locked", "proxy-entered"] {
        let bundle = Bundle::new(&["sleep", "100"])?;
        let root = bundle.path().display().to_string();
        let done = sh(&format!(
            "NEMOCLAW_END_AT=create:{step} {}{} --root {root}/root create --bundle {root} {} </dev/null >/dev/null 2>&1",
            binary("nemoclaw").display(),
            without_pids()
                .map(|policy| format!(" --policy {}", policy.display()))
                .unwrap_or_default(),
            bundle.id,
        ));
        equal("create", &done.code, &137)?;
        for verb in [vec!["start", &bundle.id], vec!["exec", &bundle.id, "true"]] {
            let done = bundle.nemoclaw(&verb);
            equal(&format!("{verb:?} after {step}"), &done.code, &1)?;
            contains("words", &done.err, "was never confined completely")?;
        }
    }
    Ok(())
}

fn unchanged_id() -> Outcome {
    for (uid, gid) in [(u32::MAX, u32::MAX), (1000, u32::MAX)] {
        let bundle = Bundle::with(&["id"], |config| {
            config["process"]["user"] = json!({"uid": uid, "gid": gid});
        })?;
        let done = bundle.run();
        equal("run", &done.code, &3)?;
        contains("words", &done.err, "is no id")?;
    }
    let bundle = Bundle::new(&["sleep", "100"])?;
    bundle.start()?;
    let done = bundle.nemoclaw(&["exec", "-u", "4294967295:4294967295", &bundle.id, "id"]);
    equal("exec", &done.code, &3)
}

fn signals_and_pipes() -> Outcome {
    // SIGPIPE is bit 12; Rust programs start with it ignored.
    let script = "echo $(( 0x$(grep SigIgn /proc/self/status | cut -f 2) & 0x1000 )); echo reopened > /dev/stdout; yes | head -n 1";
    let wanted = "0\nreopened\ny\n".to_owned();
    equal("init", &Bundle::new(&["sh", "-c", script])?.run().ok()?.out, &wanted)?;
    let bundle = Bundle::new(&["sleep", "100"])?;
    bundle.start()?;
    equal("exec", &bundle.nemoclaw(&["exec", &bundle.id, "sh", "-c", script]).ok()?.out, &wanted)
}

const CREATE_STEPS: [&str; 18] = [
    "parsed",
    "policy",
    "planned",
    "proxy-spawned",
    "entry",
    "filters",
    "directories",
    "bundle",
    "plan-saved",
    "record-saved",
    "built",
    "pid-saved",
    "namespace",
    "locked",
    "sandbox-directory",
    "proxy-entered",
    "joined",
    "done",
];

/// What could be left of a container: processes in its cgroup, mounts of its
/// bundle, cgroups, proxies.
fn traces(bundle: &Bundle) -> Result<String, Failed> {
    let config: Value = serde_json::from_slice(&fs::read(bundle.path().join("config.json"))?)?;
    let cgroup = config["linux"]["cgroupsPath"].as_str().unwrap_or_default().to_owned();
    Ok(sh(&format!(
        "ls -d /sys/fs/cgroup/*{cgroup} /sys/fs/cgroup{cgroup} 2>/dev/null; grep -h {cgroup} /proc/*/cgroup 2>/dev/null; ls -d {root}/root/{id} /run/nemoclaw/containers/*/{id} 2>/dev/null; grep -l {id} /run/nemoclaw/sandboxes/*/* 2>/dev/null; true",
        root = bundle.path().display(),
        id = bundle.id,
    ))
    .out)
}

/// Number of proxies and sandboxes on the machine.
fn sandboxes() -> Vec<String> {
    let mut found: Vec<String> = fs::read_dir("/run/nemoclaw/sandboxes")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    found
}

fn killed_in_create() -> Outcome {
    for step in CREATE_STEPS {
        let bundle = Bundle::new(&["sleep", "100"])?;
        let id = bundle.id.clone();
        let root = bundle.path().display().to_string();
        let done = sh(&format!(
            "NEMOCLAW_END_AT=create:{step} {}{} --root {root}/root create --bundle {root} --pid-file {root}/pid {id} </dev/null >/dev/null 2>{root}/stderr",
            binary("nemoclaw").display(),
            without_pids()
                .map(|policy| format!(" --policy {}", policy.display()))
                .unwrap_or_default(),
        ));
        equal(&format!("killed at {step}"), &done.code, &137)?;
        let pid = fs::read_to_string(bundle.path().join("pid")).unwrap_or_default();
        let netns = sh(&format!("stat -Lc %i /proc/{pid}/ns/net")).out.trim().to_owned();
        bundle.nemoclaw(&["delete", "--force", &id]).ok()?;
        equal(
            &format!("delete after {step}"),
            &bundle.nemoclaw(&["delete", "--force", &id]).code,
            &0,
        )?;
        eventually(
            Duration::from_secs(5),
            &format!("nothing left after {step}: {:?}", traces(&bundle)),
            || traces(&bundle).is_ok_and(|traces| traces.is_empty()),
        )?;
        if let Ok(pid) = pid.trim().parse::<i32>() {
            eventually(Duration::from_secs(5), &format!("init is gone after {step}"), || {
                !alive(pid)
            })?;
        }
        if !netns.is_empty() {
            eventually(Duration::from_secs(5), &format!("no sandbox after {step}"), || {
                !sandboxes().contains(&netns)
            })?;
        }
        eventually(Duration::from_secs(5), &format!("no waiting proxy after {step}"), || {
            waiting_proxies() == 0
        })?;
    }
    Ok(())
}

/// Proxies that nobody put in charge of a namespace: their network namespace is
/// still the host's.
fn waiting_proxies() -> usize {
    sh("for p in $(pgrep -x nemoclaw-netpro); do [ \"$(readlink /proc/$p/ns/net)\" = \"$(readlink /proc/self/ns/net)\" ] && echo $p; done")
        .out
        .lines()
        .count()
}

const EXEC_STEPS: [&str; 8] = [
    "loaded",
    "planned",
    "opened",
    "child-cgroups",
    "child-namespaces",
    "child-identity",
    "child-prepared",
    "spawned",
];

fn killed_in_exec() -> Outcome {
    let bundle = Bundle::new(&["sleep", "100"])?;
    bundle.start()?;
    for step in EXEC_STEPS {
        let done = run_command(
            bundle
                .command(&["exec", "--detach", &bundle.id, "sh", "-c", "exit 0"])
                .env("NEMOCLAW_END_AT", format!("exec:{step}")),
        );
        if done.code == 0 {
            return Err(format!("exec ended at {step} and said nothing: {done:?}").into());
        }
        eventually(Duration::from_secs(5), &format!("one process left after {step}"), || {
            let listed = bundle.nemoclaw(&["ps", "--format", "json", &bundle.id]);
            serde_json::from_str::<Vec<i32>>(&listed.out).is_ok_and(|pids| pids.len() == 1)
        })?;
        equal(
            &format!("exec after {step}"),
            &bundle.nemoclaw(&["exec", &bundle.id, "true"]).code,
            &0,
        )?;
    }
    Ok(())
}

fn cycles() -> Outcome {
    let count = if full() { 100 } else { 25 };
    for n in 0..count {
        let bundle = Bundle::new(&["true"])?;
        let done = bundle.run();
        if done.code != 0 {
            return Err(format!("cycle {n}: {done:?}").into());
        }
        equal(&format!("traces after cycle {n}"), &traces(&bundle)?, &String::new())?;
    }
    Ok(())
}
