#!/usr/bin/env python3
"""Trains `digits`: which digit is this handwritten 8x8 image? Run it to make the model anew.

Data: the UCI optical recognition of handwritten digits, 1,797 images of 8x8 grey values from 0 to 16, which
scikit-learn carries. A fifth is held out, never trained on; the accuracy that is printed is that of the exported
ONNX model, on those.

    python3 -m venv /tmp/digits && /tmp/digits/bin/pip install -r models/digits/requirements.txt
    /tmp/digits/bin/python models/digits/train.py

Writes, beside this file: `1/model.onnx`, `labels.txt` (line n names class n) and `example.json`, a V2 request that
carries one of the held-out images.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

HERE = Path(__file__).resolve().parent
SEED = 7
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def export(classifier):
    """The network as ONNX, grey values in, probabilities out; the scaling is part of the model."""
    weights = [numpy_helper.from_array(w.astype(np.float32), f"weights_{i}") for i, w in enumerate(classifier.coefs_)]
    biases = [numpy_helper.from_array(b.astype(np.float32), f"bias_{i}") for i, b in enumerate(classifier.intercepts_)]
    white = numpy_helper.from_array(np.array(16, dtype=np.float32), "white")
    nodes = [
        helper.make_node("Div", ["image", "white"], ["scaled"]),
        helper.make_node("Gemm", ["scaled", "weights_0", "bias_0"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "weights_1", "bias_1"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 10])],
        [white, *weights, *biases],
        doc_string="Handwritten digits, 8x8 grey values from 0 to 16, row by row.",
    )
    # An old opset and format on purpose: every runtime that is still in use can load them.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="sluicegate")
    onnx.checker.check_model(model, full_check=True)
    return model


def main():
    images, digits = load_digits(return_X_y=True)
    images = images.astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        images, digits, test_size=0.2, random_state=SEED, stratify=digits
    )
    classifier = MLPClassifier(hidden_layer_sizes=(64,), alpha=1e-2, max_iter=500, random_state=SEED)
    classifier.fit(train_x / 16, train_y)

    model = export(classifier)
    (probabilities,) = ReferenceEvaluator(model).run(None, {"image": test_x})
    accuracy = (probabilities.argmax(axis=1) == test_y).mean()
    print(f"held-out accuracy: {accuracy:.2%} of {len(test_y)} images, trained on {len(train_y)}")
    if accuracy < 0.97:
        raise SystemExit("expected at least 97 %")

    (HERE / "1").mkdir(exist_ok=True)
    onnx.save(model, HERE / "1" / "model.onnx")
    (HERE / "labels.txt").write_text("".join(f"{name}\n" for name in NAMES))
    pixels = [int(value) for value in test_x[0]]
    request = {"inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": pixels}]}
    (HERE / "example.json").write_text(json.dumps(request) + "\n")
    print(f"example.json shows a {NAMES[test_y[0]]}, taken for a {NAMES[probabilities[0].argmax()]}")


if __name__ == "__main__":
    main()
