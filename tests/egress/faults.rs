//! What breaks, breaks alone: the proxy's processes killed under load.

use std::io::Write as _;
use std::time::Duration;

use nemoclaw_tests::docker::{Container, docker};
use nemoclaw_tests::{Outcome, equal, eventually, full, sh};

use crate::{IMAGE, proxies};

pub(super) const TRIALS: [crate::Named; 1] =
    [("a_worker_killed_again_and_again_leaves_nothing_behind", killed)];

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
    equal("descriptors", &after.0, &descriptors)?;
    equal("memory stays", &(after.1 < memory + 1024), &true)?;
    let restarts = format!("worker_restarts_total{{sandbox=\"{}\"}} {times}\n", container.id);
    let counted = crate::nemoclaw(&["metrics", "--sandbox", &container.id]).out;
    nemoclaw_tests::contains("counted", &counted, &restarts)
}
