#!/usr/bin/env python3
"""What `models.optimized_cache` saves: how long `mid`, `bert` and `deep` take to load without it, when it is filled, and from it.

    cargo build && python3 benches/optimized.py [--program PATH] [--rounds 5]

Each load is one of a server of its own, which is asked for `sluicegate_model_load_seconds` (from reading the file to its first
warm run), with `models.probe: auto` and `never`. The least of --rounds rounds, in milliseconds, as a table in Markdown: what disturbs a load makes it longer. The
models are made in `target/bench-models` if they are not there. Files are in the page cache: it measures the processor.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = ROOT / "target/bench-models"
CONFIG = """version: 1
listen: [{{ address: "127.0.0.1:0" }}]
admin: {{ address: "127.0.0.1:0" }}
models:
  directory: {folder}
  load: [{model}]
  control: fixed
  probe: {probe}
  defaults: {{ threads: 1, warmup: {warmup} }}
{cache}"""


def load(program, folder, model, probe, cache, warmup="off"):
    """Seconds of one load, in a server of its own."""
    text = CONFIG.format(
        folder=MODELS,
        model=model,
        probe=probe,
        warmup=warmup,
        cache=f"  optimized_cache: {{ directory: {cache} }}\n" if cache else "",
    )
    config = folder / "config.yaml"
    config.write_text(text)
    server = subprocess.Popen(
        [program, "serve", "--config", config, "--log-format", "json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        admin = None
        while line := server.stdout.readline():
            if found := re.search(r"(http://\S+)  /metrics", line):
                admin = found[1]
                break
        if admin is None:
            sys.exit("the server does not say where its metrics are")
        name = "sluicegate_model_load_seconds_sum"
        for _ in range(1200):
            page = urllib.request.urlopen(f"{admin}/metrics").read().decode()
            if found := re.search(rf'^{name}{{model="{model}"[^}}]*}} (\S+)$', page, re.M):
                return float(found[1])
            time.sleep(0.05)
        sys.exit(f"{model} is not loaded")
    finally:
        server.kill()
        server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=ROOT / "target/debug/sluicegate", type=pathlib.Path)
    parser.add_argument("--rounds", default=5, type=int)
    arguments = parser.parse_args()
    names = ["mid", "bert", "deep"]
    if any(not (MODELS / name).is_dir() for name in names):
        subprocess.run([sys.executable, ROOT / "benches/models.py", MODELS], check=True)
    print("| model | `models.probe` | without, ms | filled, ms | from it, ms |")
    print("|---|---|---|---|---|")
    for model in names:
        for probe in ["auto", "never"]:
            rows = []
            for _ in range(arguments.rounds):
                with tempfile.TemporaryDirectory() as folder:
                    folder = pathlib.Path(folder)
                    cache = folder / "kept"
                    rows.append([load(arguments.program, folder, model, probe, it) for it in (None, cache, cache)])
            least = [min(column) * 1000 for column in zip(*rows)]
            print(f"| `{model}` | {probe} | " + " | ".join(f"{time:.0f}" for time in least) + " |", flush=True)


if __name__ == "__main__":
    main()
