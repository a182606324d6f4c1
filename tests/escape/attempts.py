#!/usr/bin/env python3
"""Named attempts to get out of, or tamper with, the container this runs in.

Each attempt runs in a child of its own with five seconds to live, and says on
one line of JSON whether what it tried was refused. It says `succeeded` only
where the forbidden thing was had, or where the kernel's permission check was
passed and a call made deliberately invalid failed on its arguments instead.
Nothing here harms the host, not even with every capability: values are written
back as read, images and magic numbers are invalid, mounts are taken down.

    attempts.py             all of them
    attempts.py NAME...     those named
    attempts.py --list      their names, categories and controls

Standard library only; system call numbers are those of x86_64.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import select
import shutil
import signal
import socket
import stat
import struct
import sys
import termios
import time

SECONDS = 5
NOWHERE = b"/nemoclaw-no-such-file"
REFUSED, SUCCEEDED, UNAVAILABLE, ERROR = "refused", "succeeded", "unavailable", "error"
AT_FDCWD = -100

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

# What the process was given, before it opens anything itself.
GIVEN = {}
for _fd in os.listdir("/proc/self/fd"):
    try:
        if int(_fd) > 2:
            GIVEN[int(_fd)] = os.readlink("/proc/self/fd/" + _fd)
    except OSError:
        pass  # the listing's own


def status_field(name, pid="self"):
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
        for line in f:
            if line.startswith(name + ":"):
                return line.split(":", 1)[1].split()
    return []


FILTERED = status_field("Seccomp") not in (["0"], [])

# ---------------------------------------------------------------- judging

DENIALS = {errno.EPERM, errno.EACCES, errno.EROFS}
# Answers both of a filter and of a kernel without the thing: a process under no
# filter has them from the kernel.
ABSENCES = {errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT}


class Done(Exception):
    """An attempt's end, from however deep."""

    def __init__(self, result, detail=""):
        super().__init__(result)
        self.result, self.detail = result, detail


def name_of(code):
    return errno.errorcode.get(code, str(code))


def judge(code, passed=(), absent=(), refused=(), what=""):
    """Ends the attempt by an errno: `passed` mean that permission was given."""
    detail = (what + ": " if what else "") + name_of(code)
    if code in passed:
        raise Done(SUCCEEDED, detail + ", permission given")
    if code in absent:
        raise Done(UNAVAILABLE, detail)
    if code in DENIALS or code in refused:
        raise Done(REFUSED, detail)
    if code in ABSENCES:
        raise Done(REFUSED if FILTERED else UNAVAILABLE, detail)
    raise Done(ERROR, "unforeseen " + detail)


def call(number, *args):
    """A raw system call; raises OSError."""
    ctypes.set_errno(0)
    plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    value = libc.syscall(ctypes.c_long(number), *plain)
    if value == -1:
        raise OSError(ctypes.get_errno(), f"syscall {number}")
    return value


def probe(number, *args, **kinds):
    """A call whose success is what must not be."""
    try:
        return call(number, *args)
    except OSError as e:
        judge(e.errno, **kinds)


def step(function, *args, what="", **kinds):
    """A step of the attempt whose refusal ends it."""
    try:
        return function(*args)
    except OSError as e:
        judge(e.errno, what=what or getattr(function, "__name__", ""), **kinds)


def won(detail=""):
    raise Done(SUCCEEDED, detail)


def lost(detail=""):
    raise Done(REFUSED, detail)


def absent(detail=""):
    raise Done(UNAVAILABLE, detail)


ATTEMPTS = {}


def add(name, category, control, function):
    assert name not in ATTEMPTS, name
    ATTEMPTS[name] = (category, control, function)


def attempt(name, category, control):
    def put(function):
        add(name, category, control, function)
        return function

    return put


SCRATCH = None


def scratch():
    """A directory of this attempt's own, that the parent removes."""
    return SCRATCH


def in_scratch(name):
    return os.path.join(SCRATCH, name)


def own_file(name="file", content=b"own"):
    path = in_scratch(name)
    with open(path, "wb") as f:
        f.write(content)
    return path


def own_directory(name="directory"):
    path = in_scratch(name)
    os.mkdir(path)
    return path


def other_id(current):
    """An id this process must not take on: root's, or root's other."""
    return 0 if current != 0 else 12345


class Child:
    """A child that sleeps, killed and reaped at the end."""

    def __init__(self, act=None):
        self.pid = os.fork()
        if self.pid == 0:
            try:
                signal.alarm(SECONDS)
                if act:
                    act()
                while True:
                    signal.pause()
            finally:
                os._exit(0)

    def __enter__(self):
        return self.pid

    def __exit__(self, *_):
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0x40000000)  # __WALL
        except OSError:
            pass


# ---------------------------------------------------------------- namespaces

NEW = {
    "mount": 0x00020000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000,
    "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000, "time": 0x00000080,
}  # fmt: skip
LINKS = {
    "mount": "mnt", "cgroup": "cgroup", "uts": "uts", "ipc": "ipc", "user": "user",
    "pid": "pid_for_children", "net": "net", "time": "time_for_children",
}  # fmt: skip


def unshare_one(kind):
    link = "/proc/self/ns/" + LINKS[kind]
    before = os.readlink(link) if os.path.lexists(link) else None
    probe(272, NEW[kind], absent={errno.EINVAL, errno.ENOSPC})
    try:
        after = os.readlink(link)
    except FileNotFoundError:
        after = None  # of processes, and still without its first
    if before and after == before:
        raise Done(ERROR, "unshared, yet in the same namespace")
    won("in a new namespace")


def clone_one(flags):
    def go():
        pid = probe(56, flags | signal.SIGCHLD, 0, 0, 0, 0, absent={errno.EINVAL, errno.ENOSPC})
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        won("a child in a new namespace")

    go()


def clone3_one(flags):
    args = struct.pack("8Q", flags, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    pid = probe(435, ctypes.create_string_buffer(args, 64), 64, absent={errno.EINVAL, errno.ENOSPC})
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    won("a child in a new namespace")


for _kind in NEW:
    add(f"unshare_{_kind}", "namespaces", "seccomp+capabilities", lambda k=_kind: unshare_one(k))
    if _kind != "time":  # its flag is a signal's bit to clone
        add(f"clone_{_kind}", "namespaces", "seccomp+capabilities", lambda k=_kind: clone_one(NEW[k]))
    add(f"clone3_{_kind}", "namespaces", "seccomp+capabilities", lambda k=_kind: clone3_one(NEW[k]))

add("unshare_user_and_mount", "namespaces", "seccomp",
    lambda: won(str(probe(272, NEW["user"] | NEW["mount"]))))  # fmt: skip
add("unshare_user_high_bits", "namespaces", "seccomp",
    lambda: won(str(probe(272, NEW["user"] | 1 << 32, absent={errno.EINVAL}))))  # fmt: skip


def setns_one(kind):
    path = "/proc/1/ns/" + kind
    if not os.path.lexists("/proc/self/ns/" + kind):
        absent("no such namespace")
    fd = step(os.open, path, os.O_RDONLY, what="open " + path)
    # The kernel takes nobody into the user namespace he is in.
    probe(308, fd, 0, refused={errno.EINVAL} if kind == "user" else ())
    won("joined")


for _kind in ["mnt", "cgroup", "uts", "ipc", "user", "pid", "net", "time"]:
    add(f"setns_{_kind}_of_init", "namespaces", "seccomp+capabilities", lambda k=_kind: setns_one(k))


@attempt("setns_by_pidfd", "namespaces", "seccomp+capabilities")
def _():
    fd = step(call, 434, 1, 0, what="pidfd_open")
    probe(308, fd, NEW["uts"] | NEW["ipc"])
    won("joined")


# ---------------------------------------------------------------- mounts

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MNT_DETACH, MNT_EXPIRE = 2, 4


def text(value):
    return None if value is None else ctypes.c_char_p(os.fsencode(value))


def mount(source, target, kind=None, flags=0, data=None):
    return call(165, text(source), text(target), text(kind), flags, text(data))


def umount(target, flags=MNT_DETACH):
    return call(166, text(target), flags)


def mount_one(source, kind, flags=0, data=None, then=None):
    target = own_directory()
    step(mount, source, target, kind, flags, data, what="mount", absent={errno.ENODEV, errno.EINVAL})
    try:
        detail = then(target) if then else "mounted"
    finally:
        umount(target)
    won(detail)


def release_agent_there(target):
    path = target + "/release_agent"
    fd = step(os.open, path, os.O_WRONLY, what="open release_agent", absent={errno.ENOENT})
    os.close(fd)
    return "release_agent open for writing"


def register_there(target):
    fd = step(os.open, target + "/register", os.O_WRONLY, what="open register", absent={errno.ENOENT})
    try:
        os.write(fd, b"nemoclaw")
    except OSError as e:
        return "register open for writing, " + name_of(e.errno) + " for what is no format"
    return "register written"


MOUNT = "capabilities+seccomp"
add("mount_tmpfs", "mounts", MOUNT, lambda: mount_one("tmpfs", "tmpfs"))
add("mount_proc", "mounts", MOUNT, lambda: mount_one("proc", "proc"))
add("mount_sysfs", "mounts", MOUNT, lambda: mount_one("sysfs", "sysfs"))
add("mount_devtmpfs", "mounts", MOUNT, lambda: mount_one("devtmpfs", "devtmpfs"))
add("mount_debugfs", "mounts", MOUNT, lambda: mount_one("debugfs", "debugfs"))
add("mount_tracefs", "mounts", MOUNT, lambda: mount_one("tracefs", "tracefs"))
add("mount_securityfs", "mounts", MOUNT, lambda: mount_one("securityfs", "securityfs"))
add("mount_mqueue", "mounts", MOUNT, lambda: mount_one("mqueue", "mqueue"))
add("mount_bind_etc", "mounts", MOUNT, lambda: mount_one("/etc", None, MS_BIND))
add("mount_bind_proc_sys", "mounts", MOUNT, lambda: mount_one("/proc/sys", None, MS_BIND))
add("mount_binfmt_misc_and_register", "mounts", MOUNT,
    lambda: mount_one("binfmt_misc", "binfmt_misc", then=register_there))  # fmt: skip


add("mount_overlay", "mounts", MOUNT, lambda: mount_one("overlay", "overlay", 0, "lowerdir=/etc:/opt"))


@attempt("mount_cgroup_for_its_release_agent", "mounts", MOUNT)
def _():
    # Only a hierarchy that there is: mounting must not make one.
    with open("/proc/self/cgroup", encoding="ascii") as f:
        controllers = [line.split(":")[1] for line in f]
    legacy = [c for c in controllers if c and not c.startswith("name=")]
    if legacy:
        mount_one("cgroup", "cgroup", 0, legacy[0], release_agent_there)
    mount_one("cgroup2", "cgroup2")


@attempt("mount_the_host_s_disk", "mounts", MOUNT + "+devices")
def _():
    number = disk()
    node = in_scratch("disk")
    try:
        os.mknod(node, stat.S_IFBLK | 0o600, number)
    except OSError:
        node = "/dev/nemoclaw-no-such-disk"
    target = own_directory()
    for kind in ("ext4", "xfs", "btrfs"):
        step(mount, node, target, kind, MS_RDONLY | MS_NOEXEC, "noload" if kind == "ext4" else None,
             what="mount", passed={errno.ENOENT, errno.EBUSY}, absent={errno.EINVAL, errno.ENODEV})  # fmt: skip
        umount(target)
        won("the disk is mounted")


@attempt("remount_root_writable", "mounts", MOUNT)
def _():
    step(mount, None, "/", None, MS_REMOUNT | MS_BIND, what="mount")
    won("remounted")


def remount_and_back(path):
    flags = os.statvfs(path).f_flag
    if not flags & os.ST_RDONLY:
        absent(path + " is writable as it is")
    keep = flags & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # EINVAL: no mount of its own, and permission was given.
    step(mount, None, path, None, MS_REMOUNT | MS_BIND | keep, what="mount", passed={errno.EINVAL})
    mount(None, path, None, MS_REMOUNT | MS_BIND | MS_RDONLY | keep)
    won("remounted writable")


add("remount_proc_sys_writable", "mounts", MOUNT, lambda: remount_and_back("/proc/sys"))
add("remount_sys_writable", "mounts", MOUNT, lambda: remount_and_back("/sys"))
add("remount_usr_writable", "mounts", MOUNT, lambda: remount_and_back("/usr"))
add("remount_etc_writable", "mounts", MOUNT, lambda: remount_and_back("/etc"))

# /tmp may be a mount: then EAGAIN or EBUSY, as expiry is only marked.
UNMOUNTING = {errno.EINVAL, errno.EAGAIN, errno.EBUSY}
add("umount_tmp", "mounts", MOUNT, lambda: won(str(probe(166, text("/tmp"), MNT_EXPIRE, passed=UNMOUNTING))))
add("umount_the_mask_of_proc_keys", "mounts", MOUNT,
    lambda: won(str(probe(166, text("/proc/keys"), MNT_EXPIRE, passed=UNMOUNTING))))  # fmt: skip
add("umount_the_cover_of_proc_sys", "mounts", MOUNT,
    lambda: won(str(probe(166, text("/proc/sys"), MNT_EXPIRE, passed=UNMOUNTING))))  # fmt: skip
add("pivot_root", "mounts", MOUNT, lambda: won(str(probe(155, NOWHERE, NOWHERE, passed={errno.ENOENT}))))
add("open_tree_clone", "mounts", MOUNT, lambda: won(str(probe(428, AT_FDCWD, b"/tmp", 1))))
add("move_mount", "mounts", MOUNT,
    lambda: won(str(probe(429, AT_FDCWD, NOWHERE, AT_FDCWD, NOWHERE, 0, passed={errno.ENOENT}))))  # fmt: skip
add("fsopen_tmpfs", "mounts", MOUNT, lambda: won(str(probe(430, b"tmpfs", 0))))
add("fsmount", "mounts", MOUNT, lambda: won(str(probe(432, -1, 0, 0, passed={errno.EBADF}))))
add("fspick_root", "mounts", MOUNT, lambda: won(str(probe(433, AT_FDCWD, b"/", 0))))


@attempt("fsconfig", "mounts", MOUNT)
def _():
    # On a descriptor that is none of fsopen's: EINVAL where the call is let through.
    fd = os.open("/dev/null", os.O_RDONLY)
    probe(431, fd, 0, b"ro", None, 0, passed={errno.EINVAL})
    won("configured")


@attempt("mount_setattr", "mounts", MOUNT)
def _():
    attributes = ctypes.create_string_buffer(struct.pack("4Q", 2, 0, 0, 0), 32)
    probe(442, AT_FDCWD, NOWHERE, 0, attributes, 32, passed={errno.ENOENT})
    won("set")


@attempt("a_mount_by_the_new_calls", "mounts", MOUNT)
def _():
    target = own_directory()
    context = probe(430, b"tmpfs", 0)
    probe(431, context, 6, None, None, 0)
    made = probe(432, context, 0, 0)
    probe(429, made, b"", AT_FDCWD, os.fsencode(target), 4)
    umount(target)
    won("mounted")


def by_handle(path):
    anchor = step(os.open, path, os.O_RDONLY, what="open " + path, absent={errno.ENOENT})
    # What ext4 calls its root: inode 2 of any generation.
    handle = struct.pack("IiII", 8, 1, 2, 0)
    fd = probe(304, anchor, ctypes.create_string_buffer(handle, 16), os.O_RDONLY,
               passed={errno.ESTALE, errno.EOPNOTSUPP})  # fmt: skip
    won("inode 2 is open, " + oct(os.fstat(fd).st_mode))


for _path in ("/etc/hosts", "/tmp"):
    add("open_by_handle_at_from" + _path.replace("/", "_"), "mounts", "capabilities+seccomp",
        lambda p=_path: by_handle(p))  # fmt: skip


# ---------------------------------------------------------------- processes

PTRACE_ATTACH, PTRACE_SEIZE, PTRACE_DETACH = 16, 0x4206, 17


@attempt("ptrace_attach_to_a_child", "processes", "seccomp")
def _():
    with Child() as pid:
        probe(101, PTRACE_ATTACH, pid, 0, 0)
        os.waitpid(pid, 0x40000000)
        won("attached")


@attempt("ptrace_seize_a_child", "processes", "seccomp")
def _():
    with Child() as pid:
        probe(101, PTRACE_SEIZE, pid, 0, 0)
        won("seized")


@attempt("ptrace_traceme_in_a_child", "processes", "seccomp")
def _():
    pid = os.fork()
    if pid == 0:
        try:
            call(101, 0, 0, 0, 0)
        except OSError as e:
            os._exit(e.errno)
        os._exit(0)
    _, how = os.waitpid(pid, 0x40000000)
    if os.WIFSIGNALED(how) and os.WTERMSIG(how) == signal.SIGSYS:
        lost("SIGSYS")
    code = os.WEXITSTATUS(how)
    if code:
        judge(code)
    won("traced by its parent")


@attempt("ptrace_attach_to_init", "processes", "seccomp")
def _():
    if os.getppid() == 1:
        absent("init is this program, which waits")
    probe(101, PTRACE_SEIZE, 1, 0, 0)
    won("seized")


def other_s_memory(number):
    """Reads or writes a byte of a child's, at the address it has here."""
    here = ctypes.create_string_buffer(b"a", 1)
    there = ctypes.create_string_buffer(b"b", 1)
    local = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(here), 1), 16)
    remote = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(there), 1), 16)
    with Child() as pid:
        if probe(number, pid, local, 1, remote, 1, 0) != 1:
            raise Done(ERROR, "moved nothing")
        won("a byte of the child's memory")


add("process_vm_readv_of_a_child", "processes", "seccomp", lambda: other_s_memory(310))
add("process_vm_writev_to_a_child", "processes", "seccomp", lambda: other_s_memory(311))


@attempt("pidfd_getfd_of_a_child", "processes", "seccomp")
def _():
    with Child() as pid:
        handle = step(call, 434, pid, 0, what="pidfd_open")
        probe(438, handle, 1, 0)
        won("the child's descriptor 1")


@attempt("kcmp_with_a_child", "processes", "seccomp")
def _():
    with Child() as pid:
        probe(312, os.getpid(), pid, 0, 1, 1)
        won("compared")


@attempt("process_madvise_a_child", "processes", "seccomp+capabilities")
def _():
    area = mmap.mmap(-1, 4096)
    where = ctypes.addressof(ctypes.c_char.from_buffer(area))
    vector = ctypes.create_string_buffer(struct.pack("QQ", where, 4096), 16)
    with Child() as pid:
        handle = step(call, 434, pid, 0, what="pidfd_open")
        probe(440, handle, vector, 1, 20, 0)
        won("advised")


def memory_file(target_pid, mode):
    """The byte is the same address in every process forked from this program."""
    path = f"/proc/{target_pid}/mem"
    fd = step(os.open, path, mode, what="open " + path)
    where = ctypes.addressof(BYTE)
    if mode == os.O_RDONLY:
        step(os.pread, fd, 1, where, what="read", refused={errno.EIO, errno.EFAULT})
        won("a byte read")
    step(os.pwrite, fd, b"m", where, what="write", refused={errno.EIO, errno.EFAULT})
    won("a byte written")


BYTE = ctypes.create_string_buffer(b"m", 1)


def memory_of_init(mode):
    if os.getppid() != 1:
        # Not this program's memory: open it, and leave it as it is.
        fd = step(os.open, "/proc/1/mem", mode, what="open /proc/1/mem")
        os.close(fd)
        won("open")
    memory_file(1, mode)


def memory_of_child():
    with Child() as pid:
        memory_file(pid, os.O_RDWR)


add("proc_mem_of_init_for_writing", "processes", "landlock+user", lambda: memory_of_init(os.O_RDWR))
add("proc_mem_of_a_child_for_writing", "processes", "landlock+user", memory_of_child)


@attempt("processes_of_the_host_are_seen", "processes", "namespaces")
def _():
    # The threads of the kernel have no memory and a parent with the number 2.
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if status_field("Kthread", pid) == ["1"]:
                won("a thread of the kernel, " + pid)
        except OSError:
            continue
    lost("only the container's")


# ---------------------------------------------------------------- proc and sys


def write_back(path, value=None, missing=UNAVAILABLE, undo=None):
    """Opens for writing and writes what was there; or `value`, then `undo`."""
    if value is None:
        try:
            with open(path, "rb") as f:
                value = f.read()
        except FileNotFoundError:
            raise Done(missing, "ENOENT")
        except OSError:
            value = b""
    fd = step(os.open, path, os.O_WRONLY, what="open", absent={errno.ENOENT} if missing == UNAVAILABLE else (),
              refused={errno.ENOENT} if missing == REFUSED else ())  # fmt: skip
    try:
        os.write(fd, value or b"\n")
    except OSError as e:
        if e.errno in DENIALS:
            lost("write: " + name_of(e.errno))
        won("open for writing, then " + name_of(e.errno))
    finally:
        if undo is not None:
            try:
                os.write(fd, undo)
            except OSError:
                pass
    won("written")


SYSCTLS = [
    "kernel/core_pattern", "kernel/core_uses_pid", "kernel/hostname", "kernel/domainname", "kernel/modprobe", "kernel/hotplug",
    "kernel/sysrq", "kernel/randomize_va_space", "kernel/kptr_restrict", "kernel/dmesg_restrict",
    "kernel/ns_last_pid", "kernel/threads-max", "kernel/unprivileged_bpf_disabled", "kernel/panic",
    "vm/overcommit_memory", "vm/swappiness", "vm/panic_on_oom", "vm/mmap_min_addr",
    "fs/suid_dumpable", "fs/protected_symlinks", "fs/protected_hardlinks", "fs/file-max",
    "user/max_user_namespaces",
    "net/ipv4/ip_forward", "net/ipv4/ip_unprivileged_port_start", "net/ipv4/conf/all/route_localnet",
    "net/ipv4/ping_group_range", "net/ipv4/ip_nonlocal_bind", "net/ipv6/conf/all/disable_ipv6",
]  # fmt: skip
for _path in SYSCTLS:
    add("write_sys_" + _path.replace("/", "_").replace("-", "_"), "proc_sys", "read_only_mounts+user",
        lambda p="/proc/sys/" + _path: write_back(p))  # fmt: skip

add("write_sysrq_trigger", "proc_sys", "read_only_mounts+user",
    lambda: write_back("/proc/sysrq-trigger", b"h"))  # fmt: skip
add("write_irq_default_affinity", "proc_sys", "read_only_mounts+user",
    lambda: write_back("/proc/irq/default_smp_affinity"))  # fmt: skip


@attempt("write_irq_affinity", "proc_sys", "read_only_mounts+user")
def _():
    numbers = sorted(n for n in os.listdir("/proc/irq") if n.isdigit())
    if not numbers:
        absent("no interrupt")
    write_back(f"/proc/irq/{numbers[0]}/smp_affinity")


add("write_uevent_helper", "proc_sys", "read_only_mounts+user", lambda: write_back("/sys/kernel/uevent_helper"))
add("write_power_state", "proc_sys", "read_only_mounts+user",
    lambda: write_back("/sys/power/state", b"nemoclaw"))  # fmt: skip
add("write_kernel_profiling", "proc_sys", "read_only_mounts+user", lambda: write_back("/sys/kernel/profiling"))
add("write_kernel_rcu_expedited", "proc_sys", "read_only_mounts+user",
    lambda: write_back("/sys/kernel/rcu_expedited"))  # fmt: skip
add("write_transparent_hugepage", "proc_sys", "read_only_mounts+user", lambda: write_back(
    "/sys/kernel/mm/transparent_hugepage/enabled", b"nemoclaw"))  # fmt: skip
add("write_uevent_of_the_null_device", "proc_sys", "read_only_mounts+user", lambda: write_back(
    "/sys/devices/virtual/mem/null/uevent", b"nemoclaw"))  # fmt: skip
add("write_binfmt_misc_register", "proc_sys", "read_only_mounts+user", lambda: write_back(
    "/proc/sys/fs/binfmt_misc/register", b"nemoclaw"))  # fmt: skip
add("write_mtrr", "proc_sys", "user+read_only_mounts", lambda: write_back("/proc/mtrr", b"nemoclaw"))
add("write_proc_bus_pci", "proc_sys", "read_only_mounts+user", lambda: first_pci())


def first_pci():
    for directory, _, files in os.walk("/proc/bus/pci"):
        for name in files:
            if name != "devices":
                fd = step(os.open, os.path.join(directory, name), os.O_RDWR, what="open")
                os.close(fd)
                won("a device's registers open for writing")
    absent("no device")


def own_cgroup(controller):
    """The container's directory of a controller, in either version."""
    for place in (f"/sys/fs/cgroup/{controller}", "/sys/fs/cgroup"):
        if os.path.exists(place + "/cgroup.procs"):
            return place
    absent("no cgroup is mounted for " + controller)


def cgroup_one(controller, names, value=None, restore=True):
    place = own_cgroup(controller)
    for name in names:
        path = os.path.join(place, name)
        if os.path.lexists(path):
            undo = None
            if restore and value is not None:
                try:
                    with open(path, "rb") as f:
                        undo = f.read().strip()
                except OSError:
                    pass
            write_back(path, value, undo=undo)
    absent("none of " + " ".join(names))


CGROUP = "read_only_mounts+user"
add("cgroup_pids_max", "cgroups", CGROUP, lambda: cgroup_one("pids", ["pids.max"], b"max"))
add("cgroup_memory_limit", "cgroups", CGROUP,
    lambda: cgroup_one("memory", ["memory.limit_in_bytes", "memory.max"]))  # fmt: skip
add("cgroup_memory_swap_limit", "cgroups", CGROUP,
    lambda: cgroup_one("memory", ["memory.memsw.limit_in_bytes", "memory.swap.max"]))  # fmt: skip
add("cgroup_memory_soft_limit", "cgroups", CGROUP,
    lambda: cgroup_one("memory", ["memory.soft_limit_in_bytes", "memory.high"]))  # fmt: skip
add("cgroup_oom_control", "cgroups", CGROUP,
    lambda: cgroup_one("memory", ["memory.oom_control", "memory.oom.group"], b"0", False))  # fmt: skip
add("cgroup_cpu_shares", "cgroups", CGROUP, lambda: cgroup_one("cpu", ["cpu.shares", "cpu.weight"]))
add("cgroup_cpu_quota", "cgroups", CGROUP, lambda: cgroup_one("cpu", ["cpu.cfs_quota_us", "cpu.max"]))
add("cgroup_cpuset", "cgroups", CGROUP, lambda: cgroup_one("cpuset", ["cpuset.cpus"]))
add("cgroup_procs", "cgroups", CGROUP, lambda: cgroup_one("pids", ["cgroup.procs"], b"0", False))
add("cgroup_tasks", "cgroups", CGROUP, lambda: cgroup_one("pids", ["tasks", "cgroup.threads"], b"0", False))
add("cgroup_devices_allow", "cgroups", CGROUP,
    lambda: cgroup_one("devices", ["devices.allow"], b"c 1:3 rwm", False))  # fmt: skip
add("cgroup_notify_on_release", "cgroups", CGROUP, lambda: cgroup_one("pids", ["notify_on_release"]))
add("cgroup_release_agent", "cgroups", CGROUP, lambda: cgroup_one("devices", ["release_agent"]))
add("cgroup_freeze", "cgroups", CGROUP,
    lambda: cgroup_one("freezer", ["freezer.state", "cgroup.freeze"], b"nemoclaw", False))  # fmt: skip
add("cgroup_kill", "cgroups", CGROUP, lambda: cgroup_one("pids", ["cgroup.kill"], b"nemoclaw", False))


def cgroup_child(controller):
    path = own_cgroup(controller) + "/nemoclaw-attempt"
    step(os.mkdir, path, what="mkdir")
    os.rmdir(path)
    won("made")


for _controller in ("pids", "memory", "devices", "systemd"):
    add("cgroup_new_below_" + _controller, "cgroups", CGROUP, lambda c=_controller: cgroup_child(c))


# ---------------------------------------------------------------- what the host tells


def tells(path, size=64, missing=UNAVAILABLE):
    """Whether a file has anything to say."""
    kinds = {"refused": {errno.EIO}}
    kinds["absent" if missing == UNAVAILABLE else "refused"] = {errno.ENOENT}
    fd = step(os.open, path, os.O_RDONLY | os.O_NONBLOCK, what="open", **kinds)
    try:
        got = os.read(fd, size)
    except OSError as e:
        if e.errno == errno.EAGAIN:
            won("open, and nothing new to read")
        if e.errno == errno.EISDIR:
            lost("a directory covers it")
        judge(e.errno, what="read", refused={errno.EIO, errno.EINVAL, errno.EFAULT})
    if not got and path == "/proc/keys" and stat.S_ISREG(os.fstat(fd).st_mode):
        # Keys are there only while somebody of this user has any; a mask is no file.
        won("open, and no key of ours in it")
    if not got:
        lost("empty")
    won(f"{len(got)} bytes")


def lists(path, missing=UNAVAILABLE):
    kinds = {"absent" if missing == UNAVAILABLE else "refused": {errno.ENOENT}}
    found = step(os.listdir, path, what="list", **kinds)
    if not found:
        lost("empty")
    won(f"{len(found)} entries, as {sorted(found)[0]}")


for _path, _control in {
    "/proc/kcore": "masked_paths+capabilities", "/proc/keys": "masked_paths",
    "/proc/timer_list": "masked_paths+user", "/proc/sched_debug": "masked_paths",
    "/proc/latency_stats": "masked_paths", "/proc/timer_stats": "masked_paths",
    "/proc/interrupts": "masked_paths", "/proc/kmsg": "capabilities+user",
    "/proc/kpagecount": "user", "/proc/kpageflags": "user", "/proc/kpagecgroup": "user",
    "/proc/slabinfo": "user", "/proc/vmallocinfo": "user", "/proc/pagetypeinfo": "user",
}.items():  # fmt: skip
    add("read_" + _path[1:].replace("/", "_"), "host_information", _control, lambda p=_path: tells(p))
for _path in ("/dev/mem", "/dev/kmsg", "/dev/port", "/dev/kvm", "/dev/fuse", "/dev/net/tun",
              "/dev/loop-control", "/dev/vda", "/dev/sda", "/dev/vsock", "/dev/userfaultfd",
              "/dev/console", "/dev/uinput", "/dev/vhost-vsock"):  # fmt: skip
    if _path != "/dev/console":  # the engine's, where the container has a terminal
        add("open_" + _path[1:].replace("/", "_").replace("-", "_"), "host_information", "devices",
            lambda p=_path: tells(p, 8, REFUSED))  # fmt: skip
for _path, _control in {
    "/sys/firmware": "masked_paths", "/proc/acpi": "masked_paths", "/proc/scsi": "masked_paths",
    "/sys/devices/virtual/powercap": "masked_paths", "/sys/kernel/debug": "mounts",
    "/sys/kernel/tracing": "mounts", "/sys/kernel/security": "mounts", "/sys/fs/bpf": "mounts",
    "/sys/fs/pstore": "mounts", "/sys/kernel/config": "mounts",
}.items():  # fmt: skip
    add("list_" + _path[1:].replace("/", "_"), "host_information",
        "namespaces" if _control == "mounts" else _control, lambda p=_path: lists(p))  # fmt: skip


@attempt("addresses_in_kallsyms", "host_information", "capabilities")
def _():
    with step(open, "/proc/kallsyms", "rb", what="open", absent={errno.ENOENT}) as f:
        lines = [f.readline() for _ in range(50)]
    if any(line.split()[0].strip(b"0") for line in lines if line.split()):
        won("addresses")
    lost("zeros")


@attempt("addresses_in_iomem", "host_information", "capabilities")
def _():
    with step(open, "/proc/iomem", "rb", what="open", absent={errno.ENOENT}) as f:
        ranges = [line.split()[0] for line in f if line.split()]
    if any(r.replace(b"-", b"").strip(b"0") for r in ranges):
        won("addresses")
    lost("zeros")


def syslog(action, size, **kinds):
    won(str(probe(103, action, ctypes.create_string_buffer(max(size, 1)), size, **kinds)))


add("syslog_read_all", "host_information", "seccomp+capabilities", lambda: syslog(3, 64))
add("syslog_buffer_size", "host_information", "seccomp+capabilities", lambda: syslog(10, 0))
add("syslog_console_level", "host_information", "seccomp+capabilities",
    lambda: syslog(8, 99, passed={errno.EINVAL}))  # fmt: skip


# ---------------------------------------------------------------- devices


def disk():
    """The number of the host's first disk, else a customary one."""
    try:
        with open("/proc/partitions", encoding="ascii") as f:
            for line in f:
                parts = line.split()
                if len(parts) == 4 and parts[0].isdigit() and not parts[3].startswith(("loop", "ram", "zram")):
                    return os.makedev(int(parts[0]), int(parts[1]))
    except OSError:
        pass
    return os.makedev(8, 0)


def node(directory, kind, number, only_make=False):
    path = os.path.join(directory or scratch(), f"nemoclaw-node-{os.getpid()}")
    step(os.mknod, path, kind | 0o666, number, what="mknod")
    try:
        if only_make:
            won("made")
        fd = step(os.open, path, os.O_RDONLY | os.O_NONBLOCK, what="open",
                  absent={errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM, errno.EBUSY})  # fmt: skip
        os.close(fd)
    finally:
        os.unlink(path)
    won("made and opened")


CHARACTER, BLOCK = stat.S_IFCHR, stat.S_IFBLK
for _name, _kind, _number in [
    ("mem", CHARACTER, (1, 1)), ("port", CHARACTER, (1, 4)), ("kmsg", CHARACTER, (1, 11)),
    ("tun", CHARACTER, (10, 200)), ("fuse", CHARACTER, (10, 229)), ("kvm", CHARACTER, (10, 232)),
    ("loop_control", CHARACTER, (10, 237)), ("block_8_0", BLOCK, (8, 0)), ("loop0", BLOCK, (7, 0)),
]:  # fmt: skip
    for _where, _directory in (("tmp", None), ("dev", "/dev")):
        add(f"mknod_{_name}_in_{_where}", "devices", "capabilities+devices",
            lambda d=_directory, k=_kind, n=_number: node(d, k, os.makedev(*n)))  # fmt: skip
add("mknod_the_host_s_disk", "devices", "capabilities+devices", lambda: node(None, BLOCK, disk()))
add("mknod_null", "devices", "capabilities", lambda: node(None, CHARACTER, os.makedev(1, 3), True))
add("mknod_whiteout_by_mknodat", "devices", "capabilities",
    lambda: (probe(259, AT_FDCWD, os.fsencode(in_scratch("node")), CHARACTER | 0o600, os.makedev(1, 3)),
             won("made")))  # fmt: skip


# ---------------------------------------------------------------- capabilities

CAPABILITIES = {
    "dac_override": 1, "dac_read_search": 2, "fowner": 3, "kill": 5, "setgid": 6, "setuid": 7, "setpcap": 8,
    "net_bind_service": 10, "net_admin": 12, "net_raw": 13, "ipc_lock": 14, "sys_module": 16, "sys_rawio": 17,
    "sys_chroot": 18, "sys_ptrace": 19, "sys_pacct": 20, "sys_admin": 21, "sys_boot": 22, "sys_nice": 23,
    "sys_resource": 24, "sys_time": 25, "sys_tty_config": 26, "mknod": 27, "audit_write": 29,
    "audit_control": 30, "setfcap": 31, "mac_admin": 33, "syslog": 34, "audit_read": 37, "perfmon": 38,
    "bpf": 39, "checkpoint_restore": 40,
}  # fmt: skip
EVERY = (1 << 41) - 1


def bounding(number):
    value = probe(157, 23, number, 0, 0, 0, absent={errno.EINVAL})
    if value:
        won("in the bounding set")
    lost("not in the bounding set")


for _name, _number in CAPABILITIES.items():
    add(f"bounding_set_has_{_name}", "capabilities", "capabilities", lambda n=_number: bounding(n))


def held(field):
    return int(status_field(field)[0], 16)


@attempt("hold_any_capability", "capabilities", "capabilities")
def _():
    sets = {f: held(f) for f in ("CapEff", "CapPrm", "CapInh", "CapAmb") if held(f)}
    if sets:
        won(" ".join(f"{k}={v:x}" for k, v in sets.items()))
    lost("all sets are empty")


def capset(effective, permitted, inheritable):
    head = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0), 8)
    low, high = 0xFFFFFFFF, 32
    body = struct.pack("6I", effective & low, permitted & low, inheritable & low,
                       effective >> high, permitted >> high, inheritable >> high)  # fmt: skip
    return call(126, head, ctypes.create_string_buffer(body, 24))


def capset_one(number):
    bit = 1 << number
    permitted = held("CapPrm")
    step(capset, permitted | bit, permitted | bit, held("CapInh"), what="capset")
    if not held("CapEff") & bit:
        raise Done(ERROR, "set, yet not held")
    won("held")


for _name in ("sys_admin", "net_admin", "dac_override"):
    add(f"capset_{_name}", "capabilities", "capabilities", lambda n=CAPABILITIES[_name]: capset_one(n))


@attempt("ambient_raise", "capabilities", "capabilities")
def _():
    permitted = held("CapPrm")
    try:
        capset(permitted, permitted, permitted)
    except OSError:
        pass
    last = errno.EPERM
    for number in range(41):
        try:
            call(157, 47, 2, number, 0, 0)
            won(f"capability {number} is ambient")
        except OSError as e:
            last = e.errno
    judge(last)


@attempt("securebits", "capabilities", "capabilities")
def _():
    probe(157, 28, 1 << 4, 0, 0, 0)  # SECBIT_KEEP_CAPS
    if held("CapBnd") == 0 and held("CapPrm") == 0:
        # Nothing to keep, and the kernel lets anybody keep nothing.
        lost("kept, of no capability")
    won("set")


def identity(number, args, read, want):
    probe(number, *args)
    if read() != want:
        raise Done(ERROR, f"allowed, yet {read()}")
    won(f"now {want}")


USER, GROUP = other_id(os.getuid()), other_id(os.getgid())
IDENTITY = "capabilities"
add("setuid", "identity", IDENTITY, lambda: identity(105, (USER,), os.geteuid, USER))
add("setreuid", "identity", IDENTITY, lambda: identity(113, (-1, USER), os.geteuid, USER))
add("setresuid", "identity", IDENTITY, lambda: identity(117, (USER,) * 3, os.getresuid, (USER,) * 3))
add("setgid", "identity", IDENTITY, lambda: identity(106, (GROUP,), os.getegid, GROUP))
add("setregid", "identity", IDENTITY, lambda: identity(114, (-1, GROUP), os.getegid, GROUP))
add("setresgid", "identity", IDENTITY, lambda: identity(119, (GROUP,) * 3, os.getresgid, (GROUP,) * 3))


@attempt("setgroups", "identity", IDENTITY)
def _():
    probe(116, 1, ctypes.create_string_buffer(struct.pack("I", GROUP), 4))
    won(f"groups {os.getgroups()}")


@attempt("setgroups_to_none", "identity", IDENTITY)
def _():
    probe(116, 0, None)
    won(f"groups {os.getgroups()}")


def file_identity(number, want):
    libc.syscall(ctypes.c_long(number), ctypes.c_long(want))
    if libc.syscall(ctypes.c_long(number), ctypes.c_long(-1)) == want:
        won(f"now {want}")
    lost("unchanged")


add("setfsuid", "identity", IDENTITY, lambda: file_identity(122, USER))
add("setfsgid", "identity", IDENTITY, lambda: file_identity(123, GROUP))


@attempt("chown_own_file_to_another", "identity", IDENTITY)
def _():
    path = own_file()
    step(os.chown, path, USER, -1, what="chown")
    won(f"owned by {os.stat(path).st_uid}")


@attempt("chgrp_own_file_to_another", "identity", IDENTITY)
def _():
    path = own_file()
    step(os.chown, path, -1, GROUP, what="chown")
    won(f"of group {os.stat(path).st_gid}")


@attempt("chroot", "capabilities", "capabilities+seccomp")
def _():
    probe(161, os.fsencode(own_directory()))
    won("in another root")


@attempt("chroot_and_climb_out", "capabilities", "capabilities+seccomp")
def _():
    outside = step(os.open, "/", os.O_PATH | os.O_DIRECTORY, what="open")
    probe(161, os.fsencode(own_directory()))
    os.fchdir(outside)
    won("the working directory is outside the root")


@attempt("sethostname", "capabilities", "capabilities+seccomp")
def _():
    name = os.uname().nodename.encode()
    probe(170, name, len(name))
    won("set")


@attempt("setdomainname", "capabilities", "capabilities+seccomp")
def _():
    name = os.uname()
    probe(171, b"(none)", 6)
    won("set on " + name.nodename)


add("iopl", "capabilities", "capabilities+seccomp", lambda: won(str(probe(172, 3))))
add("ioperm", "capabilities", "capabilities+seccomp", lambda: won(str(probe(173, 0x80, 1, 1))))


@attempt("nice_below_zero", "capabilities", "capabilities+rlimits")
def _():
    step(os.setpriority, os.PRIO_PROCESS, 0, -5, what="setpriority")
    won(f"niceness {os.getpriority(os.PRIO_PROCESS, 0)}")


@attempt("real_time_scheduling", "capabilities", "capabilities+rlimits")
def _():
    step(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1), what="sched_setscheduler")
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    won("scheduled")


add("real_time_input_and_output", "capabilities", "capabilities",
    lambda: won(str(probe(251, 1, 0, 1 << 13))))  # fmt: skip


@attempt("signal_a_foreign_process", "capabilities", "capabilities+namespaces")
def _():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if int(status_field("Uid", pid)[0]) != os.getuid():
                step(os.kill, int(pid), 0, what="kill")
                won("may signal " + pid)
        except (OSError, IndexError):
            continue
    lost("no other's process is to be seen")


# ---------------------------------------------------------------- the kernel's surface

add("keyctl_session_keyring", "kernel", "seccomp", lambda: won(str(probe(250, 0, -3, 0, passed={errno.ENOKEY}))))
add("keyctl_join_session", "kernel", "seccomp", lambda: won(str(probe(250, 1, None))))
add("add_key", "kernel", "seccomp", lambda: won(str(probe(248, b"user", b"nemoclaw", b"x", 1, -2))))
add("request_key", "kernel", "seccomp",
    lambda: won(str(probe(249, b"user", b"nemoclaw-none", None, 0, passed={errno.ENOKEY}))))  # fmt: skip
add("io_uring_setup", "kernel", "seccomp",
    lambda: won(str(probe(425, 1, ctypes.create_string_buffer(120)))))  # fmt: skip
add("io_uring_enter", "kernel", "seccomp", lambda: won(str(probe(426, -1, 0, 0, 0, None, 0, passed={errno.EBADF}))))
add("io_uring_register", "kernel", "seccomp", lambda: won(str(probe(427, -1, 0, None, 0, passed={errno.EBADF, errno.EINVAL}))))


@attempt("bpf_map_create", "kernel", "seccomp+capabilities")
def _():
    request = ctypes.create_string_buffer(struct.pack("4I", 2, 4, 4, 1), 128)
    probe(321, 0, request, 128)
    won("a map")


@attempt("bpf_program_load", "kernel", "seccomp+capabilities")
def _():
    program = ctypes.create_string_buffer(struct.pack("BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0), 16)
    licence = ctypes.create_string_buffer(b"GPL")
    request = struct.pack("IIQQ", 1, 2, ctypes.addressof(program), ctypes.addressof(licence))
    probe(321, 5, ctypes.create_string_buffer(request, 128), 128)
    won("a socket filter")


add("bpf_object_ids", "kernel", "seccomp+capabilities", lambda: won(str(
    probe(321, 11, ctypes.create_string_buffer(128), 128, passed={errno.ENOENT}))))  # fmt: skip


def perf(pid, cpu, user_only):
    bits = 1 << 5 | 1 << 6 if user_only else 0  # exclude_kernel, exclude_hv
    event = ctypes.create_string_buffer(struct.pack("IIQQQQQ", 1, 112, 0, 0, 0, 0, bits), 112)
    fd = probe(298, event, pid, cpu, -1, 0, absent={errno.ENOENT, errno.EOPNOTSUPP})
    won(f"descriptor {fd}")


add("perf_event_open_own", "kernel", "seccomp", lambda: perf(0, -1, True))
add("perf_event_open_the_machine", "kernel", "seccomp+capabilities", lambda: perf(-1, 0, False))
add("userfaultfd", "kernel", "seccomp", lambda: won(str(probe(323, 0))))
add("userfaultfd_of_own_faults", "kernel", "seccomp", lambda: won(str(probe(323, 1))))
add("fanotify_init", "kernel", "seccomp+capabilities", lambda: won(str(probe(300, 4, 0))))
add("fanotify_init_unprivileged", "kernel", "seccomp", lambda: won(str(probe(300, 0x200, 0))))
add("lookup_dcookie", "kernel", "seccomp", lambda: won(str(
    probe(212, 0, ctypes.create_string_buffer(64), 64, passed={errno.EINVAL}))))  # fmt: skip


@attempt("quotactl", "kernel", "seccomp")
def _():
    # Q_GETINFO for users, of a device that is none.
    probe(179, 0x80000500, NOWHERE, 0, ctypes.create_string_buffer(64),
          passed={errno.ENOENT, errno.ENOTBLK, errno.ENODEV, errno.EINVAL})  # fmt: skip
    won("answered")


add("acct", "kernel", "seccomp+capabilities", lambda: won(str(probe(163, NOWHERE, passed={errno.ENOENT}))))
add("swapon", "kernel", "seccomp+capabilities", lambda: won(str(probe(167, NOWHERE, 0, passed={errno.ENOENT}))))
add("swapoff", "kernel", "seccomp+capabilities", lambda: won(str(probe(168, NOWHERE, passed={errno.ENOENT}))))


def personality(bits):
    probe(135, bits)
    if probe(135, 0xFFFFFFFF) & bits != bits:
        raise Done(ERROR, "set, yet not so")
    won("set")


add("personality_no_randomization", "kernel", "seccomp", lambda: personality(0x0040000))
add("personality_read_implies_exec", "kernel", "seccomp", lambda: personality(0x0400000))


@attempt("vhangup", "kernel", "seccomp+capabilities")
def _():
    os.setsid()  # no terminal, none hung up
    probe(153)
    won("allowed")


add("init_module", "kernel", "seccomp+capabilities",
    lambda: won(str(probe(175, b"none", 4, b"", passed={errno.ENOEXEC, errno.EINVAL, errno.EFAULT}))))  # fmt: skip
add("finit_module", "kernel", "seccomp+capabilities",
    lambda: won(str(probe(313, -1, b"", 0, passed={errno.EBADF, errno.ENOEXEC, errno.EINVAL}))))  # fmt: skip
add("delete_module", "kernel", "seccomp+capabilities",
    lambda: won(str(probe(176, b"nemoclaw_none", os.O_NONBLOCK, passed={errno.ENOENT}))))  # fmt: skip
add("kexec_load", "kernel", "seccomp+capabilities",
    lambda: won(str(probe(246, 0, 1000, None, 0xFFF0, passed={errno.EINVAL, errno.EFAULT}))))  # fmt: skip
add("kexec_file_load", "kernel", "seccomp+capabilities",
    lambda: won(str(probe(320, -1, -1, 0, None, 0xFF00, passed={errno.EINVAL, errno.EBADF}))))  # fmt: skip
add("reboot", "kernel", "seccomp+capabilities",
    lambda: won(str(probe(169, 0, 0, 0, None, passed={errno.EINVAL}))))  # fmt: skip
add("reboot_ctrl_alt_del", "kernel", "seccomp+capabilities",
    lambda: won(str(probe(169, 0xFEE1DEAD, 0, 0x89ABCDEF, None, passed={errno.EINVAL}))))  # fmt: skip
# A time zone that cannot be: permission is asked first.
add("settimeofday", "kernel", "seccomp+capabilities", lambda: won(str(
    probe(164, None, ctypes.create_string_buffer(struct.pack("ii", 99999, 0), 8), passed={errno.EINVAL}))))  # fmt: skip


@attempt("clock_settime", "kernel", "seccomp+capabilities")
def _():
    # The value is looked at before the permission, which is looked up here.
    allowed = held("CapEff") & 1 << CAPABILITIES["sys_time"]
    kind = {"passed" if allowed else "refused": {errno.EINVAL}}
    probe(227, 0, ctypes.create_string_buffer(struct.pack("qq", 0, -1), 16), **kind)
    won("set")


def adjust(number, *first):
    # A tick of no length: permission is asked first.
    probe(number, *first, ctypes.create_string_buffer(struct.pack("I", 0x4000), 208), passed={errno.EINVAL})
    won("adjusted")


add("adjtimex", "kernel", "seccomp+capabilities", lambda: adjust(159))
add("clock_adjtime", "kernel", "seccomp+capabilities", lambda: adjust(305, 0))


@attempt("name_to_handle_at", "kernel", "seccomp")
def _():
    # Harmless alone; it is half of a known way out, and so counts only with the other.
    anchor = step(os.open, "/tmp", os.O_RDONLY, what="open")
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
    where = ctypes.create_string_buffer(4)
    step(call, 303, AT_FDCWD, b"/tmp", handle, where, 0, what="name_to_handle_at", refused={errno.EOPNOTSUPP})
    probe(304, anchor, handle, os.O_RDONLY, passed={errno.ESTALE})
    won("opened by its handle")


# ---------------------------------------------------------------- sockets


def sock(family, kind, protocol=0):
    # ENODEV: the family is let through, and the machine has no device of it.
    # podman's profile answers NETLINK_AUDIT with EINVAL.
    audit = {errno.EINVAL} if (family, protocol) == (16, 9) else ()
    s = step(socket.socket, family, kind, protocol, what="socket", absent={errno.ENODEV}, refused=audit)
    won(f"descriptor {s.fileno()}")


RAW, DGRAM, STREAM, SEQ = socket.SOCK_RAW, socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET
for _name, _args in {
    "packet_raw": (17, RAW, 0x0300), "packet_dgram": (17, DGRAM, 0x0300), "vsock_stream": (40, STREAM),
    "vsock_dgram": (40, DGRAM), "alg": (38, SEQ), "xdp": (44, RAW), "bluetooth": (31, RAW, 1),
    "can": (29, RAW, 1), "kcm": (41, DGRAM), "rds": (21, SEQ), "tipc": (30, STREAM), "smc": (43, STREAM),
    "key": (15, RAW, 2), "rxrpc": (33, DGRAM, 2), "ax25": (3, DGRAM), "appletalk": (5, DGRAM),
    "x25": (9, SEQ), "llc": (26, DGRAM), "nfc": (39, SEQ), "phonet": (35, DGRAM), "pppox": (24, STREAM),
    "qipcrtr": (42, DGRAM), "ieee802154": (36, DGRAM), "caif": (37, SEQ), "mctp": (45, DGRAM),
}.items():  # fmt: skip
    add(f"socket_{_name}", "sockets",
        "seccomp+capabilities" if _name.startswith("packet") or _name in ("xdp", "key") else "seccomp",
        lambda a=_args: sock(*a))  # fmt: skip
for _name, _protocol in {
    "audit": 9, "sock_diag": 4, "netfilter": 12, "generic": 16, "kobject_uevent": 15, "xfrm": 6,
    "selinux": 7, "connector": 11, "rdma": 20, "crypto": 21, "scsitransport": 18,
}.items():  # fmt: skip
    add(f"netlink_{_name}", "sockets", "seccomp", lambda p=_protocol: sock(16, RAW, p))

add("socket_raw_icmp", "sockets", "capabilities+seccomp", lambda: sock(2, RAW, 1))
add("socket_raw_tcp", "sockets", "capabilities+seccomp", lambda: sock(2, RAW, 6))
add("socket_raw_udp", "sockets", "capabilities+seccomp", lambda: sock(2, RAW, 17))
add("socket_raw_ip", "sockets", "capabilities+seccomp", lambda: sock(2, RAW, 255))
add("socket_raw_icmpv6", "sockets", "capabilities+seccomp", lambda: sock(10, RAW, 58))


@attempt("socket_family_with_high_bits", "sockets", "seccomp")
def _():
    # The kernel looks at 32 bits, a filter may look at 64.
    fd = probe(41, 40 | 1 << 32, STREAM, 0)
    won(f"descriptor {fd}")


@attempt("socketpair_of_a_refused_family", "sockets", "seccomp")
def _():
    probe(53, 40, STREAM, 0, ctypes.create_string_buffer(8), absent={errno.EOPNOTSUPP})
    won("a pair")


def option(kind, level, name, value):
    s = socket.socket(socket.AF_INET, kind)
    step(s.setsockopt, level, name, value, what="setsockopt", absent={errno.ENOPROTOOPT})
    won("set")


add("so_mark", "sockets", "capabilities", lambda: option(STREAM, 1, 36, 1))
add("so_mark_of_udp", "sockets", "capabilities", lambda: option(DGRAM, 1, 36, 1))
add("so_mark_of_nothing", "sockets", "capabilities", lambda: option(STREAM, 1, 36, 0))
add("so_priority_of_control", "sockets", "capabilities", lambda: option(STREAM, 1, 12, 7))
add("so_rcvbufforce", "sockets", "capabilities", lambda: option(STREAM, 1, 33, 1 << 20))
add("so_sndbufforce", "sockets", "capabilities", lambda: option(STREAM, 1, 32, 1 << 20))
add("so_debug", "sockets", "capabilities", lambda: option(STREAM, 1, 1, 1))
add("ip_transparent", "sockets", "capabilities", lambda: option(STREAM, 0, 19, 1))
add("tcp_repair", "sockets", "capabilities", lambda: option(STREAM, 6, 19, 1))


@attempt("so_mark_by_a_control_message", "sockets", "capabilities")
def _():
    s = socket.socket(socket.AF_INET, DGRAM)
    ancillary = [(1, 36, struct.pack("I", 1))]
    try:
        s.sendmsg([b""], ancillary, 0, ("127.0.0.1", 9))
    except OSError as e:
        judge(e.errno, passed={errno.ENETUNREACH, errno.ECONNREFUSED})
    won("sent")


@attempt("xtables_information", "sockets", "capabilities")
def _():
    s = socket.socket(socket.AF_INET, STREAM)
    step(s.getsockopt, 0, 64, 84, what="getsockopt", absent={errno.ENOPROTOOPT, errno.ENOENT}, passed={errno.EINVAL})
    won("told")


def route(kind, flags, body):
    """A request of route netlink; its errno."""
    s = step(socket.socket, 16, RAW, 0, what="socket")
    s.settimeout(2)
    message = struct.pack("IHHII", 16 + len(body), kind, flags | 5, 1, 0) + body
    step(s.sendto, message, (0, 0), what="send")
    answer = step(s.recv, 4096, what="receive", refused={errno.EAGAIN})
    length, what = struct.unpack_from("IH", answer)
    if what != 2:
        raise Done(ERROR, f"answered with {what}, {length} bytes")
    code = -struct.unpack_from("i", answer, 16)[0]
    if code:
        raise OSError(code, "netlink")


def attribute(kind, data):
    return struct.pack("HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def own_link():
    return socket.if_nametoindex("lo")


ADDRESS = socket.inet_aton("127.77.0.1")


@attempt("add_an_address", "sockets", "capabilities+network")
def _():
    body = struct.pack("BBBBi", 2, 32, 0, 254, own_link()) + attribute(2, ADDRESS) + attribute(1, ADDRESS)
    step(route, 20, 0x600, body, what="RTM_NEWADDR")
    route(21, 0, body)
    won("added, and removed")


@attempt("take_the_link_down", "sockets", "capabilities+network")
def _():
    index = own_link()
    down = struct.pack("BxHiII", 0, 0, index, 0, 1)
    step(route, 16, 0, down, what="RTM_NEWLINK")
    route(16, 0, struct.pack("BxHiII", 0, 0, index, 1, 1))
    won("down, and up again")


@attempt("add_a_route", "sockets", "capabilities+network")
def _():
    body = (struct.pack("BBBBBBBBI", 2, 32, 0, 0, 254, 4, 253, 1, 0)
            + attribute(1, socket.inet_aton("198.51.100.7")) + attribute(4, struct.pack("i", own_link())))  # fmt: skip
    step(route, 24, 0x600, body, what="RTM_NEWROUTE", passed={errno.ENETDOWN, errno.EEXIST})
    route(25, 0, body)
    won("added, and removed")


@attempt("make_a_dummy_link", "sockets", "capabilities+network")
def _():
    name = attribute(3, b"nemoclaw0\0")
    info = attribute(18, attribute(1, b"dummy"))
    step(route, 16, 0x600, struct.pack("BxHiII", 0, 0, 0, 0, 0) + name + info, what="RTM_NEWLINK",
         absent={errno.EOPNOTSUPP})  # fmt: skip
    route(17, 0, struct.pack("BxHiII", 0, 0, socket.if_nametoindex("nemoclaw0"), 0, 0))
    won("made, and removed")


@attempt("set_flags_of_the_link_by_ioctl", "sockets", "capabilities+network")
def _():
    s = socket.socket(socket.AF_INET, DGRAM)
    request = bytearray(struct.pack("16sh", b"lo", 0).ljust(40, b"\0"))
    fcntl.ioctl(s, 0x8913, request)
    step(fcntl.ioctl, s, 0x8914, bytes(request), what="SIOCSIFFLAGS")
    won("set as they were")


@attempt("read_the_nftables_generation", "sockets", "seccomp+capabilities")
def _():
    s = step(socket.socket, 16, RAW, 12, what="socket")
    s.settimeout(2)
    # NFT_MSG_GETGEN changes nothing.
    s.sendto(struct.pack("IHHIIBBH", 20, 10 << 8 | 16, 1, 1, 0, 0, 0, 0), (0, 0))
    answer = step(s.recv, 4096, what="receive", refused={errno.EAGAIN})
    if struct.unpack_from("IH", answer)[1] == 2:
        judge(-struct.unpack_from("i", answer, 16)[0], absent={errno.EINVAL})
    won("the ruleset is to be had")


# ---------------------------------------------------------------- set-user-ID


def ids_after(program, *args):
    """The identities a program ends with, read while it is a zombie."""
    pid = os.fork()
    if pid == 0:
        try:
            quiet = os.open("/dev/null", os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(quiet, fd)
            os.execv(program, [program, *args])
        except OSError as e:
            os._exit(100 + min(e.errno, 100))
        finally:
            os._exit(99)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    ids = status_field("Uid", pid)[:3], status_field("Gid", pid)[:3], status_field("CapEff", pid)[0]
    _, how = os.waitpid(pid, 0)
    if os.WIFEXITED(how) and os.WEXITSTATUS(how) >= 99:
        judge(os.WEXITSTATUS(how) - 100, what="exec")
    return ids


def gained(program, *args):
    if not os.path.exists(program):
        absent("no " + program)
    mode = os.stat(program)
    user = mode.st_mode & stat.S_ISUID and mode.st_uid != os.geteuid()
    group = mode.st_mode & stat.S_ISGID and mode.st_gid != os.getegid()
    if not user and not group:
        if mode.st_mode & (stat.S_ISUID | stat.S_ISGID):
            lost("nothing to gain: it is this user's")
        absent(program + " has neither bit")
    users, groups, _ = ids_after(program, *args)
    if users[1:] != [str(os.geteuid())] * 2 or groups[1:] != [str(os.getegid())] * 2:
        won(f"users {users}, groups {groups}")
    lost("no identity was gained")


for _program in ("su", "mount", "umount", "passwd", "chsh", "newgrp", "chage", "expiry", "gpasswd"):
    add(f"run_{_program}", "setuid", "no_new_privs",
        lambda p="/usr/bin/" + _program: gained(p, "--help"))  # fmt: skip


def own_set_id(bit, by_user):
    path = in_scratch("program")
    shutil.copyfile("/usr/bin/true", path)
    try:
        os.chown(path, USER if by_user else -1, -1 if by_user else GROUP)
    except OSError:
        pass  # then it stays this user's, with nothing to gain
    step(os.chmod, path, 0o755 | bit, what="chmod")
    users, groups, _ = ids_after(path)
    if (users[1] if by_user else groups[1]) != str(os.geteuid() if by_user else os.getegid()):
        won(f"users {users}, groups {groups}")
    lost("no identity was gained")


add("own_set_user_id_program", "setuid", "no_new_privs+capabilities", lambda: own_set_id(stat.S_ISUID, True))
add("own_set_group_id_program", "setuid", "no_new_privs+capabilities", lambda: own_set_id(stat.S_ISGID, False))


def file_capability():
    path = in_scratch("program")
    shutil.copyfile("/usr/bin/true", path)
    os.chmod(path, 0o755)
    # Version 2, permitted and effective: CAP_NET_BIND_SERVICE.
    value = struct.pack("5I", 0x02000001, 1 << 10, 0, 0, 0)
    step(os.setxattr, path, "security.capability", value, what="setxattr", absent={errno.EOPNOTSUPP})
    return path


@attempt("file_capability_on_an_own_file", "setuid", "capabilities")
def _():
    file_capability()
    won("set")


@attempt("no_new_privs_is_unset", "setuid", "no_new_privs")
def _():
    if probe(157, 39, 0, 0, 0, 0) == 0:
        won("it is not set")
    try:
        call(157, 38, 0, 0, 0, 0)
    except OSError:
        pass
    if call(157, 39, 0, 0, 0, 0) == 0:
        won("it was cleared")
    lost("it is set, and stays")


@attempt("seccomp_is_off", "kernel", "seccomp")
def _():
    mode = probe(157, 21, 0, 0, 0, 0)
    if mode == 0:
        won("no filter")
    try:
        call(157, 22, 0, 0, 0, 0)
    except OSError:
        pass
    if status_field("Seccomp") != ["2"]:
        won("taken off")
    lost("a filter is on, and stays")


# ---------------------------------------------------------------- terminals


def on_terminal(request, argument, read_back=False, **kinds):
    """An ioctl on a terminal that controls a session of one's own."""
    master, slave = step(os.openpty, what="openpty", absent={errno.ENOENT, errno.ENOSPC})
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    modes = termios.tcgetattr(slave)
    modes[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    probe(16, slave, request, ctypes.create_string_buffer(argument), **kinds)
    if read_back:
        ready, _, _ = select.select([slave], [], [], 1)
        if not ready or os.read(slave, 1) != argument[:1]:
            raise Done(ERROR, "allowed, yet nothing to read")
    del master
    won("typed" if read_back else "done")


HIGH = 1 << 32
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
# EIO: the kernel's dev.tty.legacy_tiocsti is off.
add("tiocsti", "terminals", "seccomp", lambda: on_terminal(TIOCSTI, b"n", True, refused={errno.EIO}))
add("tiocsti_with_high_bits", "terminals", "seccomp",
    lambda: on_terminal(TIOCSTI | HIGH, b"n", True, refused={errno.EIO}))  # fmt: skip
add("tiocsti_with_every_high_bit", "terminals", "seccomp",
    lambda: on_terminal(TIOCSTI - (1 << 32), b"n", True, refused={errno.EIO}))  # fmt: skip
# ENOTTY: let through, and no console of the machine's. Subcode 6: what is the shift state.
add("tioclinux", "terminals", "seccomp", lambda: on_terminal(TIOCLINUX, b"\x06", absent={errno.ENOTTY}))
add("tioclinux_with_high_bits", "terminals", "seccomp",
    lambda: on_terminal(TIOCLINUX | HIGH, b"\x06", absent={errno.ENOTTY}))  # fmt: skip


@attempt("take_over_the_console", "terminals", "capabilities")
def _():
    # TIOCCONS: the console's output to a terminal of ours, and back.
    master, slave = step(os.openpty, what="openpty")
    probe(16, slave, 0x541D, None, passed={errno.EBUSY})
    fd = os.open("/dev/tty0", os.O_RDWR) if os.path.exists("/dev/tty0") else slave
    os.close(master)
    os.close(fd)
    won("taken, and given back by closing it")


@attempt("set_the_line_discipline", "terminals", "capabilities+seccomp")
def _():
    # N_HDLC, known for its flaws; autoloaded only with CAP_SYS_MODULE.
    _, slave = step(os.openpty, what="openpty")
    probe(16, slave, 0x5423, ctypes.create_string_buffer(struct.pack("i", 13), 4), absent={errno.EINVAL})
    won("set")


# ---------------------------------------------------------------- descriptors


@attempt("descriptors_left_open", "descriptors", "namespaces")
def _():
    # Given by `python3 -c`, there is no file.
    own = globals().get("__file__", "")
    left = {fd: to for fd, to in GIVEN.items() if to not in (os.path.realpath(own), own) and not to.startswith("/proc/")}
    if left:
        won(json.dumps(left))
    lost("none beyond 2")


@attempt("climb_from_a_descriptor", "descriptors", "namespaces")
def _():
    root = os.stat("/")
    for fd in range(3, 64):
        try:
            there = os.stat(f"/proc/self/fd/{fd}/" + "../" * 12)
        except OSError:
            continue
        if (there.st_dev, there.st_ino) != (root.st_dev, root.st_ino):
            won(f"descriptor {fd} leads elsewhere")
    lost("all lead to the container's root")


def climb(start):
    root = os.stat("/")
    there = step(os.stat, start + "/.." * 16, what="stat", refused={errno.ENOENT})
    if (there.st_dev, there.st_ino) != (root.st_dev, root.st_ino):
        won("elsewhere")
    lost("the container's root")


add("climb_from_the_working_directory", "descriptors", "namespaces", lambda: climb("/proc/self/cwd"))
add("climb_from_init_s_working_directory", "descriptors", "namespaces", lambda: climb("/proc/1/cwd"))
add("climb_from_init_s_root", "descriptors", "namespaces", lambda: climb("/proc/1/root"))


def program_file(pid):
    path = f"/proc/{pid}/exe"
    # ETXTBSY comes before the mount and Landlock are asked: it tells of no permission.
    fd = step(os.open, path, os.O_WRONLY, what="open", refused={errno.ETXTBSY})
    os.close(fd)
    won("open for writing")


add("write_own_program_file", "descriptors", "read_only_mounts+landlock+user", lambda: program_file("self"))
add("write_init_s_program_file", "descriptors", "read_only_mounts+landlock+user", lambda: program_file(1))
add("reopen_own_program_for_writing", "descriptors", "read_only_mounts+landlock+user", lambda: reopen())


def reopen():
    handle = step(os.open, "/proc/self/exe", os.O_PATH, what="open")
    step(os.open, f"/proc/self/fd/{handle}", os.O_WRONLY, what="open", refused={errno.ETXTBSY})
    won("open for writing")


@attempt("write_an_ended_program_by_its_proc_exe", "descriptors", "read_only_mounts+landlock+user")
def _():
    # The way to a runtime's own file: hold it while it runs, write once it does not.
    program = "/usr/bin/sleep"
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(program, [program, str(SECONDS)])
        finally:
            os._exit(99)
    os.close(writer)
    os.read(reader, 1)  # closed by exec
    handle = step(os.open, f"/proc/{pid}/exe", os.O_PATH, what="open")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if os.readlink(f"/proc/self/fd/{handle}") != os.path.realpath(program):
        raise Done(ERROR, "another program's file is held")
    # Other containers of the image may run it still: then the answer tells nothing.
    step(os.open, f"/proc/self/fd/{handle}", os.O_WRONLY, what="open", refused={errno.ETXTBSY})
    won("open for writing")


add("list_root_through_init_s_root", "descriptors", "landlock+user", lambda: opens_directory("/proc/1/root/root"))


def opens_directory(path):
    found = step(os.listdir, path, what="list", absent={errno.ENOENT})
    won(f"{len(found)} entries")


# ---------------------------------------------------------------- symbolic links


@attempt("write_etc_through_a_link", "links", "read_only_mounts+landlock+user")
def _():
    os.symlink("/etc", in_scratch("link"))
    path = in_scratch("link/nemoclaw-attempt")
    fd = step(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, what="open")
    os.close(fd)
    os.unlink(path)
    won("made, and removed")


@attempt("write_usr_through_a_link", "links", "read_only_mounts+landlock+user")
def _():
    os.symlink("/usr/bin", in_scratch("link"))
    path = in_scratch("link/nemoclaw-attempt")
    fd = step(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, what="open")
    os.close(fd)
    os.unlink(path)
    won("made, and removed")


@attempt("hard_link_to_passwd", "links", "read_only_mounts+landlock")
def _():
    step(os.link, "/etc/passwd", in_scratch("passwd"), what="link", refused={errno.EXDEV})
    won("linked")


@attempt("hard_link_to_shadow", "links", "read_only_mounts+landlock")
def _():
    step(os.link, "/etc/shadow", in_scratch("shadow"), what="link", refused={errno.EXDEV})
    won("linked")


@attempt("rename_passwd", "links", "read_only_mounts+landlock+user")
def _():
    step(os.rename, "/etc/passwd", "/etc/passwd.nemoclaw", what="rename")
    os.rename("/etc/passwd.nemoclaw", "/etc/passwd")
    won("renamed, and back")


@attempt("move_passwd_away", "links", "read_only_mounts+landlock+user")
def _():
    step(os.rename, "/etc/passwd", in_scratch("passwd"), what="rename", refused={errno.EXDEV})
    os.rename(in_scratch("passwd"), "/etc/passwd")
    won("moved, and back")


@attempt("list_root_through_a_link", "links", "landlock+user")
def _():
    os.symlink("/root", in_scratch("link"))
    opens_directory(in_scratch("link"))


@attempt("move_a_mount_point", "links", "namespaces")
def _():
    step(os.rename, "/etc/hosts", "/etc/hosts.nemoclaw", what="rename", refused={errno.EBUSY, errno.EXDEV})
    os.rename("/etc/hosts.nemoclaw", "/etc/hosts")
    won("moved, and back")


# ---------------------------------------------------------------- read-only trees


TREES = {
    "usr": "/usr", "etc": "/etc", "bin": "/bin", "lib": "/lib", "sbin": "/sbin", "opt": "/opt", "var_log": "/var/log",
}  # fmt: skip
TREE = "read_only_mounts+landlock+user"


def there(directory, name="nemoclaw-attempt"):
    return os.path.join(directory, f"{name}-{os.getpid()}")


def made(make, path, remove):
    # EXDEV: the directory is a mount of its own.
    step(make, path, what="make", refused={errno.EXDEV})
    remove(path)
    won("made, and removed")


def creates(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def temporary(directory):
    fd = step(os.open, directory, os.O_TMPFILE | os.O_RDWR, what="open", absent={errno.EOPNOTSUPP, errno.EISDIR})
    os.close(fd)
    won("made")


def touched(function, path, *args):
    step(function, path, *args, what=function.__name__, absent={errno.EOPNOTSUPP, errno.ENOENT})
    won("done")


def same_mode(path):
    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode))


def same_owner(path):
    was = os.stat(path)
    os.chown(path, was.st_uid, was.st_gid)


def same_times(path):
    was = os.stat(path)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def new_times(path):
    os.utime(path)


def labels(path):
    os.setxattr(path, "user.nemoclaw", b"x")
    os.removexattr(path, "user.nemoclaw")


for _name, _tree in TREES.items():
    add(f"create_in_{_name}", "read_only", TREE, lambda t=_tree: made(creates, there(t), os.unlink))
    add(f"mkdir_in_{_name}", "read_only", TREE, lambda t=_tree: made(os.mkdir, there(t), os.rmdir))
    add(f"symlink_in_{_name}", "read_only", TREE,
        lambda t=_tree: made(lambda p: os.symlink("nowhere", p), there(t), os.unlink))  # fmt: skip
    add(f"chmod_{_name}", "read_only", TREE, lambda t=_tree: touched(same_mode, t))
    add(f"utimes_{_name}", "read_only", TREE, lambda t=_tree: touched(same_times, t))
    add(f"chown_{_name}", "read_only", TREE, lambda t=_tree: touched(same_owner, t))
for _name in ("usr", "etc", "opt", "var_log"):
    _tree = TREES[_name]
    add(f"setxattr_{_name}", "read_only", TREE, lambda t=_tree: touched(labels, t))
    add(f"mkfifo_in_{_name}", "read_only", TREE, lambda t=_tree: made(os.mkfifo, there(t), os.unlink))
    add(f"tmpfile_in_{_name}", "read_only", TREE, lambda t=_tree: temporary(t))
    add(f"link_into_{_name}", "read_only", TREE,
        lambda t=_tree: made(lambda p: os.link(own_file(), p), there(t), os.unlink))  # fmt: skip
    add(f"rename_into_{_name}", "read_only", TREE,
        lambda t=_tree: made(lambda p: os.rename(own_file(), p), there(t), os.unlink))  # fmt: skip


def kept(path):
    if not os.path.isfile(path):
        absent("no " + path)
    with open(path, "rb") as f:
        content = f.read()
    return content, stat.S_IMODE(os.stat(path).st_mode)


def put_back(path, content, mode):
    with open(path, "wb") as f:
        f.write(content)
    os.chmod(path, mode)


def truncates(path):
    size = os.stat(path).st_size if os.path.isfile(path) else absent("no " + path)
    step(os.truncate, path, size, what="truncate")
    won("cut to its own length")


def opens_truncating(path):
    content, mode = kept(path)
    fd = step(os.open, path, os.O_WRONLY | os.O_TRUNC, what="open")
    os.close(fd)
    put_back(path, content, mode)
    won("emptied, and put back")


def appends(path):
    fd = step(os.open, path, os.O_WRONLY | os.O_APPEND, what="open", absent={errno.ENOENT})
    os.close(fd)
    won("open for writing")


def allocates(path):
    fd = step(os.open, path, os.O_RDWR, what="open", absent={errno.ENOENT})
    probe(285, fd, 1, 0, 1, absent={errno.EOPNOTSUPP})
    won("allocated")


def allocates_read_only(path):
    # By a descriptor for reading: EBADF is the kernel's refusal.
    fd = step(os.open, path, os.O_RDONLY, what="open", absent={errno.ENOENT})
    probe(285, fd, 1, 0, 1, refused={errno.EBADF})
    won("allocated")


def unlinks(path):
    content, mode = kept(path)
    step(os.unlink, path, what="unlink")
    put_back(path, content, mode)
    won("removed, and put back")


def renames(path):
    if not os.path.lexists(path):
        absent("no " + path)
    step(os.rename, path, path + ".nemoclaw", what="rename", refused={errno.EXDEV})
    os.rename(path + ".nemoclaw", path)
    won("renamed, and back")


for _place, _file in {"etc": "/etc/debian_version", "usr": "/usr/bin/env"}.items():
    for _name, _act in {
        "truncate": truncates, "open_truncating": opens_truncating, "append_to": appends,
        "fallocate": allocates, "fallocate_read_only": allocates_read_only, "unlink": unlinks,
        "rename": renames,
    }.items():  # fmt: skip
        add(f"{_name}_a_file_of_{_place}", "read_only", TREE, lambda a=_act, f=_file: a(f))
    for _name, _act in {
        "chmod": same_mode, "chown": same_owner, "utimes": same_times, "touch": new_times, "setxattr": labels,
    }.items():  # fmt: skip
        add(f"{_name}_a_file_of_{_place}", "read_only", TREE, lambda a=_act, f=_file: touched(a, f))

add("write_passwd", "read_only", TREE, lambda: appends("/etc/passwd"))
add("write_shadow", "read_only", TREE, lambda: appends("/etc/shadow"))
add("write_ld_so_preload", "read_only", TREE, lambda: made(creates, "/etc/ld.so.preload", os.unlink))
add("write_ld_so_cache", "read_only", TREE, lambda: appends("/etc/ld.so.cache"))
add("write_resolv_conf", "read_only", TREE, lambda: appends("/etc/resolv.conf"))
add("write_hosts", "read_only", TREE, lambda: appends("/etc/hosts"))
add("read_shadow", "read_only", "user", lambda: tells("/etc/shadow"))
for _directory in ("/", "/root", "/boot", "/srv", "/var/lib", "/proc", "/sys", "/dev"):
    add("create_in_" + (_directory[1:].replace("/", "_") or "the_root"), "read_only",
        "landlock+user" if _directory not in ("/proc", "/sys") else "read_only_mounts+landlock+user",
        lambda d=_directory: made(creates, there(d), os.unlink) if d not in ("/proc", "/sys") else procfs(d))  # fmt: skip


def procfs(directory):
    step(creates, there(directory), what="create", refused={errno.ENOENT})
    won("made")


# ---------------------------------------------------------------- the rest


def set_mm(which, value):
    probe(157, 35, which, value, 0, 0, passed={errno.EINVAL})
    won("set")


add("prctl_set_mm", "other", "seccomp+capabilities", lambda: set_mm(6, 0))
add("prctl_set_mm_exe_file", "other", "seccomp+capabilities", lambda: (
    probe(157, 35, 13, -1, 0, 0, passed={errno.EBADF, errno.EINVAL}), won("set")))  # fmt: skip


@attempt("x32_system_call", "other", "seccomp")
def _():
    if probe(39 | 0x40000000) == os.getpid():
        won("answered")
    raise Done(ERROR, "answered wrongly")


@attempt("x32_unshare", "other", "seccomp")
def _():
    probe(272 | 0x40000000, NEW["user"])
    won("in a new namespace")


def by_interrupt(number, first=0, second=0, third=0):
    """A system call of i386, which has numbers and filters of its own."""
    area = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    # push rbx; mov eax, number; mov ebx, edi; mov ecx, esi; int 0x80; pop rbx; ret
    area.write(b"\x53\xb8" + struct.pack("I", number) + b"\x89\xfb\x89\xf1\xcd\x80\x5b\xc3")
    where = ctypes.addressof(ctypes.c_char.from_buffer(area))
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int)(where)
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    value = function(first, second, third)
    if -4096 < value < 0:
        raise OSError(-value, "int 0x80")
    return value


def interrupt(number, *args, **kinds):
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            by_interrupt(number, *args)
        except OSError as e:
            code = e.errno
        os._exit(code)
    _, how = os.waitpid(pid, 0)
    if os.WIFSIGNALED(how):
        number = os.WTERMSIG(how)
        if number == signal.SIGSYS:
            lost("SIGSYS")
        if number == signal.SIGSEGV:
            absent("this kernel has no int 0x80")
        raise Done(ERROR, f"signal {number}")
    if os.WEXITSTATUS(how):
        judge(os.WEXITSTATUS(how), **kinds)
    won("done")


add("int80_unshare_user", "other", "seccomp", lambda: interrupt(310, NEW["user"]))
add("int80_keyctl", "other", "seccomp", lambda: interrupt(288, 0, -3, 0, passed={errno.ENOKEY}))
add("int80_ptrace_traceme", "other", "seccomp", lambda: interrupt(26, 0, 0, 0))
add("int80_socket_vsock", "other", "seccomp", lambda: interrupt(359, 40, 1, 0))
add("int80_io_uring_setup", "other", "seccomp", lambda: interrupt(425, 1, 0, 0, passed={errno.EFAULT}))
add("int80_bpf", "other", "seccomp+capabilities", lambda: interrupt(357, 0, 0, 0, passed={errno.EINVAL, errno.EFAULT}))


def raise_limit(which, name):
    soft, hard = resource.getrlimit(which)
    if hard == resource.RLIM_INFINITY:
        resource.setrlimit(which, (hard, hard))
        won("already without a limit")
    try:
        resource.setrlimit(which, (soft, hard + 1))
    except (ValueError, PermissionError, OSError) as e:
        lost(f"{name} stays {hard}: {e}")
    won(f"{name} is {hard + 1}")


add("raise_limit_of_open_files", "other", "rlimits+capabilities",
    lambda: raise_limit(resource.RLIMIT_NOFILE, "nofile"))  # fmt: skip
add("raise_limit_of_core_dumps", "other", "rlimits+capabilities",
    lambda: raise_limit(resource.RLIMIT_CORE, "core"))  # fmt: skip


@attempt("limit_of_another_process", "other", "capabilities")
def _():
    soft, hard = resource.getrlimit(resource.RLIMIT_NICE)
    with Child() as pid:
        try:
            resource.prlimit(pid, resource.RLIMIT_NICE, (soft, hard + 1 if hard >= 0 else hard))
        except OSError as e:
            judge(e.errno)
        except ValueError:
            lost("not above the hard limit")
        won("raised")


@attempt("seven_hundred_processes", "other", "pids")
def _():
    children = []
    code = 0
    try:
        for _ in range(700):
            pid = os.fork()
            if pid == 0:
                signal.alarm(SECONDS)
                signal.pause()
                os._exit(0)
            children.append(pid)
    except OSError as e:
        code = e.errno
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)
    if code:
        judge(code, refused={errno.EAGAIN}, what=f"{len(children)} of them, then")
    won("700 of them")


@attempt("oom_score_adj", "other", "capabilities")
def _():
    fd = step(os.open, "/proc/self/oom_score_adj", os.O_WRONLY, what="open")
    step(os.write, fd, b"-1000", what="write")
    won("the kernel spares this process")


@attempt("oom_score_adj_of_init", "other", "capabilities+landlock")
def _():
    fd = step(os.open, "/proc/1/oom_score_adj", os.O_WRONLY, what="open")
    with open("/proc/1/oom_score_adj", "rb") as f:
        was = f.read()
    step(os.write, fd, b"-1000", what="write")
    os.write(fd, was)
    won("the kernel spares init")


@attempt("core_dump", "other", "rlimits")
def _():
    os.chdir(scratch())
    pid = os.fork()
    if pid == 0:
        os.chdir(scratch())
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (ValueError, OSError):
            pass
        os.kill(os.getpid(), signal.SIGABRT)
    _, how = os.waitpid(pid, 0)
    if os.WCOREDUMP(how):
        won("dumped")
    lost("no core")


@attempt("uid_map_of_own_process", "other", "landlock+capabilities")
def _():
    fd = step(os.open, "/proc/self/uid_map", os.O_WRONLY, what="open")
    # The map of the first user namespace is set: EPERM for everybody.
    step(os.write, fd, b"0 0 1", what="write")
    won("written")


@attempt("timens_offsets", "other", "landlock+capabilities")
def _():
    fd = step(os.open, "/proc/self/timens_offsets", os.O_WRONLY, what="open", absent={errno.ENOENT})
    step(os.write, fd, b"1 0 0", what="write", refused={errno.EINVAL})
    won("written")


# ---------------------------------------------------------------- running them


def inside(function, pipe):
    """The child: runs one attempt and says how it ended."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    try:
        function()
        result, detail = ERROR, "it came to no end"
    except Done as e:
        result, detail = e.result, e.detail
    except OSError as e:
        result, detail = ERROR, f"{e} at line {e.__traceback__.tb_next.tb_lineno if e.__traceback__.tb_next else 0}"
    except BaseException as e:  # noqa: BLE001
        result, detail = ERROR, f"{type(e).__name__}: {e}"
    finally:
        signal.alarm(0)
    os.write(pipe, json.dumps([result, str(detail)]).encode())


def one(function):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            inside(function, writer)
        finally:
            os._exit(0)
    os.close(writer)
    _, how = os.waitpid(pid, 0)
    # A grandchild left over may hold the pipe: what is there is all there is.
    os.set_blocking(reader, False)
    try:
        said = os.read(reader, 65536)
    except BlockingIOError:
        said = b""
    finally:
        os.close(reader)
    if said:
        return json.loads(said)
    if os.WIFSIGNALED(how):
        number = os.WTERMSIG(how)
        if number == signal.SIGSYS:
            return [REFUSED, "SIGSYS"]
        if number == signal.SIGALRM:
            return [ERROR, f"no answer within {SECONDS} s"]
        return [ERROR, f"killed by signal {number}"]
    return [ERROR, "it said nothing"]


def clear(directory):
    """Removes the scratch directory, never through a mount."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as f:
            below = [line.split()[4] for line in f if line.split()[4].startswith(directory)]
        for point in reversed(below):
            try:
                umount(point)
            except OSError:
                return
        shutil.rmtree(directory, ignore_errors=True)
    except OSError:
        pass


def base_directory():
    for place in ("/tmp", "/dev/shm", "/var/tmp", os.getcwd()):
        path = f"{place.rstrip('/')}/nemoclaw-attempts-{os.getpid()}-{time.monotonic_ns()}"
        try:
            os.mkdir(path, 0o700)
            return path
        except OSError:
            continue
    return "/tmp"


def reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main(arguments):
    global SCRATCH
    sys.stdout.reconfigure(line_buffering=True)
    if arguments == ["--list"]:
        for name, (category, control, _) in ATTEMPTS.items():
            print(json.dumps({"name": name, "category": category, "control": control}))
        return
    for name in arguments or ATTEMPTS:
        if name not in ATTEMPTS:
            print(json.dumps({"name": name, "category": "", "control": "", "result": ERROR,
                              "detail": "no such attempt"}))  # fmt: skip
            continue
        category, control, function = ATTEMPTS[name]
        SCRATCH = base_directory()
        result, detail = one(function)
        if SCRATCH != "/tmp":
            clear(SCRATCH)
        reap()
        print(json.dumps({"name": name, "category": category, "control": control,
                          "result": result, "detail": detail}))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
