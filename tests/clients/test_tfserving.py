"""Clients of TensorFlow Serving and KServe V1, REST and gRPC: tfserving.py, in an environment of its own."""

import os
import subprocess

import pytest

from gate import HERE, MADE, Gate


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Serves the models that the project ships."""
    server = Gate(HERE / "config" / "shipped.yaml", tmp_path_factory.mktemp("shipped") / "log")
    yield server
    server.stop()


def test_its_clients_get_the_same_bits_by_every_way(shipped):
    command = [str(MADE / "tfserving" / "bin" / "python"), str(HERE / "tfserving.py"), shipped.address]
    env = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
    result = subprocess.run(command, env=env, timeout=120, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    # One line for each way, which it compares with each other.
    assert len([line for line in result.stdout.splitlines() if line.startswith(("rest, ", "grpc, "))]) == 7, result.stdout
