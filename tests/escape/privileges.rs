//! What a policy can keep, relax and restrict, seen from inside.

use nemoclaw_tests::docker::{Container, docker, run};
use nemoclaw_tests::{Outcome, contains, equal};

const IMAGE: &str = "nemoclaw-test/base";

pub(super) const TRIALS: [crate::Named; 11] = [
    ("a_kept_capability_is_there_in_init_and_exec_and_no_other", kept),
    ("a_debugger_works_where_policy_says_so_and_only_there", debugger),
    ("writable_places_run_nothing_under_system_only", system_only),
    ("an_isolated_exec_cannot_signal_the_container", isolated),
    ("root_that_policy_keeps_sets_no_id_bits", root),
    ("an_entry_point_steps_down_and_exec_cannot_reach_the_gateway", step_down),
    ("memory_and_processors_stay_within_the_policy", limits),
    ("groups_are_kept_where_policy_names_them", groups),
    ("a_read_only_path_is_read_only_from_the_start", read_only_from_the_start),
    ("tmp_has_the_size_that_policy_says", sized_tmp),
    ("a_device_is_given_only_where_policy_names_it", device),
];

fn kept() -> Outcome {
    let container = Container::start("nemoclaw-keep", IMAGE, &[])?;
    let show = "cat /proc/1/status /proc/self/status";
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let text = container.sh(show).ok()?.out;
        equal(set, &text.matches(&format!("{set}:\t0000000000000400")).count(), &2)?;
    }
    let refused = run("nemoclaw", &["--cap-add", "SYS_ADMIN"], IMAGE, &["true"]);
    contains("refusal", &refused.err, "SYS_ADMIN, which the policy does not allow")?;
    let stripped =
        run("nemoclaw-strip", &["--cap-add", "SYS_ADMIN"], IMAGE, &["cat", "/proc/self/status"]);
    contains("stripped", &stripped.ok()?.out, "CapBnd:\t0000000000000000")
}

const TRACE: &str = "
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
child = os.fork()
if child == 0:
    time.sleep(5); os._exit(0)
print('ptrace', libc.ptrace(16, child, 0, 0))
";

fn debugger() -> Outcome {
    let allowed = run("nemoclaw-keep", &[], IMAGE, &["python3", "-c", TRACE]).ok()?;
    contains("where allowed", &allowed.out, "ptrace 0")?;
    let refused = run("nemoclaw", &[], IMAGE, &["python3", "-c", TRACE]).ok()?;
    contains("elsewhere", &refused.out, "ptrace -1")
}

fn system_only() -> Outcome {
    let script = "
for d in /tmp /var/tmp /sandbox /dev/shm /data /scratch; do
    cp /bin/true $d/t || exit 9
    $d/t 2>/dev/null && echo $d runs
    /lib64/ld-linux-x86-64.so.2 $d/t 2>/dev/null && echo $d is loaded
done
python3 -c '
import os
try:
    f = os.memfd_create(\"x\"); os.write(f, open(\"/bin/true\", \"rb\").read()); print(\"memfd made\")
except OSError: pass
'
python3 -c 'print(6 * 7)'
ls / >/dev/null && git --version >/dev/null 2>&1; echo done";
    let options = ["--tmpfs", "/data:exec,mode=1777", "--tmpfs", "/scratch:exec,mode=1777"];
    let done = run("nemoclaw-system-only", &options, IMAGE, &["sh", "-c", script]).ok()?;
    equal("what ran", &done.out.trim().to_owned(), &"42\ndone".to_owned())?;
    let elsewhere = run("nemoclaw", &options, IMAGE, &["sh", "-c", script]).ok()?;
    for place in ["/tmp", "/var/tmp", "/sandbox", "/data", "/scratch"] {
        contains("positive control", &elsewhere.out, &format!("{place} runs"))?;
    }
    contains("positive control", &elsewhere.out, "memfd made")
}

fn limits() -> Outcome {
    let show = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us";
    let seen = |options: &[&str]| {
        run("nemoclaw-system-only", options, IMAGE, &["sh", "-c", show]).ok().map(|done| done.out)
    };
    equal("the policy's", &seen(&[])?, &"268435456\n150000\n".to_owned())?;
    equal(
        "a wish for more",
        &seen(&["-m", "1g", "--cpus", "2"])?,
        &"268435456\n150000\n".to_owned(),
    )?;
    equal(
        "a wish for less",
        &seen(&["-m", "64m", "--cpus", "1"])?,
        &"67108864\n100000\n".to_owned(),
    )?;
    let container = Container::start("nemoclaw-system-only", IMAGE, &[])?;
    docker(&["update", "--cpus", "2", &container.name]).ok()?;
    contains("after an update", &container.sh(show).ok()?.out, "268435456\n150000\n")
}

fn isolated() -> Outcome {
    let isolated = Container::start("nemoclaw-system-only", IMAGE, &[])?;
    equal("isolated", &isolated.sh("kill -0 1").code, &1)?;
    let ordinary = Container::start("nemoclaw", IMAGE, &[])?;
    equal("positive control", &ordinary.sh("kill -0 1").code, &0)
}

fn root() -> Outcome {
    let script = "id -u; cp /bin/true /data/s; chmod u+s /data/s; chmod g+s /data/s; ls -l /data/s; install -m 4755 /bin/true /data/t; ls -l /data/t; grep Cap /proc/self/status";
    let done = run("nemoclaw-root", &["-v", "/data"], IMAGE, &["sh", "-c", script]);
    contains("root is kept", &done.out, "0\n")?;
    equal("set-ID bits", &done.out.contains("-rws"), &false)?;
    equal("set-ID bits", &done.out.contains("r-s"), &false)?;
    equal("empty sets", &done.out.matches("0000000000000000").count(), &5)?;
    let mapped = run("nemoclaw", &["-v", "/data"], IMAGE, &["id", "-u"]).ok()?;
    equal("without the policy", &mapped.out.trim().to_owned(), &"10001".to_owned())
}

/// The entry point starts a gateway as its own user, and becomes the agent.
const ENTRY: &str = "
setpriv --reuid gateway --regid gateway --clear-groups --inh-caps=-all sh -c 'echo $$ >/tmp/gateway.pid; exec sleep 900' &
sleep 0.3
exec setpriv --reuid sandbox --regid sandbox --clear-groups --inh-caps=-all sleep 900
";

/// What the agent tries on the gateway; each line that succeeds is printed.
const AGENT: &str = "
export HOME=/home/gateway PATH=/usr/bin:/bin
g=$(cat /tmp/gateway.pid)
kill -0 $g 2>/dev/null && echo signalled
kill -9 $g 2>/dev/null && echo killed
cat /proc/$g/environ >/dev/null 2>&1 && echo environ
ls /proc/$g/fd >/dev/null 2>&1 && echo descriptors
readlink /proc/$g/exe >/dev/null 2>&1 && echo executable
(echo x >/proc/$g/mem) 2>/dev/null && echo memory
setpriv --reuid gateway true 2>/dev/null && echo became gateway
setpriv --reuid 0 true 2>/dev/null && echo became root
mv /tmp/gateway.pid /tmp/forged 2>/dev/null && echo replaced
id -u
grep -E 'Cap(Prm|Eff|Inh|Amb)' /proc/self/status | grep -v 0000000000000000
true
";

fn step_down() -> Outcome {
    let container = Container::start_with(
        "nemoclaw-step-down",
        "nemoclaw-test/stepdown",
        &[],
        &["sh", "-c", ENTRY],
    )?;
    let init = "until [ -s /tmp/gateway.pid ] && [ $(stat -c %u /proc/1) = 998 ]; do sleep 0.1; done; stat -c %u /proc/1 /proc/$(cat /tmp/gateway.pid); cat /proc/1/status";
    let seen = container.sh(init).ok()?.out;
    contains("who runs", &seen, "998\n997\n")?;
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        contains("after stepping down", &seen, &format!("{set}:\t0000000000000000"))?;
    }
    for user in ["0", "sandbox", "998"] {
        let done = docker(&[
            "exec",
            "--privileged",
            "-u",
            user,
            "-e",
            "HOME=/home/gateway",
            &container.name,
            "sh",
            "-c",
            AGENT,
        ])
        .ok()?;
        equal("what the agent could do", &done.out.trim().to_owned(), &"998".to_owned())?;
    }
    // Nobody but root, the agent and the gateway.
    let stranger = run(
        "nemoclaw-step-down",
        &[],
        "nemoclaw-test/stepdown",
        &["setpriv", "--reuid", "4321", "--clear-groups", "id", "-u"],
    );
    equal("an id that policy does not name", &stranger.code, &127)?;
    let setid = run(
        "nemoclaw-step-down",
        &[],
        "nemoclaw-test/stepdown",
        &["sh", "-c", "cp /bin/sh /tmp/s && chmod 4755 /tmp/s"],
    );
    equal("a set-user-ID shell of root", &setid.code, &1)
}

fn device() -> Outcome {
    let refused = run("nemoclaw", &["--device", "/dev/fuse"], IMAGE, &["true"]);
    contains("refusal", &refused.err, "name the host's device under")?;
    let renamed = run("nemoclaw", &["--device", "/dev/fuse:/dev/null2"], IMAGE, &["true"]);
    contains("by another name", &renamed.err, "a sandbox does not get the device")?;
    let given = run(
        "nemoclaw-keep",
        &["--device", "/dev/fuse"],
        IMAGE,
        &["stat", "-c", "%t:%T", "/dev/fuse"],
    );
    equal("given", &given.ok()?.out.trim().to_owned(), &"a:e5".to_owned())
}

fn groups() -> Outcome {
    let options =
        ["--user", "1000:1000", "--group-add", "44", "--group-add", "29", "--group-add", "27"];
    let kept = run("nemoclaw-keep", &options, IMAGE, &["id", "-G"]).ok()?;
    equal(
        "named",
        &kept.out.trim().split(' ').collect::<std::collections::BTreeSet<_>>(),
        &["1000", "29", "44"].into(),
    )?;
    let container = Container::start("nemoclaw-keep", IMAGE, &options)?;
    let exec = docker(&["exec", "-u", "1000:1000", &container.name, "id", "-G"]).ok()?;
    equal("exec", &exec.out.contains("27"), &false)?;
    let cleared = run("nemoclaw", &options, IMAGE, &["id", "-G"]).ok()?;
    equal("not named", &cleared.out, &"1000\n".to_owned())
}

/// A process that starts below a read-only path is in the read-only mount, and so is
/// what lies below it; the cgroup hierarchies are read-only, all of them.
fn read_only_from_the_start() -> Outcome {
    let script = "
import os
def read_only(path): return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
print(os.getcwd(), read_only('.'))
points = [line.split()[4] for line in open('/proc/self/mountinfo')]
cgroups = [point for point in points if point.startswith('/sys/fs/cgroup')]
print('writable:', [point for point in cgroups if not read_only(point)], 'of', len(cgroups) > 0)";
    for directory in ["/usr/share", "/etc"] {
        let seen = run("nemoclaw", &["-w", directory], IMAGE, &["python3", "-c", script]).ok()?;
        equal("seen", &seen.out, &format!("{directory} True\nwritable: [] of True\n"))?;
    }
    let runc = run("runc", &["-w", "/usr/share"], IMAGE, &["python3", "-c", script]).ok()?;
    contains("positive control", &runc.out, "/usr/share False")
}

fn sized_tmp() -> Outcome {
    let script = "id -u; head -c 4M /dev/zero >/tmp/a && echo four; head -c 16M /dev/zero >/tmp/b 2>/dev/null || echo full; stat -f -c %T /tmp; stat -c %a /tmp";
    let done = run("nemoclaw-keep", &[], IMAGE, &["sh", "-c", script]).ok()?;
    equal("sized", &done.out, &"10001\nfour\nfull\ntmpfs\n1777\n".to_owned())?;
    // The engine's own is left as it is.
    let options = ["--tmpfs", "/tmp:size=64m,mode=1777"];
    let done = run(
        "nemoclaw-keep",
        &options,
        IMAGE,
        &["sh", "-c", "head -c 16M /dev/zero >/tmp/b && echo more"],
    );
    equal("the engine's", &done.ok()?.out, &"more\n".to_owned())
}
