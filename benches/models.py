#!/usr/bin/env python3
"""Makes the models of the benches: `tiny`, an MLP of 4-16-3, `slow`, one of 4-1024-1024-3 (4 MB), `mid`, one of 768-3072-3072-768 (57 MB), `deep`, one of 2000 layers
of 8 (4000 nodes, 0.8 MB), and `bert`.

    python3 benches/models.py FOLDER

FOLDER becomes a repository (NAME/VERSION/model.onnx). `tiny`, `slow` and `mid` have a free batch axis, an input `x` and an output
`y`. `bert` has the shape of a small sentence encoder (MiniLM: six layers of 384, twelve heads; 44 MB with its 1000
words): `input_ids` and `attention_mask`, [rows, seq], to `pooled`, [rows, 384], the mean of what is not masked. Their weights are made up and the same each time. Needs nothing but Python: ONNX is written as the protobuf it is,
and random weights are made by the million as one large integer.
"""

import pathlib
import random
import struct
import sys

FLOAT, INT64 = 1, 7
IR_VERSION, OPSET = 9, 19
SIZES = {"tiny": (4, 16, 3), "slow": (4, 1024, 1024, 3), "mid": (768, 3072, 3072, 768), "deep": (8,) * 2001}


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def number(field, value):
    return varint(field << 3) + varint(value)


def text(field, value):
    value = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(value)) + value


def weights(source, count, exponent):
    """So many floats of either sign, each at least 2**exponent and less than twice that, as their bytes."""
    # Sign and fraction are random, the exponent is given: one AND and one OR over all of them at once.
    keep = int.from_bytes(struct.pack("<I", 0x807FFFFF) * count, "little")
    given = int.from_bytes(struct.pack("<I", exponent + 127 << 23) * count, "little")
    return (int.from_bytes(source.randbytes(4 * count), "little") & keep | given).to_bytes(4 * count, "little")


def tensor(name, dims, data):
    return b"".join(number(1, dim) for dim in dims) + number(2, FLOAT) + text(8, name) + text(9, data)


def value(name, width):
    dims = text(1, text(2, "rows")) + text(1, number(1, width))
    return text(1, name) + text(2, text(1, number(1, FLOAT) + text(2, dims)))


def node(kind, inputs, output):
    return b"".join(text(1, name) for name in inputs) + text(2, output) + text(4, kind)


def mlp(name, sizes, source):
    nodes, initializers, before = [], [], "x"
    for layer, (width, height) in enumerate(zip(sizes, sizes[1:])):
        last = layer == len(sizes) - 2
        # Large enough that every layer matters, small enough that no sum overflows.
        exponent = -1 - (width.bit_length() + 1) // 2
        initializers.append(tensor(f"w{layer}", (width, height), weights(source, width * height, exponent)))
        initializers.append(tensor(f"b{layer}", (height,), weights(source, height, exponent)))
        after = "y" if last else f"h{layer}"
        nodes.append(node("Gemm", (before, f"w{layer}", f"b{layer}"), after))
        if not last:
            nodes.append(node("Relu", (after,), f"r{layer}"))
        before = f"r{layer}"
    graph = b"".join(text(1, one) for one in nodes) + text(2, name) + b"".join(text(5, one) for one in initializers)
    graph += text(11, value("x", sizes[0])) + text(12, value("y", sizes[-1]))
    return whole(graph)


def whole(graph, opset=OPSET):
    return number(1, IR_VERSION) + text(2, "sluicegate") + text(7, graph) + text(8, number(2, opset))


def attribute(name, value):
    """An attribute of a node: a whole number, a list of them, or a fraction."""
    if isinstance(value, float):
        return text(1, name) + varint(2 << 3 | 5) + struct.pack("<f", value) + number(20, 1)
    if isinstance(value, int):
        return text(1, name) + number(3, value & (1 << 64) - 1) + number(20, 2)
    return text(1, name) + b"".join(number(8, one) for one in value) + number(20, 7)


class Graph:
    """A graph in the making."""

    def __init__(self, source):
        self.source, self.nodes, self.initializers = source, [], []

    def node(self, kind, *inputs, **attributes):
        output = f"n{len(self.nodes)}"
        more = b"".join(text(5, attribute(name, value)) for name, value in attributes.items())
        self.nodes.append(node(kind, inputs, output) + more)
        return output

    def given(self, dims, data, kind=FLOAT):
        name = f"c{len(self.initializers)}"
        self.initializers.append(b"".join(number(1, dim) for dim in dims) + number(2, kind) + text(8, name) + text(9, data))
        return name

    def weight(self, *dims, exponent=None):
        count = 1
        for dim in dims:
            count *= dim
        exponent = -1 - (dims[0].bit_length() + 1) // 2 if exponent is None else exponent
        return self.given(dims, weights(self.source, count, exponent))

    def number(self, value):
        return self.given((), struct.pack("<f", value))

    def numbers(self, *values):
        return self.given((len(values),), struct.pack(f"<{len(values)}q", *values), INT64)

    def linear(self, x, width, height):
        return self.node("Add", self.node("MatMul", x, self.weight(width, height)), self.weight(height, exponent=-6))

    def normal(self, x, width):
        ones = self.given((width,), struct.pack("<f", 1) * width)
        zeros = self.given((width,), bytes(4 * width))
        return self.node("LayerNormalization", x, ones, zeros, axis=-1)


def bert(source, layers=6, width=384, heads=12, words=1000, longest=512):
    """What is masked changes nothing: it is never attended to, and left out of the mean."""
    graph = Graph(source)
    node_of, depth = graph.node, width // heads
    axis1, axis2, heads_first = graph.numbers(1), graph.numbers(2), graph.numbers(1, 2)
    apart, together = graph.numbers(0, 0, heads, depth), graph.numbers(0, 0, width)
    scale, one, far = graph.number(depth ** -0.5), graph.number(1), graph.number(-10000)
    length = node_of("Shape", "input_ids", start=1, end=2)
    places = node_of("Slice", graph.weight(longest, width, exponent=-4), graph.numbers(0), length, graph.numbers(0))
    x = node_of("Add", node_of("Gather", graph.weight(words, width, exponent=-1), "input_ids"), places)
    x = graph.normal(x, width)
    kept = node_of("Cast", "attention_mask", to=FLOAT)
    bias = node_of("Mul", node_of("Sub", one, node_of("Unsqueeze", kept, heads_first)), far)
    for _ in range(layers):
        split = lambda perm: node_of("Transpose", node_of("Reshape", graph.linear(x, width, width), apart), perm=perm)
        query, key, value_of = split((0, 2, 1, 3)), split((0, 2, 3, 1)), split((0, 2, 1, 3))
        scores = node_of("Add", node_of("Mul", node_of("MatMul", query, key), scale), bias)
        seen = node_of("MatMul", node_of("Softmax", scores, axis=-1), value_of)
        seen = node_of("Reshape", node_of("Transpose", seen, perm=(0, 2, 1, 3)), together)
        x = graph.normal(node_of("Add", graph.linear(seen, width, width), x), width)
        inner = node_of("Gelu", graph.linear(x, width, 4 * width))
        x = graph.normal(node_of("Add", graph.linear(inner, 4 * width, width), x), width)
    kept = node_of("Unsqueeze", kept, axis2)
    total = node_of("ReduceSum", node_of("Mul", x, kept), axis1, keepdims=0)
    count = node_of("ReduceSum", kept, axis1, keepdims=0)
    graph.nodes.append(node("Div", (total, count), "pooled"))
    body = b"".join(text(1, one) for one in graph.nodes) + text(2, "bert")
    body += b"".join(text(5, one) for one in graph.initializers)
    text_axes = text(1, text(2, "rows")) + text(1, text(2, "seq"))
    for name in ("input_ids", "attention_mask"):
        body += text(11, text(1, name) + text(2, text(1, number(1, INT64) + text(2, text_axes))))
    # Gelu is an operator of its own since 20.
    return whole(body + text(12, value("pooled", width)), opset=20)


def make(folder, names=("tiny", "mid")):
    """Makes those that are not there yet; each file is whole or absent."""
    for name in names:
        version = pathlib.Path(folder) / name / "1"
        path = version / "model.onnx"
        if path.exists():
            continue
        version.mkdir(parents=True, exist_ok=True)
        partial = version / "model.part"
        source = random.Random(7)
        partial.write_bytes(mlp(name, SIZES[name], source) if name in SIZES else bert(source))
        partial.rename(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.split("\n\n")[1].strip())
    make(sys.argv[1], (*SIZES, "bert"))
