#!/usr/bin/env python3
"""Triton's own client infers `digits`, over HTTP and gRPC, as JSON and as binary data, and gets the same bits.

    pip install 'tritonclient[all]' && python3 tests/clients/triton.py 127.0.0.1:8080
"""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as http

MODEL = Path(__file__).resolve().parent.parent.parent / "models" / "digits"


def main(address="127.0.0.1:8080"):
    request = json.loads((MODEL / "example.json").read_text())
    image = np.array(request["inputs"][0]["data"], dtype=np.float32).reshape(1, 64)
    answers = {}

    client = http.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("digits")
    assert client.get_model_metadata("digits")["inputs"][0]["shape"] == [-1, 64]
    for binary in (False, True):
        tensor = http.InferInput("image", [1, 64], "FP32")
        tensor.set_data_from_numpy(image, binary_data=binary)
        wanted = http.InferRequestedOutput("probabilities", binary_data=binary)
        result = client.infer("digits", [tensor], outputs=[wanted])
        answers[f"http, {'binary' if binary else 'json'}"] = result.as_numpy("probabilities")

    client = grpc.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("digits")
    assert list(client.get_model_metadata("digits").inputs[0].shape) == [-1, 64]
    tensor = grpc.InferInput("image", [1, 64], "FP32")
    tensor.set_data_from_numpy(image)
    answers["grpc, raw"] = client.infer("digits", [tensor]).as_numpy("probabilities")

    seen = []
    client.start_stream(lambda result, error: seen.append((result, error)))
    client.async_stream_infer("digits", [tensor], request_id="1")
    client.stop_stream()
    (result, error), = seen
    assert error is None, error
    answers["grpc, stream"] = result.as_numpy("probabilities")

    try:
        client.infer("nobody", [tensor])
        raise SystemExit("an unknown model was answered")
    except grpc.InferenceServerException as error:
        assert error.status() == "StatusCode.NOT_FOUND", error

    for name, answer in answers.items():
        print(f"{name}: {answer.argmax()} ({answer.max():.4%})")
        assert answer.tobytes() == next(iter(answers.values())).tobytes(), name


if __name__ == "__main__":
    main(*sys.argv[1:])
