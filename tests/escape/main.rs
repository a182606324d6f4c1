//! What must not work from inside, each trial named by the attack.

mod attempts;
mod files;
mod layouts;
mod privileges;
mod verify;
mod weakened;

use std::process::ExitCode;

use nemoclaw_tests::docker::{Container, docker, run};
use nemoclaw_tests::{Outcome, Trials, contains, equal, run_as_root};

const IMAGE: &str = "nemoclaw-test/base";

/// A trial and its name.
type Named = (&'static str, fn() -> Outcome);

fn main() -> ExitCode {
    let mut trials: Trials<'_> = vec![
        ("init_and_privileged_exec_have_no_capability", no_capability),
        ("root_s_home_and_etc_are_closed", closed_paths),
        ("a_setuid_program_gives_nothing", setuid),
        ("new_namespaces_cannot_be_made", namespaces),
        ("mounting_is_refused", mounting),
        ("other_processes_cannot_be_traced", tracing),
        ("address_families_with_ways_round_are_refused", families),
        ("packets_cannot_be_marked_or_crafted", packets),
        ("io_uring_and_bpf_do_not_exist", kernel_surface),
        ("the_terminal_cannot_be_typed_into", tiocsti),
        ("own_cgroup_limits_cannot_be_raised", cgroups),
        ("a_fork_bomb_ends_at_the_limit", fork_bomb),
        ("compilers_and_netcat_are_hidden", toolchain),
        ("what_would_open_the_sandbox_is_refused_at_start", refused_at_start),
        ("a_volume_of_the_image_does_not_open_etc", volume_over_etc),
        ("a_volume_that_is_the_host_s_root_is_refused", volume_of_root),
        ("namespaces_of_unconfined_containers_are_not_joined", foreign_namespaces),
        ("a_swapped_mount_source_is_noticed", swapped_source),
        ("device_nodes_of_the_image_open_nothing", device_nodes),
        ("the_proxy_cannot_be_seen_or_signalled", proxy_invisible),
        ("identities_of_proxies_are_refused", proxy_identity),
        ("workspace_files_stay_the_person_s", workspace),
        ("injected_variables_do_not_reach_a_process", injected),
    ];
    trials.extend(attempts::TRIALS);
    trials.extend(files::TRIALS);
    trials.extend(layouts::TRIALS);
    trials.extend(privileges::TRIALS);
    trials.extend(verify::TRIALS);
    trials.extend(weakened::TRIALS);
    run_as_root(trials)
}

/// Runs Python in a fresh container; exit 0 means what was forbidden failed.
fn python(script: &str) -> Outcome {
    run("nemoclaw", &[], IMAGE, &["python3", "-c", &format!("{PRELUDE}\n{script}")]).ok()?;
    Ok(())
}

/// The same in an exec'd process, asked for with every privilege.
fn python_in_exec(script: &str) -> Outcome {
    let container = Container::start("nemoclaw", IMAGE, &[])?;
    let script = format!("{PRELUDE}\n{script}");
    docker(&["exec", "--privileged", "-u", "0", &container.name, "python3", "-c", &script]).ok()?;
    Ok(())
}

fn both(script: &str) -> Outcome {
    python(script)?;
    python_in_exec(script)
}

const PRELUDE: &str = r"
import ctypes, errno, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(n, *a):
    ctypes.set_errno(0)
    r = libc.syscall(n, *[ctypes.c_long(x) if isinstance(x, int) else x for x in a])
    return r, ctypes.get_errno()
def refused(what, n, *a, codes=(errno.EPERM, errno.ENOSYS)):
    r, e = call(n, *a)
    assert r == -1 and e in codes, (what, r, errno.errorcode.get(e))
def fails(what, f, codes=(errno.EPERM, errno.EACCES)):
    try: f()
    except OSError as x:
        assert x.errno in codes, (what, x)
        return
    raise AssertionError(what + ' worked')
";

fn no_capability() -> Outcome {
    let show = "cat /proc/self/status; cat /proc/1/status";
    let container = Container::start("nemoclaw", IMAGE, &[])?;
    let exec =
        docker(&["exec", "--privileged", "-u", "0", &container.name, "sh", "-c", show]).ok()?.out;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        equal(set, &exec.matches(&format!("{set}:\t0000000000000000")).count(), &2)?;
    }
    equal("NoNewPrivs", &exec.matches("NoNewPrivs:\t1").count(), &2)?;
    equal("Seccomp", &exec.matches("Seccomp:\t2").count(), &2)?;
    equal("Uid", &exec.matches("Uid:\t10001\t10001\t10001\t10001").count(), &2)?;
    equal("Groups", &exec.matches("Groups:\t \n").count(), &2)
}

fn closed_paths() -> Outcome {
    both(
        r"
fails('list /root', lambda: os.listdir('/root'))
fails('write /etc', lambda: open('/etc/nc', 'w'), (errno.EROFS, errno.EACCES))
fails('write /usr', lambda: open('/usr/nc', 'w'), (errno.EROFS, errno.EACCES))
fails('chmod /etc/passwd', lambda: os.chmod('/etc/passwd', 0o777), (errno.EROFS, errno.EPERM))
fails('write /etc/hosts', lambda: open('/etc/hosts', 'a'), (errno.EROFS, errno.EACCES))
fails('write sysctl', lambda: open('/proc/sys/kernel/hostname', 'w'), (errno.EROFS, errno.EACCES))
fails('sysrq', lambda: open('/proc/sysrq-trigger', 'w'), (errno.EROFS, errno.EACCES, errno.ENOENT))
for d in ('/sandbox', '/tmp', '/var/tmp', '/dev/shm'):
    open(d + '/nc', 'w').write('x')
open('/etc/passwd').read()
open('/dev/null', 'w').write('x')
",
    )
}

fn setuid() -> Outcome {
    let script = "cp /bin/sh /tmp/s && chmod u+s /tmp/s; su -c id root </dev/null; id -u";
    let done = run("nemoclaw", &[], IMAGE, &["sh", "-c", script]);
    contains("uid", &done.out, "10001")
}

fn namespaces() -> Outcome {
    both(
        r"
import platform
unshare, clone, setns = (272, 56, 308) if platform.machine() == 'x86_64' else (97, 220, 268)
for flag in (0x10000000, 0x40000000, 0x20000, 0x20000000, 0x04000000, 0x08000000, 0x02000000, 0x80):
    refused('unshare %x' % flag, unshare, flag)
for flag in (0x10000000, 0x40000000, 0x20000):
    refused('clone %x' % flag, clone, flag | 17, 0, 0, 0, 0)
refused('clone3', 435, 0, 0, codes=(errno.ENOSYS,))
fd = os.open('/proc/self/ns/net', os.O_RDONLY)
refused('setns', setns, fd, 0)
",
    )
}

fn mounting() -> Outcome {
    both(
        r"
import platform
mount, umount, pivot = (165, 166, 155) if platform.machine() == 'x86_64' else (40, 39, 41)
refused('mount', mount, b'none', b'/tmp', b'tmpfs', 0, 0)
refused('umount', umount, b'/proc', 0)
refused('pivot_root', pivot, b'/tmp', b'/tmp')
for n in (428, 429, 430, 431, 432, 433, 442):
    refused('mount API %d' % n, n, 0, 0, 0, 0, 0)
",
    )
}

fn tracing() -> Outcome {
    both(
        r"
import platform
ptrace, readv, writev, kcmp, getfd = (101, 310, 311, 312, 438) if platform.machine() == 'x86_64' else (117, 270, 271, 272, 438)
child = os.fork()
if child == 0:
    import time
    time.sleep(5)
    os._exit(0)
refused('ptrace', ptrace, 16, child, 0, 0)
refused('process_vm_readv', readv, child, 0, 0, 0, 0, 0)
refused('process_vm_writev', writev, child, 0, 0, 0, 0, 0)
refused('kcmp', kcmp, child, child, 0, 0, 0)
fd = os.pidfd_open(child)
refused('pidfd_getfd', getfd, fd, 0, 0)
",
    )
}

fn families() -> Outcome {
    both(
        r"
for family in (3, 17, 38, 40, 44, 30, 31, 0x28 | 1 << 32):
    fails('family %d' % family, lambda: socket.socket(family & 0xffffffff, socket.SOCK_STREAM), (errno.EAFNOSUPPORT,))
fails('netlink audit', lambda: socket.socket(16, 3, 9), (errno.EPROTONOSUPPORT,))
fails('netlink sock_diag', lambda: socket.socket(16, 3, 4), (errno.EPROTONOSUPPORT,))
socket.socket(16, 3, 0)
socket.socketpair()
socket.if_nameindex()
",
    )
}

fn packets() -> Outcome {
    both(
        r"
fails('raw socket', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
fails('packet socket', lambda: socket.socket(17, socket.SOCK_RAW, 0), (errno.EPERM, errno.EAFNOSUPPORT))
s = socket.socket()
fails('SO_MARK', lambda: s.setsockopt(socket.SOL_SOCKET, 36, 0x6e656d6f))
b = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
b.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'eth0')
i = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
i.setsockopt(0, 50, struct.pack('!I', socket.if_nametoindex('eth0')))
for s2 in (b, i):
    for to in (('11.22.0.77', 9), ('127.0.0.9', 9), ('203.0.113.10', 9999)):
        fails('bound to a device, to %s' % to[0], lambda: (s2.sendto(b'x', to), s2.sendto(b'x', to)), (errno.EPERM, errno.EHOSTUNREACH, errno.ECONNREFUSED))
fails('IP_TRANSPARENT', lambda: s.setsockopt(0, 19, 1))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fails('UDP', lambda: (u.connect(('203.0.113.10', 9999)), u.send(b'x'), u.send(b'x')), (errno.EPERM, errno.ECONNREFUSED, errno.EHOSTUNREACH))
",
    )
}

fn kernel_surface() -> Outcome {
    both(
        r"
refused('io_uring_setup', 425, 8, 0)
refused('io_uring_enter', 426, 0, 0, 0, 0, 0, 0)
refused('io_uring_register', 427, 0, 0, 0, 0)
import platform
bpf, perf, userfault, key = (321, 298, 323, 250) if platform.machine() == 'x86_64' else (280, 241, 282, 219)
refused('bpf', bpf, 0, 0, 0)
refused('perf', perf, 0, 0, 0, 0, 0)
refused('userfaultfd', userfault, 0)
refused('keyctl', key, 0, 0, 0, 0, 0)
",
    )
}

fn tiocsti() -> Outcome {
    let script = format!(
        "{PRELUDE}\nimport fcntl\nfor n in (0x5412, 0x541c):\n    fails('ioctl', lambda: fcntl.ioctl(0, n, b'x'))\nprint('refused')"
    );
    let done = run("nemoclaw", &["-t"], IMAGE, &["python3", "-c", &script]).ok()?;
    contains("answer", &done.out, "refused")
}

fn cgroups() -> Outcome {
    both(
        r"
import glob
found = 0
for path in glob.glob('/sys/fs/cgroup/**/pids.max', recursive=True) + glob.glob('/sys/fs/cgroup/**/cgroup.procs', recursive=True):
    found += 1
    fails('write ' + path, lambda: open(path, 'w').write('max'), (errno.EROFS, errno.EACCES))
    fails('mkdir beside ' + path, lambda: os.mkdir(os.path.dirname(path) + '/nc'), (errno.EROFS, errno.EACCES))
assert found
",
    )
}

fn fork_bomb() -> Outcome {
    let script = "import os\nn = 0\nwhile True:\n    try: p = os.fork()\n    except OSError: break\n    if p == 0:\n        import time\n        time.sleep(30)\n    n += 1\nprint(n)\nos.kill(-1, 9)";
    let done = run("nemoclaw", &[], IMAGE, &["python3", "-c", script]);
    let count: i32 = done.out.trim().parse().unwrap_or_default();
    if (400..=512).contains(&count) {
        Ok(())
    } else {
        Err(format!("{count} processes: {done:?}").into())
    }
}

fn toolchain() -> Outcome {
    let script = "for t in nc netcat nc.openbsd; do command -v $t && $t -h </dev/null && echo works; done; true";
    let done = run("nemoclaw", &[], IMAGE, &["sh", "-c", script]).ok()?;
    equal("netcat", &done.out.contains("works"), &false)
}

fn refused_at_start() -> Outcome {
    for (options, words) in [
        (
            vec!["--network", "host"],
            "refused: namespaces: the container would share the host's network",
        ),
        (vec!["--pid", "host"], "refused: namespaces: the container would share the host's pid"),
        (vec!["--ipc", "host"], "refused: namespaces: the container would share the host's ipc"),
        (vec!["--uts", "host"], "refused: namespaces: the container would share the host's uts"),
        (vec!["--privileged"], "refused: capabilities: the container asks for all capabilities"),
        (vec!["--cap-add", "NET_ADMIN"], "refused: capabilities: the container asks for NET_ADMIN"),
        (
            vec!["--device", "/dev/fuse"],
            "refused: devices: a sandbox does not get the device `/dev/fuse`",
        ),
        (vec!["--device", "/dev/kmsg:/dev/null2"], "refused: devices"),
        (vec!["--sysctl", "net.ipv4.tcp_fwmark_accept=1"], "refused: sysctls"),
        (vec!["-v", "/run:/x"], "would expose `/run/nemoclaw`"),
        (vec!["-v", "/:/x"], "would expose"),
        (vec!["-v", "/proc:/x"], "would expose `/proc`"),
        (vec!["-v", "/sys/fs/cgroup:/x"], "would expose `/sys`"),
        (vec!["--sysctl", "kernel.msgmax=1", "--device", "/dev/kmsg"], "refused: devices"),
        (
            vec!["-v", "/run/nc-engines/docker20/docker.sock:/d.sock"],
            "is a socket that leads out of the sandbox",
        ),
    ] {
        let done = run("nemoclaw", &options, IMAGE, &["true"]);
        if done.code == 0 {
            return Err(format!("{options:?} was not refused").into());
        }
        contains(&format!("{options:?}"), &done.err, words)?;
    }
    Ok(())
}

fn volume_over_etc() -> Outcome {
    let volume = nemoclaw_tests::unique("v");
    let option = format!("{volume}:/etc");
    let script = "touch /etc/nc && echo opened; touch /etc/passwd && echo opened; true";
    let done = run("nemoclaw", &["-v", &option], IMAGE, &["sh", "-c", script]);
    docker(&["volume", "rm", "-f", &volume]);
    equal("written", &done.ok()?.out.contains("opened"), &false)
}

fn proxy_invisible() -> Outcome {
    both(
        r"
for pid in os.listdir('/proc'):
    if pid.isdigit():
        name = open('/proc/%s/comm' % pid).read()
        assert 'nemoclaw' not in name, name
fails('the proxy', lambda: os.listdir('/run/nemoclaw'), (errno.ENOENT, errno.EACCES))
",
    )
}

fn proxy_identity() -> Outcome {
    let done = run("nemoclaw", &["--user", "1879048193:1879048193"], IMAGE, &["true"]);
    contains("init", &done.err, "belongs to nemoclaw's proxies")?;
    let container = Container::start("nemoclaw", IMAGE, &[])?;
    let done = docker(&["exec", "-u", "1879048200", &container.name, "true"]);
    contains("exec", &done.text(), "belongs to nemoclaw's proxies")
}

fn workspace() -> Outcome {
    let directory = tempfile::tempdir()?;
    std::os::unix::fs::chown(directory.path(), Some(4321), Some(5432))?;
    let option = format!("{}:/sandbox", directory.path().display());
    let script = "id -u; touch made && stat -c %u:%g made; echo $HOME";
    let done =
        run("nemoclaw", &["-v", &option, "-w", "/sandbox"], IMAGE, &["sh", "-c", script]).ok()?;
    equal("inside", &done.out, &"4321\n4321:5432\n/sandbox\n".to_owned())
}

fn injected() -> Outcome {
    let container = Container::start(
        "nemoclaw",
        IMAGE,
        &["-e", "LD_PRELOAD=/tmp/x.so", "-e", "PYTHONPATH=/tmp", "-e", "FINE=1"],
    )?;
    let init = run(
        "nemoclaw",
        &["-e", "LD_PRELOAD=/tmp/x.so", "-e", "PYTHONPATH=/tmp", "-e", "FINE=1"],
        IMAGE,
        &["env"],
    )
    .ok()?
    .out;
    let exec = docker(&[
        "exec",
        "-e",
        "BASH_ENV=/tmp/x",
        "-e",
        "PATH=/tmp:/usr/bin",
        &container.name,
        "env",
    ])
    .ok()?
    .out;
    for text in [&init, &exec] {
        equal(
            "injected",
            &["LD_PRELOAD", "PYTHONPATH", "BASH_ENV", "/tmp:"]
                .iter()
                .any(|word| text.contains(word)),
            &false,
        )?;
        contains("kept", text, "FINE=1")?;
        contains("PATH", text, "PATH=/usr/")?;
    }
    Ok(())
}

fn volume_of_root() -> Outcome {
    let volume = nemoclaw_tests::unique("v");
    docker(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", "device=/", &volume])
        .ok()?;
    let done = run("nemoclaw", &["-v", &format!("{volume}:/h")], IMAGE, &["ls", "/h"]);
    docker(&["volume", "rm", "-f", &volume]);
    contains("refusal", &done.err, "would expose")
}

fn foreign_namespaces() -> Outcome {
    let open = Container::start("runc", IMAGE, &["--ipc", "shareable"])?;
    for kind in ["pid", "ipc"] {
        let option = format!("container:{}", open.name);
        let done = run("nemoclaw", &[&format!("--{kind}"), &option], IMAGE, &["true"]);
        contains(
            kind,
            &done.err,
            &format!("refused: namespaces: the {kind} namespace belongs to a container"),
        )?;
    }
    let own = Container::start("nemoclaw", IMAGE, &[])?;
    let option = format!("container:{}", own.name);
    run("nemoclaw", &["--pid", &option], IMAGE, &["true"]).ok()?;
    Ok(())
}

/// A directory that turns into a symbolic link to `/` and back while containers
/// start must never show the host's root.
fn swapped_source() -> Outcome {
    let directory = tempfile::tempdir()?;
    std::fs::create_dir(directory.path().join("sub"))?;
    std::os::unix::fs::symlink("/", directory.path().join("link"))?;
    let script = "import ctypes, sys, time\nlibc = ctypes.CDLL(None)\nend = time.time() + 6\nwhile time.time() < end: libc.syscall(316, -100, b'sub', -100, b'link', 2)";
    let swapper = std::process::Command::new("python3")
        .args(["-c", script])
        .current_dir(directory.path())
        .spawn()?;
    let option = format!("{}:/x", directory.path().join("sub").display());
    let mut seen = String::new();
    for _ in 0..8 {
        seen.push_str(&run("nemoclaw", &["-v", &option], IMAGE, &["ls", "/x"]).out);
    }
    let mut swapper = swapper;
    swapper.kill()?;
    swapper.wait()?;
    equal("the host's root", &seen.contains("boot"), &false)
}

fn device_nodes() -> Outcome {
    let image = nemoclaw_tests::unique("nodes").to_lowercase();
    let directory = tempfile::tempdir()?;
    let build = format!(
        "set -e; cd {}; mkdir d bin; mknod -m 666 d/loop c 10 237; mknod -m 666 d/kmsg c 1 11; cp {}/bin/busybox bin/; tar -c . | docker import - {image} >/dev/null",
        directory.path().display(),
        nemoclaw_tests::work().join("rootfs/tiny").display(),
    );
    let host = std::env::var("NEMOCLAW_DOCKER_HOST")
        .unwrap_or_else(|_| "unix:///run/nc-engines/docker20/docker.sock".to_owned());
    nemoclaw_tests::run_command(
        std::process::Command::new("bash").args(["-c", &build]).env("DOCKER_HOST", host),
    )
    .ok()?;
    let script = "/bin/busybox head -c 1 /d/loop && /bin/busybox echo OPEN; /bin/busybox head -c 1 /d/kmsg && /bin/busybox echo OPEN; true";
    let done = run("nemoclaw", &["-v", "/d"], &image, &["/bin/busybox", "sh", "-c", script]);
    docker(&["rmi", "-f", &image]);
    equal(&format!("opened: {done:?}"), &done.ok()?.out.contains("OPEN"), &false)
}
