#!/usr/bin/env python3
"""Builds `target/pgo/sluicegate`: the release binary, laid out by a profile of itself at work (PGO).

    make pgo

Three steps: a binary that counts is built, it serves the models of `models/` on every surface while `sluicegate bench` asks, and
the binary is built again with what was counted. Everything of cargo's lies in target/pgo-build; on two cores it takes about as
long as four times `make build`.

Needs `llvm-profdata`, of rustc's LLVM or somewhat older: `rustup component add llvm-tools`, or Debian's llvm-19. The profile
holds for this source and this compiler, so it is made anew each time and kept nowhere.
"""

import argparse
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from end_to_end import KEY, ROOT, fail, free_port, library
from table import configure

# A request of decimals, as most are; those to the other models are made up.
DIGIT = {"name": "image", "datatype": "FP32", "shape": [1, 64], "data": [n * 0.2371 % 16 for n in range(64)]}
SURFACES = ("rest", "rest-binary", "grpc", "grpc-stream", "websocket", "ndjson")
TOOL = "llvm-profdata"
HOW = "get it with `rustup component add llvm-tools` or `apt-get install llvm-19`"


def profdata():
    """Where a tool is that joins profiles of this compiler: tried on one of a program that does nothing."""
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True).stdout.strip()
    found = [str(path) for path in pathlib.Path(sysroot).glob(f"lib/rustlib/*/bin/{TOOL}")]
    names = [*(f"{TOOL}-{version}" for version in range(30, 18, -1)), TOOL]
    found += [path for path in map(shutil.which, names) if path]
    if not found:
        fail(f"`{TOOL}` is missing; {HOW}")
    with tempfile.TemporaryDirectory(prefix="sluicegate-pgo-") as name:
        folder = pathlib.Path(name)
        (folder / "nothing.rs").write_text("fn main() {}\n")
        if subprocess.run(["rustc", "-Cprofile-generate", "nothing.rs"], cwd=folder).returncode:
            fail("this rustc builds no programs that count (`-Cprofile-generate`)")
        profile = {**os.environ, "LLVM_PROFILE_FILE": "nothing.profraw"}
        subprocess.run([folder / "nothing"], cwd=folder, check=True, env=profile)
        for tool in found:
            if not subprocess.run([tool, "merge", "-o", "joined", "nothing.profraw"], cwd=folder, capture_output=True).returncode:
                return tool
    fail(f"no `{TOOL}` that is here reads what this rustc writes ({', '.join(found)}); {HOW}")


def host():
    told = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    return re.search(r"^host: (\S+)$", told, re.M)[1]


def build(target, flags):
    """Builds the program with these flags, the dependencies' code too, and says where it is."""
    # With a target named, build scripts do not get the flags: they would count as well.
    triple = host()
    command = ["cargo", "build", "--release", "--locked", "--bin", "sluicegate", "--target", triple, "--target-dir", str(target)]
    # Whoever builds has flags as well.
    theirs = os.environ.get("CARGO_ENCODED_RUSTFLAGS", "\x1f".join(os.environ.get("RUSTFLAGS", "").split()))
    flags = [*filter(None, theirs.split("\x1f")), *flags]
    if subprocess.run(command, cwd=ROOT, env={**os.environ, "CARGO_ENCODED_RUSTFLAGS": "\x1f".join(flags)}).returncode:
        fail(f"it does not build with `{' '.join(flags)}`")
    return target / triple / "release/sluicegate"


def train(program, runtime, profiles, seconds):
    """Has the program serve, asks it on every surface, alone and at once, and lets it write what it counted."""
    with tempfile.TemporaryDirectory(prefix="sluicegate-pgo-") as name:
        folder, port = pathlib.Path(name), free_port()
        (folder / "digits.json").write_text(json.dumps({"inputs": [DIGIT]}))
        configure(folder / "config.yaml", port, ROOT / "models", lanes="auto", probe="never")
        command = [program, "serve", "--config", "config.yaml", "--onnxruntime", runtime, "--log-format", "json"]
        server = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "LLVM_PROFILE_FILE": str(profiles / "%m.profraw")},
        )
        try:
            # The banner is printed when the models are there.
            if not server.stdout.readline():
                fail("the program that counts does not serve")
            models = sorted(path.name for path in (ROOT / "models").iterdir() if path.is_dir())
            environment = {**os.environ, "SLUICEGATE_KEY": KEY, "LLVM_PROFILE_FILE": os.devnull}
            for model, surface, callers in itertools.product(models, SURFACES, (1, 64)):
                asked = [program, "bench", f"http://127.0.0.1:{port}", "--model", model, "--surface", surface]
                asked += ["--concurrency", str(callers), "--warmup", "100ms", "--duration", f"{seconds}s", "--json"]
                asked += ["--data", folder / "digits.json"] if model == "digits" else []
                done = subprocess.run(asked, env=environment, capture_output=True, text=True)
                if done.returncode:
                    fail(f"{model} over {surface}: {done.stderr}{done.stdout}")
                print(f"  {model}: {surface}, {callers} in flight", file=sys.stderr, flush=True)
            server.send_signal(signal.SIGTERM)
            if server.wait(60):
                fail("the program that counts did not end well")
        finally:
            server.kill()
            server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=2, help="of each load (2)")
    parser.add_argument("--target", type=pathlib.Path, help="cargo's target directory (target/)")
    arguments = parser.parse_args()
    target = (arguments.target or pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))).resolve()
    tool, runtime, place = profdata(), library(target), target / "pgo"
    profiles = place / "profiles"
    shutil.rmtree(profiles, ignore_errors=True)
    profiles.mkdir(parents=True)
    train(build(target / "pgo-build", [f"-Cprofile-generate={profiles}", "--cfg", "profile"]), runtime, profiles, arguments.seconds)
    joined = place / "sluicegate.profdata"
    if subprocess.run([tool, "merge", "-o", joined, *profiles.glob("*.profraw")]).returncode:
        fail(f"`{tool}` does not join the profiles")
    shutil.copy2(build(target / "pgo-build", [f"-Cprofile-use={joined}"]), place / "sluicegate")
    print(f"{place / 'sluicegate'}")


if __name__ == "__main__":
    main()
