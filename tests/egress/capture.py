#!/usr/bin/env python3
"""Every packet on an interface, one line each, until it is ended: capture.py IFACE MAC

`out PROTOCOL FROM TO` where the sandbox with that address sent it, `in ...` where it got
it. ARP and neighbour discovery are left out, and what neither sent nor got.
"""

import socket
import struct
import sys


def main():
    interface, mac = sys.argv[1], bytes.fromhex(sys.argv[2].replace(":", ""))
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sniffer.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    sniffer.bind((interface, 0))
    print("ready", flush=True)
    while True:
        frame = sniffer.recv(70000)
        to, of, (kind,) = frame[:6], frame[6:12], struct.unpack_from(">H", frame, 12)
        if mac not in (to, of) or kind == 0x0806:
            continue
        way, packet = "out" if of == mac else "in", frame[14:]
        if kind == 0x0800:
            protocol, body = packet[9], packet[(packet[0] & 15) * 4:]
            ends = [socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])]
        elif kind == 0x86DD:
            protocol, body = packet[6], packet[40:]
            ends = [f"[{socket.inet_ntop(socket.AF_INET6, packet[at:at + 16])}]" for at in (8, 24)]
            if protocol == 58 and 133 <= body[0] <= 137:
                continue
        else:
            print(way, f"ethertype-{kind:04x}", "-", "-", flush=True)
            continue
        name = {6: "tcp", 17: "udp"}.get(protocol, f"protocol-{protocol}")
        if protocol in (6, 17):
            ports = struct.unpack_from(">HH", body)
            ends = [f"{end}:{port}" for end, port in zip(ends, ports)]
        print(way, name, *ends, flush=True)


main()
