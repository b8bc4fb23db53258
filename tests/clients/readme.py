#!/usr/bin/env python3
"""Runs the commands that README.md shows and compares what comes back with what it prints.

    make run                                  # in another terminal
    python3 tests/clients/readme.py           # --update writes what came back into README.md

A command whose program is not installed is skipped and named.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
README = ROOT / "README.md"


def main():
    update = "--update" in sys.argv[1:]
    written, wrong, ran = [], [], 0
    lines = iter(README.read_text().splitlines())
    console = False
    pending = next(lines, None)
    while pending is not None:
        line, pending = pending, next(lines, None)
        written.append(line)
        if line == "```console":
            console = True
        elif line == "```":
            console = False
        elif console and line.startswith("$ "):
            expected = []
            while pending is not None and not pending.startswith("$ ") and pending != "```":
                expected.append(pending)
                pending = next(lines, None)
            command = line[2:]
            if shutil.which(command.split()[0]) is None:
                print(f"skipped, not installed: {command}")
                written += expected
                continue
            result = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
            found = (result.stdout + result.stderr).rstrip("\n").splitlines()
            ran += 1
            written += found
            if found != expected:
                wrong.append((command, expected, found))
    if update:
        README.write_text("\n".join(written) + "\n")
        print(f"{ran} commands ran, {len(wrong)} outputs written")
        return
    for command, expected, found in wrong:
        print(f"$ {command}\nexpected: {expected}\nfound:    {found}")
    print(f"{ran} commands ran, {len(wrong)} differ from README.md")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
