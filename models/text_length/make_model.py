#!/usr/bin/env python3
"""Makes `text_length`: how many characters has each string? Run it to make the model anew.

    python3 -m venv /tmp/text_length && /tmp/text_length/bin/pip install -r models/text_length/requirements.txt
    /tmp/text_length/bin/python models/text_length/make_model.py

Nothing is learnt: ONNX Runtime's `Tokenizer` cuts every string into its characters (Unicode code points, so the strings
must be UTF-8) and fills the shorter ones up; what is no filling is counted. Writes `1/model.onnx` beside this file.
"""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

HERE = Path(__file__).resolve().parent

# Longer than one character, so that no character can be taken for it.
FILLING = b"filling"


def main():
    nodes = [
        # One string more than asked for, dropped again below: `Tokenizer` returns no second axis for no strings.
        helper.make_node("Concat", ["text", "filling"], ["texts"], axis=0),
        helper.make_node(
            "Tokenizer", ["texts"], ["characters"], domain="com.microsoft",
            mark=0, mincharnum=1, pad_value=FILLING, separators=[""],
        ),
        helper.make_node("Equal", ["characters", "filling"], ["is_filling"]),
        helper.make_node("Not", ["is_filling"], ["is_character"]),
        helper.make_node("Cast", ["is_character"], ["ones"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["ones", "last_axis"], ["lengths"], keepdims=0),
        helper.make_node("Slice", ["lengths", "zero", "last_axis"], ["length"]),
    ]
    graph = helper.make_graph(
        nodes,
        "text_length",
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["rows"])],
        [helper.make_tensor_value_info("length", TensorProto.INT64, ["rows"])],
        [
            helper.make_tensor("filling", TensorProto.STRING, [1], [FILLING]),
            helper.make_tensor("last_axis", TensorProto.INT64, [1], [-1]),
            helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
        ],
        doc_string="The length of each string, in characters.",
    )
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="sluicegate")
    (HERE / "1").mkdir(exist_ok=True)
    onnx.save(model, HERE / "1" / "model.onnx")


if __name__ == "__main__":
    main()
