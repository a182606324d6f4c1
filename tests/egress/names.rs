//! What names may carry out, and how many of them there may be.

use std::time::Duration;

use nemoclaw_tests::docker::{Container, docker};
use nemoclaw_tests::{Outcome, contains, equal, full, sh, unique};

use crate::{IMAGE, RUNTIME, dns_log, proxies};

/// tests/policies/connections.yaml: three names of a wildcard, and no more.
const FEW: &str = "nemoclaw-connections";

pub(super) const TRIALS: [crate::Named; 3] = [
    ("names_of_a_wildcard_carry_little_and_are_few", wildcard),
    ("a_flood_of_names_is_bounded_and_refuses_nobody_else", flood),
    ("hostile_questions_are_answered_or_dropped", hostile),
];

fn wildcard() -> Outcome {
    let container = Container::start(FEW, IMAGE, &[])?;
    let fetch = |host: &str| {
        container.sh(&format!("curl -s -m 5 -w ' %{{http_code}}' http://{host}.wild.test/")).out
    };
    let prefix = unique("w");
    let random = "mfrggzdfmztwq2lknnwg23tpobyxe43uov3ho6dzpiytcnbvgy3tq";
    for host in [random.to_owned(), format!("{prefix}.deeper")] {
        let refused = fetch(&host);
        contains(&host, &refused, " 403")?;
        contains(&host, &refused, if host.contains('.') { "no_endpoint" } else { "name_budget" })?;
    }
    for number in 0..3 {
        contains("one of few", &fetch(&format!("{prefix}-{number}")), " 200")?;
    }
    contains("one too many", &fetch(&format!("{prefix}-3")), "\"reason\":\"name_budget\"")?;
    contains("a known one", &fetch(&format!("{prefix}-1")), " 200")?;
    let proxied = container
        .sh(&format!("curl -s -m 5 -x http://proxy.local:3128 http://{prefix}-4.wild.test/"));
    contains("through the explicit proxy", &proxied.out, "name_budget")?;
    // Nobody outside heard of those that were refused.
    let log = dns_log();
    contains("asked", &log, &format!("{prefix}-2.wild.test"))?;
    for refused in [random, &format!("{prefix}-3"), &format!("{prefix}-4")] {
        equal(refused, &log.contains(refused), &false)?;
    }
    Ok(())
}

/// Asks for names as fast as answers come.
const FLOOD: &str = "
import os, socket, struct, sys, time
number, prefix = int(sys.argv[1]), sys.argv[2]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(('192.0.2.53', 53)); s.settimeout(5)
shared = answered = 0
for n in range(number):
    label = b'%s%07d' % (prefix.encode(), n)
    name = bytes([len(label)]) + label + b'\\4test\\0'
    s.send(struct.pack('>HHHHHH', n & 0xffff, 0x100, 1, 0, 0, 0) + name + b'\\0\\1\\0\\1')
    answer = s.recv(512)
    answered += answer[3] & 15 == 0
    shared += answer[-4:] == bytes([11, 22, 255, 254])
print(answered, shared)
";

fn flood() -> Outcome {
    let number = if full() { 1_000_000 } else { 60_000 };
    let container = Container::start(RUNTIME, IMAGE, &[])?;
    let prefix = unique("f").replace('-', "");
    let memory = |pid: i32| -> i64 {
        let told = sh(&format!("awk '/^Rss/ {{print $2}}' /proc/{pid}/smaps_rollup"));
        told.out.trim().parse().unwrap_or(i64::MAX)
    };
    let (_, worker) = proxies(&container)?;
    let before = memory(worker);
    let command = format!("python3 - {number} {prefix} <<'E'\n{FLOOD}E\n");
    let seen = nemoclaw_tests::docker::docker_for(
        &["exec", &container.name, "sh", "-c", &command],
        Duration::from_mins(5),
    )
    .ok()?;
    let numbers: Vec<i64> = seen.out.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    equal("all are answered", &numbers.first(), &Some(&number))?;
    equal("some share one address", &(numbers.get(1) > Some(&(number / 2))), &true)?;
    let (_, same) = proxies(&container)?;
    equal("worker", &same, &worker)?;
    // 16,000 names of up to 255 bytes, and the allocator's pages.
    let grown = memory(worker) - before;
    equal(&format!("{grown} KiB more"), &(grown < 24 * 1024), &true)?;
    for url in ["http://allowed.test/", "http://plain.test/", "http://alias.test/"] {
        contains(url, &container.sh(&format!("curl -s -m 5 {url}")).ok()?.out, "hello")?;
    }
    // One of the first still has its name; one of the last is refused like it.
    let first = container.sh(&format!("curl -s -m 5 http://{prefix}0000001.test/"));
    contains("first", &first.out, "no_endpoint")?;
    let last = container.sh(&format!("curl -s -m 5 http://{prefix}{:07}.test/", number - 1));
    contains("last", &last.out, "name_budget")?;
    equal("asked outside", &dns_log().contains(&prefix), &false)
}

/// Each is sent by UDP and by TCP; afterwards a good question is answered.
const HOSTILE: &str = "
import os, socket, struct, time
head = lambda n, flags=0x100: struct.pack('>HHHHHH', 7, flags, n, 0, 0, 0)
ask = b'\\7allowed\\4test\\0\\0\\1\\0\\1'
cases = [
    b'', b'\\0', head(1)[:11], head(1), head(0), head(255), head(2) + ask + ask,
    head(1) + b'\\xc0\\x0c\\0\\1\\0\\1', head(1) + b'\\1a\\xc0\\x0c\\0\\1\\0\\1',
    head(1) + b'\\x3f' + b'a' * 10, head(1) + b'\\x40' + b'a' * 64 + b'\\0\\0\\1\\0\\1',
    head(1) + (b'\\x3f' + b'a' * 63) * 5 + b'\\0\\0\\1\\0\\1', head(1, 0x8180) + ask,
    head(1, 0x2900) + ask, head(1) + ask[:-1] + b'\\3', head(1) + b'\\3\\0\\xff\\x1b\\0\\0\\1\\0\\1',
    struct.pack('>HHHHHH', 7, 0x100, 1, 0, 0, 1) + ask + b'\\0\\0\\x29\\xff\\xff\\0\\0\\0\\0\\xff\\xff',
    struct.pack('>HHHHHH', 7, 0x100, 1, 65535, 65535, 65535) + ask,
] + [head(1) + ask[:14] + struct.pack('>HH', kind, 1) for kind in (2, 5, 6, 12, 15, 16, 33, 43, 48, 64, 65, 251, 252, 255)]
cases += [os.urandom(n) for n in (12, 40, 300, 500)] * 20
addresses = 0
for case in cases:
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(0.02); u.connect(('192.0.2.53', 53))
    try:
        u.send(case); answer = u.recv(9999)
        addresses += answer[-4:-2] == bytes([11, 22])
    except OSError: pass
    t = socket.create_connection(('192.0.2.53', 53), 2); t.settimeout(0.02)
    try: t.sendall(struct.pack('>H', len(case)) + case); t.recv(9999)
    except OSError: pass
    t.close()
long = socket.create_connection(('192.0.2.53', 53), 2); long.settimeout(2)
long.sendall(b'\\xff\\xff' + bytes(65535))
try: long.recv(99)
except OSError: pass
print('addresses', addresses, socket.gethostbyname('allowed.test')[:6])
";

fn hostile() -> Outcome {
    let container = Container::start(RUNTIME, IMAGE, &[])?;
    let (_, worker) = proxies(&container)?;
    let command = format!("python3 - <<'E'\n{HOSTILE}E\n");
    let seen = docker(&["exec", &container.name, "sh", "-c", &command]).ok()?;
    // One with absurd counts of records that are not there may be answered or not.
    contains("seen", &seen.out, " 11.22.")?;
    let addresses: i64 =
        seen.out.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(99);
    equal("addresses for what asks for none", &(addresses <= 2), &true)?;
    let (_, same) = proxies(&container)?;
    equal("the worker lives", &same, &worker)
}
