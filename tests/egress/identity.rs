//! Whose connection is it? Programs that try to pass for others.
//!
//! The supervisor is stopped while they do it, so that it does not depend on who is
//! faster: it looks when all is done.

use std::time::Duration;

use nemoclaw_tests::docker::{Container, docker, run};
use nemoclaw_tests::{Outcome, contains, equal, eventually, repository, sh, work};
use serde_json::Value;

use crate::{IMAGE, RUNTIME, proxies};

/// The same policy where the kernel does not describe its types: nobody is noted.
const UNNOTED: &str = "nemoclaw-unnoted";

pub(super) const TRIALS: [crate::Named; 7] = [
    ("a_program_that_executes_another_after_connecting_is_not_that_other", executed),
    ("a_socket_that_others_hold_is_decided_for_all_of_them", shared),
    ("a_socket_parked_in_another_has_no_owner", parked),
    ("without_notes_sockets_are_looked_for", unnoted),
    ("a_program_that_comes_later_needs_a_digest_or_trust", later),
    ("a_parent_that_becomes_a_listed_program_lends_nothing", lineage),
    ("long_paths_neither_end_the_worker_nor_hide_the_record", long_paths),
];

/// Makes the program that no rule lists, which runs as the rest of the script says.
const EVIL: &str = "cp /usr/bin/python3 /tmp/evil; mkfifo /tmp/fifo; cat >/tmp/evil.py";

/// Waits until it may, connects, says what it wants, and becomes curl, which waits.
const BECOMES: &str = "
import os, socket, sys, time
address = socket.gethostbyname('plain.test')
open('/tmp/ready', 'w').close()
while not os.path.exists('/tmp/go'): time.sleep(0.01)
s = socket.socket()
if 'parked' in sys.argv:
    one, other = socket.socketpair()
    socket.send_fds(one, [b'x'], [s.fileno()])
    os.set_inheritable(one.fileno(), True); os.set_inheritable(other.fileno(), True)
s.connect((address, 80))
s.sendall(b'GET /smuggled HTTP/1.1\\r\\nHost: plain.test\\r\\n\\r\\n')
if 'parked' in sys.argv: s.close()
else: os.set_inheritable(s.fileno(), True)
os.execv('/usr/bin/curl', ['curl', '-s', 'file:///tmp/fifo'])
";

/// A connection of a listed program, over a socket that its unlisted parent made.
const SHARES: &str = "
import os, socket, sys, time
if len(sys.argv) == 1:
    s = socket.socket()
    s.set_inheritable(True)
    if os.fork() == 0: os.execv('/usr/bin/python3', ['python3', '/tmp/evil.py', str(s.fileno())])
    time.sleep(9)
address = socket.gethostbyname('allowed.test')
open('/tmp/ready', 'w').close()
while not os.path.exists('/tmp/go'): time.sleep(0.01)
s = socket.socket(fileno=int(sys.argv[1]))
s.connect((address, 80))
s.sendall(b'GET / HTTP/1.1\\r\\nHost: allowed.test\\r\\n\\r\\n')
open('/tmp/done', 'w').close()
time.sleep(9)
";

/// Runs `program` with the script, the supervisor stopped meanwhile; the records.
fn tried(
    runtime: &str,
    program: &str,
    script: &str,
    done: &str,
) -> Result<Vec<Value>, libtest_mimic::Failed> {
    let container = Container::start(runtime, IMAGE, &[])?;
    container.sh(&format!("{EVIL} <<'E'\n{script}E\n")).ok()?;
    let (supervisor, _) = proxies(&container)?;
    docker(&["exec", "-d", &container.name, "sh", "-c", program]).ok()?;
    eventually(Duration::from_secs(5), "ready", || container.sh("ls /tmp/ready").code == 0)?;
    sh(&format!("kill -STOP {supervisor}")).ok()?;
    // Not through exec: the runtime does not wait for a proxy there.
    let going = container.sh("touch /tmp/go");
    let arrived = eventually(Duration::from_secs(5), "all done", || container.sh(done).code == 0);
    std::thread::sleep(Duration::from_millis(100));
    sh(&format!("kill -CONT {supervisor}")).ok()?;
    going.ok()?;
    if arrived.is_err() {
        return Err(format!("{runtime}: {:?}", container.sh("ls -la /tmp; ps aux")).into());
    }
    eventually(Duration::from_secs(5), "a record", || !container.audit().is_empty())?;
    Ok(container.audit())
}

fn first(records: &[Value]) -> String {
    let word = |key: &str| {
        records.first().and_then(|record| record[key].as_str()).unwrap_or("-").to_owned()
    };
    format!("{} {} {}", word("decision"), word("reason"), word("binary"))
}

fn executed() -> Outcome {
    let became = "pgrep -x curl";
    let run = |runtime| tried(runtime, "exec /tmp/evil /tmp/evil.py", BECOMES, became);
    equal("noted", &first(&run(RUNTIME)?), &"deny caller_unknown ".to_owned())?;
    // Whoever only looks afterwards sees curl.
    contains("looked for", &first(&run(UNNOTED)?), "allow - /usr/bin/curl")
}

fn shared() -> Outcome {
    for runtime in [RUNTIME, UNNOTED] {
        let program = "exec /tmp/evil /tmp/evil.py";
        let records = tried(runtime, program, SHARES, "ls /tmp/done")?;
        contains(runtime, &first(&records), "deny binary_not_allowed /")?;
        contains(runtime, &records[0].to_string(), "\"/tmp/evil\"")?;
        contains(runtime, &records[0].to_string(), "\"/usr/bin/python3.11\"")?;
    }
    Ok(())
}

fn parked() -> Outcome {
    for runtime in [RUNTIME, UNNOTED] {
        let program = "exec /tmp/evil /tmp/evil.py parked";
        let records = tried(runtime, program, BECOMES, "pgrep -x curl")?;
        equal(runtime, &first(&records), &"deny caller_unknown ".to_owned())?;
    }
    Ok(())
}

fn unnoted() -> Outcome {
    let metric =
        |container: &Container| crate::nemoclaw(&["metrics", "--sandbox", &container.id]).out;
    for (runtime, value) in [(RUNTIME, 1), (UNNOTED, 0)] {
        let container = Container::start(runtime, IMAGE, &[])?;
        let wanted = format!("nemoclaw_connects_noted{{sandbox=\"{}\"}} {value}\n", container.id);
        contains("metric", &metric(&container), &wanted)?;
        contains("listed", &container.sh("curl -s http://plain.test/").ok()?.out, "hello")?;
        let refused = container.sh("cp /usr/bin/curl /tmp/c && /tmp/c -s http://plain.test/");
        contains("unlisted", &refused.out, "binary_not_allowed")?;
    }
    Ok(())
}

fn later() -> Outcome {
    let policy = work().join("policy/trust.yaml");
    let written = std::fs::read_to_string(repository().join("tests/policies/trust.yaml"))?;
    let curl = run("runc", &[], IMAGE, &["sha256sum", "/usr/bin/curl"]).ok()?.out;
    let digest = curl.split_whitespace().next().unwrap_or_default();
    std::fs::write(&policy, written.replace(&"0".repeat(64), digest))?;
    let place = tempfile::tempdir()?;
    let mount = format!("{}:/project", place.path().display());
    let copy = ["sh", "-c", "cp /usr/bin/curl /project/before && chmod 755 /project"];
    run("runc", &["-v", &mount], IMAGE, &copy).ok()?;
    std::os::unix::fs::chown(place.path(), Some(10_001), Some(10_001))?;
    std::thread::sleep(Duration::from_millis(50));
    let container = Container::start("nemoclaw-trust", IMAGE, &["-v", &mount])?;
    container.sh("cd /project && cp before later && cp before pinned").ok()?;
    let fetch = |program: &str, host: &str| {
        container.sh(&format!("/project/{program} -s -m 5 http://{host}/")).out
    };
    for (program, host, wanted) in [
        ("before", "plain.test", "hello"),
        ("later", "plain.test", "\"reason\":\"binary_changed\""),
        ("before", "index.test", "hello"),
        ("later", "index.test", "hello"),
        ("pinned", "files.test", "hello"),
        ("later", "files.test", "\"reason\":\"binary_not_allowed\""),
    ] {
        contains(&format!("{program} to {host}"), &fetch(program, host), wanted)?;
    }
    // Other bytes at the pinned path, then the right ones again.
    container.sh("cd /project && cp pinned kept && echo >>pinned").ok()?;
    contains("other bytes", &fetch("pinned", "files.test"), "refused by nemoclaw")?;
    container.sh("cd /project && mv kept pinned").ok()?;
    contains("the right ones", &fetch("pinned", "files.test"), "hello")?;
    // Nobody inside sets the time of change.
    container.sh("touch -d 2001-01-01 /project/later").ok()?;
    contains("touched", &fetch("later", "plain.test"), "binary_changed")
}

/// Connects once its parent is what the second word says.
const CHILD: &str = "
import os, socket, sys, time
end = time.time() + 2
while open('/proc/%d/comm' % os.getppid()).read().strip() != sys.argv[2] and time.time() < end: time.sleep(0.01)
time.sleep(0.1)
s = socket.create_connection((sys.argv[1], 80), 5); s.settimeout(5)
s.sendall(b'GET / HTTP/1.1\\r\\nHost: %b\\r\\nConnection: close\\r\\n\\r\\n' % sys.argv[1].encode())
got = b''
while part := s.recv(999): got += part
print(b'hello from' in got)
";

fn lineage() -> Outcome {
    for (runtime, lends) in [(RUNTIME, false), (UNNOTED, true)] {
        let container = Container::start(runtime, IMAGE, &[])?;
        container.sh(&format!("{EVIL} <<'E'\n{CHILD}E\n")).ok()?;
        // curl is listed for plain.test; it waits, and knows nothing of the child.
        let becomes = "/tmp/evil /tmp/evil.py plain.test curl >/tmp/told & exec curl -s -m 5 http://allowed.test/slow/2";
        container.sh(becomes);
        let told = container.sh("cat /tmp/told").out;
        equal(runtime, &told.contains("True"), &lends)?;
        // python3 is listed for allowed.test, and so is what it starts.
        let starts = "python3 -c \"import subprocess; print(subprocess.run(['/tmp/evil', '/tmp/evil.py', 'allowed.test', 'python3'], capture_output=True, text=True).stdout)\"";
        contains(runtime, &container.sh(starts).ok()?.out, "True")?;
    }
    Ok(())
}

/// Starts itself again and again below a long path, and connects at the end.
const DEEP: &str = "
import os, socket, subprocess, sys
depth = int(sys.argv[1])
if depth: sys.exit(subprocess.run([sys.executable, __file__, str(depth - 1)]).returncode)
address = socket.gethostbyname('allowed.test')
held = []
for n in range(300):
    s = socket.socket(); s.setblocking(False); s.connect_ex((address, 80)); held.append(s)
s = socket.create_connection((address, 80), 5); s.settimeout(5)
s.sendall(b'GET / HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n'); s.recv(99)
";

fn long_paths() -> Outcome {
    let container = Container::start(RUNTIME, IMAGE, &[])?;
    container.sh(&format!("cat >/tmp/deep.py <<'E'\n{DEEP}E\n")).ok()?;
    let place = format!("/tmp/{0}/{0}/{0}/{0}", "d".repeat(240));
    container.sh(&format!(
        "mkdir -p {place} && cp /usr/bin/python3 {place}/python3 && {place}/python3 /tmp/deep.py 14"
    ));
    eventually(Duration::from_secs(10), "all records", || container.audit().len() >= 300)?;
    let records = container.audit();
    let restarted = records.iter().any(|record| record["event"] == "worker_restarted");
    equal("the worker lives", &restarted, &false)?;
    for record in &records {
        contains("host", &record["host"].to_string(), "allowed.test")?;
        contains("program", &record["binary"].to_string(), "dddd")?;
    }
    Ok(())
}
