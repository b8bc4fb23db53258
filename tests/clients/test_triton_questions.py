"""What Triton's clients ask about a server and its models: health, metadata, configuration, statistics, settings."""

import pytest
from google.protobuf import json_format
from tritonclient.utils import InferenceServerException

from four import number, rows


def refused(call, *arguments, **named):
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **named)
    return caught.value


def test_the_server_is_live_and_ready(client):
    assert client.is_server_live() is True
    assert client.is_server_ready() is True


def test_a_model_is_ready_by_name_and_by_version(client):
    assert client.is_model_ready("mlp_4_16_3") is True
    assert client.is_model_ready("mlp_4_16_3", "1") is True


@pytest.mark.parametrize("name, version", [("nobody", ""), ("mlp_4_16_3", "7")])
def test_an_unknown_model_or_version_is_not_ready(client, name, version):
    if client.grpc:
        assert refused(client.is_model_ready, name, version).status() == "StatusCode.NOT_FOUND"
    else:
        assert client.is_model_ready(name, version) is False


def test_server_metadata_names_the_extensions_that_there_are(client):
    found = client.read("get_server_metadata")
    assert found["name"] == "sluicegate" and found["version"]
    there = {"binary_tensor_data", "classification", "model_repository", "model_configuration", "statistics", "parameters"}
    assert there <= set(found["extensions"])
    assert not {"system_shared_memory", "cuda_shared_memory"} & set(found["extensions"])


def test_model_metadata_has_names_types_and_shapes(client):
    found = client.read("get_model_metadata", "two_by_two")
    assert (found["name"], found["versions"], found["platform"]) == ("two_by_two", ["1"], "onnxruntime_onnx")
    tensors = [(t["name"], t["datatype"], [number(d) for d in t["shape"]]) for t in found["inputs"] + found["outputs"]]
    assert tensors == [
        ("a", "FP32", [-1, 2]), ("b", "INT32", [-1, 2]), ("sum", "FP32", [-1, 2]), ("difference", "FP32", [-1, 2]),
    ]
    assert client.read("get_model_metadata", "two_by_two", "1") == found


def test_model_config_says_whether_rows_are_batched(client):
    found = client.read("get_model_config", "mlp_4_16_3")
    found = found["config"] if client.grpc else found
    assert (found["name"], found["platform"], found["backend"]) == ("mlp_4_16_3", "onnxruntime_onnx", "onnxruntime")
    assert found["max_batch_size"] > 1
    (tensor,) = found["input"]
    assert (tensor["name"], tensor["data_type"], [number(d) for d in tensor["dims"]]) == ("x", "TYPE_FP32", [4])
    alone = client.read("get_model_config", "fixed", "1")
    alone = alone["config"] if client.grpc else alone
    # A message in JSON leaves zeros out.
    assert alone.get("max_batch_size", 0) == 0
    assert [number(d) for d in alone["input"][0]["dims"]] == [1, 4]


@pytest.mark.parametrize("method", ["get_model_metadata", "get_model_config", "get_inference_statistics"])
def test_questions_about_nobody_are_not_found(client, method):
    for name, version in (("nobody", ""), ("mlp_4_16_3", "7")):
        error = refused(client.read, method, name, version)
        assert error.status() == client.status(404, "NOT_FOUND")
        assert name in error.message()


def test_the_index_lists_every_model_with_its_state(client):
    found = client.read("get_model_repository_index")
    found = found["models"] if client.grpc else found
    states = {(entry["name"], entry["version"]): entry["state"] for entry in found}
    assert states["mlp_4_16_3", "1"] == "READY" and states["echo_bytes", "1"] == "READY"


def test_statistics_count_what_this_client_ran(client):
    def counted(found):
        (one,) = [entry for entry in found["model_stats"] if entry["name"] == "two_by_two"]
        return one

    def ask(*arguments):
        return counted(client.read("get_inference_statistics", *arguments))

    before = ask("two_by_two")
    two = rows(1).reshape(2, 2)
    client.infer("two_by_two", [client.tensor("a", two), client.tensor("b", two.astype("int32"))])
    after = ask("two_by_two")
    for key, more in (("inference_count", 2), ("execution_count", 1)):
        assert number(after[key]) - number(before.get(key, 0)) == more, key
    for phase in ("success", "queue", "compute_infer"):
        one = after["inference_stats"][phase]
        assert number(one["count"]) - number(before["inference_stats"][phase].get("count", 0)) == 1, phase
    assert number(after["inference_stats"]["success"]["ns"]) > 0
    assert ask("two_by_two", "1") == after
    # All models, which are many.
    everything = client.read("get_inference_statistics")
    assert counted(everything) == after and len(everything["model_stats"]) > 20


def test_trace_settings_are_read_and_say_that_nothing_is_traced(client):
    for model in (None, "mlp_4_16_3"):
        found = client.read("get_trace_settings", model)
        found = {k: v["value"] for k, v in found["settings"].items()} if client.grpc else found
        assert found["trace_level"] == ["OFF"]


def test_log_settings_are_read(client):
    found = client.read("get_log_settings")
    if client.grpc:
        found = {key: next(iter(value.values())) for key, value in found["settings"].items()}
    assert found["log_info"] is True and found["log_error"] is True and number(found["log_verbose_level"]) == 0


def test_settings_change_only_where_clients_may_manage(client):
    for call, argument in ((client.update_trace_settings, {"settings": {"trace_rate": "7"}}),
                           (client.update_log_settings, {"settings": {"log_info": False}})):
        error = refused(call, **argument)
        assert error.status() == client.status(501, "UNIMPLEMENTED")
        assert "models.control" in error.message() or "explicit" in error.message()


@pytest.mark.parametrize("client", ["grpc", "grpc.aio"], indirect=True)
@pytest.mark.parametrize("method, arguments", [
    ("get_server_metadata", []), ("get_model_metadata", ["two_by_two"]), ("get_model_config", ["two_by_two"]),
    ("get_model_repository_index", []), ("get_inference_statistics", ["constant"]), ("get_trace_settings", []),
    ("get_log_settings", []), ("get_system_shared_memory_status", []), ("get_cuda_shared_memory_status", []),
])
def test_messages_and_their_json_say_the_same(client, method, arguments):
    message = getattr(client, method)(*arguments)
    found = json_format.ParseDict(client.read(method, *arguments), type(message)())
    assert found == message


@pytest.mark.parametrize("client", ["http", "http.aio"], indirect=True)
def test_a_query_changes_nothing(client):
    query = {"a": 1, "b": ["x", "y"]}
    assert client.is_model_ready("mlp_4_16_3", query_params=query) is True
    assert client.get_model_metadata("mlp_4_16_3", query_params=query)["name"] == "mlp_4_16_3"


@pytest.mark.parametrize("kind", ["system", "cuda"])
def test_there_is_no_shared_memory(client, kind):
    found = client.read(f"get_{kind}_shared_memory_status")
    assert found == ({} if client.grpc else [])
    # Many clients begin with this.
    getattr(client, f"unregister_{kind}_shared_memory")()
    getattr(client, f"unregister_{kind}_shared_memory")("region")
    arguments = ("region", "/key", 64) if kind == "system" else ("region", b"aGFuZGxl", 0, 64)
    error = refused(getattr(client, f"register_{kind}_shared_memory"), *arguments)
    assert error.status() == client.status(501, "UNIMPLEMENTED")
    assert "shared memory" in error.message()


def test_an_input_in_shared_memory_is_refused_by_its_name(client):
    tensor = client.plain.InferInput("x", [1, 4], "FP32")
    tensor.set_shared_memory("region", 16)
    error = refused(client.infer, "mlp_4_16_3", [tensor])
    assert error.status() == client.status(400, "INVALID_ARGUMENT")
    assert "x" in error.message() and "shared" in error.message()
