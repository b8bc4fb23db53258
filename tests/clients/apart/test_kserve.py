"""KServe's inference clients, REST and gRPC, which speak Open Inference V2.

In a folder and a process apart: KServe's messages and those of Triton's client have the same names, and a process can
have only one of them.
"""

import asyncio
import contextlib

import grpc
import httpx
import numpy as np
import pytest
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.errors import InvalidInput
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput

KEY = {"authorization": "Bearer sg_" + "W" * 43}
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4) / 8
# One value that a detour through another type would lose, and the ends.
VALUES = {
    "BOOL": np.array([True, False]),
    "UINT8": np.array([0, 255], np.uint8),
    "UINT16": np.array([0, 65535], np.uint16),
    "UINT32": np.array([0, 2**32 - 1], np.uint32),
    "UINT64": np.array([2**53 + 1, 2**64 - 1], np.uint64),
    "INT8": np.array([-128, 127], np.int8),
    "INT16": np.array([-(2**15), 2**15 - 1], np.int16),
    "INT32": np.array([-(2**31), 2**31 - 1], np.int32),
    "INT64": np.array([-(2**63), 2**53 + 1], np.int64),
    "FP16": np.array([1.5, -2], np.float16),
    "FP32": np.array([0.1, -2.5e-38], np.float32),
    "FP64": np.array([0.1, 5e-324], np.float64),
    "BYTES": np.array([b"", "Füße 模型".encode()], dtype=object),
}


class Rest:
    """KServe's REST client, asked as its gRPC client is."""

    grpc = False

    def __init__(self, gate):
        self.client, self.url = InferenceRESTClient(RESTConfig(protocol="v2")), gate.url

    def infer(self, request, **named):
        return self.client.infer(self.url, request, model_name=request.model_name, **named)

    def is_server_live(self, **named):
        return self.client.is_server_live(self.url, **named)

    def is_server_ready(self, **named):
        return self.client.is_server_ready(self.url, **named)

    def is_model_ready(self, name, **named):
        return self.client.is_model_ready(self.url, name, **named)

    def close(self):
        return self.client.close()


class Grpc:
    grpc = True

    def __init__(self, gate):
        self.client = InferenceGRPCClient(gate.address)

    def __getattr__(self, name):
        return getattr(self.client, name)


@pytest.fixture(params=[Rest, Grpc], scope="module")
def kind(request):
    """Either client, still to be made: they belong to the event loop that they are made in."""
    return request.param


@pytest.fixture
def ask(kind, gate, runner):
    """Calls a method of either client and waits for its answer."""
    async def one(server, method, *arguments, **named):
        client = kind(server)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(client.close)
            return await getattr(client, method)(*arguments, **named)

    return lambda method, *arguments, server=gate, **named: runner.run(one(server, method, *arguments, **named))


def request(model, array, binary=True, datatype="FP32", **more):
    tensor = InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model, [tensor], **more)


def test_the_server_is_live_and_ready(ask):
    assert ask("is_server_live") is True
    assert ask("is_server_ready") is True


def test_a_model_is_ready_and_an_unknown_one_is_not(ask, kind):
    assert ask("is_model_ready", "mlp_4_16_3") is True
    if kind is Grpc:
        with pytest.raises(grpc.RpcError) as caught:
            ask("is_model_ready", "nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND and "nobody" in caught.value.details()
    else:
        assert ask("is_model_ready", "nobody") is False


@pytest.mark.parametrize("binary", [True, False])
def test_an_inference(ask, binary):
    answer = ask("infer", request("mlp_4_16_3", ROWS, binary, request_id="r-1"))
    assert (answer.model_name, answer.id) == ("mlp_4_16_3", "r-1")
    (output,) = answer.outputs
    assert (output.name, output.datatype, output.shape) == ("y", "FP32", [2, 3])
    again = ask("infer", request("mlp_4_16_3", ROWS, not binary))
    assert again.outputs[0].as_numpy().tobytes() == output.as_numpy().tobytes()


@pytest.mark.parametrize("datatype", VALUES)
@pytest.mark.parametrize("binary", [True, False])
def test_every_datatype_comes_back(ask, kind, datatype, binary):
    if datatype == "FP16" and not binary:
        with pytest.raises(InvalidInput):
            ask("infer", request("echo_fp16", VALUES["FP16"], binary, datatype))
        return
    sent = VALUES[datatype]
    outputs = [RequestedOutput("y", {"binary_data": binary})] if kind is Rest else None
    answer = ask("infer", request(f"echo_{datatype.lower()}", sent, binary, datatype, request_outputs=outputs))
    found = answer.outputs[0].as_numpy()
    assert [text if isinstance(text, bytes) else str(text).encode() for text in found] == list(sent) \
        if datatype == "BYTES" else found.tobytes() == sent.tobytes()


@pytest.mark.parametrize("binary", [True, False])
def test_a_tensor_without_elements(ask, binary):
    answer = ask("infer", request("echo_fp32", np.zeros(0, np.float32), binary))
    assert answer.outputs[0].shape == [0] and list(answer.outputs[0].as_numpy()) == []


def test_parameters_and_deadlines(ask):
    more = {"parameters": {"text": "a", "number": 7, "yes": True, "priority": 1}}
    assert ask("infer", request("mlp_4_16_3", ROWS, **more), timeout=30).outputs[0].shape == [2, 3]


@pytest.mark.parametrize("model, array, status, words", [
    ("nobody", ROWS, (404, "NOT_FOUND"), ["nobody"]),
    ("mlp_4_16_3", ROWS[:, :3], (400, "INVALID_ARGUMENT"), ["`x`", "[2, 3]", "[-1, 4]"]),
    ("two_by_two", ROWS, (400, "INVALID_ARGUMENT"), ["`x`"]),
])
def test_refusals_carry_their_message(ask, kind, model, array, status, words):
    with pytest.raises((grpc.RpcError, httpx.HTTPStatusError)) as caught:
        ask("infer", request(model, np.ascontiguousarray(array)))
    if kind is Grpc:
        assert caught.value.code().name == status[1]
        message = caught.value.details()
    else:
        assert caught.value.response.status_code == status[0]
        # The client puts `error` of the body in front of its own words.
        message = str(caught.value)
    for word in words:
        assert word in message


def test_answers_to_the_rest_client_are_compressed_and_read(gate, runner):
    # httpx takes any coding by itself; large enough to be worth it.
    sent = np.zeros(20_000, np.float32)

    async def infer():
        headers = {}
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        async with client:
            data = request("echo_fp32", sent, binary=False)
            answer = await client.infer(gate.url, data, model_name="echo_fp32", response_headers=headers)
        return answer, headers

    answer, headers = runner.run(infer())
    assert headers["content-encoding"] == "gzip"
    assert answer.outputs[0].as_numpy().tobytes() == sent.tobytes()


def test_the_grpc_client_compresses_as_its_channel_says(gate, runner):
    sent = np.random.default_rng(7).integers(0, 8, 20_000).astype(np.float32)

    async def infer():
        gzip = ("grpc.default_compression_algorithm", int(grpc.Compression.Gzip))
        async with InferenceGRPCClient(gate.address, channel_args=[gzip]) as client:
            return await client.infer(request("echo_fp32", sent))

    assert runner.run(infer()).outputs[0].as_numpy().tobytes() == sent.tobytes()


def test_a_key_is_a_header_or_metadata(ask, kind, keyed):
    with pytest.raises((grpc.RpcError, httpx.HTTPStatusError)) as caught:
        ask("infer", request("mlp_4_16_3", ROWS), server=keyed)
    if kind is Grpc:
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        headers = list(KEY.items())
    else:
        assert caught.value.response.status_code == 401
        headers = dict(KEY)
    assert ask("infer", request("mlp_4_16_3", ROWS), server=keyed, headers=headers).outputs[0].shape == [2, 3]
    # Whether the server lives is nobody's secret.
    assert ask("is_server_ready", server=keyed) is True


def test_many_at_once(kind, gate, runner):
    async def all_of_them():
        client = kind(gate)
        try:
            numbers = [np.float32([number]) for number in range(32)]
            return await asyncio.gather(*(client.infer(request("echo_fp32", number)) for number in numbers))
        finally:
            await client.close()

    assert [answer.outputs[0].as_numpy()[0] for answer in runner.run(all_of_them())] == list(range(32))


@pytest.fixture
def ask_v1(gate, runner):
    """Calls a method of the REST client as it speaks by default: V1."""
    async def one(method, *arguments, **named):
        async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
            return await getattr(client, method)(gate.url, *arguments, **named)

    return lambda method, *arguments, **named: runner.run(one(method, *arguments, **named))


def test_v1_the_server_is_live_and_a_model_ready(ask_v1):
    assert ask_v1("is_server_live") is True
    assert ask_v1("is_model_ready", "mlp_4_16_3") is True
    with pytest.raises(httpx.HTTPStatusError, match="nobody"):
        ask_v1("is_model_ready", "nobody")


def test_v1_predicts_what_v2_infers(ask, ask_v1):
    answer = ask_v1("infer", {"instances": ROWS.tolist()}, model_name="mlp_4_16_3")
    found = np.array(answer["predictions"], np.float32)
    assert found.tobytes() == ask("infer", request("mlp_4_16_3", ROWS)).outputs[0].as_numpy().tobytes()


def test_v1_several_inputs_by_name(ask_v1):
    instances = [{"a": [1, 2], "b": [10, 20]}]
    answer = ask_v1("infer", {"instances": instances}, model_name="two_by_two")
    assert answer["predictions"] == [{"sum": [11, 22], "difference": [-9, -18]}]


def test_v1_refusals_carry_their_message(ask_v1):
    with pytest.raises(httpx.HTTPStatusError, match=r"`x`.*400"):
        ask_v1("infer", {"instances": [[1, 2, 3]]}, model_name="mlp_4_16_3")
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        ask_v1("infer", {"instances": ROWS.tolist()}, model_name="nobody")
    with pytest.raises(httpx.HTTPStatusError, match="501"):
        ask_v1("explain", "mlp_4_16_3", {"instances": ROWS.tolist()})
