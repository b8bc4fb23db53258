"""Servers and clients that the tests share. run.py makes what is needed and starts pytest."""

import asyncio
import os
import shutil

import pytest

from gate import HERE, MODELS, Gate

# Where there is no perf_analyzer, or no Prometheus, run.py has said so.
NEEDED = {"PERF_ANALYZER": "test_perf_analyzer.py", "PROMETHEUS": "test_prometheus.py"}
collect_ignore = [file for name, file in NEEDED.items() if not os.environ.get(name)]
# The clients that four.py puts behind one way of asking. It is imported late: see apart/test_kserve.py.
FOUR = ["http", "http.aio", "grpc", "grpc.aio"]
# What `animals` calls its three classes: `mlp_4_16_3` under another name, with labels.
LABELS = ["ant", "bee", "cow"]


def copy_models(folder):
    """The models that the server of `explicit.yaml` may change."""
    for name in ("mlp_4_16_3", "echo_fp32", "echo_bytes", "two_by_two"):
        shutil.copytree(MODELS / name, folder / name)
    shutil.copytree(MODELS / "mlp_4_16_3", folder / "animals")
    (folder / "animals" / "labels.txt").write_text("\n".join(LABELS) + "\n")
    # Two versions, of which both are served.
    shutil.copytree(MODELS / "echo_fp32", folder / "versions")
    shutil.copytree(folder / "versions" / "1", folder / "versions" / "2")
    (folder / "versions" / "model.yaml").write_text("versions: all\n")
    (folder / "broken" / "1").mkdir(parents=True)
    (folder / "broken" / "1" / "model.onnx").write_bytes(b"no model")


@pytest.fixture(scope="session")
def gate(tmp_path_factory):
    """Serves every model of the tests."""
    server = Gate(HERE / "config" / "plain.yaml", tmp_path_factory.mktemp("plain") / "log")
    yield server
    server.stop()


def changeable(folder):
    """Serves models of its own, which its clients may load and unload."""
    shutil.copy(HERE / "config" / "explicit.yaml", folder)
    copy_models(folder / "models")
    server = Gate(folder / "explicit.yaml", folder / "log")
    server.folder = folder / "models"
    yield server
    server.stop()


@pytest.fixture(scope="session")
def explicit(tmp_path_factory):
    """Lets its clients load and unload."""
    yield from changeable(tmp_path_factory.mktemp("explicit"))


@pytest.fixture(scope="session")
def keyed(tmp_path_factory):
    """Asks everybody for a key."""
    server = Gate(HERE / "config" / "keyed.yaml", tmp_path_factory.mktemp("keyed") / "log")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def runner():
    """The one event loop of all `aio` clients: gRPC's allows no second."""
    with asyncio.Runner() as one:
        yield one


def _client(request, address, runner):
    from four import Client

    client = Client(request.param, address, runner)
    yield client
    client.close()


@pytest.fixture(params=FOUR, scope="module")
def client(request, gate, runner):
    """Each of the four in turn."""
    yield from _client(request, gate.address, runner)


@pytest.fixture(params=FOUR, scope="module")
def manager(request, explicit, runner):
    """Each of the four in turn, where models may be loaded and unloaded."""
    yield from _client(request, explicit.address, runner)


@pytest.fixture(params=FOUR, scope="module")
def stranger(request, keyed, runner):
    """Each of the four in turn, where a key is asked for."""
    yield from _client(request, keyed.address, runner)
