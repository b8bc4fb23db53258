#!/usr/bin/env python3
"""What instances of one model cost: memory of the server with one instance and with several, each in a process of its own.

    cargo build && python3 benches/instances.py --most 1.3

The model is `mid` (57 MB). With and without `share_weights`; every instance has run. Memory is PSS, which counts what is
mapped twice once, and the peak is that of resident memory. Exits 1 if so many instances that share take more than --most times
the memory of one.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

import models

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = """version: 1
listen: [{{ address: "127.0.0.1:0" }}]
admin: {{ address: "127.0.0.1:0" }}
models:
  directory: {folder}
  load: [mid]
  defaults: {{ instances: {instances}, threads: 1, share_weights: {share}, batching: {{ enabled: false }} }}
"""


def memory(pid):
    """PSS and the peak of resident memory, MiB."""
    pss = re.search(r"^Pss:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    peak = re.search(r"^VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)
    return int(pss[1]) / 1024, int(peak[1]) / 1024


def serve(binary, folder, instances, share):
    """Memory of a server of so many instances, idle after it has answered; what it says its model holds; seconds until ready."""
    with tempfile.TemporaryDirectory() as place:
        config = pathlib.Path(place) / "config.yaml"
        config.write_text(CONFIG.format(folder=folder, instances=instances, share=str(share).lower()))
        began = time.monotonic()
        server = subprocess.Popen(
            [binary, "serve", "--config", config], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            admin = api = None
            for line in server.stdout:
                for address in re.findall(r"http://([\d.]+:\d+)", line):
                    if "metrics" in line:
                        admin = admin or address
                    else:
                        api = api or address
                if admin and api:
                    break
            took = time.monotonic() - began
            body = json.dumps(
                {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 768], "data": [0.5] * 768}]}
            ).encode()
            for _ in range(4 * instances):
                urllib.request.urlopen(f"http://{api}/v2/models/mid/infer", body).read()
            page = urllib.request.urlopen(f"http://{admin}/metrics").read().decode()
            said = re.search(r'sluicegate_model_memory_bytes\{model="mid",version="1"\} (\d+)', page)
            return (*memory(server.pid), int(said[1]) / 2**20, took)
        finally:
            server.kill()
            server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=8)
    parser.add_argument("--profile", default="debug", choices=["debug", "release"])
    parser.add_argument("--most", type=float, help="exit 1 if they take more, as a ratio to one")
    arguments = parser.parse_args()
    folder = ROOT / "target/bench-models"
    models.make(folder)
    binary = ROOT / "target" / arguments.profile / "sluicegate"
    print("| instances | share_weights | PSS, MiB | ratio | peak, MiB | sluicegate_model_memory_bytes, MiB | ready, s |")
    print("|---|---|---|---|---|---|---|")
    one, shared = None, None
    for instances, share in ((1, True), (arguments.instances, True), (arguments.instances, False)):
        pss, peak, said, took = serve(binary, folder, instances, share)
        one = one or pss
        shared = shared or (pss / one if instances > 1 else None)
        print(f"| {instances} | {share} | {pss:.0f} | {pss / one:.2f} | {peak:.0f} | {said:.0f} | {took:.2f} |")
    if arguments.most and shared > arguments.most:
        sys.exit(f"instances: {shared:.2f} times the memory of one, expected at most {arguments.most}")


if __name__ == "__main__":
    main()
