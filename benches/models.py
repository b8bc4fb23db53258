#!/usr/bin/env python3
"""Makes the models of the benches: `tiny`, an MLP of 4-16-3, and `mid`, one of 768-3072-3072-768 (57 MB).

    python3 benches/models.py FOLDER

FOLDER becomes a repository (NAME/VERSION/model.onnx). Both models have a free batch axis, an input `x` and an output
`y`. Their weights are made up and the same each time. Needs nothing but Python: ONNX is written as the protobuf it is,
and random weights are made by the million as one large integer.
"""

import pathlib
import random
import struct
import sys

FLOAT = 1
IR_VERSION, OPSET = 9, 19
SIZES = {"tiny": (4, 16, 3), "mid": (768, 3072, 3072, 768)}


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
    return number(1, IR_VERSION) + text(2, "sluicegate") + text(7, graph) + text(8, number(2, OPSET))


def make(folder):
    """Makes those that are not there yet; each file is whole or absent."""
    for name, sizes in SIZES.items():
        version = pathlib.Path(folder) / name / "1"
        path = version / "model.onnx"
        if path.exists():
            continue
        version.mkdir(parents=True, exist_ok=True)
        partial = version / "model.part"
        partial.write_bytes(mlp(name, sizes, random.Random(7)))
        partial.rename(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.split("\n\n")[1].strip())
    make(sys.argv[1])
