"""Triton's four clients behind one way of asking, so that one test speaks for all of them.

What differs is kept here: the clients over gRPC answer messages unless asked for JSON, and print 64-bit numbers as
strings then; the `aio` forms answer coroutines.
"""

import asyncio
import functools
import inspect

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio

_MODULES = {
    "http": tritonclient.http,
    "http.aio": tritonclient.http.aio,
    "grpc": tritonclient.grpc,
    "grpc.aio": tritonclient.grpc.aio,
}


class Client:
    """One of the four. Its methods are those of `InferenceServerClient`; those of the `aio` forms are waited for."""

    def __init__(self, name, address, runner):
        self.name = name
        self.grpc = name.startswith("grpc")
        self.aio = name.endswith("aio")
        self.runner = runner
        self.address = address
        self.plain = _MODULES["grpc" if self.grpc else "http"]

        async def inside_the_loop():
            return _MODULES[name].InferenceServerClient(address)

        self.inner = runner.run(inside_the_loop()) if self.aio else _MODULES[name].InferenceServerClient(address)

    def __getattr__(self, name):
        method = getattr(self.inner, name)

        @functools.wraps(method)
        def call(*arguments, **named):
            result = method(*arguments, **named)
            return self.runner.run(_awaited(result)) if inspect.isawaitable(result) else result

        return call

    def read(self, method, *arguments, **named):
        """What a `get_` or `update_` method answers, as plain Python."""
        if self.grpc:
            named["as_json"] = True
        return getattr(self, method)(*arguments, **named)

    def tensor(self, name, array, datatype=None, binary=True, shape=None):
        """An input. `binary=False` is JSON over HTTP; gRPC has one form only."""
        if datatype is None:
            datatype = tritonclient.utils.np_to_triton_dtype(array.dtype)
        tensor = self.plain.InferInput(name, list(array.shape if shape is None else shape), datatype)
        if self.grpc:
            return tensor.set_data_from_numpy(array)
        return tensor.set_data_from_numpy(array, binary_data=binary)

    def wanted(self, name, binary=True, class_count=0):
        """An output to be named in a request."""
        if self.grpc:
            return self.plain.InferRequestedOutput(name, class_count=class_count)
        return self.plain.InferRequestedOutput(name, binary_data=binary, class_count=class_count)

    def response(self, result):
        """The fields of a whole response: `model_name`, `model_version`, `id`."""
        return result.get_response(as_json=True) if self.grpc else result.get_response()

    def compressed(self, algorithm):
        """The arguments of `infer` that compress what goes and what comes."""
        if self.grpc:
            return {"compression_algorithm": algorithm}
        return {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}

    def status(self, http, grpc):
        """Which of the two a refusal carries."""
        return f"StatusCode.{grpc}" if self.grpc else str(http)


async def _awaited(result):
    return await result


def number(value):
    """A number of a response: JSON made from a message has the 64-bit ones as strings."""
    return int(value)


def rows(count=2):
    """Rows for `mlp_4_16_3`, each another."""
    return np.arange(count * 4, dtype=np.float32).reshape(count, 4) / 8
