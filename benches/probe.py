#!/usr/bin/env python3
"""What it costs to try a model file in a process of its own first (`models.probe`): how long models take to load with and without.

    make build && python3 benches/probe.py [--program PATH] [--rounds 7]

Each load is one of a server of its own, which is asked for `sluicegate_model_load_seconds` (from reading the file to its first
warm run), with `models.probe: auto` and `never`; the warm-up, which that process rehearses too, is as it is by default. The least
of --rounds rounds, in milliseconds, as a table in Markdown: what disturbs a load makes it longer. The models are made in
`target/bench-models` if they are not there. Files are in the page cache: it measures the processor.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

from optimized import MODELS, ROOT, load


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=ROOT / "target/release/sluicegate", type=pathlib.Path)
    parser.add_argument("--rounds", default=7, type=int)
    arguments = parser.parse_args()
    names = ["tiny", "deep", "mid", "bert"]
    if any(not (MODELS / name).is_dir() for name in names):
        subprocess.run([sys.executable, ROOT / "benches/models.py", MODELS], check=True)
    print("| model | `never`, ms | `auto`, ms | more, ms |\n|---|---|---|---|")
    for model in names:
        rows = []
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as folder:
                folder = pathlib.Path(folder)
                rows.append([load(arguments.program, folder, model, probe, None, "auto") for probe in ("never", "auto")])
        never, auto = (min(column) * 1000 for column in zip(*rows))
        print(f"| `{model}` | {never:.0f} | {auto:.0f} | {auto - never:.0f} |", flush=True)


if __name__ == "__main__":
    main()
