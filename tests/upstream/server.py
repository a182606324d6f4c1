#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Servers for the tests, all in one process, in the network namespace it is started in.

  203.0.113.53:53          DNS, udp and tcp; see ZONE
  203.0.113.10:80, :443    HTTP and HTTPS; the same on .11 and, where the namespace has
                           them, on 10.99.0.10, 169.254.169.254 and 2001:db8:113::10
  203.0.113.10:7           reads until end of file, then sends everything back
  203.0.113.10:9           reads, never answers
  203.0.113.10:2525        speaks first ("220 hello"), then echoes lines
  203.0.113.10:9999, :443  udp echo

HTTP: /  /size/BYTES  /slow/SECONDS  /echo  /simple/nctest/  /nctest  /repo.git

Files in DIR: ca.pem (to be trusted), dns.log ("TYPE name" per query), connections.log
("tcp LOCAL PEER" per connection, "udp LOCAL PEER BYTES" per datagram; DNS datagrams are
in dns.log only). A line is written before the answer; logs may be truncated at any time.
"""

import argparse
import base64
import errno
import gzip
import hashlib
import html
import io
import json
import os
import re
import resource
import secrets
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler

RESOLVER = "203.0.113.53"
MAIN = "203.0.113.10"
OTHER = "203.0.113.11"
# Served where the namespace has them, so that a test sees what does get through.
EXTRA = ("10.99.0.10", "169.254.169.254", "2001:db8:113::10")

# A name has an address or is an alias; all else does not exist.
ZONE = {
    "allowed.test": MAIN,
    "denied.test": MAIN,
    "plain.test": MAIN,
    "index.test": MAIN,
    "registry.test": MAIN,
    "git.test": MAIN,
    "files.test": MAIN,
    "big.test": MAIN,
    "other.test": OTHER,
    "loop.test": "127.0.0.1",
    "meta.test": "169.254.169.254",
    "private.test": "10.99.0.10",
    "alias.test": "allowed.test",
    "two.test": MAIN,
}
# An address that nobody has, before the name's own.
SILENT = {"two.test": "203.0.113.200"}
ALIASES = {"alias.test"}
TYPES = {1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA",
         33: "SRV", 64: "SVCB", 65: "HTTPS", 255: "ANY"}

MAX_CONNECTIONS = 1024
MAX_SIZE = 16 << 30
MAX_SECONDS = 300.0
MAX_BODY = 256 << 20
BLOCK = bytes(64 << 10)
# A peer that is silent for so long is dropped.
IDLE = 300.0
SLOTS = threading.BoundedSemaphore(MAX_CONNECTIONS)


class Log:
    """Whole lines, appended in one write each."""

    def __init__(self, path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC
        self.fd = os.open(path, flags, 0o644)

    def line(self, *words):
        os.write(self.fd, (" ".join(map(str, words)) + "\n").encode())


def endpoint(address):
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# DNS


class BadMessage(Exception):
    pass


def printable(label):
    return "".join(
        chr(byte) if 0x21 <= byte <= 0x7E and byte not in b".\\" else f"\\{byte:03d}"
        for byte in label.lower())


def question(message):
    """The one question of a query: its bytes, name and type."""
    if len(message) < 12:
        raise BadMessage
    _, flags, count = struct.unpack_from(">HHH", message)
    if flags & 0x8000 or count != 1:
        raise BadMessage
    labels, at = [], 12
    while True:
        if at >= len(message):
            raise BadMessage
        length = message[at]
        at += 1
        if length == 0:
            break
        if length > 63 or at + length > len(message):
            raise BadMessage
        labels.append(printable(message[at:at + length]))
        at += length
    if at + 4 > len(message) or at - 12 > 255:
        raise BadMessage
    kind, _ = struct.unpack_from(">HH", message, at)
    return message[12:at + 4], ".".join(labels) or ".", kind


def wire_name(name):
    return b"".join(bytes([len(x)]) + x.encode() for x in name.split(".")) + b"\0"


def record(owner, kind, data):
    return owner + struct.pack(">HHIH", kind, 1, 60, len(data)) + data


def answer(message, log):
    """The answer to a query, or nothing where there is none to give."""
    try:
        asked, name, kind = question(message)
    except BadMessage:
        log.line("BAD", "-")
        return None
    log.line(TYPES.get(kind, f"TYPE{kind}"), name)
    records, rcode = [], 0
    if name not in ZONE:
        rcode = 3
    elif name in ALIASES:
        target = ZONE[name]
        records.append(record(b"\xc0\x0c", 5, wire_name(target)))
        if kind == 1:
            records.append(record(wire_name(target), 1, socket.inet_aton(ZONE[target])))
    elif kind == 1:
        if name in SILENT:
            records.append(record(b"\xc0\x0c", 1, socket.inet_aton(SILENT[name])))
        records.append(record(b"\xc0\x0c", 1, socket.inet_aton(ZONE[name])))
    # Answer, authoritative, recursion as asked for and available.
    flags = 0x8480 | (message[2] & 1) << 8 | rcode
    head = message[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, 0)
    return head + asked + b"".join(records)


def exactly(connection, count):
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def dns_tcp(log):
    def serve(connection, _peer):
        while True:
            (length,) = struct.unpack(">H", exactly(connection, 2))
            reply = answer(exactly(connection, length), log)
            if reply is None:
                return
            connection.sendall(struct.pack(">H", len(reply)) + reply)
    return serve


# TCP services


def echo_whole(connection, _peer):
    with tempfile.SpooledTemporaryFile(max_size=1 << 20) as kept:
        total = 0
        while part := connection.recv(len(BLOCK)):
            total += len(part)
            if total > MAX_BODY:
                return
            kept.write(part)
        kept.seek(0)
        while part := kept.read(len(BLOCK)):
            connection.sendall(part)
    connection.shutdown(socket.SHUT_WR)


def sink(connection, _peer):
    while connection.recv(len(BLOCK)):
        pass


def banner(connection, _peer):
    connection.sendall(b"220 hello\r\n")
    with connection.makefile("rb") as lines:
        while line := lines.readline(len(BLOCK)):
            connection.sendall(line)


# What the package managers' clients ask for


def wheel():
    """A wheel of one module, as PEP 427 has it."""
    info = "nctest-1.0.dist-info"
    files = {
        "nctest/__init__.py": b"VALUE = 'nctest'\n",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: nctest\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: nctest\n"
                         b"Root-Is-Purelib: true\nTag: py3-none-any\n",
    }
    listing = ""
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        listing += f"{name},sha256={digest},{len(data)}\n"
    files[f"{info}/RECORD"] = f"{listing}{info}/RECORD,,\n".encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, data)
    return out.getvalue()


def npm_manifest():
    return {"name": "nctest", "version": "1.0.0", "main": "index.js", "license": "Apache-2.0"}


def npm_tarball():
    files = {
        "package/package.json": json.dumps(npm_manifest()).encode(),
        "package/index.js": b"module.exports = 'nctest';\n",
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return gzip.compress(out.getvalue(), mtime=0)


WHEEL_NAME = "nctest-1.0-py3-none-any.whl"
WHEEL = wheel()
TARBALL = npm_tarball()


def packument(base):
    digest = base64.b64encode(hashlib.sha512(TARBALL).digest()).decode()
    version = npm_manifest() | {
        "_id": "nctest@1.0.0",
        "dist": {
            "tarball": f"{base}/nctest/-/nctest-1.0.0.tgz",
            "shasum": hashlib.sha1(TARBALL).hexdigest(),
            "integrity": f"sha512-{digest}",
        },
    }
    return {
        "_id": "nctest",
        "name": "nctest",
        "dist-tags": {"latest": "1.0.0"},
        "versions": {"1.0.0": version},
    }


def page(*links):
    rows = "".join(f'<a href="{html.escape(to)}">{html.escape(text)}</a>\n' for to, text in links)
    return f"<!DOCTYPE html>\n<html><body>\n{rows}</body></html>\n".encode()


class Handler(BaseHTTPRequestHandler):
    """One HTTP/1.1 connection; `server` has `scheme` and `repository`."""

    protocol_version = "HTTP/1.1"
    wbufsize = len(BLOCK)
    timeout = IDLE

    def log_message(self, *_args):
        pass

    def handle_expect_100(self):
        result = super().handle_expect_100()
        self.wfile.flush()
        return result

    def head(self, status, kind, length):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def reply(self, body, kind="text/plain", status=200):
        self.head(status, kind, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self):
        self.reply(b"not found\n", status=404)

    def host(self):
        return re.sub(r"[^A-Za-z0-9.:\[\]_-]", "?", self.headers.get("Host", "-"))

    def do_GET(self):
        path = self.path.split("?", 1)[0]
        if number := re.fullmatch(r"/size/([0-9]{1,11})", path):
            self.size(int(number[1]))
        elif number := re.fullmatch(r"/slow/([0-9]{1,3}(?:\.[0-9]{1,3})?)", path):
            time.sleep(min(float(number[1]), MAX_SECONDS))
            self.reply(b"slow\n")
        elif path == "/":
            name = re.sub(r":[0-9]+$", "", self.host())
            self.reply(f"hello from {name}\n".encode())
        elif path == "/simple/":
            self.reply(page(("/simple/nctest/", "nctest")), "text/html")
        elif path in ("/simple/nctest", "/simple/nctest/"):
            link = f"/files/{WHEEL_NAME}#sha256={hashlib.sha256(WHEEL).hexdigest()}"
            self.reply(page((link, WHEEL_NAME)), "text/html")
        elif path == f"/files/{WHEEL_NAME}":
            self.reply(WHEEL, "application/octet-stream")
        elif path == "/nctest":
            body = packument(f"{self.server.scheme}://{self.host()}")
            self.reply(json.dumps(body).encode(), "application/json")
        elif path == "/nctest/-/nctest-1.0.0.tgz":
            self.reply(TARBALL, "application/octet-stream")
        elif path.startswith("/repo.git/"):
            self.file(path.removeprefix("/repo.git/"))
        else:
            self.missing()

    do_HEAD = do_GET

    def do_POST(self):
        with tempfile.SpooledTemporaryFile(max_size=1 << 20) as body:
            try:
                self.body(body)
            except ValueError:
                self.close_connection = True
                self.reply(b"bad or too large body\n", status=400)
                return
            length = body.tell()
            body.seek(0)
            if self.path == "/echo":
                self.head(200, "application/octet-stream", length)
                while part := body.read(len(BLOCK)):
                    self.wfile.write(part)
            elif self.path.startswith("/-/npm/v1/security/"):
                self.reply(b"{}", "application/json")
            else:
                self.missing()

    def body(self, into):
        """Reads the request's body; what is wrong with it is a ValueError."""
        coding = self.headers.get("Transfer-Encoding", "").lower()
        if not coding:
            self.copy(int(self.headers.get("Content-Length", "0")), into)
            return
        if coding != "chunked":
            raise ValueError
        while length := int(self.rfile.readline(64).split(b";")[0], 16):
            self.copy(length, into)
            if self.rfile.readline(8) != b"\r\n":
                raise ValueError
        for _ in range(64):
            if self.rfile.readline(8192) in (b"\r\n", b"\n", b""):
                return
        raise ValueError

    def copy(self, length, into):
        if length < 0 or into.tell() + length > MAX_BODY:
            raise ValueError
        while length:
            part = self.rfile.read(min(length, len(BLOCK)))
            if not part:
                raise ValueError
            into.write(part)
            length -= len(part)

    def size(self, count):
        if count > MAX_SIZE:
            self.missing()
            return
        self.head(200, "application/octet-stream", count)
        while count and self.command != "HEAD":
            part = BLOCK[:min(count, len(BLOCK))]
            self.wfile.write(part)
            count -= len(part)

    def file(self, name):
        parts = name.split("/")
        plain = all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", part) for part in parts)
        try:
            if not plain:
                raise FileNotFoundError
            with open(os.path.join(self.server.repository, *parts), "rb") as file:
                self.reply(file.read(), "application/octet-stream")
        except OSError:
            self.missing()


class Web:
    """The service for one of the two schemes."""

    def __init__(self, repository, tls=None):
        self.repository = repository
        self.tls = tls
        self.scheme = "https" if tls else "http"

    def __call__(self, connection, peer):
        if self.tls is None:
            Handler(connection, peer, self)
            return
        connection.settimeout(30)
        with self.tls.wrap_socket(connection, server_side=True) as secure:
            Handler(secure, peer, self)
            # Clients tell an end from a cut by the closing alert.
            secure.settimeout(2)
            secure.unwrap().close()


# Keys and repository


def run(*command, data=None, env=None):
    done = subprocess.run(command, input=data, env=env, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, check=False)
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        sys.exit(f"{' '.join(command[:2])} failed: {text}")
    return done.stdout.decode().strip()


CA_CONFIG = """[req]
prompt = no
distinguished_name = name
x509_extensions = ext
[name]
CN = test authority {serial}
[ext]
basicConstraints = critical, CA:true, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
"""

LEAF_CONFIG = """[req]
prompt = no
distinguished_name = name
[name]
CN = allowed.test
[ext]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
"""

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def certificates(where):
    """Makes the authority where it is missing, and a certificate for every name."""
    def at(name):
        return os.path.join(where, name)

    def write(name, text):
        with open(at(name), "w", encoding="ascii") as file:
            file.write(text)
        return at(name)

    before = os.umask(0o077)
    valid = os.path.exists(at("ca.key")) and os.path.exists(at("ca.pem")) and not subprocess.run(
        ("openssl", "x509", "-in", at("ca.pem"), "-noout", "-checkend", "864000"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode
    if not valid:
        # The serial keeps two authorities apart for clients that go by name.
        config = write("ca.cnf", CA_CONFIG.format(serial=secrets.token_hex(4)))
        run("openssl", "req", "-x509", *NEW_KEY, "-config", config, "-days", "3650",
            "-keyout", at("ca.key"), "-out", at("ca.new"))
        os.chmod(at("ca.new"), 0o644)
        os.replace(at("ca.new"), at("ca.pem"))
    names = [f"DNS:{name}" for name in ZONE]
    names += [f"IP:{address}" for address in (MAIN, OTHER, *EXTRA)]
    config = write("server.cnf", LEAF_CONFIG.format(names=", ".join(names)))
    run("openssl", "req", "-new", *NEW_KEY, "-config", config,
        "-keyout", at("server.key"), "-out", at("server.csr"))
    run("openssl", "x509", "-req", "-in", at("server.csr"), "-CA", at("ca.pem"),
        "-CAkey", at("ca.key"), "-set_serial", f"0x7f{secrets.token_hex(15)}", "-days", "365",
        "-extfile", config, "-extensions", "ext", "-out", at("server.pem"))
    os.umask(before)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.set_alpn_protocols(["http/1.1"])
    tls.load_cert_chain(at("server.pem"), at("server.key"))
    return tls


def repository(where):
    """A bare repository of one commit that plain file serving is enough for."""
    path = os.path.join(where, "repo.git")
    env = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    env |= {"HOME": where, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_DIR": path, "LC_ALL": "C"}
    for role in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{role}_NAME": "test", f"GIT_{role}_EMAIL": "test@git.test",
                f"GIT_{role}_DATE": "1700000000 +0000"}

    def git(*arguments, data=None):
        return run("git", *arguments, data=data, env=env)

    git("init", "-q", "--bare", "--template=", "-b", "main", path)
    blob = git("hash-object", "-w", "--stdin", data=b"hello from git\n")
    tree = git("mktree", data=f"100644 blob {blob}\tREADME\n".encode())
    commit = git("commit-tree", "-m", "First commit", tree)
    git("update-ref", "refs/heads/main", commit)
    git("update-server-info")
    return path


# Sockets


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def background(target, *arguments):
    threading.Thread(target=target, args=arguments, daemon=True).start()


def serve_tcp(address, port, service, log):
    listener = socket.socket(family(address), socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(MAX_CONNECTIONS)
    background(accept, listener, service, log)


def accept(listener, service, log):
    here = endpoint(listener.getsockname())
    while True:
        SLOTS.acquire()
        try:
            connection, peer = listener.accept()
        except OSError:
            SLOTS.release()
            time.sleep(0.05)
            continue
        log.line("tcp", here, endpoint(peer))
        try:
            background(one, connection, peer, service)
        except RuntimeError:
            connection.close()
            SLOTS.release()


def one(connection, peer, service):
    try:
        connection.settimeout(IDLE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        service(connection, peer)
    except (OSError, EOFError, ValueError):
        # The peer went away or does not speak the protocol.
        pass
    finally:
        connection.close()
        SLOTS.release()


def serve_udp(address, port, reply):
    sock = socket.socket(family(address), socket.SOCK_DGRAM)
    sock.bind((address, port))
    background(datagrams, sock, reply)


def datagrams(sock, reply):
    here = endpoint(sock.getsockname())
    while True:
        try:
            data, peer = sock.recvfrom(65535)
            if back := reply(data, here, peer):
                sock.sendto(back, peer)
        except OSError:
            time.sleep(0.01)


def main():
    parser = argparse.ArgumentParser(description="servers for the tests")
    parser.add_argument("--dir", required=True, help="keys, repository and logs")
    where = os.path.abspath(parser.parse_args().dir)
    os.makedirs(where, exist_ok=True)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    threading.stack_size(512 << 10)

    tls = certificates(where)
    repo = repository(where)
    dns = Log(os.path.join(where, "dns.log"))
    log = Log(os.path.join(where, "connections.log"))

    def echo(data, here, peer):
        log.line("udp", here, endpoint(peer), len(data))
        return data

    serve_udp(RESOLVER, 53, lambda data, _here, _peer: answer(data, dns))
    serve_tcp(RESOLVER, 53, dns_tcp(dns), log)
    for address in (MAIN, OTHER, *EXTRA):
        try:
            serve_tcp(address, 80, Web(repo), log)
            serve_tcp(address, 443, Web(repo, tls), log)
        except OSError as error:
            if address not in EXTRA or error.errno not in (
                    errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    serve_tcp(MAIN, 7, echo_whole, log)
    serve_tcp(MAIN, 9, sink, log)
    serve_tcp(MAIN, 2525, banner, log)
    serve_udp(MAIN, 9999, echo)
    serve_udp(MAIN, 443, echo)
    print("ready", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
