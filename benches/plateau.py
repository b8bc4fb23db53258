#!/usr/bin/env python3
"""Whether memory stops growing: random shapes from several callers, for as long as one likes, and what the server takes.

    cargo build && python3 benches/plateau.py --minutes 30
    python3 benches/plateau.py --minutes 1 --arena keep    # what it would be without the policy

The model is `outer` of the tests, whose intermediate results take rows x columns x columns numbers: up to 64 MiB here. Resident
memory is looked at ten times a second. Exits 1 if its maximum in the last third of the time is above that of the second third by
more than a tenth and 16 MiB.
"""

import argparse
import http.client
import json
import pathlib
import random
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = """version: 1
listen: [{{ address: "127.0.0.1:0" }}]
admin: null
models: {{ directory: {models}, load: [outer], defaults: {{ execution: thread, instances: 2, arena: {arena} }} }}
telemetry: {{ access_log: {{ enabled: false }} }}
"""


def resident(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.M)[1]) / 1024


def body(source):
    """A request of a random shape: mostly small, now and then large."""
    rows, columns = source.randint(1, 4), int(2 ** source.uniform(0, 11))
    data = struct.pack("<f", source.random()) * (rows * columns)
    head = {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [rows, columns], "parameters": {"binary_data_size": len(data)}}
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(head).encode()
    return head + data, {"inference-header-content-length": str(len(head))}


def call(address, seed, until, counts):
    source = random.Random(seed)
    connection = http.client.HTTPConnection(address)
    while time.monotonic() < until:
        data, headers = body(source)
        connection.request("POST", "/v2/models/outer/infer", data, headers)
        answer = connection.getresponse()
        answer.read()
        counts[answer.status] = counts.get(answer.status, 0) + 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--arena", default="auto", choices=["auto", "keep", "shrink", "none"])
    parser.add_argument("--profile", default="debug", choices=["debug", "release"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        config = pathlib.Path(place) / "config.yaml"
        config.write_text(CONFIG.format(models=ROOT / "tests/models/good", arena=arguments.arena))
        binary = ROOT / "target" / arguments.profile / "sluicegate"
        server = subprocess.Popen(
            [binary, "serve", "--config", config], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            address = next(match[1] for line in server.stdout if (match := re.search(r"http://([\d.]+:\d+)", line)))
            time.sleep(1)
            counts, seen, began = {}, [], time.monotonic()
            until = began + 60 * arguments.minutes
            callers = [threading.Thread(target=call, args=(address, seed, until, counts)) for seed in range(4)]
            for caller in callers:
                caller.start()
            while time.monotonic() < until:
                seen.append(resident(server.pid))
                time.sleep(0.1)
            for caller in callers:
                caller.join()
            time.sleep(1)
            after = resident(server.pid)
        finally:
            server.kill()
            server.wait()
    third = len(seen) // 3
    first, second, last = (max(seen[at * third : (at + 1) * third]) for at in range(3))
    print(f"arena {arguments.arena}: answers by status {counts}")
    print(f"most resident memory by thirds: {first:.0f}, {second:.0f}, {last:.0f} MiB; afterwards {after:.0f} MiB")
    if last > 1.1 * second + 16:
        sys.exit("plateau: it still grows")


if __name__ == "__main__":
    main()
