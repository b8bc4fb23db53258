"""Inference by Triton's clients: every datatype, as JSON and as raw bytes, and everything a request may say besides."""

import asyncio
import copy
import gzip
import json
import queue
import time
import zlib

import ml_dtypes
import numpy as np
import pytest
import requests
import tritonclient.grpc
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from four import rows


def bits(kind, patterns, width):
    """An array made of these bit patterns, so that no value is normalised on its way here."""
    return np.array(patterns, dtype=f"<u{width}").view(kind)


# Values at the ends of each type, and those that a detour through another type would lose.
VALUES = {
    "BOOL": np.array([True, False, True]),
    "UINT8": np.array([0, 255, 7], np.uint8),
    "UINT16": np.array([0, 65535, 7], np.uint16),
    "UINT32": np.array([0, 2**32 - 1, 7], np.uint32),
    "UINT64": np.array([0, 2**64 - 1, 2**53 + 1], np.uint64),
    "INT8": np.array([-128, 127, -1], np.int8),
    "INT16": np.array([-(2**15), 2**15 - 1, -1], np.int16),
    "INT32": np.array([-(2**31), 2**31 - 1, -1], np.int32),
    "INT64": np.array([-(2**63), 2**63 - 1, 2**53 + 1], np.int64),
    # The least subnormal, minus zero, infinities, a quiet NaN with a payload.
    "FP16": bits(np.float16, [0x0001, 0x8000, 0x7C00, 0xFC00, 0x7E01, 0x3E00], 2),
    # 1.5 tells BF16 from FP16; -2 would not.
    "BF16": bits(ml_dtypes.bfloat16, [0x0001, 0x8000, 0x7F80, 0xFF80, 0x7FC1, 0x3FC0], 2),
    "FP32": bits(np.float32, [0x00000001, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00001, 0x3DCCCCCD], 4),
    "FP64": bits(np.float64, [1, 1 << 63, 0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48 | 1, 0x3FB999999999999A], 8),
    "BYTES": np.array([b"", b"a\0b", "Füße 模型".encode(), b"\xff\xfe", b"x" * 300], dtype=object),
}
# What JSON cannot carry is not asked of it (contract 01 section 3.1, contract 00 section 6).
IN_JSON = {
    **{kind: values for kind, values in VALUES.items() if kind not in ("FP16", "BF16", "FP32", "FP64", "BYTES")},
    "FP32": np.array([0.1, -2.5e-38, 3.4028235e38, 0], np.float32),
    "FP64": np.array([0.1, 5e-324, 1.7976931348623157e308, 0], np.float64),
    "BYTES": np.array([b"", b"a\0b", "Füße 模型".encode()], dtype=object),
}


def same(found, sent):
    assert found.shape == sent.shape
    if sent.dtype == object:
        assert list(found.flat) == list(sent.flat)
    else:
        assert found.dtype == sent.dtype and found.tobytes() == sent.tobytes()


@pytest.mark.parametrize("kind", VALUES)
def test_every_datatype_comes_back_bit_by_bit(client, kind):
    sent = VALUES[kind]
    result = client.infer(f"echo_{kind.lower()}", [client.tensor("x", sent, kind)])
    same(result.as_numpy("y"), sent)


@pytest.mark.parametrize("kind", ["FP32", "INT64", "BF16", "BYTES"])
def test_a_tensor_without_elements_comes_back(client, kind):
    sent = VALUES[kind][:0]
    result = client.infer(f"echo_{kind.lower()}", [client.tensor("x", sent, kind)])
    same(result.as_numpy("y"), sent)


def test_a_model_may_answer_no_elements(client):
    result = client.infer("nonzero", [client.tensor("x", np.zeros(3, np.float32))])
    same(result.as_numpy("y"), np.zeros((1, 0), np.int64))


@pytest.mark.parametrize("binary", [True, False])
def test_a_scalar_has_no_dimensions(client, binary):
    tensor = client.tensor("x", np.array(21.25, np.float32), binary=binary)
    result = client.infer("scalar", [tensor], outputs=[client.wanted("y", binary=binary)])
    same(result.as_numpy("y"), np.array(42.5, np.float32))


@pytest.mark.parametrize("kind", IN_JSON)
@pytest.mark.parametrize("into, back", [(False, False), (False, True), (True, False)])
def test_json_and_raw_bytes_mean_the_same(gate, kind, into, back):
    sent = IN_JSON[kind]
    with tritonclient.http.InferenceServerClient(gate.address) as client:
        tensor = tritonclient.http.InferInput("x", list(sent.shape), kind)
        tensor.set_data_from_numpy(sent, binary_data=into)
        wanted = tritonclient.http.InferRequestedOutput("y", binary_data=back)
        result = client.infer(f"echo_{kind.lower()}", [tensor], outputs=[wanted])
        assert ("data" in result.get_output("y")) is not back
        found = result.as_numpy("y")
        if kind == "BYTES" and not back:
            found = np.array([text.encode() for text in found], dtype=object)
        same(found, sent)


@pytest.mark.parametrize("kind", ["FP16", "BF16"])
def test_halves_are_refused_as_json_with_a_hint(gate, kind):
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": kind, "data": [1.5]}]}
    answer = requests.post(f"{gate.url}/v2/models/echo_{kind.lower()}/infer", json=body, timeout=10)
    assert answer.status_code == 400 and "binary" in answer.json()["error"] and "x" in answer.json()["error"]


def test_all_four_get_the_same_bits(gate, client):
    tensor = client.tensor("x", rows())
    plain = requests.post(
        f"{gate.url}/v2/models/mlp_4_16_3/infer",
        json={"inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP32", "data": rows().ravel().tolist()}]},
        timeout=10,
    ).json()["outputs"][0]
    same(client.infer("mlp_4_16_3", [tensor]).as_numpy("y"), np.array(plain["data"], np.float32).reshape(2, 3))


def test_several_inputs_and_only_the_outputs_asked_for(client):
    a, b = np.float32([[1, 2]]), np.int32([[10, 20]])
    tensors = [client.tensor("b", b), client.tensor("a", a)]
    both = client.infer("two_by_two", tensors)
    same(both.as_numpy("sum"), a + b.astype(np.float32))
    same(both.as_numpy("difference"), a - b.astype(np.float32))
    one = client.infer("two_by_two", tensors, outputs=[client.wanted("difference")])
    same(one.as_numpy("difference"), a - b.astype(np.float32))
    assert one.as_numpy("sum") is None and one.get_output("sum") is None


def test_the_answer_says_who_ran_and_for_which_request(client):
    result = client.infer("mlp_4_16_3", [client.tensor("x", rows())], model_version="1", request_id="r-1")
    said = client.response(result)
    assert (said["model_name"], said["model_version"], said["id"]) == ("mlp_4_16_3", "1", "r-1")


@pytest.mark.parametrize("more", [
    {"priority": 1},
    {"timeout": 30_000_000},
    {"parameters": {"text": "a", "number": 7, "yes": True, "half": 0.5}},
    {"sequence_id": 7, "sequence_start": True, "sequence_end": True},
    {"sequence_id": "seven", "sequence_start": True},
    {"headers": {"x-request-id": "of-the-caller"}},
])
def test_what_a_request_may_say_besides(client, more):
    # A copy, since the clients over HTTP write into the headers that they are given.
    result = client.infer("echo_fp32", [client.tensor("x", np.float32([1, 2]))], **copy.deepcopy(more))
    same(result.as_numpy("y"), np.float32([1, 2]))


def test_a_client_over_grpc_may_set_a_deadline_of_its_own(gate):
    with tritonclient.grpc.InferenceServerClient(gate.address) as client:
        tensor = tritonclient.grpc.InferInput("x", [1], "FP32").set_data_from_numpy(np.float32([1]))
        assert client.infer("echo_fp32", [tensor], client_timeout=30).as_numpy("y")[0] == 1


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_requests_and_answers_may_be_compressed(client, algorithm):
    # Large enough to be worth it, of a kind that shrinks, but not a hundredfold: that would be refused.
    sent = np.random.default_rng(7).integers(0, 8, 20_000).astype(np.float32)
    result = client.infer("echo_fp32", [client.tensor("x", sent)], **client.compressed(algorithm))
    same(result.as_numpy("y"), sent)


@pytest.mark.parametrize("algorithm, unpack", [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_an_answer_is_really_compressed_when_the_client_asks(gate, algorithm, unpack):
    sent = np.zeros(20_000, np.float32)
    tensor = tritonclient.http.InferInput("x", [20_000], "FP32").set_data_from_numpy(sent)
    body, length = tritonclient.http.InferenceServerClient.generate_request_body([tensor])
    answer = requests.post(
        f"{gate.url}/v2/models/echo_fp32/infer", data=body, timeout=10, stream=True,
        headers={"inference-header-content-length": str(length), "accept-encoding": algorithm},
    )
    assert answer.headers["content-encoding"] == algorithm
    packed = answer.raw.read(decode_content=False)
    assert len(packed) < 2_000
    length = int(answer.headers["inference-header-content-length"])
    json.loads(unpack(packed)[:length])
    result = tritonclient.http.InferenceServerClient.parse_response_body(
        packed, header_length=length, content_encoding=algorithm
    )
    same(result.as_numpy("y"), sent)


@pytest.mark.parametrize("kind", [tritonclient.http.InferenceServerClient, tritonclient.http.aio.InferenceServerClient])
def test_bodies_made_and_read_without_a_client(gate, kind):
    tensor = tritonclient.http.InferInput("x", [2, 4], "FP32").set_data_from_numpy(rows())
    body, length = kind.generate_request_body([tensor], request_id="by-hand")
    answer = requests.post(
        f"{gate.url}/v2/models/mlp_4_16_3/infer", data=body, timeout=10,
        headers={"inference-header-content-length": str(length)},
    )
    length = int(answer.headers["inference-header-content-length"])
    result = kind.parse_response_body(answer.content, header_length=length)
    assert result.get_response()["id"] == "by-hand" and result.as_numpy("y").shape == (2, 3)


def test_many_requests_in_flight_over_http(gate):
    with tritonclient.http.InferenceServerClient(gate.address, concurrency=4) as client:
        def ask(number):
            tensor = tritonclient.http.InferInput("x", [1], "FP32").set_data_from_numpy(np.float32([number]))
            return client.async_infer("echo_fp32", [tensor], request_id=str(number))

        asked = [ask(number) for number in range(32)]
        for number, one in enumerate(asked):
            result = one.get_result(timeout=30)
            assert result.as_numpy("y")[0] == number and result.get_response()["id"] == str(number)
        unknown = client.async_infer("nobody", [])
        with pytest.raises(InferenceServerException) as caught:
            unknown.get_result(timeout=30)
        assert caught.value.status() == "404"


def test_many_requests_in_flight_over_grpc(gate):
    answers = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(gate.address) as client:
        for number in range(32):
            tensor = tritonclient.grpc.InferInput("x", [1], "FP32").set_data_from_numpy(np.float32([number]))
            client.async_infer("echo_fp32", [tensor], lambda result, error: answers.put((result, error)),
                               request_id=str(number))
        for _ in range(32):
            result, error = answers.get(timeout=30)
            assert error is None and str(int(result.as_numpy("y")[0])) == result.get_response().id
        client.async_infer("nobody", [], lambda result, error: answers.put((result, error)))
        result, error = answers.get(timeout=30)
        assert result is None and error.status() == "StatusCode.NOT_FOUND"


@pytest.mark.parametrize("client", ["http.aio", "grpc.aio"], indirect=True)
def test_many_requests_in_flight_over_asyncio(client):
    async def all_of_them():
        def ask(number):
            return client.inner.infer("echo_fp32", [client.tensor("x", np.float32([number]))], request_id=str(number))

        return await asyncio.gather(*map(ask, range(32)))

    for number, result in enumerate(client.runner.run(all_of_them())):
        assert result.as_numpy("y")[0] == number and client.response(result)["id"] == str(number)


def test_a_client_over_grpc_may_ping_and_hold_its_connection(gate):
    options = tritonclient.grpc.KeepAliveOptions(
        keepalive_time_ms=200, keepalive_timeout_ms=5_000, keepalive_permit_without_calls=True, http2_max_pings_without_data=0
    )
    with tritonclient.grpc.InferenceServerClient(gate.address, keepalive_options=options) as client:
        tensor = tritonclient.grpc.InferInput("x", [1], "FP32").set_data_from_numpy(np.float32([1]))
        for _ in range(3):
            assert client.infer("echo_fp32", [tensor]).as_numpy("y")[0] == 1
            # Time for some pings, of which none may be one too many.
            time.sleep(0.5)
