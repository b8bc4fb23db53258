#!/usr/bin/env python3
"""Makes the tiny models that tests and benches run.

    python3 -m venv /tmp/models && /tmp/models/bin/pip install numpy==2.4.6 onnx==1.23.2
    /tmp/models/bin/python tests/models/make.py

`good/` is a repository (NAME/VERSION/model.onnx) of models that work:

    echo_<type>    what goes in comes out, [-1]; one for each datatype of V2
    mlp_4_16_3     the small model of the benches, [-1,4] -> [-1,3]
    scalar         no dimensions at all: twice the number that goes in
    fixed          [1,4] -> [1,4], no free axis, so nothing can be batched
    four           [4,3] -> [4,3], four rows and no others
    masked         ids and their mask, [-1,-1], -> a state of each id where the mask is 1, [-1,-1,2], and their sum, [-1,2]
    ragged         rows one behind the other, [total], and all that can be said of where they are -> the sum of each row and its
                   length, [rows], and each value less the sum of its row, [total]
    nameless       the same without names of axes, and told no more than where rows end
    two_by_two     two inputs of two types, two outputs: their sum and their difference
    reduced        [-1,2] -> the sum of each row, and of all: an output without rows
    nonzero        [-1] -> [1,-1], as many columns as there are elements that are not zero: maybe none
    constant       outputs that no input changes: a weight, and what a node makes of it
    float8         an element type that V2 cannot name
    passthrough    its output is its input, by the same name
    sequence       an output that is no tensor
    countdown      [1] -> [1], which takes as many steps as the number that goes in: as long as one likes
    outer          [-1,-1] -> [-1,-1], by way of rows x columns x columns: as much memory as one likes
    external_data  its weights lie in a file beside it
    external_nested  the same of a graph within a node: they are added where the largest number is above zero

`bad/` is a repository of models that must be refused:

    external_escape, external_absolute   weights outside the model's own folder
    corrupt, empty, text                 no ONNX at all
    unknown_operator                     ONNX that no runtime can run

`hostile/` is a repository of models that end, or fill, the process that opens or runs them:

    aborts         the smallest integer by -1, worked out when the model is opened: the processor has no such number
    aborts_in_run  the same with what goes in, so that it happens in the first run on zeros
    rows_4         the same where a run has four rows, and rows_64 where it has 64
    in_sample      the same where an input is 1
    grows          a run that takes 1 GiB
    claims         a weight of 2^31 elements, in a file of some hundred bytes
    multiplies     functions within functions, each twice: 2^30 nodes when they are inlined
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent

TYPES = {
    "bool": TensorProto.BOOL, "uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16, "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64, "int8": TensorProto.INT8, "int16": TensorProto.INT16, "int32": TensorProto.INT32,
    "int64": TensorProto.INT64, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16, "fp32": TensorProto.FLOAT,
    "fp64": TensorProto.DOUBLE, "bytes": TensorProto.STRING,
}


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def model(name, nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(nodes, name, inputs, outputs, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9, producer_name="sluicegate")


def folder(kind, name):
    path = HERE / kind / name / "1"
    path.mkdir(parents=True, exist_ok=True)
    return path


def good(name, *arguments):
    (folder("good", name) / "model.onnx").write_bytes(model(name, *arguments).SerializeToString())


def one_behind_the_other(total, rows, one_more, told):
    """Sums by running totals; an element's row is how many rows end at or before it. All
    marks say where rows are if `told`, else only `ends`."""
    numbers = {"one": [1], "zero": [0], "before_last": [-1], "far": [2**62]}
    numbers = [numpy_helper.from_array(np.array(number, dtype=np.int64), name) for name, number in numbers.items()]
    numbers.append(numpy_helper.from_array(np.array(0, dtype=np.int64), "first"))
    numbers.append(numpy_helper.from_array(np.array(1, dtype=np.int64), "step"))
    numbers.append(numpy_helper.from_array(np.array([0], dtype=np.float32), "nothing"))
    nodes = [helper.make_node("Cast", ["ends"], ["ends64"], to=TensorProto.INT64)]
    if told:
        nodes += [
            helper.make_node("Cast", ["starts"], ["starts64"], to=TensorProto.INT64),
            helper.make_node("Slice", ["bounds", "one", "far"], ["borders"]),
            helper.make_node("Cast", ["counts"], ["lengths"], to=TensorProto.FLOAT),
        ]
    else:
        nodes += [
            helper.make_node("Slice", ["ends64", "zero", "before_last"], ["inner"]),
            helper.make_node("Concat", ["zero", "inner"], ["starts64"], axis=0),
            helper.make_node("Identity", ["ends64"], ["borders"]),
            helper.make_node("Sub", ["ends64", "starts64"], ["counts64"]),
            helper.make_node("Cast", ["counts64"], ["lengths"], to=TensorProto.FLOAT),
        ]
    nodes += [
        helper.make_node("Concat", ["nothing", "values"], ["shifted"], axis=0),
        helper.make_node("CumSum", ["shifted", "first"], ["running"]),
        helper.make_node("Gather", ["running", "ends64"], ["upto"]),
        helper.make_node("Gather", ["running", "starts64"], ["before"]),
        helper.make_node("Sub", ["upto", "before"], ["sums"]),
        helper.make_node("Shape", ["values"], ["shape"]),
        helper.make_node("Squeeze", ["shape"], ["count"]),
        helper.make_node("Range", ["first", "count", "step"], ["places"]),
        helper.make_node("Unsqueeze", ["places", "one"], ["column"]),
        helper.make_node("GreaterOrEqual", ["column", "borders"], ["behind"]),
        helper.make_node("Cast", ["behind"], ["ones"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["ones", "one"], ["row"], keepdims=0),
        helper.make_node("Gather", ["sums", "row"], ["own"]),
        helper.make_node("Sub", ["values", "own"], ["deviations"]),
    ]
    inputs = [value("values", TensorProto.FLOAT, [total]), value("ends", TensorProto.INT32, [rows])]
    if told:
        inputs = [value("counts", TensorProto.INT64, [rows]), value("starts", TensorProto.FLOAT, [rows]), *inputs]
        inputs.append(value("bounds", TensorProto.INT64, [one_more]))
    outputs = [value(name, TensorProto.FLOAT, [axis]) for name, axis in (("sums", rows), ("lengths", rows), ("deviations", total))]
    used = {name for node in nodes for name in node.input}
    return nodes, inputs, outputs, [number for number in numbers if number.name in used]


def outside(location, length):
    """A weight that is said to lie in the file `location`."""
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", "0"), ("length", str(length))):
        weight.external_data.add(key=key, value=text)
    return weight


def external(location, length):
    """A model whose only weight is said to lie in the file `location`."""
    weight = outside(location, length)
    nodes = [helper.make_node("Add", ["x", "weight"], ["y"])]
    ends = [value("x", TensorProto.FLOAT, ["rows", 4])], [value("y", TensorProto.FLOAT, ["rows", 4])]
    return model("external_data", nodes, *ends, [weight]).SerializeToString()


def external_nested(location, length):
    """The same of a graph that is run only for what is above zero, so that it stays a graph of its own."""
    weight, result = outside(location, length), [value("sum", TensorProto.FLOAT, ["rows", 4])]
    added = helper.make_graph([helper.make_node("Add", ["x", "weight"], ["sum"])], "added", [], result, [weight])
    same = helper.make_graph([helper.make_node("Identity", ["x"], ["sum"])], "same", [], result)
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "zero"], ["above"]),
        helper.make_node("If", ["above"], ["y"], then_branch=added, else_branch=same),
    ]
    ends = [value("x", TensorProto.FLOAT, ["rows", 4])], [value("y", TensorProto.FLOAT, ["rows", 4])]
    zero = numpy_helper.from_array(np.array(0, dtype=np.float32), "zero")
    return model("external_nested", nodes, *ends, [zero]).SerializeToString()


def main():
    for name, kind in TYPES.items():
        nodes = [helper.make_node("Identity", ["x"], ["y"])]
        good(f"echo_{name}", nodes, [value("x", kind, ["rows"])], [value("y", kind, ["rows"])])

    random = np.random.default_rng(7)
    sizes = [("w0", (4, 16)), ("b0", (16,)), ("w1", (16, 3)), ("b1", (3,))]
    weights = [numpy_helper.from_array(random.standard_normal(size).astype(np.float32), name) for name, size in sizes]
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["y"]),
    ]
    fp32 = TensorProto.FLOAT
    good("mlp_4_16_3", nodes, [value("x", fp32, ["rows", 4])], [value("y", fp32, ["rows", 3])], weights)

    double = [helper.make_node("Add", ["x", "x"], ["y"])]
    good("scalar", double, [value("x", fp32, [])], [value("y", fp32, [])])
    good("fixed", double, [value("x", fp32, [1, 4])], [value("y", fp32, [1, 4])])

    good("four", double, [value("x", fp32, [4, 3])], [value("y", fp32, [4, 3])])

    # Whole numbers, so that sums are the same in whatever order. The last id is the one that fills up: it must be masked.
    table = np.array([[id, 10 * id] for id in range(9)] + [[1000, 1000]], dtype=np.float32)
    weights = [numpy_helper.from_array(table, "table")]
    weights += [numpy_helper.from_array(np.array([axis], dtype=np.int64), f"axis{axis}") for axis in (1, 2)]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["found"]),
        helper.make_node("Cast", ["mask"], ["flags"], to=fp32),
        helper.make_node("Unsqueeze", ["flags", "axis2"], ["column"]),
        helper.make_node("Mul", ["found", "column"], ["states"]),
        helper.make_node("ReduceSum", ["states", "axis1"], ["sum"], keepdims=0),
    ]
    inputs = [value(name, TensorProto.INT64, ["rows", "seq"]) for name in ("ids", "mask")]
    good("masked", nodes, inputs, [value("states", fp32, ["rows", "seq", 2]), value("sum", fp32, ["rows", 2])], weights)

    good("ragged", *one_behind_the_other("total", "rows", "bounds", True))
    good("nameless", *one_behind_the_other(None, None, None, False))

    nodes = [
        helper.make_node("Cast", ["b"], ["c"], to=fp32),
        helper.make_node("Add", ["a", "c"], ["sum"]),
        helper.make_node("Sub", ["a", "c"], ["difference"]),
    ]
    inputs = [value("a", fp32, ["rows", 2]), value("b", TensorProto.INT32, ["rows", 2])]
    good("two_by_two", nodes, inputs, [value("sum", fp32, ["rows", 2]), value("difference", fp32, ["rows", 2])])

    axis = numpy_helper.from_array(np.array([1], dtype=np.int64), "axis")
    nodes = [
        helper.make_node("ReduceSum", ["x", "axis"], ["sums"], keepdims=0),
        helper.make_node("ReduceSum", ["sums"], ["total"], keepdims=0),
    ]
    good("reduced", nodes, [value("x", fp32, ["rows", 2])], [value("sums", fp32, ["rows"]), value("total", fp32, [])], [axis])

    nodes = [helper.make_node("NonZero", ["x"], ["y"])]
    good("nonzero", nodes, [value("x", fp32, ["rows"])], [value("y", TensorProto.INT64, [1, "columns"])])

    int64, boolean = TensorProto.INT64, TensorProto.BOOL
    step = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["sum", "at"], ["next"])],
        "step",
        [value("at", int64, []), value("go", boolean, []), value("sum", int64, [1])],
        [value("on", boolean, []), value("next", int64, [1])],
    )
    zero = numpy_helper.from_array(np.array([0], dtype=np.int64), "zero")
    nodes = [helper.make_node("Loop", ["n", "", "zero"], ["sum"], body=step)]
    good("countdown", nodes, [value("n", int64, [1])], [value("sum", int64, [1])], [zero])

    last, middle = (numpy_helper.from_array(np.array([n], dtype=np.int64), name) for name, n in (("last", 2), ("middle", 1)))
    nodes = [
        helper.make_node("Unsqueeze", ["x", "last"], ["tall"]),
        helper.make_node("Unsqueeze", ["x", "middle"], ["wide"]),
        helper.make_node("Mul", ["tall", "wide"], ["outer"]),
        helper.make_node("Tanh", ["outer"], ["bent"]),
        helper.make_node("ReduceSum", ["bent", "last"], ["y"], keepdims=0),
    ]
    ends = [value("x", fp32, ["rows", "columns"])], [value("y", fp32, ["rows", "columns"])]
    good("outer", nodes, *ends, [last, middle])

    nodes = [helper.make_node("Cast", ["x"], ["y"], to=fp32)]
    good("float8", nodes, [value("x", TensorProto.FLOAT8E4M3FN, ["rows"])], [value("y", fp32, ["rows"])])
    good("passthrough", [], [value("x", fp32, ["rows"])], [value("x", fp32, ["rows"])])
    nodes = [helper.make_node("SplitToSequence", ["x"], ["y"], axis=0)]
    output = helper.make_tensor_sequence_value_info("y", fp32, None)
    good("sequence", nodes, [value("x", fp32, ["rows"])], [output])

    weight = numpy_helper.from_array(np.array([1, 2, 3], dtype=np.float32), "weight")
    nodes = [helper.make_node("Identity", ["weight"], ["copy"])]
    good("constant", nodes, [value("x", fp32, ["rows"])], [value(n, fp32, [3]) for n in ("weight", "copy")], [weight])

    data = np.arange(1, 5, dtype=np.float32).tobytes()
    path = folder("good", "external_data")
    (path / "model.onnx").write_bytes(external("weights.bin", len(data)))
    (path / "weights.bin").write_bytes(data)

    path = folder("good", "external_nested")
    (path / "model.onnx").write_bytes(external_nested("weights.bin", len(data)))
    (path / "weights.bin").write_bytes(data)

    path = folder("bad", "external_escape")
    (path / "model.onnx").write_bytes(external("../secret.bin", len(data)))
    # It is there and would fit: what refuses it must be the rule, not the lack of a file.
    (path.parent / "secret.bin").write_bytes(data)
    (folder("bad", "external_absolute") / "model.onnx").write_bytes(external("/etc/hostname", 4))
    (folder("bad", "corrupt") / "model.onnx").write_bytes((HERE / "good/mlp_4_16_3/1/model.onnx").read_bytes()[:100])
    (folder("bad", "empty") / "model.onnx").write_bytes(b"")
    (folder("bad", "text") / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"])]
    ends = [value("x", fp32, ["rows"])], [value("y", fp32, ["rows"])]
    (folder("bad", "unknown_operator") / "model.onnx").write_bytes(model("f", nodes, *ends).SerializeToString())


def hostile():
    """Models for a process of their own."""
    ends = [value("x", TensorProto.INT64, ["rows"])], [value("y", TensorProto.INT64, ["rows"])]
    constants = [numpy_helper.from_array(np.array([number], np.int64), name) for number, name in ((-2**63, "a"), (-1, "b"))]
    nodes = [helper.make_node("Div", ["a", "b"], ["z"]), helper.make_node("Add", ["x", "z"], ["y"])]
    written = {"aborts": model("aborts", nodes, *ends, constants)}
    nodes = [
        helper.make_node("Add", ["x", "a"], ["numerator"]),
        helper.make_node("Add", ["x", "b"], ["denominator"]),
        helper.make_node("Div", ["numerator", "denominator"], ["y"]),
    ]
    written["aborts_in_run"] = model("aborts_in_run", nodes, *ends, constants)
    minus = helper.make_node("Add", ["x", "b"], ["less"]), helper.make_node("Add", ["less", "b"], ["denominator"])
    nodes = [*minus, helper.make_node("Div", ["a", "denominator"], ["y"])]
    written["in_sample"] = model("in_sample", nodes, *ends, constants)
    for rows in (4, 64):
        above = numpy_helper.from_array(np.array([rows + 1], np.int64), "above")
        nothing = numpy_helper.from_array(np.array(0, np.int64), "nothing")
        nodes = [
            helper.make_node("Shape", ["x"], ["rows"]),
            helper.make_node("Sub", ["rows", "above"], ["denominator"]),
            helper.make_node("Div", ["a", "denominator"], ["z"]),
            helper.make_node("Mul", ["z", "nothing"], ["zero"]),
            helper.make_node("Add", ["x", "zero"], ["y"]),
        ]
        written[f"rows_{rows}"] = model(f"rows_{rows}", nodes, *ends, [constants[0], above, nothing])
    size = numpy_helper.from_array(np.array([2**28], np.int64), "size")
    nodes = [
        # Of the input, so that it is not worked out before there is one.
        helper.make_node("ReduceMin", ["x"], ["least"], keepdims=1),
        helper.make_node("Add", ["size", "least"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Add", ["x", "whole"], ["y"]),
    ]
    written["grows"] = model("grows", nodes, *ends, [size])
    claim = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[2**31], raw_data=bytes(4))
    ends_fp32 = [value("x", TensorProto.FLOAT, ["rows"])], [value("y", TensorProto.FLOAT, ["rows"])]
    written["claims"] = model("claims", [helper.make_node("Add", ["x", "weight"], ["y"])], *ends_fp32, [claim])
    imports = [helper.make_opsetid("", 19), helper.make_opsetid("ours", 1)]
    functions = [helper.make_function("ours", "f0", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], imports)]
    for level in range(1, 31):
        steps = [helper.make_node(f"f{level - 1}", [a], [b], domain="ours") for a, b in (("a", "t"), ("t", "b"))]
        functions.append(helper.make_function("ours", f"f{level}", ["a"], ["b"], steps, imports))
    many = model("multiplies", [helper.make_node("f30", ["x"], ["y"], domain="ours")], *ends)
    many.opset_import.append(helper.make_opsetid("ours", 1))
    many.functions.extend(functions)
    written["multiplies"] = many
    for name, written_model in written.items():
        (folder("hostile", name) / "model.onnx").write_bytes(written_model.SerializeToString())


if __name__ == "__main__":
    main()
    hostile()
