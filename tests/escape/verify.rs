//! `nemoclaw verify`: quiet where all is as planned, and not where somebody
//! with root on the host changed something.

use std::process::Command;

use nemoclaw_tests::docker::{Container, docker};
use nemoclaw_tests::{Done, Outcome, binary, contains, equal, run_command, sh};

const IMAGE: &str = "nemoclaw-test/base";

pub(super) const TRIALS: [crate::Named; 5] = [
    ("verify_is_quiet_under_every_policy", quiet),
    ("verify_sees_what_was_changed_from_outside", changed),
    ("verify_sees_a_process_that_nobody_confined", entered),
    ("verify_says_not_confined_under_observe", observed),
    ("verify_knows_what_does_not_run", gone),
];

fn verify(args: &[&str]) -> Done {
    run_command(Command::new(binary("nemoclaw")).arg("verify").args(args))
}

fn quiet() -> Outcome {
    let policies = ["nemoclaw", "nemoclaw-system-only", "nemoclaw-keep", "nemoclaw-root"];
    for runtime in policies.into_iter().chain(["nemoclaw-strip"]) {
        let container =
            Container::start(runtime, IMAGE, &["--init", "-v", "/data", "--tmpfs", "/scratch"])?;
        docker(&["exec", "-d", &container.name, "sh", "-c", "sleep 900 & sleep 900"]).ok()?;
        // The exec'd shell has to have forked.
        container.sh("sleep 0.2").ok()?;
        let done = verify(&[&container.id]);
        equal(runtime, &done.code, &0).map_err(|_differs| done.text())?;
        contains(runtime, &done.out, "as planned")?;
        contains(runtime, &done.out, "inferred for")?;
    }
    let container = Container::start("nemoclaw", IMAGE, &[])?;
    let member = Container::start(
        "nemoclaw",
        IMAGE,
        &["--network", &format!("container:{}", container.name)],
    )?;
    equal("a member", &verify(&[&member.id]).code, &0)?;
    let json = verify(&["--json", container.id.get(..12).unwrap_or_default()]).ok()?.out;
    let answer: serde_json::Value =
        serde_json::from_str(&json).map_err(|e| format!("{e}: {json}"))?;
    equal(
        "as_planned",
        &answer.pointer("/as_planned").and_then(serde_json::Value::as_bool),
        &Some(true),
    )?;
    equal("the plan", &answer.pointer("/plan/pids").and_then(serde_json::Value::as_i64), &Some(512))
}

/// One change by the host's root, and the control that is told.
const CHANGES: [(&str, &str); 9] = [
    ("nsenter -t $PID -m -p umount -l /usr", "mounts: `/usr`"),
    (
        "nsenter -t $PID -m -p mount -o remount,rw,bind,nosuid,nodev /etc",
        "mounts: `/etc` is not mounted ro",
    ),
    (
        "nsenter -t $PID -m -p mount -o remount,suid,nodev,bind /",
        "mounts: `/` is not mounted nosuid",
    ),
    ("nsenter -t $PID -m -p mount -t tmpfs none /mnt", "mounts: `/mnt`"),
    ("nsenter -t $PID -m -p umount /proc/keys", "mounts: `/proc/keys`"),
    (
        "echo max >/sys/fs/cgroup/pids$(grep :pids: /proc/$PID/cgroup | cut -d: -f3)/pids.max",
        "pids: the process limit is none",
    ),
    ("nsenter -t $PID -n nft delete table inet nemoclaw", "holds no rules of nemoclaw"),
    (
        "nsenter -t $PID -n nft insert rule inet nemoclaw $(nsenter -t $PID -n nft list chains inet | awk '/chain/{print $2; exit}') accept",
        "rules of the network namespace changed",
    ),
    ("echo $PID >/sys/fs/cgroup/pids/cgroup.procs", "cgroup: it is outside"),
];

fn changed() -> Outcome {
    for (change, told) in CHANGES {
        let container = Container::start("nemoclaw", IMAGE, &[])?;
        let before = verify(&[&container.id]);
        equal("before", &before.code, &0).map_err(|_differs| before.text())?;
        sh(&format!("set -e; PID={}; {change}", container.pid()?)).ok()?;
        let after = verify(&[&container.id]);
        equal(change, &after.code, &3).map_err(|_differs| after.text())?;
        contains(change, &after.out, told)?;
    }
    Ok(())
}

/// Its first thread ends, the other lives on: /proc shows a zombie.
const HEADLESS: &str = "
import ctypes, threading, time
threading.Thread(target=lambda: time.sleep(60)).start()
ctypes.CDLL(None).syscall(60, 0)";

fn entered() -> Outcome {
    let container = Container::start("nemoclaw", IMAGE, &[])?;
    let pid = container.pid()?;
    let mut headless = Command::new("nsenter")
        .args(["-t", &pid.to_string(), "-m", "python3", "-c", HEADLESS])
        .spawn()?;
    std::thread::sleep(std::time::Duration::from_millis(600));
    let done = verify(&[&container.id]);
    headless.kill()?;
    headless.wait()?;
    equal("a process without its first thread", &done.code, &3)?;
    contains("what is told", &done.out, "seccomp: the mode is 0")?;
    let mut child = Command::new("nsenter")
        .args(["-t", &pid.to_string(), "-m", "-n", "sleep", "60"])
        .spawn()?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let done = verify(&[&container.id]);
    child.kill()?;
    child.wait()?;
    equal("exit code", &done.code, &3)?;
    for told in
        ["Landlock: it descends from no process", "seccomp: the mode is 0", "cgroup: it is outside"]
    {
        contains("what is told", &done.out, told)?;
    }
    Ok(())
}

fn observed() -> Outcome {
    let container = Container::start("nemoclaw-observe", IMAGE, &[])?;
    let done = verify(&[&container.id]);
    equal("exit code", &done.code, &3)?;
    contains("what is told", &done.out, "NOT CONFINED")
}

fn gone() -> Outcome {
    let done = verify(&["no-such-container"]);
    equal("exit code", &done.code, &1)?;
    contains("what is told", &done.err, "does not exist")
}
