"""gRPC-Web clients under Node: web/*.test.mjs, each a process of Node's own test runner."""

import os
import shutil
import subprocess

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from gate import HERE, MADE

# Where run.py installed the packages: Node looks for them beside the files that name them.
WEB = MADE / "web"


@pytest.fixture(scope="module")
def descriptors(gate, tmp_path_factory):
    """A file with the descriptors of both services and all that they need, as reflection tells them."""
    found = {}

    def add(file):
        if file.name not in found:
            for needed in file.dependencies:
                add(needed)
            found[file.name] = FileDescriptorProto()
            file.CopyToProto(found[file.name])

    with grpc.insecure_channel(gate.address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        for service in ("inference.GRPCInferenceService", "grpc.health.v1.Health"):
            add(pool.FindServiceByName(service).file)
    path = tmp_path_factory.mktemp("web") / "descriptors"
    path.write_bytes(FileDescriptorSet(file=found.values()).SerializeToString())
    return path


@pytest.mark.parametrize("name", sorted(path.name for path in (HERE / "web").glob("*.test.mjs")))
def test_web(gate, descriptors, name):
    for file in (HERE / "web").glob("*.mjs"):
        shutil.copy(file, WEB)
    env = {**os.environ, "GATE": gate.address, "DESCRIPTORS": str(descriptors)}
    result = subprocess.run(["node", "--test", "--test-force-exit", "--test-timeout=60000", name], cwd=WEB, env=env, timeout=120,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    # One that found no tests would succeed too.
    assert "pass 0" not in result.stdout, result.stdout
