#!/usr/bin/env python3
"""Sluicegate with its whole stack on, against a hand-written server (benches/reference), end to end.

Both serve the same 4-16-3 model over the same V2 JSON on core 0; wrk asks from core 1 with 64 connections. The two
take turns within one run, so that both see the same machine. Prints the requests per second of each round and the
median of each, and the median of the ratios of the rounds; exits 1 if that is below --floor.

    make build && python3 benches/end_to_end.py --floor 1.3

Sluicegate has an API key, grants, a rate limit that is never reached, metrics and the access log (to /dev/null). The
reference has none of these, and the same request.

With --bare a third server takes its turn: hyper alone, which reads the request and answers fixed bytes. It shows how
much of a request's time is not ours to save.

With --awake each of the two cores is kept from halting by a loop of the lowest priority there is (SCHED_IDLE), which
runs only while the core has nothing to do. On a virtual machine a core that halts is given to somebody else: to wake
it costs an exit to the host, microseconds each time, and wrk and the server wake each other all the time. Without the
loops that is a good part of what is measured, and no property of either server.
"""

import argparse
import hashlib
import http.client
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "tests/models/good/mlp_4_16_3/1/model.onnx"
PATH = "/v2/models/mlp/infer"
KEY = "sg_" + "bench" * 8 + "abc"
BODY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2]}]},
    separators=(",", ":"),
)
CONFIG = """\
version: 1
listen: [{{ address: "127.0.0.1:{port}" }}]
admin: {{ address: "127.0.0.1:{admin}" }}
auth: {{ api_keys: {{ file: keys.yaml }} }}
grants: [{{ to: ["identity:bench"], intents: [infer], models: ["mlp"], versions: ["*"] }}]
limits: {{ rate: [{{ name: plenty, by: identity, unit: calls, limit: 5000000/s, burst: 5000000 }}] }}
models: {{ directory: models }}
runtime: {{ lanes: 1, inference_cores: 1 }}
telemetry: {{ access_log: {{ enabled: true }} }}
"""


def fail(text):
    sys.exit(f"end_to_end: {text}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Spinners:
    """One loop per core that runs only when nothing else wants the core, so that it never halts."""

    def __init__(self, cores):
        self.processes = [
            subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{core}]); "
                              "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"])
            for core in cores
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()


def library(target):
    found = sorted((target / "onnxruntime").glob("libonnxruntime.*"))
    if not found:
        fail(f"no ONNX Runtime in {target / 'onnxruntime'}; get it with `make onnxruntime`")
    return found[0]


class Server:
    """A process on one core, and a connection to it."""

    def __init__(self, name, core, command, port, folder):
        self.name, self.port = name, port
        self.log = open(folder / f"{name}.log", "wb")
        self.process = subprocess.Popen(
            ["taskset", "-c", str(core), *map(str, command)],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=self.log,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        )

    def wait(self):
        for _ in range(200):
            if self.process.poll() is not None:
                break
            try:
                if self.ask("GET", "/v2/health/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        self.log.flush()
        shown = pathlib.Path(self.log.name).read_text(errors="replace")[-2000:]
        fail(f"{self.name} does not get ready:\n{shown}")

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"} if body else {}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer = response.status, response.read()
        connection.close()
        return answer

    def answer(self):
        """The numbers of one inference, as the bits of their floats."""
        status, body = self.ask("POST", PATH, BODY)
        if status != 200:
            fail(f"{self.name} answers {status}: {body!r}")
        output = json.loads(body)["outputs"][0]
        return output["name"], output["shape"], [struct.pack("<f", number) for number in output["data"]]

    def stop(self):
        # The first signal drains, for as long as it is configured; there is nothing left to drain.
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
                try:
                    self.process.wait(0.5)
                except subprocess.TimeoutExpired:
                    pass
        self.log.close()


def load(server, arguments, seconds):
    """Requests per second, and the latencies that wrk prints."""
    command = ["taskset", "-c", str(arguments.client_core), "wrk", "-t1", f"-c{arguments.connections}"]
    command += [f"-d{seconds}s", "--latency", "-s", str(ROOT / "benches/post.lua")]
    command += [f"http://127.0.0.1:{server.port}{PATH}"]
    environment = {**os.environ, "BENCH_KEY": KEY, "BENCH_BODY": BODY}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if done.returncode or not rate:
        fail(f"wrk: {done.stdout}{done.stderr}")
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        fail(f"{server.name} refused some of it:\n{done.stdout}")
    latency = {match[1]: match[2] for match in re.finditer(r"^\s+(50|99)%\s+(\S+)", done.stdout, re.M)}
    return float(rate[1]), latency


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floor", type=float, default=0.0, help="exit 1 if the median ratio is below (1.3 is asked for)")
    parser.add_argument("--bare", action="store_true", help="also measure hyper alone, the floor under both")
    parser.add_argument("--awake", action="store_true", help="keep both cores from halting (for virtual machines)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each takes a turn (5)")
    parser.add_argument("--seconds", type=int, default=5, help="how long each turn lasts (5)")
    parser.add_argument("--connections", type=int, default=64, help="connections of wrk (64)")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--target", type=pathlib.Path, help="cargo's target directory (target/)")
    arguments = parser.parse_args()

    for tool, how in [("wrk", "apt-get install wrk"), ("taskset", "apt-get install util-linux"), ("cargo", "rustup")]:
        if not shutil.which(tool):
            fail(f"`{tool}` is missing; get it with `{how}`")
    if len(os.sched_getaffinity(0)) < 2:
        fail("two cores are needed: one for the server, one for wrk")
    target = (arguments.target or pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))).resolve()
    sluicegate = target / "release/sluicegate"
    if not sluicegate.exists():
        fail(f"no {sluicegate}; make it with `make build`")
    runtime = library(target)
    built = subprocess.run(
        ["cargo", "build", "--release", "--locked", "--quiet", "--target-dir", str(target / "reference")],
        cwd=ROOT / "benches/reference",
    )
    if built.returncode:
        fail("the reference server does not build")
    reference, bare = (target / "reference/release" / name for name in ("reference", "bare"))

    with tempfile.TemporaryDirectory(prefix="sluicegate-bench-") as name:
        folder = pathlib.Path(name)
        (folder / "models/mlp/1").mkdir(parents=True)
        shutil.copy(MODEL, folder / "models/mlp/1/model.onnx")
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        (folder / "keys.yaml").write_text(
            f'version: 1\nkeys:\n  - {{ id: k_bench, hash: "sha256:{digest}", identity: bench }}\n'
        )
        ports = free_port(), free_port(), free_port(), free_port()
        (folder / "sluicegate.yaml").write_text(CONFIG.format(port=ports[0], admin=ports[1]))
        ours = [sluicegate, "serve", "--config", "sluicegate.yaml", "--onnxruntime", runtime, "--log-format", "json"]
        theirs = [reference, f"127.0.0.1:{ports[2]}", runtime, folder / "models/mlp/1/model.onnx"]
        servers = [
            Server("sluicegate", arguments.server_core, ours, ports[0], folder),
            Server("reference", arguments.server_core, theirs, ports[2], folder),
        ]
        if arguments.bare:
            servers.append(Server("bare", arguments.server_core, [bare, f"127.0.0.1:{ports[3]}"], ports[3], folder))
        try:
            with Spinners({arguments.server_core, arguments.client_core} if arguments.awake else ()):
                return compare(servers, arguments)
        finally:
            for server in servers:
                server.stop()


def compare(servers, arguments):
    for server in servers:
        server.wait()
    answers = [server.answer() for server in servers]
    if any(answer != answers[0] for answer in answers):
        fail(f"they answer differently: {answers}")
    awake = ", cores kept awake" if arguments.awake else ""
    print(f"{processor()}{awake}, {arguments.connections} connections, JSON, 4-16-3 model; all answer the same bits")
    for server in servers:
        load(server, arguments, 1)
    rates, latencies = {server.name: [] for server in servers}, {}
    print(f"{'round':>5}" + "".join(f"{server.name + '/s':>15}" for server in servers) + f"{'ratio':>8}")

    def show(name, values, ratio, more=""):
        print(f"{name:>5}" + "".join(f"{value:>15,.0f}" for value in values) + f"{ratio:>8.2f}{more}", flush=True)

    for number in range(1, arguments.rounds + 1):
        # Who comes first changes, so that neither has the cooler core.
        for server in servers if number % 2 else reversed(servers):
            rate, latencies[server.name] = load(server, arguments, arguments.seconds)
            rates[server.name].append(rate)
        last = [rates[server.name][-1] for server in servers]
        show(number, last, last[0] / last[1])
    ratio = statistics.median(a / b for a, b in zip(rates["sluicegate"], rates["reference"]))
    show("all", [statistics.median(rates[server.name]) for server in servers], ratio, "  (medians)")
    for name, latency in latencies.items():
        print(f"{name}: latency of the last round 50 % {latency.get('50', '?')}, 99 % {latency.get('99', '?')}")
    if ratio < arguments.floor:
        print(f"the ratio {ratio:.2f} is below the floor of {arguments.floor}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
