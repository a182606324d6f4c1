//! What happens to a connection once its destination is allowed.

use std::time::Duration;

use nemoclaw_tests::docker::{Container, docker, run};
use nemoclaw_tests::{Outcome, contains, equal, eventually};
use serde_json::Value;

use crate::IMAGE;

const RUNTIME: &str = "nemoclaw-connections";

pub(super) const TRIALS: [crate::Named; 10] = [
    ("urgent_data_does_not_end_a_stream", urgent),
    ("what_happened_is_counted", metrics),
    ("a_program_that_was_replaced_is_another_program", replaced),
    ("a_tls_name_has_to_be_that_of_the_connection", server_name),
    ("a_tls_name_is_checked_behind_connect_too", server_name_in_tunnel),
    ("an_address_that_does_not_answer_delays_little", two_addresses),
    ("a_program_has_its_share_of_connections", budget),
    ("an_idle_connection_ends_and_a_busy_one_does_not", idle),
    ("a_connection_lasts_as_long_as_it_may", lifetime),
    ("permitted_connections_leave_through_the_operator_s_proxy", proxied),
];

/// Says hello in one way or another and tells whether a handshake came of it.
const HELLO: &str = r#"
import socket, ssl, sys, time
plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE
def connection(port=443):
    if "tunnel" not in sys.argv: return socket.create_connection(("allowed.test", port), 5)
    s = socket.create_connection(("proxy.local", 3128), 5)
    s.sendall(b"CONNECT allowed.test:%d HTTP/1.1\r\nHost: allowed.test\r\n\r\n" % port)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"): answer += s.recv(1)
    assert answer.startswith(b"HTTP/1.1 200")
    return s
def handshake(name, piece=None):
    out, into = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = plain.wrap_bio(into, out, server_hostname=name)
    with connection() as s:
        s.settimeout(5)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while True:
                try:
                    tls.do_handshake()
                    return "done"
                except ssl.SSLWantReadError:
                    data = out.read()
                    for at in range(0, len(data), piece or len(data) or 1):
                        s.sendall(data[at:at + (piece or len(data))])
                        if piece: time.sleep(0.02)
                    got = s.recv(65536)
                    if not got: return "end"
                    into.write(got)
        except OSError as error: return type(error).__name__
def raw(data, port=443):
    with connection(port) as s:
        s.settimeout(5)
        try:
            s.sendall(data)
            return s.recv(99)[:3].decode()
        except OSError as error: return type(error).__name__
print("same", handshake("allowed.test"))
print("upper", handshake("ALLOWED.test"))
print("none", handshake(None))
print("pieces", handshake("allowed.test", 40))
print("other", handshake("other.test"))
print("other in pieces", handshake("other.test", 40))
print("broken", raw(bytes([22, 3, 1, 0, 4, 1, 0, 0, 0])))
print("not tls", raw(b"EHLO x\r\n", 2525))
"#;

const HEARD: &str = "same done\nupper done\nnone done\npieces done\nother ConnectionResetError\nother in pieces ConnectionResetError\nbroken ConnectionResetError\nnot tls 220\n";

fn closed(container: &Container) -> Vec<Value> {
    container.audit().into_iter().filter(|record| record["event"] == "close").collect()
}

fn server_name() -> Outcome {
    let container = Container::start(RUNTIME, IMAGE, &[])?;
    let seen = container.sh(&format!("python3 - <<'E'\n{HELLO}E\n")).ok()?;
    equal("heard", &seen.out, &HEARD.to_owned())?;
    eventually(Duration::from_secs(2), "eight ends", || closed(&container).len() == 8)?;
    let closed = closed(&container);
    let told: Vec<String> = closed
        .iter()
        .map(|record| {
            let word = |key: &str| record[key].as_str().unwrap_or("-").to_owned();
            format!("{} {} {}", word("decision"), word("reason"), word("server_name"))
        })
        .collect();
    let wanted = [
        "allow - allowed.test",
        "allow - ALLOWED.test",
        "allow - -",
        "allow - allowed.test",
        "deny server_name other.test",
        "deny server_name other.test",
        "deny server_name -",
        "allow - -",
    ];
    equal("recorded", &told, &wanted.map(str::to_owned).to_vec())?;
    // Nothing of a hello that disagrees reaches anybody.
    let sent: u64 = closed
        .iter()
        .filter(|record| record["decision"] == "deny")
        .filter_map(|record| record["sent"].as_u64())
        .sum();
    equal("bytes of refused hellos", &sent, &0)
}

fn server_name_in_tunnel() -> Outcome {
    let container = Container::start(RUNTIME, IMAGE, &[])?;
    let seen = container.sh(&format!("python3 - tunnel <<'E'\n{HELLO}E\n")).ok()?;
    equal("heard", &seen.out, &HEARD.to_owned())
}

fn two_addresses() -> Outcome {
    let container = Container::start(RUNTIME, IMAGE, &[])?;
    let timed = "curl -sk -m 8 -o /dev/null -w '%{http_code} %{time_total}' https://two.test/";
    let seen = container.sh(timed).ok()?.out;
    let (code, seconds) = seen.split_once(' ').ok_or("no answer")?;
    equal("status", &code, &"200")?;
    // The first of its two addresses answers nobody.
    let seconds: f64 = seconds.trim().parse().map_err(|_error| "no time")?;
    equal("within two seconds", &(seconds > 0.2 && seconds < 2.0), &true)?;
    let address = container.audit().first().map(|record| record["address"].clone());
    equal("dialled", &address, &Some(Value::from("203.0.113.10:443")))
}

fn budget() -> Outcome {
    let script = "
import socket
def opened():
    s = socket.create_connection(('allowed.test', 2525), 5)
    s.settimeout(5)
    try: return s if s.recv(99) else None
    except OSError: return None
held = [opened() for _ in range(5)]
print([s is not None for s in held])
held[0].close()
import time; time.sleep(0.3)
print(opened() is not None)
import subprocess
print(subprocess.run(['curl', '-s', '-m', '5', '-o', '/dev/null', '-w', '%{http_code}', '-k', 'https://allowed.test/'], capture_output=True, text=True).stdout)
";
    let container = Container::start(RUNTIME, IMAGE, &[])?;
    let seen = container.sh(&format!("python3 -c \"{script}\"")).ok()?;
    equal("seen", &seen.out, &"[True, True, True, False, False]\nTrue\n200\n".to_owned())?;
    let reasons: Vec<String> = container
        .audit()
        .iter()
        .filter(|record| record["decision"] == "deny")
        .filter_map(|record| record["reason"].as_str().map(str::to_owned))
        .collect();
    equal("reasons", &reasons, &vec!["connection_budget".to_owned(); 2])
}

fn replaced() -> Outcome {
    let work = tempfile::tempdir()?;
    let mount = format!("{}:/project", work.path().display());
    let copy = [
        "sh",
        "-c",
        "cp /usr/bin/curl /project/agent && chmod 755 /project /project/agent && ln -s /usr/bin/curl /project/link",
    ];
    run("runc", &["-v", &mount], IMAGE, &copy).ok()?;
    std::os::unix::fs::chown(work.path(), Some(10_001), Some(10_001))?;
    std::os::unix::fs::chown(work.path().join("agent"), Some(10_001), Some(10_001))?;
    let fetch = |container: &Container, program: &str| {
        container
            .sh(&format!("{program} -s -m 5 -w ' %{{http_code}}' http://allowed.test/"))
            .out
            .trim()
            .to_owned()
    };
    // By another file at its path, and by other bytes in the same file.
    for change in
        ["cp agent new && mv new agent", "cp agent old && cat /usr/bin/curl >agent", "touch agent"]
    {
        let container = Container::start(RUNTIME, IMAGE, &["-v", &mount, "-w", "/project"])?;
        contains("as it was", &fetch(&container, "/project/agent"), " 200")?;
        container.sh(change).ok()?;
        let refused = fetch(&container, "/project/agent");
        contains(change, &refused, " 403")?;
        contains(change, &refused, "\"reason\":\"binary_changed\"")?;
        contains("another program", &fetch(&container, "curl"), " 200")?;
        let record = container.audit().into_iter().find(|record| record["decision"] == "deny");
        let binary = record.map(|record| record["binary"].clone());
        equal("recorded", &binary, &Some("(changed) /project/agent".into()))?;
        docker(&["restart", "-t", "0", &container.name]).ok()?;
        contains("trusted anew", &fetch(&container, "/project/agent"), " 200")?;
    }
    // A program that was not there, and one in the place of a link.
    let container = Container::start(RUNTIME, IMAGE, &["-v", &mount, "-w", "/project"])?;
    contains("through the link", &fetch(&container, "/project/link"), " 200")?;
    container.sh("cp /usr/bin/curl late && rm link && cp /usr/bin/curl link").ok()?;
    for program in ["/project/late", "/project/link"] {
        contains(program, &fetch(&container, program), "\"reason\":\"binary_changed\"")?;
    }
    Ok(())
}

/// splice(2) takes urgent data for the end of the stream.
fn urgent() -> Outcome {
    let script = "
import socket
s = socket.create_connection(('allowed.test', 7), 5); s.settimeout(5)
s.sendall(b'ab'); s.send(b'U', socket.MSG_OOB); s.sendall(b'cdef'); s.shutdown(socket.SHUT_WR)
got = b''
while part := s.recv(99): got += part
print(got)
";
    let container = Container::start(RUNTIME, IMAGE, &[])?;
    let seen = container.sh(&format!("python3 -c \"{script}\"")).ok()?;
    equal("seen", &seen.out, &"b'abcdef'\n".to_owned())
}

fn metrics() -> Outcome {
    let container = Container::start(RUNTIME, IMAGE, &[])?;
    container.sh("curl -sko /dev/null https://allowed.test/").ok()?;
    let _refused = container.sh("curl -s http://denied.test/ http://denied.test/");
    let asked = || crate::nemoclaw(&["metrics", "--sandbox", &container.id]).out;
    eventually(Duration::from_secs(2), "an end", || asked().contains("connections_open"))?;
    eventually(Duration::from_secs(2), "no open connection", || {
        asked().contains(&format!("connections_open{{sandbox=\"{}\"}} 0\n", container.id))
    })?;
    for (name, value) in [
        ("containers{sandbox=\"ID\"}", "1"),
        ("connections_allowed_total{sandbox=\"ID\"}", "1"),
        ("connections_refused_total{sandbox=\"ID\",reason=\"no_endpoint\"}", "2"),
        ("worker_restarts_total{sandbox=\"ID\"}", "0"),
    ] {
        let line = format!("nemoclaw_{} {value}\n", name.replace("ID", &container.id));
        contains("metrics", &asked(), &line)?;
    }
    let none = crate::nemoclaw(&["metrics", "--sandbox", "none"]);
    contains("an unknown one", &none.err, "no sandbox that runs")
}

fn idle() -> Outcome {
    let script = "
import socket, time
s = socket.create_connection(('allowed.test', 2525), 5); s.settimeout(5); s.recv(99)
for _ in range(6):
    time.sleep(0.5); s.sendall(b'x\\\\n'); s.recv(99)
print('busy')
begun = time.time()
try: print('end', s.recv(99))
except ConnectionResetError: print('reset', 0.9 < time.time() - begun < 2.5)
";
    let container = Container::start(RUNTIME, IMAGE, &[])?;
    let seen = container.sh(&format!("python3 -c \"{script}\"")).ok()?;
    contains("seen", &seen.out, "busy\nreset True")?;
    eventually(Duration::from_secs(2), "its end", || !closed(&container).is_empty())?;
    equal("reason", &closed(&container).first().map(|r| r["reason"].clone()), &Some("idle".into()))
}

fn lifetime() -> Outcome {
    let script = "
import socket, time
s = socket.create_connection(('allowed.test', 2525), 5); s.settimeout(5); s.recv(99)
begun = time.time()
try:
    while True: time.sleep(0.3); s.sendall(b'x\\\\n'); s.recv(99)
except OSError: print('reset', 5 < time.time() - begun < 8)
";
    let container = Container::start(RUNTIME, IMAGE, &[])?;
    let seen = container.sh(&format!("python3 -c \"{script}\"")).ok()?;
    contains("seen", &seen.out, "reset True")?;
    eventually(Duration::from_secs(2), "its end", || !closed(&container).is_empty())?;
    let reason = closed(&container).first().map(|record| record["reason"].clone());
    equal("reason", &reason, &Some("lifetime".into()))
}

fn proxied() -> Outcome {
    let container = Container::start("nemoclaw-proxied", IMAGE, &[])?;
    let fetch = |host: &str| container.sh(&format!("curl -s -m 5 http://{host}/")).out;
    // The server's address is in no public range: only the proxy may choose it.
    contains("through it", &fetch("allowed.test"), "hello from allowed.test")?;
    contains("directly", &fetch("plain.test"), "address_private")?;
    contains("named addresses", &fetch("files.test"), "hello from files.test")?;
    contains("refused by it", &fetch("nobody.test"), "upstream_unreachable")?;
    contains("refused by us", &fetch("denied.test"), "no_endpoint")?;
    let script =
        "import socket; print(socket.create_connection(('allowed.test', 2525), 5).recv(99))";
    contains("speaks first", &container.sh(&format!("python3 -c \"{script}\"")).out, "220 hello")?;
    let told: Vec<String> = container
        .audit()
        .iter()
        .filter(|record| record["event"] == "connection")
        .map(|record| {
            let word = |key: &str| record[key].as_str().unwrap_or("-").to_owned();
            format!("{} {} {}", word("host"), word("address"), word("upstream_proxy"))
        })
        .collect();
    let wanted = [
        "allowed.test 203.0.113.11:3128 203.0.113.11:3128",
        "plain.test - -",
        "files.test 203.0.113.10:80 -",
        "nobody.test - 203.0.113.11:3128",
        "denied.test - -",
        "allowed.test 203.0.113.11:3128 203.0.113.11:3128",
    ];
    equal("recorded", &told, &wanted.map(str::to_owned).to_vec())
}
