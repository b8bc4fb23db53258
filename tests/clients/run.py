#!/usr/bin/env python3
"""Asks a server with the clients of others: makes what they need in target/clients, then runs the tests of this folder.

    make clients                                      # builds first
    python3 tests/clients/run.py [--program PROGRAM] [ARGUMENTS OF PYTEST]

PROGRAM is the server, target/debug/sluicegate if none is named. What is installed is pinned by requirements.txt,
constraints.txt and web/package-lock.json, and is installed again only when these, or Python, change.

`perf_analyzer` comes as a wheel for newer systems than some: where it cannot be installed, it is said and left out.
PERF_ANALYZER names another command of it. `prometheus` and `promtool` are the system's (Debian: apt-get install prometheus):
where they are not, that is said too, and they are left out.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MADE = ROOT / "target" / "clients"
BIN = MADE / "venv" / "bin"
WEB = MADE / "web"


def say(text):
    print(f"clients: {text}", flush=True)


def fail(text):
    sys.exit(f"clients: {text}")


def run(what, command, **named):
    """Runs a command that must succeed, and shows what it printed only if it does not."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **named)
    if result.returncode != 0:
        fail(f"{what} failed:\n{result.stdout}")


def stamp(*files):
    """What the files say, as one word."""
    digest = hashlib.sha256(sys.version.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def made(name, wanted, make):
    """Calls `make` unless it succeeded before with the same `wanted`."""
    mark = MADE / f"{name}.stamp"
    if mark.exists() and mark.read_text() == wanted:
        return
    mark.unlink(missing_ok=True)
    started = time.monotonic()
    say(f"installing {name} into {MADE.relative_to(ROOT)}")
    make()
    mark.write_text(wanted)
    say(f"installed {name} in {time.monotonic() - started:.0f} s")


def new_environment(folder):
    """Makes a virtual environment and returns its command that installs."""
    shutil.rmtree(folder, ignore_errors=True)
    run("making a virtual environment", [sys.executable, "-m", "venv", str(folder)])
    return [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]


def make_python():
    pip = new_environment(MADE / "venv")
    run("installing the Python clients", [*pip, "-r", str(HERE / "requirements.txt"), "-c", str(HERE / "constraints.txt")])
    # Without it all else is as it was: some systems are older than the only wheel.
    result = subprocess.run([*pip, "--no-deps", "--only-binary=:all:", "-r", str(HERE / "requirements-perf.txt")],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    (MADE / "perf_analyzer.log").write_text(result.stdout)


def make_tfserving():
    pip = new_environment(MADE / "tfserving")
    # The list is whole: what these packages say they need is TensorFlow.
    run("installing TensorFlow Serving's messages", [*pip, "--no-deps", "-r", str(HERE / "requirements-tfserving.txt")])


def make_web():
    shutil.rmtree(WEB, ignore_errors=True)
    WEB.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / "web" / name, WEB)
    run("installing the clients of Node", [str(BIN / "npm"), "ci", "--no-audit", "--no-fund"], cwd=WEB, env=environment())


def perf_analyzer():
    """The command of perf_analyzer, if there is one that starts; else says why not."""
    named = os.environ.get("PERF_ANALYZER")
    command = named or str(BIN / "perf_analyzer")
    why = "cannot be installed here: pip found no wheel of it for this system (it needs x86-64 and glibc 2.38)"
    if named or os.access(command, os.X_OK):
        try:
            result = subprocess.run([command, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except OSError as error:
            why = f"does not start: {error}"
        else:
            if result.returncode == 0:
                return {"PERF_ANALYZER": command}
            why = f"does not start: {(result.stdout.strip().splitlines() or ['it said nothing'])[0]}"
    if named:
        fail(f"{named} {why}")
    say(f"perf_analyzer is left out, it {why}")
    return {}


def prometheus():
    """Prometheus and its tool, if the system has them; else says so."""
    found = {name.upper(): shutil.which(name) for name in ("prometheus", "promtool")}
    missing = [name.lower() for name, path in found.items() if path is None]
    if missing:
        say(f"PROMETHEUS IS LEFT OUT: {' and '.join(missing)} cannot be found here; on Debian, apt-get install prometheus")
        return {}
    return found


def environment():
    """The one for everything that is started here: the installed programs first."""
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, default=ROOT / "target" / "debug" / "sluicegate")
    ours, pytests = parser.parse_known_args()
    program = ours.program.resolve()
    if not os.access(program, os.X_OK):
        fail(f"there is no program {program}: run `cargo build`, or name one")
    MADE.mkdir(parents=True, exist_ok=True)
    pins = [HERE / name for name in ("requirements.txt", "constraints.txt", "requirements-perf.txt")]
    made("python", stamp(*pins), make_python)
    made("tfserving", stamp(HERE / "requirements-tfserving.txt"), make_tfserving)
    made("node", stamp(HERE / "web" / "package.json", HERE / "web" / "package-lock.json"), make_web)
    where = {"SLUICEGATE": str(program), "CLIENTS_MADE": str(MADE), "PYTHONDONTWRITEBYTECODE": "1", **perf_analyzer(),
             **prometheus()}
    worst = 0
    # KServe's and Triton's Python packages name the same messages, and no process can have both.
    for folder in (HERE, HERE / "apart"):
        command = [str(BIN / "python"), "-m", "pytest", str(folder), *pytests]
        code = subprocess.run(command, cwd=HERE, env={**environment(), **where}).returncode
        # 5: what was asked for is in the other folder.
        worst = max(worst, 0 if code == 5 and pytests else code)
    sys.exit(worst)


if __name__ == "__main__":
    main()
