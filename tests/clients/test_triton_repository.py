"""Models loaded, unloaded and loaded otherwise by Triton's clients, and what may be changed besides."""

import base64
import json
import shutil
import time

import numpy as np
import pytest
import requests
from tritonclient.utils import InferenceServerException

from conftest import LABELS
from four import rows
from gate import MODELS, PATIENCE


def refused(call, *arguments, **named):
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **named)
    return caught.value


def index(manager):
    found = manager.read("get_model_repository_index")
    return found.get("models", []) if manager.grpc else found


def ready(manager, name):
    """Whether a model is ready; the clients over gRPC are told that it is not there instead."""
    try:
        return manager.is_model_ready(name)
    except InferenceServerException as error:
        assert error.status() in ("StatusCode.NOT_FOUND", "StatusCode.UNAVAILABLE")
        return False


def gone(manager, name):
    """Waits until a model that was unloaded is out of service: that is not at once."""
    started = time.monotonic()
    while ready(manager, name):
        assert time.monotonic() - started < PATIENCE
        time.sleep(0.02)


def test_a_model_is_loaded_and_unloaded(manager):
    assert not ready(manager, "echo_fp32")
    manager.load_model("echo_fp32")
    assert ready(manager, "echo_fp32")
    sent = np.float32([1, 2])
    assert manager.infer("echo_fp32", [manager.tensor("x", sent)]).as_numpy("y").tobytes() == sent.tobytes()
    manager.unload_model("echo_fp32")
    gone(manager, "echo_fp32")
    error = refused(manager.infer, "echo_fp32", [manager.tensor("x", sent)])
    assert error.status() in (manager.status(404, "NOT_FOUND"), manager.status(503, "UNAVAILABLE"))
    assert "echo_fp32" in error.message()


def test_loading_again_is_no_error(manager):
    manager.load_model("mlp_4_16_3")
    manager.load_model("mlp_4_16_3")
    assert ready(manager, "mlp_4_16_3")


def test_all_versions_that_a_model_keeps_are_served(manager):
    manager.load_model("versions")
    assert manager.is_model_ready("versions", "1") and manager.is_model_ready("versions", "2")
    answer = manager.response(manager.infer("versions", [manager.tensor("x", np.float32([1]))]))
    assert answer["model_version"] == "2"
    manager.unload_model("versions", unload_dependents=True)
    gone(manager, "versions")


def test_the_index_names_what_could_be_loaded_too(manager):
    manager.load_model("echo_bytes")
    entries = {entry["name"]: entry for entry in index(manager)}
    assert entries["echo_bytes"]["state"] == "READY" and entries["echo_bytes"]["version"] == "1"
    assert "two_by_two" in entries and entries["two_by_two"].get("state", "") != "READY"
    manager.unload_model("echo_bytes")
    gone(manager, "echo_bytes")
    entries = {entry["name"]: entry for entry in index(manager)}
    assert entries["echo_bytes"]["state"] in ("UNLOADING", "UNAVAILABLE")


def test_a_model_that_is_not_there_or_broken_is_refused(manager):
    error = refused(manager.load_model, "nobody")
    assert error.status() == manager.status(404, "NOT_FOUND") and "nobody" in error.message()
    error = refused(manager.load_model, "broken")
    assert error.status() == manager.status(400, "INVALID_ARGUMENT") and "broken" in error.message()
    assert refused(manager.unload_model, "nobody").status() == manager.status(404, "NOT_FOUND")


def test_a_model_appears_while_the_server_runs(manager, explicit):
    name = "new_" + manager.name.replace(".", "_")
    assert refused(manager.load_model, name).status() == manager.status(404, "NOT_FOUND")
    shutil.copytree(MODELS / "echo_int64", explicit.folder / name)
    manager.load_model(name)
    assert manager.infer(name, [manager.tensor("x", np.int64([7]))]).as_numpy("y")[0] == 7
    manager.unload_model(name)


def test_a_configuration_may_be_given_with_the_load(manager):
    config = {"max_batch_size": 5}
    manager.load_model("two_by_two", config=json.dumps(config))
    found = manager.read("get_model_config", "two_by_two")
    found = found["config"] if manager.grpc else found
    assert found["max_batch_size"] == 5
    manager.unload_model("two_by_two")
    gone(manager, "two_by_two")


def test_a_configuration_that_is_none_is_refused(manager):
    error = refused(manager.load_model, "two_by_two", config="{no json")
    assert error.status() == manager.status(400, "INVALID_ARGUMENT") and "config" in error.message()
    assert not ready(manager, "two_by_two")


def load_with_files(manager, name, files, config="{}"):
    if manager.grpc:
        manager.load_model(name, config=config, files=files)
        return
    # The clients over HTTP leave bytes in their JSON, which cannot be written: said by hand, in base64.
    text = {path: base64.b64encode(data).decode() for path, data in files.items()}
    body = {"parameters": {"config": config, **text}}
    answer = requests.post(f"http://{manager.address}/v2/repository/models/{name}/load", json=body, timeout=30)
    answer.raise_for_status()


def test_a_model_may_be_given_with_the_load(manager):
    name = "given_" + manager.name.replace(".", "_")
    load_with_files(manager, name, {"file:1/model.onnx": (MODELS / "echo_int64" / "1" / "model.onnx").read_bytes()})
    assert manager.infer(name, [manager.tensor("x", np.int64([7]))]).as_numpy("y")[0] == 7
    manager.unload_model(name)
    gone(manager, name)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_the_best_classes_with_their_labels(manager, count):
    scores = manager.infer("animals", [manager.tensor("x", rows())]).as_numpy("y")
    result = manager.infer("animals", [manager.tensor("x", rows())], outputs=[manager.wanted("y", class_count=count)])
    found = result.as_numpy("y")
    count = min(count, len(LABELS))
    assert found.shape == (2, count)
    for row, best in zip(scores, found):
        order = np.argsort(-row)[:count]
        assert [text.decode() for text in best] == [f"{row[k]:.6f}:{k}:{LABELS[k]}" for k in order]


def test_trace_settings_change_and_go_back(manager):
    def rate(found):
        return found["settings"]["trace_rate"]["value"][0] if manager.grpc else found["trace_rate"]

    before = rate(manager.read("get_trace_settings"))
    assert rate(manager.read("update_trace_settings", settings={"trace_rate": "7"})) == "7"
    assert rate(manager.read("get_trace_settings")) == "7"
    manager.update_trace_settings(settings={"trace_rate": None})
    assert rate(manager.read("get_trace_settings")) == before
    assert rate(manager.read("update_trace_settings", "animals", settings={"trace_rate": "9"})) == "9"
    assert rate(manager.read("get_trace_settings")) == before
    manager.update_trace_settings("animals", settings={"trace_rate": None})
    assert rate(manager.read("get_trace_settings", "animals")) == before


def test_log_settings_change_and_go_back(manager):
    def value(found, key):
        return next(iter(found["settings"][key].values())) if manager.grpc else found[key]

    assert value(manager.read("update_log_settings", {"log_verbose_level": 1}), "log_verbose_level") == 1
    assert value(manager.read("get_log_settings"), "log_verbose_level") == 1
    manager.update_log_settings({"log_verbose_level": 0})
    assert value(manager.read("get_log_settings"), "log_verbose_level") == 0
    error = refused(manager.update_log_settings, {"log_file": "elsewhere"})
    assert error.status() in (manager.status(400, "INVALID_ARGUMENT"), manager.status(501, "UNIMPLEMENTED"))
    assert "log_file" in error.message()


def test_a_setting_that_there_is_not_is_refused_by_its_name(manager):
    # The clients over gRPC take a setting that they do not know for a boolean.
    error = refused(manager.update_log_settings, {"log_colour": True})
    assert error.status() == manager.status(400, "INVALID_ARGUMENT") and "log_colour" in error.message()
    error = refused(manager.update_trace_settings, settings={"trace_colour": "red"})
    assert error.status() == manager.status(400, "INVALID_ARGUMENT") and "trace_colour" in error.message()
