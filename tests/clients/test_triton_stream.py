"""Streams of Triton's clients over gRPC: many requests on one call, one answer each, errors that end nothing."""

import contextlib
import queue

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from four import rows


def tensor(array):
    kind = tritonclient.utils.np_to_triton_dtype(array.dtype)
    return tritonclient.grpc.InferInput("x", list(array.shape), kind).set_data_from_numpy(array)


@contextlib.contextmanager
def stream(address, **named):
    """A client with a stream, and what comes out of it, as `(result, error)`."""
    answers = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), **named)
        yield client, lambda: answers.get(timeout=30)
        client.stop_stream()
    assert answers.empty()


def test_answers_come_in_the_order_of_requests_whatever_the_model(gate):
    with stream(gate.address) as (client, answer):
        for number in range(64):
            model = "echo_fp32" if number % 2 else "passthrough"
            client.async_stream_infer(model, [tensor(np.float32([number]))], request_id=str(number))
        for number in range(64):
            result, error = answer()
            assert error is None
            said = result.get_response()
            assert said.id == str(number) and said.model_version == "1"
            assert result.as_numpy("y" if number % 2 else "x")[0] == number
            assert said.parameters["triton_final_response"].bool_param is True


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_messages_of_a_stream_may_be_compressed(gate, algorithm):
    sent = np.random.default_rng(7).integers(0, 8, 20_000).astype(np.float32)
    with stream(gate.address, compression_algorithm=algorithm) as (client, answer):
        client.async_stream_infer("echo_fp32", [tensor(sent)])
        result, error = answer()
        assert error is None and result.as_numpy("y").tobytes() == sent.tobytes()


def test_a_bad_request_in_the_middle_ends_nothing(gate):
    with stream(gate.address) as (client, answer):
        client.async_stream_infer("mlp_4_16_3", [tensor(rows())], request_id="good")
        client.async_stream_infer("nobody", [tensor(rows())], request_id="unknown")
        client.async_stream_infer("mlp_4_16_3", [tensor(np.float32([1]))], request_id="shape")
        client.async_stream_infer("mlp_4_16_3", [tensor(rows())], request_id="again")
        for number, expected in enumerate([None, "nobody", "[-1, 4]", None]):
            result, error = answer()
            if expected is None:
                assert error is None and result.get_response().id == ("again" if number else "good")
            else:
                assert result is None and expected in error.message()


def test_an_error_says_for_which_request_it_is(gate):
    # The client hands its callers the text alone, so the message itself is looked at.
    def requests():
        for name in ("nobody", "mlp_4_16_3"):
            yield tritonclient.grpc.service_pb2.ModelInferRequest(model_name=name, id=f"for {name}")

    with grpc.insecure_channel(gate.address) as channel:
        stub = tritonclient.grpc.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = list(stub.ModelStreamInfer(requests(), timeout=30))
    assert [answer.infer_response.id for answer in answers] == ["for nobody", "for mlp_4_16_3"]
    assert all(answer.error_message for answer in answers)


def test_a_client_that_wants_plain_statuses_gets_one(gate):
    with stream(gate.address, headers={"triton_grpc_error": "true"}) as (client, answer):
        client.async_stream_infer("nobody", [tensor(rows())])
        result, error = answer()
        assert result is None and error.status() == "StatusCode.NOT_FOUND" and "nobody" in error.message()


def test_what_a_request_on_a_stream_may_say_besides(gate):
    with stream(gate.address) as (client, answer):
        client.async_stream_infer(
            "mlp_4_16_3", [tensor(rows())], model_version="1", outputs=[tritonclient.grpc.InferRequestedOutput("y")],
            request_id="r", sequence_id=7, sequence_start=True, sequence_end=True, enable_empty_final_response=True,
            priority=1, timeout=30_000_000, parameters={"text": "a", "number": 7, "yes": True, "half": 0.5},
        )
        result, error = answer()
        assert error is None and result.as_numpy("y").shape == (2, 3)


def test_a_stream_has_a_deadline(gate):
    with stream(gate.address, stream_timeout=0.2) as (_, answer):
        result, error = answer()
        assert result is None and error.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_a_stream_may_be_given_up(gate):
    answers = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(gate.address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("echo_fp32", [tensor(np.float32([1]))])
        assert answers.get(timeout=30)[1] is None
        client.stop_stream(cancel_requests=True)
        # The next one is as good as the first.
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("echo_fp32", [tensor(np.float32([2]))], request_id="next")
        found = [answers.get(timeout=30)]
        while found[-1][0] is None:
            assert found[-1][1].status() == "StatusCode.CANCELLED"
            found.append(answers.get(timeout=30))
        assert found[-1][0].get_response().id == "next"
        client.stop_stream()


def test_a_call_may_be_given_up(gate):
    answers = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(gate.address) as client:
        large = tensor(np.zeros(2_000_000, np.float32))
        call = client.async_infer("echo_fp32", [large], lambda result, error: answers.put((result, error)))
        call.cancel()
        result, error = answers.get(timeout=30)
        assert result is None and error.status() == "StatusCode.CANCELLED"
        assert client.is_server_ready()


async def asked(address, requests, **named):
    """What the asyncio client's stream answers to `requests`."""
    async def each():
        for request in requests:
            yield request

    async with tritonclient.grpc.aio.InferenceServerClient(address) as client:
        return [answer async for answer in client.stream_infer(each(), **named)]


def test_the_asyncio_client_streams(gate, runner):
    def request(number):
        return {"model_name": "echo_fp32", "inputs": [tensor(np.float32([number]))], "request_id": str(number)}

    answers = runner.run(asked(gate.address, map(request, range(32)), compression_algorithm="gzip"))
    for number, (result, error) in enumerate(answers):
        assert error is None and result.get_response().id == str(number) and result.as_numpy("y")[0] == number
    assert len(answers) == 32


def test_the_asyncio_client_sees_errors_between_answers(gate, runner):
    good = {"model_name": "mlp_4_16_3", "inputs": [tensor(rows())]}
    bad = {"model_name": "nobody", "inputs": [tensor(rows())]}
    answers = runner.run(asked(gate.address, [dict(good), dict(bad), dict(good)]))
    assert [error is None for _, error in answers] == [True, False, True]
    assert "nobody" in answers[1][1].message()


def test_the_asyncio_client_may_give_up(gate, runner):
    async def give_up():
        async def endless():
            while True:
                yield {"model_name": "echo_fp32", "inputs": [tensor(np.float32([1]))]}

        async with tritonclient.grpc.aio.InferenceServerClient(gate.address) as client:
            answers = client.stream_infer(endless())
            result, error = await anext(answers)
            assert error is None
            return answers.cancel()

    assert runner.run(give_up()) is True


def test_a_second_stream_of_one_client_is_the_clients_own_refusal(gate):
    with stream(gate.address) as (client, _):
        with pytest.raises(InferenceServerException, match="cannot start another stream"):
            client.start_stream(lambda result, error: None)
