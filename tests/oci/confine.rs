//! Hooks that run in the container, and files examined before it starts.

use std::fs;

use nemoclaw_tests::{Outcome, contains, equal};
use serde_json::json;

use super::{Bundle, STATUS, with_policy};

/// A hook of the tiny image, in a shell.
fn hook(script: &str) -> serde_json::Value {
    json!({"startContainer": [{
        "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin", "ONLY=this"], "timeout": 5
    }]})
}

pub(super) fn hooks() -> Outcome {
    let script = format!(
        "({STATUS}; env; cat; echo; ls /root; mount -t tmpfs none /mnt) >/tmp/seen 2>&1; true"
    );
    let bundle = Bundle::with(&["cat", "/tmp/seen"], |config| config["hooks"] = hook(&script))?;
    let seen = bundle.run().ok()?.out;
    contains("state on its input", &seen, &bundle.id)?;
    contains("environment", &seen, "ONLY=this")?;
    for told in ["CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "Uid:\t10001"] {
        contains("what it may", &seen, told)?;
    }
    contains("Landlock", &seen, "'/root': Permission denied")?;
    contains("seccomp", &seen, "permission denied")
        .or_else(|_other| contains("seccomp", &seen, "not permitted"))
}

/// Where libcontainer mounts the groups itself, it depends on the pid that init
/// gets in the other container whether it can.
pub(super) fn joined_pids() -> Outcome {
    let first = Bundle::new(&["sleep", "100"])?;
    first.start()?;
    let pid = first.state()?["pid"].as_i64().unwrap_or_default();
    for _ in 0..8 {
        let second = Bundle::with(&["cat", "/proc/1/cmdline"], |config| {
            config["linux"]["namespaces"][0] =
                json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")});
            if let Some(mounts) = config["mounts"].as_array_mut() {
                mounts.push(json!({
                    "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                    "options": ["ro", "nosuid", "noexec", "nodev"]
                }));
            }
        })?;
        contains("the other's init", &second.run().ok()?.out, "sleep")?;
    }
    Ok(())
}

pub(super) fn failing_hook() -> Outcome {
    for (script, told) in [("echo why >&2; exit 4", "why"), ("sleep 30", "did not end within 5 s")]
    {
        let bundle = Bundle::with(&["echo", "ran"], |config| config["hooks"] = hook(script))?;
        let done = bundle.run();
        equal("exit code", &(done.code != 0), &true)?;
        equal("the program", &done.out.contains("ran"), &false)?;
        contains("words", &done.err, told)?;
    }
    Ok(())
}

pub(super) fn contents() -> Outcome {
    let run = |nemoclaw: &str| {
        let bundle = Bundle::with(&["echo", "ran"], |config| {
            let source = std::env::temp_dir().join("nemoclaw-test-contents");
            let mount = json!({"destination": "/sandbox", "type": "bind", "source": source, "options": ["rbind"]});
            if let Some(mounts) = config["mounts"].as_array_mut() {
                mounts.push(mount);
            }
        })?;
        with_policy(
            &bundle,
            &format!("version: 1\nnemoclaw: {{resources: {{pids: 0}}, {nemoclaw}}}\n"),
            "644",
        )
    };
    let source = std::env::temp_dir().join("nemoclaw-test-contents");
    fs::create_dir_all(&source)?;
    fs::write(
        source.join("agent.json"),
        r#"{"gateway": {"deviceAuth": true, "bind": "127.0.0.1"}}"#,
    )?;
    let digest = "3f4deff3fbba9a2f4fd3d18ef9ae3b4e5dc1a2b1a3a1f4ddc1b9e1a5c9b3a7f0";
    let asserting = |path: &str, value: &str| {
        run(&format!("assertions: [{{file: /sandbox/agent.json, path: {path}, equals: {value}}}]"))
    };
    equal("as asserted", &asserting("gateway.deviceAuth", "true")?.ok()?.out, &"ran\n".to_owned())?;
    let refused = asserting("gateway.bind", "0.0.0.0")?;
    equal("exit code", &refused.code, &3)?;
    contains("words", &refused.err, "`/sandbox/agent.json` says something else at `gateway.bind`")?;
    let missing =
        run("assertions: [{file: /sandbox/none.json, path: a, equals: 1, otherwise: warn}]")?;
    equal("a warning", &missing.ok()?.out, &"ran\n".to_owned())?;
    let changed = run(&format!("integrity: [{{path: /sandbox/agent.json, sha256: '{digest}'}}]"))?;
    equal("exit code", &changed.code, &3)?;
    contains("words", &changed.err, "has the digest")
}
