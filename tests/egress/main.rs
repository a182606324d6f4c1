//! The sandbox's network: what policy lists works, everything else is refused
//! at once, recorded, and explained. Docker 20.10, real servers outside.

#![expect(clippy::indexing_slicing, reason = "a trial that panics has failed")]

mod connections;
mod faults;
mod identity;
mod names;
mod redteam;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nemoclaw_tests::docker::{Container, docker, run};
use nemoclaw_tests::{Outcome, contains, equal, eventually, full, run_as_root, sh, unique};
use serde_json::{Value, json};

const IMAGE: &str = "nemoclaw-test/base";
const AGENT: &str = "nemoclaw-test/agent";
/// The runtime with tests/upstream/policy.yaml.
const RUNTIME: &str = "nemoclaw-test";

type Named = (&'static str, fn() -> Outcome);

fn main() -> ExitCode {
    let mut trials: Vec<Named> = vec![
        ("a_listed_program_reaches_a_listed_host", listed),
        ("an_unlisted_host_is_explained_within_a_second", unlisted),
        ("an_unlisted_program_is_refused", unlisted_program),
        ("a_refused_name_is_never_asked_for_outside", no_leak),
        ("without_a_policy_nothing_leaves", baseline),
        ("udp_quic_and_icmp_are_refused_at_once", datagrams),
        ("addresses_no_rule_can_open_stay_closed", never),
        ("private_addresses_need_the_rule_to_say_so", private),
        ("an_alias_is_followed_and_checked", alias),
        ("the_engine_s_resolver_cannot_be_asked_directly", engine_resolver),
        ("connect_and_absolute_form_are_decided_alike", explicit),
        ("half_close_and_large_streams_pass_unchanged", streams),
        ("aserver_that_speaks_first_works", server_first),
        ("loopback_and_published_ports_work", ingress),
        ("only_what_ingress_admits_connects_in", admitted),
        ("service_names_of_a_user_network_resolve", services),
        ("a_container_that_joins_another_shares_its_proxy", joins),
        ("names_written_by_the_engine_are_judged_by_name", extra_hosts),
        ("network_none_is_served_and_closed", network_none),
        ("the_record_names_program_rule_and_remedy", record),
        ("the_record_is_a_chain_that_shows_every_change", chain),
        ("records_are_printed_as_they_come", followed),
        ("a_killed_worker_closes_streams_and_is_replaced", worker_killed),
        ("a_killed_supervisor_closes_egress_for_good", supervisor_killed),
        ("the_proxy_ends_with_the_container", ends),
        ("the_proxy_is_confined_itself", proxy_confined),
        ("observe_records_and_confines_nothing", observe),
        ("the_proxy_s_own_port_serves_nobody", own_port),
        ("many_cycles_with_connections_never_fail", cycles),
    ];
    trials.extend(connections::TRIALS);
    trials.extend(faults::TRIALS);
    if full() {
        trials.extend(faults::WITH_THE_CLOCK);
    }
    trials.extend(identity::TRIALS);
    trials.extend(names::TRIALS);
    trials.extend(redteam::TRIALS);
    run_as_root(trials)
}

fn curl(container: &Container, options: &str, url: &str) -> nemoclaw_tests::Done {
    container.sh(&format!("curl -sS -m 10 -w '\\n%{{http_code}}' {options} {url}"))
}

fn start() -> Result<Container, Failed> {
    Container::start(RUNTIME, IMAGE, &[])
}

fn listed() -> Outcome {
    let container = start()?;
    let done = curl(&container, "", "http://allowed.test/").ok()?;
    equal("plain", &done.out, &"hello from allowed.test\n\n200".to_owned())?;
    let done = curl(&container, "-k", "https://allowed.test/").ok()?;
    contains("TLS", &done.out, "hello from allowed.test")?;
    contains("upper case", &curl(&container, "", "http://ALLOWED.test./").ok()?.out, "\n200")
}

fn unlisted() -> Outcome {
    let container = start()?;
    let done = curl(&container, "", "http://denied.test/x");
    contains("status", &done.out, "\n403")?;
    let body: Value = serde_json::from_str(done.out.lines().next().unwrap_or_default())?;
    equal("reason", &body["reason"], &json!("no_endpoint"))?;
    equal("binary", &body["binary"], &json!("/usr/bin/curl"))?;
    equal("sandbox", &body["sandbox"], &json!(container.id))?;
    for url in [
        "https://denied.test/",
        "http://denied.test:25/",
        "https://203.0.113.10/",
        "telnet://denied.test:9",
    ] {
        let done = container.sh(&format!("time -p curl -sS -m 10 {url} </dev/null"));
        equal(
            &format!("{url} fails: {done:?}"),
            &(done.code != 0 || done.out.contains("refused by nemoclaw")),
            &true,
        )?;
        if done.took > Duration::from_secs(1) || done.text().contains("Could not resolve") {
            return Err(format!("{url}: {done:?}").into());
        }
    }
    Ok(())
}

fn unlisted_program() -> Outcome {
    let container = start()?;
    let script = "import urllib.request\ntry: print(urllib.request.urlopen('http://plain.test/').read())\nexcept urllib.error.HTTPError as e: print(e.code, e.read().decode())";
    let done = docker(&["exec", &container.name, "python3", "-c", script]).ok()?;
    contains("answer", &done.out, "403")?;
    contains("reason", &done.out, "binary_not_allowed")?;
    contains("program", &done.out, "/usr/bin/python3.11")?;
    contains("curl", &curl(&container, "", "http://plain.test/").ok()?.out, "\n200")?;
    // A copy under another name is another program.
    let done = container.sh(
        "cp /usr/bin/curl /tmp/curl && /tmp/curl -sS -m 5 -w '%{http_code}' http://plain.test/",
    );
    contains("copy", &done.out, "binary_not_allowed")?;
    // A deleted program has no name that a rule could mean.
    let done = container.sh("cp /usr/bin/curl /tmp/c2 && exec 9</tmp/c2 && rm /tmp/c2 && /proc/self/fd/9 -sS -m 5 http://plain.test/");
    equal(&format!("deleted {done:?}"), &done.out.contains("hello from"), &false)
}

fn dns_log() -> String {
    std::env::var("NEMOCLAW_DNS_LOG")
        .ok()
        .and_then(|path| std::fs::read_to_string(path).ok())
        .unwrap_or_default()
}

fn no_leak() -> Outcome {
    let container = start()?;
    let name = unique("leak");
    for url in [
        format!("http://{name}.test/"),
        format!("https://{name}.example/"),
        format!("http://{name}:81/"),
    ] {
        let _refused = curl(&container, "-k", &url);
    }
    let script = format!(
        "import socket\nfor n in ('{name}.test', 'x.{name}.test'):\n    print(socket.getaddrinfo(n, 80)[0][4][0])\nprint(socket.gethostbyaddr(socket.gethostbyname('{name}.test'))[0])"
    );
    let done = docker(&["exec", &container.name, "python3", "-c", &script]).ok()?;
    contains("virtual address", &done.out, "11.22.")?;
    contains("reverse", &done.out, &format!("{name}.test"))?;
    curl(&container, "", "http://allowed.test/").ok()?;
    let log = dns_log();
    contains("asked for the allowed name", &log, "allowed.test")?;
    equal("asked for a refused name", &log.contains(&name), &false)
}

fn baseline() -> Outcome {
    let done = run(
        "nemoclaw",
        &[],
        IMAGE,
        &[
            "sh",
            "-c",
            "curl -sS -m 5 http://allowed.test/; curl -sS -m 5 -k https://allowed.test/; true",
        ],
    );
    contains("plain", &done.out, "no_endpoint")?;
    contains("TLS", &done.err, "reset")
}

fn datagrams() -> Outcome {
    let container = start()?;
    let script = "
import socket, time
for port in (9999, 443, 123):
    t = time.time()
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(5)
    try:
        s.connect(('203.0.113.10', port)); s.send(b'x'); s.send(b'x'); s.recv(9)
        print('answered', port)
    except OSError as e:
        assert time.time() - t < 0.5, (port, time.time() - t)
t = time.time()
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1)
s.settimeout(5)
try:
    s.connect(('203.0.113.10', 0)); s.send(bytes([8, 0, 0, 0, 0, 0, 0, 0])); s.send(b'12345678'); s.recv(9)
    print('ping answered')
except OSError: pass
assert time.time() - t < 0.5
";
    let done = docker(&["exec", &container.name, "python3", "-c", script]).ok()?;
    equal("answers", &done.out, &String::new())
}

fn never() -> Outcome {
    let container = start()?;
    for (url, reason) in [
        ("http://169.254.169.254/latest/meta-data/", "address_never"),
        ("http://meta.test/", "address_never"),
        ("http://loop.test/", "address_never"),
        ("http://[::ffff:169.254.169.254]/", "address_never"),
    ] {
        let done = curl(&container, "-g", url);
        if !done.out.contains(reason)
            && !done.err.contains("unreachable")
            && !done.err.contains("connect")
        {
            return Err(format!("{url}: {done:?}").into());
        }
        equal(&format!("{url} answered"), &done.out.contains("\n200"), &false)?;
    }
    Ok(())
}

fn private() -> Outcome {
    let container = start()?;
    contains("refused", &curl(&container, "", "http://private.test/").out, "address_private")
}

fn alias() -> Outcome {
    contains("alias", &curl(&start()?, "", "http://alias.test/").ok()?.out, "\n200")
}

fn engine_resolver() -> Outcome {
    let network = unique("net");
    docker(&["network", "create", &network]).ok()?;
    let container = Container::start(RUNTIME, IMAGE, &["--network", &network]);
    let result = container.and_then(|container| {
        let script = "
import socket, struct
q = b'\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0\\6leaked\\4test\\0\\0\\1\\0\\1'
ports = set()
for line in open('/proc/net/udp').read().splitlines()[1:]:
    a, p = line.split()[1].split(':')
    if a == '0B00007F': ports.add(int(p, 16))
assert ports, 'no resolver found'
for port in ports | {53}:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(1)
    try:
        s.connect(('127.0.0.11', port)); s.send(q); a = s.recv(999)
        print(port, 'answered', a[-4:])
    except OSError as e: print(port, 'refused')
";
        let done = docker(&["exec", &container.name, "python3", "-c", script]).ok()?;
        equal("leaked", &dns_log().contains("leaked.test"), &false)?;
        // Port 53 is ours and answers with a virtual address.
        let direct = done
            .out
            .lines()
            .filter(|line| !line.starts_with("53 "))
            .all(|line| line.ends_with("refused"));
        if direct { Ok(()) } else { Err(Failed::from(format!("{done:?}"))) }
    });
    docker(&["network", "rm", &network]);
    result
}

fn explicit() -> Outcome {
    let container = start()?;
    let proxy = "-x http://proxy.local:3128";
    contains(
        "absolute form",
        &curl(&container, proxy, "http://allowed.test/").ok()?.out,
        "hello from allowed.test",
    )?;
    contains(
        "connect",
        &curl(&container, &format!("{proxy} -k"), "https://allowed.test/").ok()?.out,
        "hello from allowed.test",
    )?;
    contains(
        "connect to port 80",
        &curl(&container, &format!("{proxy} -p"), "http://allowed.test/").ok()?.out,
        "hello from allowed.test",
    )?;
    contains("refused", &curl(&container, proxy, "http://denied.test/").out, "no_endpoint")?;
    let done = curl(&container, &format!("{proxy} -k"), "https://denied.test/");
    contains("refused connect", &done.text(), "403")?;
    contains("metadata", &curl(&container, proxy, "http://169.254.169.254/").out, "address_never")?;
    let records = container.audit();
    let via = |name: &str| records.iter().filter(|record| record["via"] == name).count();
    equal("records", &(via("http") >= 3 && via("connect") >= 3), &true)
}

fn streams() -> Outcome {
    let container = start()?;
    let script = "
import socket, hashlib, os, threading
data = os.urandom(1 << 20) * 24
s = socket.create_connection(('allowed.test', 7), 10)
threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR))).start()
h = hashlib.sha256()
n = 0
while True:
    b = s.recv(1 << 16)
    if not b: break
    h.update(b); n += len(b)
assert n == len(data), n
assert h.digest() == hashlib.sha256(data).digest()
print('same')
";
    contains(
        "echo",
        &docker(&["exec", &container.name, "python3", "-c", script]).ok()?.out,
        "same",
    )?;
    let done = container.sh("curl -sS -m 30 http://allowed.test/size/20000000 | wc -c").ok()?;
    equal("size", &done.out.trim().to_owned(), &"20000000".to_owned())
}

fn server_first() -> Outcome {
    let script =
        "import socket\ns = socket.create_connection(('allowed.test', 2525), 5)\nprint(s.recv(99))";
    contains(
        "banner",
        &docker(&["exec", &start()?.name, "python3", "-c", script]).ok()?.out,
        "220 hello",
    )
}

fn ingress() -> Outcome {
    let container = Container::start(RUNTIME, IMAGE, &["-p", "8099:8000"])?;
    docker(&[
        "exec",
        "-d",
        &container.name,
        "python3",
        "-m",
        "http.server",
        "8000",
        "--directory",
        "/usr/share",
    ])
    .ok()?;
    eventually(Duration::from_secs(5), "a server on loopback", || {
        container.sh("curl -s -o /dev/null -w '%{http_code}' http://localhost:8000/").out == "200"
    })?;
    let own = container.sh("curl -s -o /dev/null -w '%{http_code}' http://$(hostname -i):8000/");
    equal("own address", &own.out, &"200".to_owned())?;
    let done = sh(
        "hack/engine upstream docker20 curl -s -m 5 -o /dev/null -w '%{http_code}' http://203.0.113.1:8099/",
    );
    equal("published", &done.out, &"200".to_owned())
}

const LISTENERS: &str = "
import socket, threading
def serve(port):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('0.0.0.0', port)); s.listen()
    while True:
        c = s.accept()[0]; c.sendall(b'tcp'); c.close()
for port in (8080, 8081, 8082): threading.Thread(target=serve, args=(port,), daemon=True).start()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('0.0.0.0', 5353))
v = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); v.bind(('0.0.0.0', 5354))
def answer(s):
    while True:
        d, a = s.recvfrom(99); s.sendto(b'udp', a)
threading.Thread(target=answer, args=(v,), daemon=True).start()
open('/tmp/ready', 'w')
answer(u)";

fn admitted() -> Outcome {
    let words = |runtime| Container::start_with(runtime, IMAGE, &[], &["python3", "-c", LISTENERS]);
    let (held, open) = (words("nemoclaw-ingress")?, words("nemoclaw")?);
    let address = |container: &Container| -> Result<String, Failed> {
        container.sh("until [ -e /tmp/ready ]; do sleep 0.1; done").ok()?;
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        Ok(docker(&["inspect", "-f", format, &container.name]).ok()?.out.trim().to_owned())
    };
    let from_neighbour = |container: &Container| -> Result<String, Failed> {
        let script = format!(
            "import socket
for port in (8080, 8081, 8082):
    try: print(port, socket.create_connection(('{0}', port), 2).recv(9).decode())
    except OSError: print(port, 'no')
for port in (5353, 5354):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2); s.sendto(b'q', ('{0}', port))
    try: print(port, s.recv(9).decode())
    except OSError: print(port, 'no')",
            address(container)?
        );
        Ok(run("runc", &[], IMAGE, &["python3", "-c", &script]).ok()?.out)
    };
    equal(
        "with ingress",
        &from_neighbour(&held)?,
        &"8080 tcp\n8081 no\n8082 no\n5353 udp\n5354 no\n".to_owned(),
    )?;
    equal(
        "without",
        &from_neighbour(&open)?,
        &"8080 tcp\n8081 tcp\n8082 tcp\n5353 no\n5354 no\n".to_owned(),
    )?;
    let own = "python3 -c \"import socket; print(socket.create_connection(('127.0.0.1', 8082), 2).recv(9).decode())\"";
    equal("its own loopback", &held.sh(own).ok()?.out, &"tcp\n".to_owned())
}

fn services() -> Outcome {
    let network = unique("net");
    docker(&["network", "create", &network]).ok()?;
    let result = (|| {
        let server = Container::start(
            "runc",
            IMAGE,
            &["--network", &network, "--network-alias", "web", "--network-alias", "hidden"],
        )?;
        docker(&[
            "exec",
            "-d",
            &server.name,
            "python3",
            "-m",
            "http.server",
            "8000",
            "--directory",
            "/usr/share",
        ])
        .ok()?;
        let client = Container::start(RUNTIME, IMAGE, &["--network", &network])?;
        eventually(Duration::from_secs(5), "the service by its name", || {
            client.sh("curl -s -o /dev/null -w '%{http_code}' http://web:8000/").out == "200"
        })?;
        contains("an outside name", &curl(&client, "", "http://allowed.test/").ok()?.out, "\n200")?;
        contains("unlisted service", &client.sh("curl -s http://hidden:8000/").out, "no_endpoint")
    })();
    docker(&["network", "rm", &network]);
    result
}

fn joins() -> Outcome {
    let first = start()?;
    let option = format!("container:{}", first.name);
    let second = Container::start("nemoclaw", IMAGE, &["--network", &option])?;
    contains("same proxy", &curl(&second, "", "http://allowed.test/").ok()?.out, "\n200")?;
    contains("same refusal", &curl(&second, "", "http://denied.test/").out, "no_endpoint")?;
    let observed = Container::start("nemoclaw-observe", IMAGE, &[])?;
    let option = format!("container:{}", observed.name);
    let done = run("nemoclaw", &["--network", &option], IMAGE, &["true"]);
    contains("joining an observed container", &done.err, "only observed")?;
    let open = Container::start("runc", IMAGE, &[])?;
    let option = format!("container:{}", open.name);
    let done = run("nemoclaw", &["--network", &option], IMAGE, &["true"]);
    contains("joining an unconfined container", &done.err, "refused: network")
}

fn extra_hosts() -> Outcome {
    let options = [
        "--add-host",
        "written.test:203.0.113.10",
        "--add-host",
        "other-written.test:203.0.113.11",
    ];
    let container = Container::start(RUNTIME, IMAGE, &options)?;
    contains("listed", &curl(&container, "", "http://written.test/").ok()?.out, "\n200")?;
    contains("unlisted", &curl(&container, "", "http://other-written.test/").out, "no_endpoint")
}

fn network_none() -> Outcome {
    let container = Container::start(RUNTIME, IMAGE, &["--network", "none"])?;
    contains("name", &curl(&container, "", "http://denied.test/").out, "no_endpoint")?;
    contains("address", &curl(&container, "", "http://93.184.216.34/").out, "no_endpoint")?;
    let listed = curl(&container, "", "http://allowed.test/");
    equal("listed", &listed.out.contains("upstream_unreachable"), &true)
}

fn record() -> Outcome {
    let container = start()?;
    curl(&container, "", "http://allowed.test/").ok()?;
    let _refused = curl(&container, "-k", "https://denied.test/");
    eventually(Duration::from_secs(2), "three records", || container.audit().len() >= 3)?;
    let records = container.audit();
    let allowed =
        records.iter().find(|record| record["decision"] == "allow").ok_or("no allow record")?;
    equal("host", &allowed["host"], &json!("allowed.test"))?;
    equal("port", &allowed["port"], &json!(80))?;
    equal("binary", &allowed["binary"], &json!("/usr/bin/curl"))?;
    equal("address", &allowed["address"], &json!("203.0.113.10:80"))?;
    contains("rule", allowed["rule"].as_str().unwrap_or_default(), "web (")?;
    let denied =
        records.iter().find(|record| record["decision"] == "deny").ok_or("no deny record")?;
    equal("reason", &denied["reason"], &json!("no_endpoint"))?;
    equal("rule", &denied["rule"], &Value::Null)?;
    contains(
        "remedy",
        denied["allow_with"].as_str().unwrap_or_default(),
        "binaries: [{path: \"/usr/bin/curl\"}]",
    )?;
    let close =
        records.iter().find(|record| record["event"] == "close").ok_or("no close record")?;
    equal("received", &(close["received"].as_u64().unwrap_or_default() > 20), &true)?;
    // What the remedy says works.
    let yaml = format!(
        "version: 1\nnemoclaw: {{}}\nnetwork_policies:\n  {}\n",
        denied["allow_with"].as_str().unwrap_or_default()
    );
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), yaml)?;
    let test = sh(&format!(
        "target/dist/nemoclaw policy test --policy {} --binary /usr/bin/curl --host denied.test --port 443",
        file.path().display()
    ));
    equal("remedy", &test.code, &0)
}

/// Pids of supervisor and worker.
fn proxies(container: &Container) -> Result<(i32, i32), Failed> {
    let pid = container.pid()?;
    let done = sh(&format!(
        "i=$(stat -Lc %i /proc/{pid}/ns/net); cat /sys/fs/cgroup/pids/nemoclaw/$i/cgroup.procs 2>/dev/null || cat /sys/fs/cgroup/nemoclaw/$i/cgroup.procs"
    ));
    let pids: Vec<i32> = done.out.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    match pids.as_slice() {
        [a, b] => Ok(if is_root(*a) { (*a, *b) } else { (*b, *a) }),
        _ => Err(format!("not two processes: {done:?}").into()),
    }
}

fn is_root(pid: i32) -> bool {
    sh(&format!("grep -E '^Uid:' /proc/{pid}/status")).out.contains("Uid:\t0\t")
}

fn nemoclaw(args: &[&str]) -> nemoclaw_tests::Done {
    nemoclaw_tests::run_command(
        std::process::Command::new(nemoclaw_tests::binary("nemoclaw")).args(args),
    )
}

fn chain() -> Outcome {
    let container = start()?;
    let file = format!("/var/log/nemoclaw/{}.jsonl", container.id);
    let checked = || nemoclaw(&["logs", "--check", "--sandbox", &container.id]);
    let requests = || {
        for host in ["allowed.test", "denied.test", "other.test"] {
            curl(&container, "", &format!("http://{host}/"));
        }
    };
    requests();
    // What the sandbox asks before and after a restart is one chain.
    docker(&["restart", "-t", "0", &container.name]).ok()?;
    requests();
    docker(&["stop", "-t", "0", &container.name]).ok()?;
    let records = || std::fs::read_to_string(&file).map(|text| text.lines().count());
    let before = records()?;
    equal("records", &(before >= 6), &true)?;
    contains("unbroken", &checked().ok()?.out, &format!("{before} records, unbroken"))?;
    // A line cut short by a crash is ended and owned up to.
    sh(&format!("printf '{{\"event\":\"cut' >>{file}")).ok()?;
    docker(&["start", &container.name]).ok()?;
    requests();
    docker(&["stop", "-t", "0", &container.name]).ok()?;
    let number = records()?;
    contains("ended", &checked().ok()?.out, &format!("{number} records, unbroken"))?;
    contains("owned up to", &std::fs::read_to_string(&file)?, "torn_record")?;
    let whole = std::fs::read_to_string(&file)?;
    for (change, told) in [
        ("sed -i '2s/sandbox/SANDBOX/'", format!("record 3 of {number}")),
        ("sed -i 2d", format!("record 2 of {}", number - 1)),
        ("sed -i 2p", format!("record 3 of {}", number + 1)),
    ] {
        sh(&format!("{change} {file}")).ok()?;
        let done = checked();
        equal(change, &done.code, &3)?;
        contains(change, &done.out, &told)?;
        std::fs::write(&file, &whole)?;
    }
    Ok(())
}

fn followed() -> Outcome {
    let container = start()?;
    let out = std::env::temp_dir().join(unique("nc-follow"));
    let mut follow = std::process::Command::new(nemoclaw_tests::binary("nemoclaw"))
        .args(["logs", "-f", "--denied", "--sandbox", &container.id])
        .stdout(std::fs::File::create(&out)?)
        .spawn()?;
    curl(&container, "", "http://allowed.test/").ok()?;
    curl(&container, "", "http://denied.test/");
    let seen = eventually(Duration::from_secs(5), "the refusal", || {
        std::fs::read_to_string(&out).is_ok_and(|text| text.contains("denied.test"))
    });
    follow.kill()?;
    follow.wait()?;
    let text = std::fs::read_to_string(&out)?;
    std::fs::remove_file(&out)?;
    seen?;
    equal("others", &text.contains("allowed.test"), &false)
}

fn worker_killed() -> Outcome {
    let container = start()?;
    let (supervisor, worker) = proxies(&container)?;
    let script = "import socket,time\ns = socket.create_connection(('allowed.test', 7), 5)\nprint('open', flush=True)\ntry: print('read', s.recv(9))\nexcept OSError as e: print('error', e)";
    docker(&[
        "exec",
        "-d",
        &container.name,
        "sh",
        "-c",
        &format!("python3 -c \"{}\" > /tmp/stream 2>&1", script.replace('"', "'")),
    ])
    .ok()?;
    eventually(Duration::from_secs(5), "an open stream", || {
        container.sh("cat /tmp/stream").out.contains("open")
    })?;
    sh(&format!("kill -9 {worker}")).ok()?;
    let killed = Instant::now();
    contains("a new connection", &curl(&container, "", "http://allowed.test/").ok()?.out, "\n200")?;
    if killed.elapsed() > Duration::from_secs(2) {
        return Err(format!("took {:?}", killed.elapsed()).into());
    }
    eventually(Duration::from_secs(5), "the old stream is gone", || {
        let text = container.sh("cat /tmp/stream").out;
        text.contains("read b''") || text.contains("error")
    })?;
    let (same, next) = proxies(&container)?;
    equal("supervisor", &same, &supervisor)?;
    equal("another worker", &(next != worker), &true)
}

fn supervisor_killed() -> Outcome {
    let container = start()?;
    curl(&container, "", "http://allowed.test/").ok()?;
    let (supervisor, worker) = proxies(&container)?;
    sh(&format!("kill -9 {supervisor}")).ok()?;
    eventually(Duration::from_secs(2), "the worker is gone too", || {
        !sh(&format!("cat /proc/{worker}/stat")).out.contains(") ")
            || sh(&format!("cat /proc/{worker}/stat")).out.contains(") Z ")
    })?;
    let started = Instant::now();
    let done = curl(&container, "", "http://allowed.test/");
    equal(&format!("closed: {done:?}"), &(done.code != 0), &true)?;
    let script = "import socket\ntry:\n    socket.create_connection(('203.0.113.10', 80), 5)\n    print('open')\nexcept OSError as e: print(e)";
    let done = docker(&["exec", &container.name, "python3", "-c", script]).ok()?;
    contains("by address", &done.out, "refused")?;
    equal("at once", &(started.elapsed() < Duration::from_secs(15)), &true)
}

fn ends() -> Outcome {
    let container = start()?;
    let (supervisor, worker) = proxies(&container)?;
    let name = container.name.clone();
    docker(&["rm", "-f", &name]).ok()?;
    eventually(Duration::from_secs(5), "both processes are gone", || {
        [supervisor, worker].iter().all(|pid| {
            let stat = sh(&format!("cat /proc/{pid}/stat 2>/dev/null")).out;
            stat.is_empty() || stat.contains(") Z ")
        })
    })
}

fn proxy_confined() -> Outcome {
    let container = start()?;
    let (supervisor, worker) = proxies(&container)?;
    let status = |pid: i32| sh(&format!("cat /proc/{pid}/status")).out;
    let of_worker = status(worker);
    for set in ["CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"] {
        contains("worker", &of_worker, &format!("{set}:\t0000000000000000"))?;
    }
    contains("worker", &of_worker, "NoNewPrivs:\t1")?;
    contains("worker", &of_worker, "Seccomp:\t2")?;
    equal("worker's user", &is_root(worker), &false)?;
    let of_supervisor = status(supervisor);
    contains("supervisor", &of_supervisor, "NoNewPrivs:\t1")?;
    contains("supervisor", &of_supervisor, "Seccomp:\t2")?;
    // Processor time, memory and processes are bounded, for both together.
    for pid in [supervisor, worker] {
        for (controller, file, limit) in [
            ("cpu", "cpu.cfs_quota_us", "150000"),
            ("memory", "memory.limit_in_bytes", "268435456"),
            ("pids", "pids.max", "16"),
        ] {
            let script = format!(
                "cat /sys/fs/cgroup/{controller}$(grep -E '[:,]{controller}[:,]' /proc/{pid}/cgroup | cut -d: -f3)/{file}"
            );
            equal(file, &sh(&script).out.trim().to_owned(), &limit.to_owned())?;
        }
    }
    // SYS_ADMIN, SYS_MODULE, SYS_RAWIO, MKNOD and their like are gone.
    let line = of_supervisor.lines().find(|line| line.starts_with("CapPrm")).unwrap_or_default();
    let caps = u64::from_str_radix(line.trim_start_matches("CapPrm:").trim(), 16)?;
    equal(
        "supervisor's capabilities",
        &(caps & !((1 << 19) | (1 << 2) | (1 << 12) | (1 << 7) | (1 << 6) | (1 << 8) | (1 << 5))),
        &0,
    )
}

fn observe() -> Outcome {
    let container = Container::start("nemoclaw-observe", AGENT, &[])?;
    contains(
        "status",
        &container.sh("id -u; grep CapEff /proc/self/status").ok()?.out,
        "0\nCapEff:\t00000000a80425fb",
    )?;
    contains("passes", &curl(&container, "", "http://denied.test/").ok()?.out, "\n200")?;
    let records = container.audit();
    contains(
        "recorded",
        records.first().and_then(|record| record["rule"].as_str()).unwrap_or_default(),
        "observe",
    )?;
    let done = curl(&container, "", "http://169.254.169.254/");
    equal("metadata", &done.out.contains("\n200"), &false)
}

fn own_port() -> Outcome {
    let container = start()?;
    let script = "
import socket
for host in ('127.0.0.1', '11.22.200.200'):
    try:
        s = socket.create_connection((host, 10080), 5)
        s.sendall(b'GET / HTTP/1.1\\r\\nHost: allowed.test\\r\\n\\r\\n')
        print(host, s.recv(99))
    except OSError as e: print(host, 'refused')
";
    let done = docker(&["exec", &container.name, "python3", "-c", script]).ok()?;
    equal(&format!("served: {done:?}"), &done.out.contains("hello"), &false)?;
    contains("the record", &format!("{:?}", container.audit()), "malformed")
}

/// Create, one allowed and one refused connection, delete; with Docker's own
/// spec, network and profile.
fn cycles() -> Outcome {
    let count = if full() { 100 } else { 10 };
    let script = "curl -sS -m 5 http://allowed.test/; curl -sS -m 5 http://denied.test/";
    for number in 0..count {
        let done = run(RUNTIME, &[], IMAGE, &["sh", "-c", script]);
        if done.code != 0 || !done.out.contains("hello from") || !done.out.contains("no_endpoint") {
            return Err(format!("cycle {number}: {done:?}").into());
        }
    }
    Ok(())
}
