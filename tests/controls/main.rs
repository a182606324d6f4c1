//! The process and file-system controls on every engine: one trial for each
//! control, and the way round it that must fail (tests/CONTROLS.md).

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use nemoclaw_tests::engine::{Engine, Running};
use nemoclaw_tests::{Outcome, binary, contains, equal, repository, unique};

type Body = fn(Engine) -> Outcome;

/// Trials by row of the table of controls.
const TRIALS: [(&str, Body); 15] = [
    ("07_09_system_paths_are_read_only_and_work_places_writable", paths),
    ("08_shields_lock_a_running_sandbox", shields),
    ("10_landlock_closes_what_no_mount_does", landlock),
    ("11_no_capability_is_left_in_init_and_exec", capabilities),
    ("12_the_gateway_is_another_user_s", gateway),
    ("13_a_set_user_id_program_gives_nothing", set_user_id),
    ("14_a_fork_bomb_ends_at_the_limit", fork_bomb),
    ("15_root_is_mapped_and_kept_only_where_policy_says_so", root),
    ("16_path_and_environment_are_locked", environment),
    ("17_the_toolchain_is_hidden_and_what_is_made_does_not_run", toolchain),
    ("18_a_file_that_changed_stops_the_start", integrity),
    ("19_private_files_keep_their_modes", private),
    ("no_attempt_succeeds_in_init", attempts_in_init),
    ("no_attempt_succeeds_in_exec", attempts_in_exec),
    ("verify_is_quiet", verify),
];

fn main() -> ExitCode {
    let root = rustix::process::geteuid().is_root();
    let ignored = !root && std::env::var_os("NEMOCLAW_CI").is_none();
    let mut trials: Vec<Trial> = Engine::ALL
        .into_iter()
        .flat_map(|engine| {
            TRIALS.map(|(name, body)| {
                Trial::test(format!("{}/{name}", engine.name()), move || body(engine))
                    .with_ignored_flag(ignored)
            })
        })
        .collect();
    // The other engines map ids for all of their containers, or for none.
    trials.push(
        Trial::test("podman5/user_namespaces_are_confined_alike", user_namespace)
            .with_ignored_flag(ignored),
    );
    trials.push(
        Trial::test("docker26/egress_goes_on_when_the_engine_crashes", crash)
            .with_ignored_flag(ignored),
    );
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A shell script in init and in exec; prints must be the same in both.
fn both(engine: Engine, script: &str) -> Result<String, Failed> {
    let init = engine.run("nemoclaw", "base", &["sh", "-c", script]).ok()?.out;
    let container = Running::start(engine, "nemoclaw", "base", &["sleep", "900"])?;
    let exec = container.exec("0", &["sh", "-c", script]).ok()?.out;
    equal("exec against init", &exec, &init)?;
    Ok(init)
}

fn paths(engine: Engine) -> Outcome {
    let script = "
for f in /usr/nc /etc/nc /bin/nc2 /lib/nc /opt/nc /var/log/nc; do (: >$f) 2>/dev/null && echo wrote $f; done
for f in /usr/bin/env /etc/passwd; do
    chmod 777 $f 2>/dev/null && echo chmod $f
    touch -d yesterday $f 2>/dev/null && echo times of $f
    (: >>$f) 2>/dev/null && echo append $f
    mv $f /tmp/moved 2>/dev/null && echo moved $f
done
for d in /sandbox /tmp /var/tmp /dev/shm; do (echo x >$d/nc-$$ && rm $d/nc-$$) || echo cannot write $d; done
echo x >/dev/null && echo done";
    equal("what went wrong", &both(engine, script)?, &"done\n".to_owned())
}

fn landlock(engine: Engine) -> Outcome {
    // Directories that the image's permissions leave open for everybody.
    let script = "for d in / /mnt /media /home /boot; do ls $d >/dev/null 2>&1 && echo listed $d; done; ls /usr >/dev/null && echo done";
    equal("what was listed", &both(engine, script)?, &"done\n".to_owned())
}

fn capabilities(engine: Engine) -> Outcome {
    let script = "grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status";
    let wanted = "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";
    equal("status", &both(engine, script)?, &wanted.to_owned())
}

/// The entry point starts a gateway as its own user, and becomes the agent.
const ENTRY: &str = "
setpriv --reuid gateway --regid gateway --clear-groups --inh-caps=-all python3 -c '
import os, socket
s = socket.socket(); s.bind((\"127.0.0.1\", 18789)); s.listen()
open(\"/tmp/gateway.pid\", \"w\").write(str(os.getpid()))
while True: s.accept()[0].sendall(b\"gateway\")' &
until [ -s /tmp/gateway.pid ]; do sleep 0.1; done
exec setpriv --reuid sandbox --regid sandbox --clear-groups --inh-caps=-all sleep 900";

/// What the agent tries on the gateway, with a forged HOME; it can only talk.
const AGENT: &str = "
export HOME=/home/gateway
g=$(cat /tmp/gateway.pid)
kill -0 $g 2>/dev/null && echo signalled
kill -9 $g 2>/dev/null && echo killed
cat /proc/$g/environ >/dev/null 2>&1 && echo environ
ls /proc/$g/fd >/dev/null 2>&1 && echo descriptors
(echo x >/proc/$g/mem) 2>/dev/null && echo memory
setpriv --reuid gateway true 2>/dev/null && echo became gateway
setpriv --reuid 0 true 2>/dev/null && echo became root
mv /tmp/gateway.pid /tmp/forged 2>/dev/null && echo replaced
ls /home/gateway 2>/dev/null && echo home
python3 -c '
import socket
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
try: s.bind((\"127.0.0.1\", 18789)); s.listen(); print(\"bound again\")
except OSError: pass
print(socket.create_connection((\"127.0.0.1\", 18789), 5).recv(9).decode())'
id -u";

fn gateway(engine: Engine) -> Outcome {
    let container = Running::start(engine, "nemoclaw-step-down", "stepdown", &["sh", "-c", ENTRY])?;
    let ready = "until [ -s /tmp/gateway.pid ] && [ $(stat -c %u /proc/1) = 998 ]; do sleep 0.1; done; stat -c %u /proc/1 /proc/$(cat /tmp/gateway.pid)";
    equal(
        "who runs",
        &container.exec("0", &["sh", "-c", ready]).ok()?.out,
        &"998\n997\n".to_owned(),
    )?;
    for user in ["0", "998"] {
        let done = container.exec(user, &["sh", "-c", AGENT]).ok()?;
        equal("what the agent could do", &done.out, &"gateway\n998\n".to_owned())?;
    }
    Ok(())
}

fn set_user_id(engine: Engine) -> Outcome {
    // su is root's and has the bit; as root it would change to any user.
    let script = "su -s /bin/sh -c 'echo became root' root </dev/null 2>/dev/null; cp /usr/bin/id /tmp/id && chmod 4755 /tmp/id && /tmp/id -u";
    equal("uids", &both(engine, script)?, &"10001\n".to_owned())
}

fn fork_bomb(engine: Engine) -> Outcome {
    let script = "
import os, time
n = 0
try:
    while n < 2000:
        if os.fork() == 0:
            time.sleep(600)
        n += 1
except OSError:
    print('ended', 400 < n < 512)
os.killpg(0, 9) if os.getpid() != 1 else os._exit(0)";
    let done = engine.run("nemoclaw", "base", &["python3", "-uc", script]);
    contains("fork bomb", &done.out, "ended True")
}

fn root(engine: Engine) -> Outcome {
    equal("mapped", &both(engine, "id -u; id -g; id -G")?, &"10001\n10001\n10001\n".to_owned())?;
    let kept =
        engine.run("nemoclaw-root", "base", &["sh", "-c", "id -u; grep CapEff /proc/self/status"]);
    equal("kept", &kept.ok()?.out, &"0\nCapEff:\t0000000000000000\n".to_owned())
}

fn environment(engine: Engine) -> Outcome {
    let script = "echo $PATH; mkdir -p /tmp/bin; printf '#!/bin/sh\necho shadowed\n' >/tmp/bin/id; chmod 755 /tmp/bin/id; id -u";
    equal(
        "PATH",
        &both(engine, script)?,
        &"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n10001\n".to_owned(),
    )
}

fn toolchain(engine: Engine) -> Outcome {
    let script = "for t in nc netcat nc.openbsd; do $t -h 2>&1 | grep -q usage && echo $t runs; done; echo done";
    equal("tools", &both(engine, script)?, &"done\n".to_owned())?;
    let made = "cp /bin/true /tmp/made; /tmp/made 2>/dev/null && echo runs; cp /bin/true /sandbox/made; /sandbox/made 2>/dev/null && echo runs; echo done";
    let done = engine.run("nemoclaw-system-only", "base", &["sh", "-c", made]);
    equal("what was made", &done.ok()?.out, &"done\n".to_owned())?;
    let elsewhere = engine.run("nemoclaw", "base", &["sh", "-c", made]);
    equal("positive control", &elsewhere.ok()?.out, &"runs\nruns\ndone\n".to_owned())
}

fn integrity(engine: Engine) -> Outcome {
    let done = engine.run("nemoclaw-integrity", "base", &["echo", "ran"]);
    equal("it ran", &done.out.contains("ran\n"), &false)?;
    contains("words", &done.text(), "`/etc/debian_version` has the digest")
}

/// /sandbox/agent/config of the image, locked from the start.
fn shields(engine: Engine) -> Outcome {
    let container = Running::start(engine, "nemoclaw-shields", "stepdown", &["sleep", "900"])?;
    let write = "(echo x >/sandbox/agent/config/x) 2>/dev/null && echo wrote; chmod 700 /sandbox/agent/config 2>/dev/null && echo mode; mv /sandbox/agent /sandbox/other 2>/dev/null && echo moved; echo done";
    let written =
        |container: &Running| container.exec("0", &["sh", "-c", write]).ok().map(|done| done.out);
    equal("up", &written(&container)?, &"done\n".to_owned())?;
    let program = binary("nemoclaw").display().to_string();
    let shields = |verb: &str| engine.inside(&[&program, "shields", verb, &container.id]);
    shields("down").ok()?;
    equal("down", &written(&container)?, &"wrote\nmode\ndone\n".to_owned())?;
    shields("up").ok()?;
    equal("up again", &written(&container)?, &"done\n".to_owned())?;
    let done = engine.inside(&[&program, "verify", &container.id]);
    equal("verify", &done.code, &0).map_err(|_differs| done.text().into())
}

fn private(engine: Engine) -> Outcome {
    let container = Running::start(engine, "nemoclaw-private", "base", &["sleep", "900"])?;
    let script = "cd /sandbox; mkdir -p agents/a; ln -s /sandbox/other agents/a/link; echo t >other; chmod 644 other; echo t >agents/a/auth.json; chmod 666 agents/a/auth.json
for n in $(seq 100); do [ $(stat -c %a agents/a/auth.json) = 600 ] && break; sleep 0.1; done; stat -c %a agents/a/auth.json other";
    equal("modes", &container.exec("0", &["sh", "-c", script]).ok()?.out, &"600\n644\n".to_owned())
}

/// Root of a user namespace that podman makes, its exec and its workspace.
fn user_namespace() -> Outcome {
    let engine = Engine::Podman5;
    let place = std::env::temp_dir().join(unique("nc-mapped"));
    std::fs::create_dir_all(&place)?;
    // Container user 1000.
    std::os::unix::fs::chown(&place, Some(101_000), Some(101_000))?;
    let mount = format!("{}:/sandbox", place.display());
    let name = unique("c");
    let options = [
        "podman",
        "run",
        "-d",
        "--network",
        "none",
        "--runtime",
        "nemoclaw",
        "--name",
        &name,
        "--uidmap",
        "0:100000:65536",
        "--gidmap",
        "0:100000:65536",
        "-v",
        &mount,
        "-w",
        "/sandbox",
        "localhost/nemoclaw-test/base:latest",
        "sleep",
        "900",
    ];
    let id = engine.inside(&options).ok()?.out.trim().to_owned();
    let exec = |command: &[&str]| {
        engine.inside(&[&["podman", "exec", "--privileged", "-u", "0", &name], command].concat())
    };
    let outcome = (|| {
        let script = "id -u; echo x >made && cat /proc/1/uid_map | tr -s ' '; stat -c %u made; ls / 2>&1 | head -n 1";
        let wanted =
            "1000\n 0 100000 65536\n1000\nls: cannot open directory '/': Permission denied\n";
        equal("exec", &exec(&["sh", "-c", script]).ok()?.out, &wanted.to_owned())?;
        let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(place.join("made"))?);
        equal("owner on the host", &owner, &101_000)?;
        judge(&exec(&["python3", "-c", &script_of_attempts()?]).ok()?.out)?;
        let program = binary("nemoclaw").display().to_string();
        let done = engine.inside(&[&program, "verify", &id]);
        equal("verify", &done.code, &0).map_err(|_differs| done.text().into())
    })();
    engine.inside(&["podman", "rm", "-f", "-t", "0", &name]);
    std::fs::remove_dir_all(&place)?;
    outcome
}

fn judge(text: &str) -> Outcome {
    let results: Vec<serde_json::Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let result = |value: &serde_json::Value| {
        value.get("result").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
    };
    let refused = results.iter().filter(|value| result(value) == "refused").count();
    let bad: Vec<String> = results
        .iter()
        .filter(|value| !matches!(result(value).as_str(), "refused" | "unavailable"))
        .map(ToString::to_string)
        .collect();
    equal("what succeeded", &bad.join("\n"), &String::new())?;
    if refused < 450 { Err(format!("only {refused} of {}", results.len()).into()) } else { Ok(()) }
}

fn script_of_attempts() -> Result<String, Failed> {
    Ok(std::fs::read_to_string(repository().join("tests/escape/attempts.py"))?)
}

fn attempts_in_init(engine: Engine) -> Outcome {
    judge(&engine.run("nemoclaw", "base", &["python3", "-c", &script_of_attempts()?]).ok()?.out)
}

fn attempts_in_exec(engine: Engine) -> Outcome {
    let container = Running::start(engine, "nemoclaw", "base", &["sleep", "900"])?;
    judge(&container.exec("0", &["python3", "-c", &script_of_attempts()?]).ok()?.out)
}

fn verify(engine: Engine) -> Outcome {
    let program = binary("nemoclaw").display().to_string();
    for runtime in ["nemoclaw", "nemoclaw-system-only", "nemoclaw-keep", "nemoclaw-root"] {
        let container =
            Running::start(engine, runtime, "base", &["sh", "-c", "sleep 900 & sleep 900"])?;
        container.exec("0", &["true"]).ok()?;
        let done = engine.inside(&[&program, "verify", &container.id]);
        equal(runtime, &done.code, &0).map_err(|_differs| done.text())?;
    }
    let container = Running::start(engine, "nemoclaw-step-down", "stepdown", &["sh", "-c", ENTRY])?;
    container.exec("0", &["sh", "-c", "until [ -s /tmp/gateway.pid ]; do sleep 0.1; done"]).ok()?;
    let done = engine.inside(&[&program, "verify", &container.id]);
    equal("step-down", &done.code, &0).map_err(|_differs| done.text().into())
}

/// The engine is killed and starts again; the sandbox does not notice.
fn crash() -> Outcome {
    const ASKS: &str = "while sleep 0.2; do
        curl -s -o /dev/null -m 2 -w '%{http_code}\\n' http://denied.test/ >>/tmp/answers; done";
    let engine = Engine::Docker26;
    let container = Running::start(engine, "nemoclaw", "base", &["sh", "-c", ASKS])?;
    let directories = || engine.inside(&["ls", "/run/nemoclaw/sandboxes"]).out;
    let before = directories();
    let crashed = std::process::Command::new(repository().join("hack/engine"))
        .args(["crash", engine.name()])
        .output()?;
    equal("the engine is back", &crashed.status.success(), &true)
        .map_err(|_failed| String::from_utf8_lossy(&crashed.stderr).into_owned())?;
    let answers = container.exec("0", &["sh", "-c", "sleep 1; cat /tmp/answers"]).ok()?.out;
    let codes: Vec<&str> = answers.lines().collect();
    equal("more than before", &(codes.len() > 5), &true)?;
    equal("all explained", &codes.iter().all(|code| *code == "403"), &true)
        .map_err(|_differs| answers.clone())?;
    equal("sandboxes", &directories(), &before)?;
    let program = binary("nemoclaw").display().to_string();
    let verified = engine.inside(&[&program, "verify", &container.id]);
    equal("verified", &verified.code, &0).map_err(|_differs| verified.text())?;
    let id = container.id.clone();
    drop(container);
    nemoclaw_tests::eventually(std::time::Duration::from_secs(5), "its proxy is gone", || {
        engine.inside(&[&program, "metrics", "--sandbox", &id]).code != 0
    })
}
