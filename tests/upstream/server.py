#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Servers for the tests, all in one process, in the network namespace it is started in.

  203.0.113.53:53          DNS, udp and tcp; see ZONE
  203.0.113.10:80, :443    HTTP and HTTPS; the same on .11 and, where the namespace has
                           them, on 10.99.0.10, 169.254.169.254 and 2001:db8:113::10
  203.0.113.10:7           reads until end of file, then sends everything back
  203.0.113.10:9           reads, never answers
  203.0.113.10:11          answers two bytes and breaks off
  203.0.113.10:13          reads a little at a time
  203.0.113.10:2525        speaks first ("220 hello"), then echoes lines
  203.0.113.10:22          SSH that asks for no key: `git-upload-pack` of /repo.git, or a greeting
  203.0.113.10:3306, 5432, 6379  enough of MySQL, PostgreSQL and Redis for one question
  203.0.113.10:5353        DNS again, tcp
  203.0.113.10:9999, :443  udp echo
  203.0.113.11:3128        a proxy: CONNECT, and its answer comes with what the server says

HTTP: /  /size/BYTES  /slow/SECONDS  /echo  /simple/nctest/  /nctest  /repo.git  /index/ (cargo)
/websocket (echo)  /v1/messages and /v1/responses (models that say "hello from model")

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

# A name has an address or is an alias; all else does not exist, but for everything
# below wild.test, which has the first address.
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
    "silent.test": "203.0.113.200",
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
    wild = name.endswith(".wild.test")
    if wild and kind == 1:
        records.append(record(b"\xc0\x0c", 1, socket.inet_aton(MAIN)))
    elif wild:
        pass
    elif name not in ZONE:
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


def breaks(connection, _peer):
    connection.recv(1)
    connection.sendall(b"ok")
    time.sleep(0.05)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def proxy(connection, _peer):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += exactly(connection, 1)
    method, target, _ = head.split(b" ", 2)
    host, _, port = target.decode().rpartition(":")
    if method != b"CONNECT" or host not in ZONE:
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        return
    with socket.create_connection((ZONE[host], int(port)), 5) as server:
        # A server that speaks first: both in one.
        server.settimeout(0.1)
        try:
            first = server.recv(len(BLOCK))
        except TimeoutError:
            first = b""
        server.settimeout(IDLE)
        connection.sendall(b"HTTP/1.1 200 OK\r\nVia: 1.1 test\r\n\r\n" + first)

        def pump(source, sink):
            while part := source.recv(len(BLOCK)):
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)

        back = threading.Thread(target=pump, args=(server, connection), daemon=True)
        back.start()
        pump(connection, server)
        back.join()


def dawdle(connection, _peer):
    while connection.recv(1024):
        time.sleep(0.05)


def banner(connection, _peer):
    connection.sendall(b"220 hello\r\n")
    with connection.makefile("rb") as lines:
        while line := lines.readline(len(BLOCK)):
            connection.sendall(line)


def redis(connection, _peer):
    """PING and ECHO; anything else is an error, which clients ignore while they set up."""
    with connection.makefile("rb") as lines:
        while line := lines.readline(64):
            words = []
            for _ in range(int(line[1:])):
                length = int(lines.readline(64)[1:])
                words.append(lines.read(min(length, MAX_BODY)))
                lines.readline(8)
            if words[0].upper() == b"PING":
                connection.sendall(b"+PONG\r\n")
            elif words[0].upper() == b"ECHO" and len(words) == 2:
                connection.sendall(b"$%d\r\n%s\r\n" % (len(words[1]), words[1]))
            else:
                connection.sendall(b"-ERR unknown command\r\n")


def postgres(connection, _peer):
    """Any user may come in; every query has the one answer `hello from postgres`."""
    def send(kind, body):
        connection.sendall(kind + struct.pack(">I", len(body) + 4) + body)

    while True:
        (length,) = struct.unpack(">I", exactly(connection, 4))
        startup = exactly(connection, min(length, 10000) - 4)
        if startup[:4] == struct.pack(">I", 0x00030000):
            break
        # No TLS, no GSSAPI.
        connection.sendall(b"N")
    send(b"R", struct.pack(">I", 0))
    for name, value in (("server_version", "15.0"), ("client_encoding", "UTF8")):
        send(b"S", f"{name}\0{value}\0".encode())
    while True:
        send(b"Z", b"I")
        kind, length = struct.unpack(">cI", exactly(connection, 5))
        exactly(connection, min(length, MAX_BODY) - 4)
        if kind != b"Q":
            return
        value = b"hello from postgres"
        send(b"T", struct.pack(">H", 1) + b"word\0" + struct.pack(">IHIhIH", 0, 0, 25, -1, 0, 0))
        send(b"D", struct.pack(">HI", 1, len(value)) + value)
        send(b"C", b"SELECT 1\0")


def mysql(connection, _peer):
    """Any user may come in; every query has the one answer `hello from mysql`."""
    def packet():
        head = exactly(connection, 4)
        return exactly(connection, int.from_bytes(head[:3], "little")), head[3]

    def send(number, body):
        connection.sendall(len(body).to_bytes(3, "little") + bytes([number]) + body)

    def text(value):
        return bytes([len(value)]) + value

    end, fine = b"\xfe\0\0\2\0", b"\0\0\0\2\0\0\0"
    # Protocol 4.1, authentication by plugin, no TLS.
    send(0, b"\x0a8.0.0-test\0" + struct.pack("<I", 1) + b"12345678\0"
         + struct.pack("<HBHHB", 0x8200, 33, 2, 0x0008, 21) + bytes(10)
         + b"123456789012\0mysql_native_password\0")
    _, number = packet()
    send(number + 1, fine)
    while True:
        command, number = packet()
        if command[:1] != b"\3":
            if command[:1] == b"\1":
                return
            send(1, fine)
            continue
        send(1, b"\1")
        send(2, text(b"def") + bytes(3) + text(b"word") + b"\0\x0c"
             + struct.pack("<HIBHBH", 33, 100, 253, 0, 0, 0))
        send(3, end)
        send(4, text(b"hello from mysql"))
        send(5, end)


# SSH: one key exchange, one cipher, no authentication, one command.

# RFC 3526, group 14.
GROUP14 = int("""
FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD
EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED
EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F
83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B
E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510
15728E5A8AACAA68FFFFFFFFFFFFFFFF""".replace("\n", ""), 16)


def chacha20(key, counter, nonce, data):
    """The cipher as OpenSSH has it: a counter and a nonce of 64 bits each."""
    start = (*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key),
             counter, 0, *struct.unpack("<2I", nonce))
    out = bytearray()
    quarters = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
    for at in range(0, len(data), 64):
        state = list(start)
        state[12] += at // 64
        first = state[:]
        for _ in range(10):
            for a, b, c, d in quarters:
                for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                    state[x] = (state[x] + state[y]) & 0xFFFFFFFF
                    mixed = state[z] ^ state[x]
                    state[z] = (mixed << turn | mixed >> (32 - turn)) & 0xFFFFFFFF
        block = struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(state, first)))
        out += bytes(x ^ y for x, y in zip(data[at:at + 64], block))
    return bytes(out)


def poly1305(key, data):
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for at in range(0, len(data), 16):
        total = (total + int.from_bytes(data[at:at + 16] + b"\1", "little")) * r % (2**130 - 5)
    return ((total + int.from_bytes(key[16:], "little")) % 2**128).to_bytes(16, "little")


def blob(value):
    if isinstance(value, str):
        value = value.encode()
    elif isinstance(value, int):
        value = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return struct.pack(">I", len(value)) + value


class Ssh:
    """The service on port 22, with an ECDSA key of openssl's in `key`."""

    def __init__(self, key, repository):
        self.key, self.repository = key, repository
        # The point is the end of the public key's encoding.
        der = subprocess.run(("openssl", "ec", "-in", key, "-pubout", "-outform", "DER"),
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
        self.host_key = blob("ecdsa-sha2-nistp256") + blob("nistp256") + blob(der[-65:])

    def sign(self, data):
        der = subprocess.run(("openssl", "dgst", "-sha256", "-sign", self.key), input=data,
                             stdout=subprocess.PIPE, check=True).stdout
        # SEQUENCE of two INTEGERs.
        r_end = 4 + der[3]
        numbers = (der[4:r_end], der[r_end + 2:])
        r, s = (int.from_bytes(number, "big") for number in numbers)
        return blob("ecdsa-sha2-nistp256") + blob(blob(r) + blob(s))

    def __call__(self, connection, _peer):
        Session(self, connection).run()


class Session:
    def __init__(self, server, connection):
        self.server, self.connection = server, connection
        self.sent = self.received = 0
        self.out = self.into = None

    def send(self, payload):
        # The four bytes of length do not count for the padding once there is a cipher.
        pad = 8 - (len(payload) + (1 if self.out else 5)) % 8
        pad += 8 if pad < 4 else 0
        body = bytes([pad]) + payload + bytes(pad)
        head = struct.pack(">I", len(body))
        if self.out:
            nonce = struct.pack(">Q", self.sent)
            head = chacha20(self.out[32:], 0, nonce, head)
            both = head + chacha20(self.out[:32], 1, nonce, body)
            both += poly1305(chacha20(self.out[:32], 0, nonce, bytes(32)), both)
        else:
            both = head + body
        self.connection.sendall(both)
        self.sent += 1

    def packet(self):
        head = exactly(self.connection, 4)
        nonce = struct.pack(">Q", self.received)
        if self.into:
            head = chacha20(self.into[32:], 0, nonce, head)
        (length,) = struct.unpack(">I", head)
        if length > 40000:
            raise ValueError
        body = exactly(self.connection, length)
        if self.into:
            # The peer is a test's: its tag is not looked at.
            exactly(self.connection, 16)
            body = chacha20(self.into[:32], 1, nonce, body)
        self.received += 1
        return body[1:-body[0]]

    def run(self):
        ours = b"SSH-2.0-test"
        self.connection.sendall(ours + b"\r\n")
        theirs = b""
        while not theirs.endswith(b"\n") and len(theirs) < 255:
            theirs += exactly(self.connection, 1)
        kex, cipher = "diffie-hellman-group14-sha256", "chacha20-poly1305@openssh.com"
        lists = (kex, "ecdsa-sha2-nistp256", cipher, cipher, "hmac-sha2-256", "hmac-sha2-256",
                 "none", "none", "", "")
        offer = b"\x14" + secrets.token_bytes(16) + b"".join(map(blob, lists)) + bytes(5)
        self.send(offer)
        wish = self.packet()
        e = int.from_bytes(self.packet()[5:], "big")
        y = secrets.randbits(512)
        f, k = pow(2, y, GROUP14), pow(e, y, GROUP14)
        digest = hashlib.sha256(b"".join(map(blob, (
            theirs.rstrip(b"\r\n"), ours, wish, offer, self.server.host_key, e, f, k)))).digest()
        self.send(b"\x1f" + blob(self.server.host_key) + blob(f) + blob(self.server.sign(digest)))
        self.send(b"\x15")
        self.packet()

        def key(letter):
            one = hashlib.sha256(blob(k) + digest + letter + digest).digest()
            return one + hashlib.sha256(blob(k) + digest + one).digest()

        self.into, self.out = key(b"C"), key(b"D")
        self.talk()

    def talk(self):
        channel = 0
        while True:
            message = self.packet()
            kind = message[0]
            if kind == 5:
                self.send(b"\6" + blob("ssh-userauth"))
            elif kind == 50:
                self.send(b"\x34")
            elif kind == 90:
                at = 5 + int.from_bytes(message[1:5], "big")
                channel = int.from_bytes(message[at:at + 4], "big")
                self.send(struct.pack(">BIIII", 91, channel, 0, 1 << 20, 1 << 15))
            elif kind == 98 and message[9:13] == b"exec":
                if message[13]:
                    self.send(struct.pack(">BI", 99, channel))
                self.command(channel, message[18:].decode())
            elif kind == 98 and message[5 + 4 + int.from_bytes(message[5:9], "big")]:
                self.send(struct.pack(">BI", 100, channel))
            elif kind in (1, 97):
                return

    def command(self, channel, words):
        """Runs upload-pack, or greets; then says so and closes."""
        reader = None
        if words == "git-upload-pack '/repo.git'":
            with subprocess.Popen(("git", "upload-pack", self.server.repository),
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
                reader = threading.Thread(target=self.forward, args=(child.stdin,), daemon=True)
                reader.start()
                while part := child.stdout.read1(1 << 14):
                    self.send(struct.pack(">BI", 94, channel) + blob(part))
        else:
            self.send(struct.pack(">BI", 94, channel) + blob("hello from ssh\n"))
        self.send(struct.pack(">BI", 98, channel) + blob("exit-status") + bytes(5))
        self.send(struct.pack(">BI", 97, channel))
        if reader:
            reader.join()

    def forward(self, to):
        try:
            while (message := self.packet())[0] not in (1, 97):
                if message[0] == 94:
                    to.write(message[9:])
                    to.flush()
                elif message[0] == 96:
                    to.close()
        except (OSError, EOFError, ValueError):
            to.close()


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
    return packed(files)


def packed(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return gzip.compress(out.getvalue(), mtime=0)


def crate():
    files = {
        "nctest-1.0.0/Cargo.toml": b'[package]\nname = "nctest"\nversion = "1.0.0"\n',
        "nctest-1.0.0/src/lib.rs": b"pub const VALUE: &str = \"nctest\";\n",
    }
    return packed(files)


WHEEL_NAME = "nctest-1.0-py3-none-any.whl"
WHEEL = wheel()
TARBALL = npm_tarball()
CRATE = crate()
CRATE_LINE = {"name": "nctest", "vers": "1.0.0", "deps": [], "features": {}, "yanked": False,
              "cksum": hashlib.sha256(CRATE).hexdigest()}


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


SAYS = "hello from model"


def claude_message(name):
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": name,
        "content": [{"type": "text", "text": SAYS}],
        "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }


def claude_events(message):
    start = message | {"content": [], "stop_reason": None}
    yield {"type": "message_start", "message": start}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    yield {"type": "content_block_delta", "index": 0,
           "delta": {"type": "text_delta", "text": SAYS}}
    yield {"type": "content_block_stop", "index": 0}
    yield {"type": "message_delta", "usage": {"output_tokens": 1},
           "delta": {"stop_reason": "end_turn", "stop_sequence": None}}
    yield {"type": "message_stop"}


def codex_response(name):
    return {
        "id": "resp_1", "object": "response", "status": "completed", "model": name,
        "output": [{
            "id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": SAYS, "annotations": []}],
        }],
        "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2,
                  "input_tokens_details": {"cached_tokens": 0},
                  "output_tokens_details": {"reasoning_tokens": 0}},
    }


def codex_events(response):
    item = response["output"][0]
    yield {"type": "response.created",
           "response": response | {"status": "in_progress", "output": []}}
    yield {"type": "response.output_item.added", "output_index": 0, "item": item | {"content": []}}
    yield {"type": "response.output_text.delta", "item_id": item["id"], "output_index": 0,
           "content_index": 0, "delta": SAYS}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": response}


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
        elif path == "/index/config.json":
            link = f"{self.server.scheme}://{self.host()}/crates/{{crate}}-{{version}}.crate"
            self.reply(json.dumps({"dl": link}).encode(), "application/json")
        elif path == "/index/nc/te/nctest":
            self.reply(json.dumps(CRATE_LINE).encode() + b"\n")
        elif path == "/crates/nctest-1.0.0.crate":
            self.reply(CRATE, "application/octet-stream")
        elif path == "/websocket":
            self.websocket()
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
            elif self.path.split("?", 1)[0] in ("/v1/messages", "/v1/responses"):
                self.model(json.loads(body.read()))
            elif self.path.startswith("/-/npm/v1/security/"):
                self.reply(b"{}", "application/json")
            else:
                self.missing()

    def websocket(self):
        """Answers each message with itself, as RFC 6455 has it; short ones only."""
        seed = self.headers.get("Sec-WebSocket-Key", "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept",
                         base64.b64encode(hashlib.sha1(seed.encode()).digest()).decode())
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        while len(head := self.rfile.read(2)) == 2:
            length = head[1] & 0x7F
            if length > 125:
                return
            mask = self.rfile.read(4)
            data = bytes(byte ^ mask[i % 4] for i, byte in enumerate(self.rfile.read(length)))
            self.wfile.write(bytes([head[0], length]) + data)
            self.wfile.flush()
            if head[0] & 15 == 8:
                return

    def model(self, request):
        """Anthropic's messages and OpenAI's responses, streamed or not."""
        name, stream = request.get("model", "test"), request.get("stream", False)
        if "/messages" in self.path:
            answer = claude_message(name)
            events = claude_events(answer)
        else:
            answer = codex_response(name)
            events = codex_events(answer)
        if not stream:
            self.reply(json.dumps(answer).encode(), "application/json")
            return
        text = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
        self.reply(text.encode(), "text/event-stream")

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
    serve_tcp(MAIN, 11, breaks, log)
    serve_tcp(MAIN, 13, dawdle, log)
    serve_tcp(MAIN, 2525, banner, log)
    serve_tcp(OTHER, 3128, proxy, log)
    serve_tcp(MAIN, 22, Ssh(os.path.join(where, "server.key"), repo), log)
    serve_tcp(MAIN, 3306, mysql, log)
    serve_tcp(MAIN, 5432, postgres, log)
    serve_tcp(MAIN, 6379, redis, log)
    serve_tcp(MAIN, 5353, dns_tcp(dns), log)
    serve_udp(MAIN, 9999, echo)
    serve_udp(MAIN, 443, echo)
    print("ready", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
