"""What the clients are told when something is wrong: the status they expect, and a message that names what is wrong."""

import gzip
import json
import socket

import numpy as np
import pytest
import requests
from tritonclient.utils import InferenceServerException

from four import rows


def refused(client, model, tensors, **named):
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, tensors, **named)
    return caught.value


def invalid(client, error, *words):
    """It is the caller's fault, and every word is in the message."""
    assert error.status() == client.status(400, "INVALID_ARGUMENT"), error
    for word in words:
        assert word in error.message(), (word, error.message())


def test_an_unknown_model(client):
    error = refused(client, "nobody", [client.tensor("x", rows())])
    assert error.status() == client.status(404, "NOT_FOUND") and "nobody" in error.message()


@pytest.mark.parametrize("version", ["7", "latest", "01"])
def test_an_unknown_version(client, version):
    error = refused(client, "mlp_4_16_3", [client.tensor("x", rows())], model_version=version)
    assert error.status() == client.status(404, "NOT_FOUND")
    assert "mlp_4_16_3" in error.message() and version in error.message()


@pytest.mark.parametrize("shape, said", [((2, 5), "[2, 5]"), ((8,), "[8]"), ((1, 1, 4), "[1, 1, 4]")])
@pytest.mark.parametrize("binary", [True, False])
def test_a_wrong_shape_names_the_tensor_and_both_shapes(client, shape, said, binary):
    error = refused(client, "mlp_4_16_3", [client.tensor("x", np.zeros(shape, np.float32), binary=binary)])
    invalid(client, error, "`x`", said, "[-1, 4]")


def test_a_wrong_datatype_names_the_tensor_and_both_types(client):
    error = refused(client, "mlp_4_16_3", [client.tensor("x", np.zeros((1, 4), np.int64))])
    invalid(client, error, "`x`", "INT64", "FP32")


def test_a_datatype_that_there_is_not(client):
    tensor = client.tensor("x", rows())
    tensor._datatype = "FP7"
    if client.grpc:
        tensor._input.datatype = "FP7"
    invalid(client, refused(client, "mlp_4_16_3", [tensor]), "`x`", "FP7")


def test_a_missing_input_is_named(client):
    error = refused(client, "two_by_two", [client.tensor("a", np.zeros((1, 2), np.float32))])
    invalid(client, error, "`b`")


def test_an_extra_input_is_named(client):
    tensors = [client.tensor(name, rows()) for name in ("x", "extra")]
    invalid(client, refused(client, "mlp_4_16_3", tensors), "`extra`")


def test_an_input_given_twice_is_named(client):
    tensors = [client.tensor("x", rows()), client.tensor("x", rows())]
    invalid(client, refused(client, "mlp_4_16_3", tensors), "`x`")


def test_an_unknown_output_is_named(client):
    error = refused(client, "mlp_4_16_3", [client.tensor("x", rows())], outputs=[client.wanted("z")])
    invalid(client, error, "`z`")


def test_fewer_bytes_than_the_shape_needs(client):
    tensor = client.tensor("x", rows(), shape=(2, 4))
    # What the client itself would not let pass.
    tensor._raw_data = tensor._raw_content = tensor._raw_data[:-4] if not client.grpc else tensor._raw_content[:-4]
    if not client.grpc:
        tensor._parameters["binary_data_size"] = len(tensor._raw_data)
    invalid(client, refused(client, "mlp_4_16_3", [tensor]), "`x`", "28", "32")


def test_a_broken_length_in_bytes(client):
    tensor = client.tensor("x", np.array([b"abc"], dtype=object))
    broken = b"\xff\xff\xff\x7fabc"
    tensor._raw_data = tensor._raw_content = broken
    invalid(client, refused(client, "echo_bytes", [tensor]), "`x`")


def test_a_model_of_which_an_input_has_no_type_in_the_protocol(client):
    error = refused(client, "float8", [client.tensor("x", np.zeros(1, np.float32))])
    assert error.status() == client.status(501, "UNIMPLEMENTED") and "`x`" in error.message()


@pytest.mark.parametrize("count", [0, -1])
def test_a_class_count_that_is_none(gate, count):
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}],
            "outputs": [{"name": "y", "parameters": {"classification": count}}]}
    answer = requests.post(f"{gate.url}/v2/models/mlp_4_16_3/infer", json=body, timeout=10)
    assert answer.status_code == 400 and "classification" in answer.json()["error"]


def test_a_time_that_is_too_short_is_a_deadline(client):
    # A microsecond, which no call can keep.
    error = refused(client, "mlp_4_16_3", [client.tensor("x", rows())], timeout=1)
    assert error.status() == client.status(504, "DEADLINE_EXCEEDED")


# What no client would send, said byte by byte. Every answer is JSON with a plain `error`, or Triton's clients cannot
# read it.

TENSOR = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
HEAD = json.dumps({"inputs": [TENSOR]}).encode()
RAW = np.zeros(4, np.float32).tobytes()


@pytest.mark.parametrize("length, body, words", [
    (len(HEAD), HEAD + RAW[:-1], ["x", "16"]),
    (len(HEAD), HEAD + RAW + b"more", ["4"]),
    (len(HEAD), HEAD, ["x", "16"]),
    (len(HEAD) - 1, HEAD + RAW, []),
    (len(HEAD + RAW) + 1, HEAD + RAW, [str(len(HEAD + RAW) + 1), str(len(HEAD + RAW))]),
    ("-1", HEAD + RAW, ["inference-header-content-length"]),
    ("abc", HEAD + RAW, ["inference-header-content-length"]),
    (None, HEAD[:-1], []),
    (None, b"", []),
    (None, b"[]", []),
    (None, b'{"inputs":7}', ["array"]),
    (None, HEAD, ["x"]),
])
def test_a_body_that_is_not_what_it_says(gate, length, body, words):
    headers = {} if length is None else {"inference-header-content-length": str(length)}
    answer = requests.post(f"{gate.url}/v2/models/mlp_4_16_3/infer", data=body, headers=headers, timeout=10)
    assert answer.status_code == 400 and answer.headers["content-type"] == "application/json"
    said = answer.json()
    assert isinstance(said["error"], str) and said["code"] == "invalid_argument"
    for word in words:
        assert word in said["error"]


def test_a_body_that_ends_too_early_is_refused_and_harms_nobody(gate):
    host, port = gate.address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as stream:
        stream.sendall(b"POST /v2/models/mlp_4_16_3/infer HTTP/1.1\r\nhost: a\r\ncontent-length: 500\r\n\r\n" + HEAD)
        stream.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := stream.recv(65536):
            answer += piece
    # The client has gone or says that it has: no answer at all is as good as a refusal.
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 "), answer
    assert requests.get(f"{gate.url}/v2/health/ready", timeout=10).json() == {"ready": True}


@pytest.mark.parametrize("coding, status", [("br", 415), ("gzip, gzip", 413), ("gzip", 400)])
def test_a_coding_that_is_unknown_or_broken(gate, coding, status):
    answer = requests.post(f"{gate.url}/v2/models/mlp_4_16_3/infer", data=b"no gzip", timeout=10,
                           headers={"content-encoding": coding})
    assert answer.status_code == status and isinstance(answer.json()["error"], str)


def test_what_inflates_too_much_is_cut_off(gate):
    bomb = gzip.compress(b" " * (1 << 20))
    answer = requests.post(f"{gate.url}/v2/models/mlp_4_16_3/infer", data=bomb, timeout=10,
                           headers={"content-encoding": "gzip"})
    assert answer.status_code == 413 and "100 times" in answer.json()["error"]


@pytest.mark.parametrize("method, path, status", [
    ("GET", "/v2/models/mlp_4_16_3/infer", 405),
    ("DELETE", "/v2/models/mlp_4_16_3", 405),
    ("GET", "/v2/nothing", 404),
    ("GET", "/v2/models/%2e%2e", 400),
    ("GET", "/v2/models/a%00b", 400),
])
def test_paths_and_methods(gate, method, path, status):
    answer = requests.request(method, gate.url + path, timeout=10)
    assert answer.status_code == status and isinstance(answer.json()["error"], str)
    assert ("allow" in answer.headers) is (status == 405)
