#!/usr/bin/env python3
"""Asks `digits` over gRPC with Triton's own client: pip install 'tritonclient[grpc]'"""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc

MODEL = Path(__file__).resolve().parent.parent / "models" / "digits"


def main(address="127.0.0.1:8080"):
    request = json.loads((MODEL / "example.json").read_text())
    image = np.array(request["inputs"][0]["data"], dtype=np.float32).reshape(1, 64)
    names = (MODEL / "labels.txt").read_text().split()

    client = grpc.InferenceServerClient(address)
    tensor = grpc.InferInput("image", [1, 64], "FP32")
    tensor.set_data_from_numpy(image)
    result = client.infer("digits", [tensor], client_timeout=5)
    probabilities = result.as_numpy("probabilities")[0]
    best = probabilities.argmax()
    print(f"{names[best]} ({probabilities[best]:.2%})")


if __name__ == "__main__":
    main(*sys.argv[1:])
