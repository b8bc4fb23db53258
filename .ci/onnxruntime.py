#!/usr/bin/env python3
"""Puts the pinned shared library of ONNX Runtime into a folder: `onnxruntime.py FOLDER`.

The library comes out of the wheel on PyPI; wheel and library are both pinned by hash. Does nothing, quickly, when the
right library is there already. Python plays no part once the library is in place.
"""

import hashlib
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
REQUIREMENTS = os.path.join(HERE, "onnxruntime.txt")

# (system, machine): platform of the wheel, name and SHA-256 of the library in it.
LIBRARIES = {
    ("Linux", "x86_64"): (
        "manylinux_2_28_x86_64",
        "libonnxruntime.so.1.32.0",
        "6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f",
    ),
    ("Linux", "aarch64"): (
        "manylinux_2_28_aarch64",
        "libonnxruntime.so.1.32.0",
        "49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a",
    ),
    ("Darwin", "arm64"): (
        "macosx_14_0_arm64",
        "libonnxruntime.1.32.0.dylib",
        "fa585fabbea65b823b9a8f7e27d46aee3989d1be7e36b528203d3a1fd613aae7",
    ),
}


def fail(text):
    sys.exit(f"onnxruntime: {text}")


def has_hash(path, expected):
    """True if the file is there and has this SHA-256."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError:
        return False
    return digest.hexdigest() == expected


def download(platform, folder):
    """The path of the wheel, which pip has checked against the pinned hashes."""
    import subprocess

    # The library is the same in the wheels of every Python, so one is named, whatever runs this script.
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary=:all:", "--implementation=cp", "--python-version=3.12", "--abi=cp312", f"--platform={platform}",
        "--require-hashes", f"--requirement={REQUIREMENTS}", f"--dest={folder}",
    ]
    try:
        subprocess.run(command, check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError):
        fail(
            "pip could not download the wheel (its message is above); this needs pip and a network or a pip cache.\n"
            "Without either, put a libonnxruntime of 1.24 or newer anywhere and name it with --onnxruntime PATH."
        )
    (wheel,) = (name for name in os.listdir(folder) if name.endswith(".whl"))
    return os.path.join(folder, wheel)


def unpack(wheel, name, target):
    """Copies the library out of the wheel; it appears under its name whole or not at all."""
    import shutil
    import zipfile

    # In the same folder, so that the rename stays within one file system.
    half = f"{target}.{os.getpid()}.part"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(f"onnxruntime/capi/{name}") as source:
            with open(half, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
        os.chmod(half, 0o755)
        os.replace(half, target)
    finally:
        if os.path.exists(half):
            os.remove(half)


def main():
    if len(sys.argv) != 2:
        fail("usage: onnxruntime.py FOLDER")
    uname = os.uname()
    if (uname.sysname, uname.machine) not in LIBRARIES:
        known = ", ".join(" ".join(key) for key in LIBRARIES)
        fail(f"no pinned library for {uname.sysname} {uname.machine}, expected one of: {known}")
    platform, name, sha256 = LIBRARIES[uname.sysname, uname.machine]
    folder = sys.argv[1]
    target = os.path.join(folder, name)
    if has_hash(target, sha256):
        return
    import tempfile

    print(f"onnxruntime: fetching {name} into {folder}", file=sys.stderr)
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        unpack(download(platform, scratch), name, target)
    if not has_hash(target, sha256):
        os.remove(target)
        fail(f"{name} does not have the pinned hash {sha256}; a new version needs new hashes in {__file__}")


if __name__ == "__main__":
    main()
