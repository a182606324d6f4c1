//! What breaks, breaks alone: the proxy's processes killed under load.

use std::io::Write as _;
use std::time::Duration;

use nemoclaw_tests::docker::{Container, docker, run};
use nemoclaw_tests::{Outcome, contains, equal, eventually, full, sh};
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::{IMAGE, proxies};

pub(super) const TRIALS: [crate::Named; 4] = [
    ("a_worker_killed_again_and_again_leaves_nothing_behind", killed),
    ("a_full_disk_closes_egress", full_disk),
    ("servers_that_break_off_dawdle_or_stay_silent_hold_nobody_up", servers),
    ("many_sandboxes_run_side_by_side", side_by_side),
];

/// Sets the host's clock, so that it is not for every run.
pub(super) const WITH_THE_CLOCK: [crate::Named; 1] = [("the_host_s_clock_may_jump", clock_jumps)];

/// Connects without a pause by the address that the name got at the beginning, and
/// tells how many connections worked and the longest time without one.
const LOAD: &str = "
import os, socket, time
address = socket.gethostbyname('allowed.test')
last, worst, worked = time.time(), 0, 0
open('/tmp/begun', 'w').close()
while not os.path.exists('/tmp/stop'):
    try:
        with socket.create_connection((address, 2525), 2) as s:
            s.settimeout(2)
            if not s.recv(9): continue
    except OSError: continue
    worst, last, worked = max(worst, time.time() - last), time.time(), worked + 1
print(worked, round(worst * 1000), flush=True)
";

/// Open descriptors and resident memory in KiB.
fn weight(pid: i32) -> Result<(i64, i64), libtest_mimic::Failed> {
    let told =
        sh(&format!("ls /proc/{pid}/fd | wc -l; awk '/^VmRSS/ {{print $2}}' /proc/{pid}/status"));
    let numbers: Vec<i64> = told.out.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    match numbers.as_slice() {
        [descriptors, memory] => Ok((*descriptors, *memory)),
        _ => Err(format!("no weight: {told:?}").into()),
    }
}

fn killed() -> Outcome {
    let times = if full() { 1000 } else { 40 };
    let container = Container::start(crate::RUNTIME, IMAGE, &[])?;
    let load = format!("python3 -c \"{LOAD}\" >/tmp/told 2>&1");
    docker(&["exec", "-d", &container.name, "sh", "-c", &load]).ok()?;
    eventually(Duration::from_secs(5), "load", || container.sh("ls /tmp/begun").code == 0)?;
    let (supervisor, _) = proxies(&container)?;
    // The first replacement touches what all later ones use again.
    let mut before = None;
    for number in 0..times {
        let (same, worker) = proxies(&container)?;
        equal("supervisor", &same, &supervisor)?;
        sh(&format!("kill -9 {worker}")).ok()?;
        eventually(Duration::from_secs(5), "another worker", || {
            proxies(&container).is_ok_and(|(_, next)| next != worker)
        })?;
        std::thread::sleep(Duration::from_millis(60));
        if number == 4 {
            before = Some(weight(supervisor)?);
        }
    }
    container.sh("touch /tmp/stop").ok()?;
    eventually(Duration::from_secs(5), "the end", || {
        !container.sh("cat /tmp/told").out.is_empty()
    })?;
    let told = container.sh("cat /tmp/told").out;
    let numbers: Vec<i64> = told.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [worked, worst] = numbers[..] else { return Err(format!("told: {told}").into()) };
    let (descriptors, memory) = before.ok_or("not weighed")?;
    let after = weight(supervisor)?;
    // Shown by `cargo nextest run --no-capture`.
    let _shown = writeln!(
        std::io::stderr(),
        "{times} kills: {worked} connections, at most {worst} ms without one, {memory} -> {} KiB",
        after.1
    );
    equal("connections between any two kills", &(worked > times), &true)?;
    // A busy machine may take its time; a lost listener would take for ever.
    equal("within two seconds", &(worst < 2000), &true)?;
    equal("descriptors stay", &(after.0 <= descriptors), &true)?;
    equal("memory stays", &(after.1 < memory + 1024), &true)?;
    let restarts = format!("worker_restarts_total{{sandbox=\"{}\"}} {times}\n", container.id);
    let counted = crate::nemoclaw(&["metrics", "--sandbox", &container.id]).out;
    contains("counted", &counted, &restarts)
}

/// What cannot be recorded does not happen.
fn full_disk() -> Outcome {
    let container = Container::start("nemoclaw-full-disk", IMAGE, &[])?;
    let (supervisor, worker) = proxies(&container)?;
    let log = format!("/proc/{supervisor}/root/var/log/nemoclaw/{}.jsonl", container.id);
    let kept = std::fs::File::open(&log)?;
    let allowed = || container.sh("curl -s -m 5 http://allowed.test/");
    contains("at first", &allowed().ok()?.out, "hello")?;
    let flood = "for n in $(seq 60); do curl -s -o /dev/null -m 2 http://denied.test/; done";
    let _refused = container.sh(flood);
    eventually(Duration::from_secs(5), "both have ended", || {
        [supervisor, worker].iter().all(|pid| !sh(&format!("kill -0 {pid}")).err.is_empty())
    })?;
    equal("egress is closed", &(allowed().code != 0), &true)?;
    // What was written is whole, line by line, but for the last one.
    let text = std::io::read_to_string(kept)?;
    let lines: Vec<&str> = text.split('\n').collect();
    let (_torn, whole) = lines.split_last().ok_or("nothing was recorded")?;
    equal("some records", &(whole.len() > 8), &true)?;
    for line in whole {
        let _record: serde_json::Value = serde_json::from_str(line)?;
    }
    Ok(())
}

/// Many connections to where nobody answers, one that is read slowly, one broken off.
const SERVERS: &str = "
import socket, threading, time
silent = socket.gethostbyname('silent.test'); address = socket.gethostbyname('allowed.test')
held = []
for n in range(150):
    s = socket.socket(); s.setblocking(False); s.connect_ex((silent, 80)); held.append(s)
slow = socket.create_connection((address, 13), 5); slow.setblocking(False)
pushed = 0
for n in range(200):
    try: pushed += slow.send(bytes(1 << 20))
    except BlockingIOError: time.sleep(0.01)
begun, answers = time.time(), 0
for n in range(20):
    with socket.create_connection((address, 2525), 5) as s:
        s.settimeout(5); answers += s.recv(9) != b''
took = time.time() - begun
broken = socket.create_connection((address, 11), 5); broken.settimeout(5); broken.sendall(b'x')
got = broken.recv(9)
try: print('end', broken.recv(9))
except ConnectionResetError: print('reset after', got)
print(answers, 'answers', took < 3, 'pushed', pushed < 64 << 20, flush=True)
";

fn servers() -> Outcome {
    let container = Container::start(crate::RUNTIME, IMAGE, &[])?;
    let (_, worker) = proxies(&container)?;
    let before = weight(worker)?.1;
    let seen = container.sh(&format!("python3 -c \"{SERVERS}\"")).ok()?;
    equal("seen", &seen.out, &"reset after b'ok'\n20 answers True pushed True\n".to_owned())?;
    // What a slow server does not take waits in the kernel, not with us.
    let grown = weight(worker)?.1 - before;
    equal(&format!("{grown} KiB more"), &(grown < 8 * 1024), &true)?;
    eventually(Duration::from_secs(15), "silence is recorded", || {
        let records = container.audit();
        let silent = records.iter().filter(|record| record["host"] == "silent.test");
        silent.filter(|record| record["reason"] == "upstream_unreachable").count() == 150
    })
}

/// 200 with --full: each has its own network namespace, proxy and record.
fn side_by_side() -> Outcome {
    let number = if full() { 200 } else { 12 };
    let mut running = Vec::new();
    for n in 0..number {
        let started = Container::start("nemoclaw", IMAGE, &[]);
        running.push(started.map_err(|error| format!("the {n}th: {error:?}"))?);
    }
    let proxies_of = |container: &Container| proxies(container).map(|(a, b)| [a, b]);
    let pids: Vec<i32> = running.iter().map(proxies_of).collect::<Result<Vec<_>, _>>()?.concat();
    let listed: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let told = sh(&format!(
        "for p in {}; do awk '/^Pss:/ {{print $2}}' /proc/$p/smaps_rollup; done",
        listed.join(" ")
    ));
    let kib: i64 = told.out.split_whitespace().filter_map(|n| n.parse::<i64>().ok()).sum();
    let each = kib / i64::from(number);
    let _shown = writeln!(std::io::stderr(), "{number} sandboxes: {each} KiB of proxy each");
    equal(&format!("{each} KiB of proxy each"), &(each > 0 && each < 6 * 1024), &true)?;
    for container in [&running[0], &running[running.len() - 1]] {
        contains("it answers", &container.sh("curl -s http://denied.test/").out, "no_endpoint")?;
    }
    drop(running);
    eventually(Duration::from_secs(10), "nothing is left", || {
        pids.iter().all(|pid| !sh(&format!("kill -0 {pid}")).err.is_empty())
    })
}

/// The host's clock jumps a day back, then two on. What is measured in time goes on,
/// and no program gets to be older than the container.
fn clock_jumps() -> Outcome {
    let place = tempfile::tempdir()?;
    let mount = format!("{}:/project", place.path().display());
    let owner = ["sh", "-c", "cp /usr/bin/curl /project/before && chown -R 10001 /project"];
    run("runc", &["-v", &mount], IMAGE, &owner).ok()?;
    std::thread::sleep(Duration::from_millis(50));
    let container = Container::start("nemoclaw-trust", IMAGE, &["-v", &mount])?;
    let other = Container::start(crate::RUNTIME, IMAGE, &[])?;
    let fetch =
        |program: &str| container.sh(&format!("/project/{program} -s -m 5 http://plain.test/")).out;
    let check = |when: &str| {
        contains(when, &other.sh("curl -s -m 5 http://allowed.test/").out, "hello")?;
        let refused = other.sh("curl -s -m 5 http://denied.test/").out;
        contains(when, &refused, "no_endpoint")
    };
    contains("before", &fetch("before"), "hello")?;
    let tunnel = format!("python3 -c \"{TUNNEL}\" >/tmp/told 2>&1");
    docker(&["exec", "-d", &other.name, "sh", "-c", &tunnel]).ok()?;
    eventually(Duration::from_secs(5), "a tunnel", || other.sh("ls /tmp/begun").code == 0)?;
    let clock = Clock::new();
    for (when, seconds) in [("a day back", -86_400), ("a day ahead", 86_400)] {
        clock.set(seconds)?;
        container.sh("cp /usr/bin/curl /project/later").ok()?;
        contains(when, &fetch("later"), "binary_changed")?;
        check(when)?;
    }
    drop(clock);
    check("set right")?;
    contains("still too late", &fetch("later"), "binary_changed")?;
    other.sh("touch /tmp/stop").ok()?;
    eventually(Duration::from_secs(5), "the tunnel's end", || {
        other.sh("cat /tmp/told").out.contains("whole")
    })?;
    for id in [&container.id, &other.id] {
        crate::nemoclaw(&["logs", "--check", "--sandbox", id]).ok()?;
    }
    Ok(())
}

/// Holds a connection while others come and go.
const TUNNEL: &str = "
import os, socket, time
s = socket.create_connection((socket.gethostbyname('allowed.test'), 7), 5)
s.sendall(b'one '); open('/tmp/begun', 'w').close()
while not os.path.exists('/tmp/stop'): time.sleep(0.05)
s.sendall(b'two'); s.shutdown(socket.SHUT_WR); s.settimeout(5)
got = b''
while part := s.recv(99): got += part
print('whole' if got == b'one two' else got, flush=True)
";

/// The host's clock, set right again at the end by one that never jumps.
struct Clock(Timespec, Timespec);

impl Clock {
    fn new() -> Self {
        Self(clock_gettime(ClockId::Realtime), clock_gettime(ClockId::Boottime))
    }

    /// Sets it to the right time and so many seconds.
    fn set(&self, seconds: i64) -> Outcome {
        let Self(real, boot) = self;
        let now = *real + (clock_gettime(ClockId::Boottime) - *boot);
        let shifted = Timespec { tv_sec: now.tv_sec + seconds, ..now };
        Ok(rustix::time::clock_settime(ClockId::Realtime, shifted)?)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let _right = self.set(0);
    }
}
