#!/usr/bin/env python3
"""What callers notice of a shadow: p99 of a steady load with one against p99 without.

    make build && python3 benches/shadow.py [--program PATH] [--rate 500] [--rounds 5] [--seconds 3] [--most 1.1]

Two servers with the model `m`, whose version 1 is `tiny`: one as it is, one with a `shadow` of all calls. They are asked in
turns, one after the other, at the same rate, by `sluicegate bench`. Four shadows are tried: version 2 is the same file (`same`), one of a hundred
times the work (`slow`), one that takes other inputs, so that every copy fails (`failing`), and the slow one at a share of a tenth
(`slow-tenth`). Each server has core 0 to itself while it is asked, and the generator core 1 (`--cores` says otherwise): the shadow's runs take their time from the same
core that answers callers, which is the worst place for them. Prints a table in Markdown: the medians of p50, and of p99 the medians and the
lower quartiles of the rounds, because a host that is shared stops a virtual core now and then for longer than a call takes: the
quartile is that of rounds in which it did so least. Exits with 1 if a ratio of the quartiles is above --most.
"""

import argparse
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request

from end_to_end import Spinners

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = ROOT / "target/bench-models"
CONFIG = """version: 1
listen: [{{ address: "127.0.0.1:0" }}]
admin: {{ address: "127.0.0.1:0" }}
models: {{ directory: {folder}, control: fixed, defaults: {{ threads: 1 }} }}
"""
# Name: the file of version 2, and the share of calls that are copied.
SHADOWS = {"same": ("tiny", 1), "slow": ("slow", 1), "slow-tenth": ("slow", 0.1), "failing": ("mid", 1)}


def serve(program, core, folder, name, shadow):
    """A server, and where it and its metrics are."""
    models = folder / name
    for version, model in (1, "tiny"), *([(2, shadow[0])] if shadow else []):
        (models / f"m/{version}").mkdir(parents=True)
        shutil.copy(MODELS / model / "1/model.onnx", models / f"m/{version}")
    traffic = f"traffic: {{ split: {{ 1: 1 }}, shadow: {{ to: 2, share: {shadow[1]} }} }}\n" if shadow else ""
    (models / "m/model.yaml").write_text("versions: all\n" + traffic)
    config = folder / f"{name}.yaml"
    config.write_text(CONFIG.format(folder=models))
    command = ["taskset", "-c", core, program, "serve", "--config", config, "--log-format", "json"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    rest = metrics = None
    while not (rest and metrics) and (line := server.stdout.readline()):
        rest = rest or (found := re.search(r"(http://[^/\s]+)/v2/models", line)) and found[1]
        metrics = metrics or (found := re.search(r"(http://\S+)  /metrics", line)) and found[1]
    if not metrics:
        sys.exit("the server does not say where it is")
    return server, rest, metrics


def copies(metrics):
    with urllib.request.urlopen(f"{metrics}/metrics") as page:
        found = re.findall(r'^sluicegate_shadow_calls_total{.*outcome="(\w+)".*} (\d+)$', page.read().decode(), re.M)
    return ", ".join(f"{count} {outcome}" for outcome, count in found if count != "0") or "none"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--program", default=ROOT / "target/release/sluicegate")
    arguments.add_argument("--rate", type=float, default=500)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=3)
    arguments.add_argument("--most", type=float)
    arguments.add_argument("--cores", nargs=2, default=("0", "1"), metavar=("SERVER", "GENERATOR"))
    arguments.add_argument("--awake", action="store_true", help="keep the cores from halting, with and without a shadow")
    arguments.add_argument("--only", help="names of shadows, with commas")
    options = arguments.parse_args()
    names = options.only.split(",") if options.only else list(SHADOWS)
    subprocess.run([sys.executable, ROOT / "benches/models.py", MODELS], check=True)
    print(f"{options.rate:g} calls a second, {options.rounds} rounds of {options.seconds:g} s\n")
    print("| shadow | p50 | with | p99 | with | ratio | quartile | with | ratio | copies |\n|---|---|---|---|---|---|---|---|---|---|")
    worst = 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            program, (server_core, generator_core) = options.program, options.cores
            servers = [serve(program, server_core, folder, *which) for which in (("plain", None), (name, SHADOWS[name]))]
            try:
                command = ["taskset", "-c", generator_core, program, "bench", servers[0][1], "--against", servers[1][1]]
                command += ["--model", "m", "--concurrency", "8", "--rate", f"{options.rate}", "--json"]
                command += ["--rounds", f"{options.rounds}", "--duration", f"{options.seconds}s", "--warmup", "1s"]
                with Spinners(sorted({int(core) for cores in options.cores for core in cores.split(",")}) if options.awake else ()):
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                runs = json.loads(done.stdout)["runs"]
                made = copies(servers[1][2])
            finally:
                for server, _, _ in servers:
                    server.terminate()
                    server.wait()
        figures = []
        for _, address, _ in servers:
            latencies = [run["latency_us"] for run in runs if run["source"].startswith(address)]
            p50, p99 = ([latency[quantile] for latency in latencies] for quantile in ("p50", "p99"))
            figures.append((statistics.median(p50), statistics.median(p99), statistics.quantiles(p99, n=4)[0]))
        (p50, p99, quartile), (shadowed50, shadowed99, shadowed_quartile) = figures
        worst = max(worst, shadowed_quartile / quartile)
        cells = [f"{p50:.0f} µs", f"{shadowed50:.0f} µs", f"{p99:.0f} µs", f"{shadowed99:.0f} µs", f"{shadowed99 / p99:.2f}"]
        cells += [f"{quartile:.0f} µs", f"{shadowed_quartile:.0f} µs", f"{shadowed_quartile / quartile:.2f}", made]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if options.most and worst > options.most:
        sys.exit(f"the worst ratio is {worst:.2f}, wanted at most {options.most}")


if __name__ == "__main__":
    main()
