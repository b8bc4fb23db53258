#!/usr/bin/env python3
r"""Clients of TensorFlow Serving and KServe V1 ask `digits` and `text_length`, over REST and gRPC, and get the same bits.

REST is spoken by `requests`, as both projects' documentation shows it. gRPC is spoken by `min-tfs-client`, which brings
the published messages of TensorFlow Serving without TensorFlow; they are of an age that needs an old protobuf:

    make clients        # asks a server of its own, in the environment that requirements-tfserving.txt pins
    PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python target/clients/tfserving/bin/python \
        tests/clients/tfserving.py 127.0.0.1:8080
"""

import base64
import json
import sys
from pathlib import Path

import grpc
import numpy as np
import requests
from google.protobuf.wrappers_pb2 import Int64Value
from min_tfs_client.requests import TensorServingClient
from min_tfs_client.tensors import ndarray_to_tensor_proto, tensor_proto_to_ndarray
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.framework.tensor_shape_pb2 import TensorShapeProto
from tensorflow.core.framework.types_pb2 import DT_FLOAT, DT_STRING
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest, SignatureDefMap
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, ModelVersionStatus
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

MODEL = Path(__file__).resolve().parent.parent.parent / "models" / "digits"


def rest(address, image):
    """KServe's questions, then TensorFlow Serving's; without `content-type`, which their clients often leave out."""
    base = f"http://{address}"
    assert requests.get(f"{base}/").json() == {"status": "alive"}
    assert "digits" in requests.get(f"{base}/v1/models").json()["models"]
    model = requests.get(f"{base}/v1/models/digits").json()
    assert model["name"] == "digits" and model["ready"] is True
    assert model["model_version_status"][0]["state"] == "AVAILABLE"
    metadata = requests.get(f"{base}/v1/models/digits/metadata").json()
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["image"]["dtype"] == "DT_FLOAT", signature

    pixels = image.tolist()
    answers = {}
    for name, path, body, member in [
        ("rows", "digits:predict", {"instances": pixels}, "predictions"),
        ("named rows", "digits:predict", {"instances": [{"image": row} for row in pixels]}, "predictions"),
        ("columns", "digits:predict", {"inputs": pixels}, "outputs"),
        ("named columns", "digits/versions/1:predict", {"signature_name": "serving_default", "inputs": {"image": pixels}}, "outputs"),
    ]:
        answer = requests.post(f"{base}/v1/models/{path}", data=json.dumps(body))
        answer.raise_for_status()
        assert answer.headers["content-type"] == "application/json"
        answers[f"rest, {name}"] = np.array(answer.json()[member], dtype=np.float32)

    examples = {"examples": [{"image": row} for row in pixels]}
    pairs = requests.post(f"{base}/v1/models/digits:classify", data=json.dumps(examples)).json()["results"]
    answers["rest, classified"] = np.array([[score for _, score in row] for row in pairs], dtype=np.float32)
    print("best label:", max(pairs[0], key=lambda pair: pair[1])[0])

    binary = {"instances": [{"b64": base64.b64encode("Füße".encode()).decode()}, "gate"]}
    lengths = requests.post(f"{base}/v1/models/text_length:predict", data=json.dumps(binary)).json()
    assert lengths == {"predictions": [4, 4]}, lengths

    for path, body, status in [
        ("nobody:predict", {"instances": [1]}, 404),
        ("digits:predict", {"instances": [[1, 2]]}, 400),
        ("digits:predict", {"instances": [1], "inputs": [1]}, 400),
        ("digits:explain", {"instances": pixels}, 501),
    ]:
        refused = requests.post(f"{base}/v1/models/{path}", data=json.dumps(body))
        assert refused.status_code == status and isinstance(refused.json()["error"], str), (path, refused.text)
    return answers


def rpc(address, image):
    answers = {}
    host, port = address.split(":")
    client = TensorServingClient(host=host, port=int(port))
    response = client.predict_request(model_name="digits", input_dict={"image": image}, model_version=1)
    assert response.model_spec.version.value == 1
    # This client knows lists alone: it was answered with one, because it sent one.
    answers["grpc, lists"] = tensor_proto_to_ndarray(response.outputs["probabilities"])
    words = client.predict_request(model_name="text_length", input_dict={"text": np.array(["Füße", "gate"])})
    assert list(tensor_proto_to_ndarray(words.outputs["length"])) == [4, 4]

    channel = grpc.insecure_channel(address)
    predictions, models = PredictionServiceStub(channel), ModelServiceStub(channel)
    request = PredictRequest(output_filter=["probabilities"])
    request.model_spec.name = "digits"
    request.inputs["image"].CopyFrom(TensorProto(
        dtype=DT_FLOAT,
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in image.shape]),
        tensor_content=image.tobytes(),
    ))
    output = predictions.Predict(request, 10).outputs["probabilities"]
    answers["grpc, raw"] = np.frombuffer(output.tensor_content, dtype=np.float32).reshape([d.size for d in output.tensor_shape.dim])

    # One value stands for the whole shape.
    request.inputs["image"].CopyFrom(TensorProto(
        dtype=DT_FLOAT, tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in image.shape]), float_val=[0.0],
    ))
    assert len(predictions.Predict(request, 10).outputs["probabilities"].float_val) == 10 * len(image)

    status = GetModelStatusRequest()
    status.model_spec.name = "digits"
    assert models.GetModelStatus(status, 10).model_version_status[0].state == ModelVersionStatus.AVAILABLE
    question = GetModelMetadataRequest(metadata_field=["signature_def"])
    question.model_spec.name = "digits"
    question.model_spec.version.CopyFrom(Int64Value(value=1))
    signature = SignatureDefMap()
    assert predictions.GetModelMetadata(question, 10).metadata["signature_def"].Unpack(signature)
    assert signature.signature_def["serving_default"].inputs["image"].dtype == DT_FLOAT
    assert ndarray_to_tensor_proto(np.array(["a"])).dtype == DT_STRING

    request.model_spec.name = "nobody"
    try:
        predictions.Predict(request, 10)
        raise SystemExit("an unknown model was answered")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
    return answers


def main(address="127.0.0.1:8080"):
    request = json.loads((MODEL / "example.json").read_text())
    image = np.array(request["inputs"][0]["data"], dtype=np.float32).reshape(1, 64)
    answers = {**rest(address, image), **rpc(address, image)}
    for name, answer in answers.items():
        print(f"{name}: {answer.argmax()} ({answer.max():.4%})")
        assert answer.tobytes() == next(iter(answers.values())).tobytes(), name


if __name__ == "__main__":
    main(*sys.argv[1:])
