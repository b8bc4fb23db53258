#!/usr/bin/env python3
"""What open, idle WebSockets cost: resident memory of the server, before and with so many of them.

    make build && python3 benches/idle_websockets.py --most 80

Each has said `hello` and was welcomed. Exits 1 if all together cost more than --most megabytes.
"""

import argparse
import pathlib
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
UPGRADE = (
    b"GET /v1/ws HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: sluicegate.v1\r\n\r\n"
)
HELLO = b'{"type":"hello","protocol":1}'
# Long enough that nothing is closed as idle while the others open.
CONFIG = 'version: 1\nlisten: [{ address: "127.0.0.1:0" }]\nadmin: { address: "127.0.0.1:0" }\nlimits: { websocket: { idle: 10m, ping: 5m } }\n'


def resident(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    sys.exit("idle_websockets: the server is gone")


def until(sock, end):
    data = b""
    while end not in data:
        piece = sock.recv(4096)
        if not piece:
            sys.exit(f"idle_websockets: closed after {data!r}")
        data += piece
    return data


def open_socket(address):
    sock = socket.create_connection(address)
    sock.sendall(UPGRADE)
    head = until(sock, b"\r\n\r\n")
    if b" 101 " not in head.split(b"\r\n")[0]:
        sys.exit(f"idle_websockets: {head!r}")
    mask = b"\1\2\3\4"
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(HELLO))
    sock.sendall(struct.pack("!BB", 0x81, 0x80 | len(HELLO)) + mask + masked)
    until(sock, b'"welcome"')
    return sock


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sockets", type=int, default=5000)
    parser.add_argument("--most", type=float, help="exit 1 if they cost more megabytes together")
    arguments = parser.parse_args()
    needed = arguments.sockets + 100
    for limit in (resource.getrlimit(resource.RLIMIT_NOFILE)[1],):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, needed), limit))
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "config.yaml"
        config.write_text(CONFIG)
        server = subprocess.Popen(
            [ROOT / "target/release/sluicegate", "serve", "--config", config, "--models", ROOT / "models"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            for line in server.stdout:
                if "http://" in line:
                    host, port = line.split("http://")[1].split()[0].split(":")
                    break
            address = (host, int(port))
            # The first ones make what all share.
            sockets = [open_socket(address) for _ in range(50)]
            time.sleep(1)
            before = resident(server.pid)
            sockets += [open_socket(address) for _ in range(arguments.sockets)]
            time.sleep(1)
            cost = resident(server.pid) - before
            print(f"{arguments.sockets} idle WebSockets cost {cost:.1f} MB, {cost * 1024 / arguments.sockets:.1f} KiB each")
            print(f"the server has {before + cost:.1f} MB with them, {before:.1f} MB without")
            if arguments.most and cost > arguments.most:
                sys.exit(f"that is more than {arguments.most} MB")
        finally:
            server.kill()


if __name__ == "__main__":
    main()
