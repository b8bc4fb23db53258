"""The packages that gRPC itself ships: health checking, and a client that learns the service from reflection alone."""

import contextlib
import queue
import threading

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

SERVICE = "inference.GRPCInferenceService"
SERVING = health_pb2.HealthCheckResponse.SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def channel(gate):
    with grpc.insecure_channel(gate.address) as channel:
        yield channel


@pytest.fixture
def health(channel):
    return health_pb2_grpc.HealthStub(channel)


def named(service):
    return health_pb2.HealthCheckRequest(service=service)


@contextlib.contextmanager
def watched(stub, service):
    """What Watch says, as it says it."""
    call, said = stub.Watch(named(service), timeout=60), queue.Queue()

    def listen():
        with contextlib.suppress(grpc.RpcError):
            for answer in call:
                said.put(answer.status)

    thread = threading.Thread(target=listen)
    thread.start()
    yield lambda: said.get(timeout=30)
    call.cancel()
    thread.join()


@pytest.mark.parametrize("service", ["", SERVICE, "model:mlp_4_16_3"])
def test_check_says_serving(health, service):
    assert health.Check(named(service), timeout=10).status == SERVING


@pytest.mark.parametrize("service", ["nobody", "model:nobody", "mlp_4_16_3"])
def test_check_of_an_unknown_name_is_not_found(health, service):
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(named(service), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("service, first", [
    ("", SERVING), (SERVICE, SERVING), ("model:mlp_4_16_3", SERVING), ("model:nobody", UNKNOWN), ("nobody", UNKNOWN),
])
def test_watch_begins_with_what_is(health, service, first):
    with watched(health, service) as said:
        assert said() == first


def test_watch_tells_when_a_model_comes(explicit):
    from four import Client

    with grpc.insecure_channel(explicit.address) as channel:
        with watched(health_pb2_grpc.HealthStub(channel), "model:two_by_two") as said:
            # Known to nobody yet, or out of service since another test unloaded it.
            assert said() in (UNKNOWN, NOT_SERVING)
            client = Client("grpc", explicit.address, None)
            client.load_model("two_by_two")
            while (status := said()) != SERVING:
                assert status in (UNKNOWN, NOT_SERVING)
            client.unload_model("two_by_two")
            client.close()


def test_health_asks_for_no_key_and_tells_strangers_of_no_model(keyed):
    with grpc.insecure_channel(keyed.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(named(""), timeout=10).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(named("model:mlp_4_16_3"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_list_says_what_check_says(channel):
    # The package has no messages for List yet: two entries of a map, each with the message that says SERVING.
    found = channel.unary_unary("/grpc.health.v1.Health/List")(b"", timeout=10)
    assert found.count(b"\x12\x02\x08\x01") == 2 and SERVICE.encode() in found


@pytest.fixture
def learned(channel):
    """The services as reflection describes them, in a pool of their own: nothing of ours is compiled in."""
    database = ProtoReflectionDescriptorDatabase(channel)
    return database, DescriptorPool(database)


def test_reflection_lists_the_services(learned):
    database, _ = learned
    found = set(database.get_services())
    assert {SERVICE, "grpc.health.v1.Health"} <= found


def call(channel, pool, method, /, **fields):
    """A unary method called with messages that reflection described."""
    found = pool.FindServiceByName(SERVICE).methods_by_name[method]
    request, response = GetMessageClass(found.input_type), GetMessageClass(found.output_type)
    send = channel.unary_unary(f"/{SERVICE}/{method}", request.SerializeToString, response.FromString)
    return send(request(**fields), timeout=10)


def test_a_service_learned_from_reflection_can_be_called(channel, learned):
    _, pool = learned
    assert call(channel, pool, "ServerReady").ready is True
    assert call(channel, pool, "ModelMetadata", name="mlp_4_16_3").inputs[0].name == "x"
    sent = np.float32([1, 2])
    answer = call(
        channel, pool, "ModelInfer", model_name="echo_fp32", raw_input_contents=[sent.tobytes()],
        inputs=[{"name": "x", "datatype": "FP32", "shape": [2]}],
    )
    assert answer.raw_output_contents[0] == sent.tobytes()


def test_every_method_that_reflection_describes_is_there(channel, learned):
    _, pool = learned
    service = pool.FindServiceByName(SERVICE)
    names = [method.name for method in service.methods if not method.client_streaming]
    assert len(names) > 15
    for name in names:
        try:
            call(channel, pool, name)
        except grpc.RpcError as error:
            # Refused for what is missing, or because it is switched off: but known, which "Unimplemented" alone says not.
            assert error.trailing_metadata() is not None and dict(error.trailing_metadata())["error-code"]


def test_reflection_knows_symbols_of_every_kind_and_says_what_it_does_not(learned):
    database, pool = learned
    for symbol in (SERVICE, "inference.ModelInferRequest", "inference.ModelInferRequest.InferInputTensor",
                   "inference.ModelInput.Format", f"{SERVICE}.ModelInfer", "grpc.health.v1.Health"):
        assert database.FindFileContainingSymbol(symbol).package in ("inference", "grpc.health.v1"), symbol
    with pytest.raises(KeyError):
        database.FindFileContainingSymbol("inference.Nobody")
    with pytest.raises(KeyError):
        pool.FindMessageTypeByName("inference.Nobody")


def test_rich_errors_say_the_same_as_the_status(channel, learned):
    _, pool = learned
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, pool, "ModelMetadata", name="nobody")
    error, metadata = caught.value, dict(caught.value.trailing_metadata())
    assert metadata["error-code"] == "not_found" and metadata["x-request-id"]
    said = rpc_status.from_call(error)
    assert (said.code, said.message) == (error.code().value[0], error.details())
    kinds = [detail.type_url.rsplit("/", 1)[1] for detail in said.details]
    assert {"google.rpc.ErrorInfo", "google.rpc.RequestInfo", "google.rpc.ResourceInfo"} <= set(kinds)
