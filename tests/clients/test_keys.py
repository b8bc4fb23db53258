"""Keys, as Triton's clients send them: a header over HTTP, metadata over gRPC."""

import queue

import pytest
import tritonclient.grpc.auth
import tritonclient.http.auth
from tritonclient._plugin import InferenceServerClientPlugin
from tritonclient.utils import InferenceServerException

from four import rows

# In clear what config/keys.yaml has hashed.
WEB = "sg_" + "W" * 43
WATCHER = "sg_" + "V" * 43
FORMS = [{"authorization": f"Bearer {WEB}"}, {"x-api-key": WEB}]


def refused(call, *arguments, **named):
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **named)
    return caught.value


def infer(client, model, **named):
    return client.infer(model, [client.tensor("x", rows())], **named)


def test_without_a_key_there_is_nothing_but_health(stranger):
    assert stranger.is_server_live() and stranger.is_server_ready()
    for call, arguments in ((stranger.get_server_metadata, []), (stranger.get_model_metadata, ["mlp_4_16_3"]),
                            (infer, [stranger, "mlp_4_16_3"]), (stranger.load_model, ["mlp_4_16_3"])):
        assert refused(call, *arguments).status() == stranger.status(401, "UNAUTHENTICATED")


@pytest.mark.parametrize("headers", [{"authorization": "Bearer sg_" + "X" * 43}, {"authorization": "Basic QTpC"}])
def test_a_wrong_key_is_as_good_as_none(stranger, headers):
    error = refused(infer, stranger, "mlp_4_16_3", headers=dict(headers))
    assert error.status() == stranger.status(401, "UNAUTHENTICATED")


@pytest.mark.parametrize("headers", FORMS)
def test_a_key_opens_what_was_granted(stranger, headers):
    # Copies, since the clients over HTTP write into the headers that they are given.
    assert infer(stranger, "mlp_4_16_3", headers=dict(headers)).as_numpy("y").shape == (2, 3)
    assert stranger.is_model_ready("mlp_4_16_3", headers=dict(headers)) is True
    assert stranger.read("get_model_metadata", "echo_fp32", headers=dict(headers))["name"] == "echo_fp32"


def test_a_model_without_a_grant_is_not_there(stranger):
    error = refused(infer, stranger, "fixed", headers=dict(FORMS[0]))
    assert error.status() == stranger.status(404, "NOT_FOUND")
    index = stranger.read("get_model_repository_index", headers=dict(FORMS[0]))
    names = {entry["name"] for entry in (index["models"] if stranger.grpc else index)}
    assert "mlp_4_16_3" in names and "fixed" not in names


def test_who_may_look_may_not_infer(stranger):
    headers = {"authorization": f"Bearer {WATCHER}"}
    assert stranger.read("get_model_metadata", "mlp_4_16_3", headers=dict(headers))["name"] == "mlp_4_16_3"
    error = refused(infer, stranger, "mlp_4_16_3", headers=dict(headers))
    assert error.status() == stranger.status(403, "PERMISSION_DENIED")


def test_the_clients_own_way_to_send_a_password_is_refused_as_wrong(stranger):
    module = tritonclient.grpc.auth if stranger.grpc else tritonclient.http.auth
    stranger.inner.register_plugin(module.BasicAuth("web", WEB))
    error = refused(infer, stranger, "mlp_4_16_3")
    stranger.inner.unregister_plugin()
    assert error.status() == stranger.status(401, "UNAUTHENTICATED")


def test_a_plugin_of_the_client_may_add_the_key(stranger):
    class Bearer(InferenceServerClientPlugin):
        def __call__(self, request):
            request.headers["authorization"] = f"Bearer {WEB}"

    stranger.inner.register_plugin(Bearer())
    assert infer(stranger, "mlp_4_16_3").as_numpy("y").shape == (2, 3)
    stranger.inner.unregister_plugin()


def test_a_stream_has_the_key_of_its_metadata(keyed):
    answers = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(keyed.address) as client:
        # Refused when it opens, before any request.
        client.start_stream(lambda result, error: answers.put((result, error)))
        assert answers.get(timeout=30)[1].status() == "StatusCode.UNAUTHENTICATED"
        client.stop_stream()
        client.start_stream(lambda result, error: answers.put((result, error)), headers=dict(FORMS[0]))
        tensor = tritonclient.grpc.InferInput("x", [2, 4], "FP32").set_data_from_numpy(rows())
        client.async_stream_infer("mlp_4_16_3", [tensor])
        assert answers.get(timeout=30)[0].as_numpy("y").shape == (2, 3)
        client.stop_stream()
