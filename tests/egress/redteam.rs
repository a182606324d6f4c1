//! Everything that is refused, tried while each packet of the sandbox's link is watched
//! from outside: not one leaves that is not on record.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use libtest_mimic::Failed;
use nemoclaw_tests::docker::{Container, docker, docker_for};
use nemoclaw_tests::{Outcome, contains, equal, eventually, repository};
use serde_json::Value;

use crate::{IMAGE, RUNTIME, dns_log};

pub(super) const TRIALS: [crate::Named; 4] = [
    ("no_packet_leaves_that_is_not_on_record", watched),
    ("a_frame_that_no_chain_has_passed_goes_nowhere", frames),
    ("a_network_that_is_connected_later_is_captured_too", connected),
    ("the_proxy_s_own_sockets_cannot_be_aimed_anew", aimed),
];

/// What is captured, ended when dropped.
struct Capture {
    child: Child,
    file: tempfile::NamedTempFile,
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Capture {
    fn start(container: &Container) -> Result<Self, Failed> {
        let told = container
            .sh("cat /sys/class/net/eth0/iflink /sys/class/net/eth0/address; ip route 2>/dev/null")
            .out;
        let words: Vec<&str> = told.split_whitespace().collect();
        let (Some(index), Some(mac)) = (words.first(), words.get(1)) else {
            return Err(format!("no link: {told}").into());
        };
        let interface = nemoclaw_tests::sh(&format!(
            "hack/engine net docker20 ip -o link | awk -F'[:@ ]+' '$1 == {index} {{print $2}}'"
        ));
        let file = tempfile::NamedTempFile::new()?;
        // Ended as one: the helper executes what it is given.
        let child = Command::new(repository().join("hack/engine"))
            .args(["net", "docker20", "python3"])
            .arg(repository().join("tests/egress/capture.py"))
            .args([interface.out.trim(), mac])
            .stdin(Stdio::null())
            .stdout(file.reopen()?)
            .spawn()?;
        let capture = Self { child, file };
        eventually(Duration::from_secs(5), "a capture", || capture.text().starts_with("ready"))?;
        Ok(capture)
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.file.path()).unwrap_or_default()
    }
}

fn watched() -> Outcome {
    let container = Container::start(RUNTIME, IMAGE, &[])?;
    let format = "{{.NetworkSettings.Gateway}}";
    let gateway = docker(&["inspect", "-f", format, &container.name]).ok()?.out.trim().to_owned();
    let capture = Capture::start(&container)?;
    let script = std::fs::read_to_string(repository().join("tests/egress/attempts.py"))?;
    let command = format!("python3 - {gateway} <<'EOF'\n{script}\nEOF\n");
    let words = ["exec", &container.name, "sh", "-c", &command];
    let seen = docker_for(&words, Duration::from_mins(5)).ok()?;
    let mut outcomes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in seen.out.lines() {
        let told: Value = serde_json::from_str(line)?;
        let word = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
        let kind = if word("name").starts_with("allowed_") { "allowed" } else { "attempt" };
        outcomes.entry(format!("{kind} {}", word("outcome"))).or_default().push(word("name"));
    }
    let none = Vec::new();
    let of = |key: &str| outcomes.get(key).unwrap_or(&none);
    equal("what is listed", &of("allowed refused"), &&none)?;
    equal("what is listed is there", &(of("allowed reached").len() >= 8), &true)?;
    equal("what is not listed", &of("attempt reached"), &&none)?;
    equal("attempts", &(of("attempt refused").len() >= 100), &true)?;
    let strange: Vec<_> = outcomes.keys().filter(|key| key.contains("error")).collect();
    equal(&format!("{outcomes:?}"), &strange, &Vec::new())?;
    // The last packets and records are on their way.
    std::thread::sleep(Duration::from_millis(500));
    let recorded: BTreeSet<(String, String, String)> = container
        .records()
        .iter()
        .filter(|record| record["event"] == "dial")
        .map(|record| {
            let word = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
            (word("protocol"), word("from"), word("to"))
        })
        .collect();
    let text = capture.text();
    let mut seen = BTreeSet::new();
    for line in text.lines().skip(1) {
        let words: Vec<&str> = line.split(' ').collect();
        let [way, protocol, from, to] = words[..] else {
            return Err(format!("captured: {line}").into());
        };
        let (from, to) = if way == "out" { (from, to) } else { (to, from) };
        let flow = (protocol.to_owned(), from.to_owned(), to.to_owned());
        if !recorded.contains(&flow) {
            return Err(format!("not on record: {line}").into());
        }
        seen.insert(flow);
    }
    equal("recorded and seen", &(seen.len() > 10), &true)?;
    contains("questions", &dns_log(), "allowed.test")?;
    equal("leaked names", &dns_log().contains("leak"), &false)
}

/// Sends a frame of a protocol for experiments (IEEE 802, 88b5) in the namespace.
fn send_frame(container: &Container) -> Outcome {
    let script = "import socket; s = socket.socket(17, 3, 0); s.bind((\"eth0\", 0)); s.send(b\"\\xff\" * 6 + s.getsockname()[4] + b\"\\x88\\xb5\" + bytes(46))";
    let pid = container.pid()?;
    // Where it is refused, the socket says so; that is not what is asked here.
    nemoclaw_tests::sh(&format!("nsenter -t {pid} -n python3 -c '{script}'"));
    Ok(())
}

fn frames() -> Outcome {
    for (runtime, comes) in [("runc", true), (RUNTIME, false)] {
        let container = Container::start(runtime, IMAGE, &[])?;
        let capture = Capture::start(&container)?;
        send_frame(&container)?;
        container.sh("curl -s -m 2 http://allowed.test/");
        eventually(Duration::from_secs(5), "other packets", || capture.text().contains("udp"))?;
        equal(runtime, &capture.text().contains("ethertype-88b5"), &comes)?;
    }
    Ok(())
}

fn connected() -> Outcome {
    let network = nemoclaw_tests::unique("net");
    docker(&["network", "create", &network]).ok()?;
    let tried = Container::start(RUNTIME, IMAGE, &[]).and_then(|container| {
        docker(&["network", "connect", &network, &container.name]).ok()?;
        docker(&["network", "disconnect", "bridge", &container.name]).ok()?;
        let links = container.sh("ls /sys/class/net").out;
        equal(&links, &(links.contains("eth1") && !links.contains("eth0")), &true)?;
        contains("listed", &container.sh("curl -s -m 5 http://allowed.test/").out, "hello")?;
        contains("unlisted", &container.sh("curl -s -m 5 http://denied.test/").out, "no_endpoint")?;
        let script = "
import socket
for kind, port in ((socket.SOCK_DGRAM, 9999), (socket.SOCK_STREAM, 80)):
    s = socket.socket(socket.AF_INET, kind); s.settimeout(1)
    try: s.connect(('203.0.113.10', port)); s.send(b'GET / HTTP/1.0\\r\\n\\r\\n'); print(b'hello from' in s.recv(999))
    except OSError: print('refused')";
        let seen = container.sh(&format!("python3 -c \"{script}\"")).ok()?.out;
        equal("by address", &seen.contains("True"), &false)
    });
    docker(&["network", "rm", &network]);
    tried
}

/// What a worker that was taken over would do with sockets that carry the mark.
const MARKED: &str = "
import socket, sys
own = sys.argv[1]
server = socket.create_server((\"127.0.0.1\", 0))
def tries(kind, address, family=socket.AF_INET):
    s = socket.socket(family, kind); s.settimeout(1)
    s.setsockopt(socket.SOL_SOCKET, 36, 0x6e656d6f)
    try:
        s.connect(address); s.send(b\"x\"); s.send(b\"x\")
        return \"sent\"
    except OSError: return \"refused\"
tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM
for what in [(tcp, (\"203.0.113.10\", 80)), (udp, (\"203.0.113.53\", 53)), (tcp, server.getsockname()),
             (tcp, (own, 10080)), (tcp, (\"11.22.0.1\", 80)), (tcp, (\"169.254.169.254\", 80)),
             (udp, (\"203.0.113.10\", 9999)), (udp, (\"224.0.0.251\", 5353)), (udp, (\"127.0.0.1\", 9))]:
    print(tries(*what))
";

fn aimed() -> Outcome {
    let container = Container::start(RUNTIME, IMAGE, &[])?;
    let address = container.sh("hostname -i").out.trim().to_owned();
    let pid = container.pid()?;
    // The host's root has the capability that the supervisor has.
    let seen = nemoclaw_tests::sh(&format!("nsenter -t {pid} -n python3 -c '{MARKED}' {address}"));
    let wanted = format!("{}{}", "sent\n".repeat(2), "refused\n".repeat(7));
    equal("sent", &seen.ok()?.out, &wanted)
}
