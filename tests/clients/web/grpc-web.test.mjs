// The grpc-web package, in both of its forms: base64 text and binary. It needs a browser's XMLHttpRequest.

import assert from "node:assert/strict";
import test from "node:test";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import grpcWeb from "grpc-web";
import { address, health, infer, inference } from "./descriptors.mjs";
import { XMLHttpRequest } from "./xhr.mjs";

globalThis.XMLHttpRequest = XMLHttpRequest;

/** One method, with the functions that generated code would bring. */
function method(service, name, type = grpcWeb.MethodType.UNARY) {
  const { input, output } = service.methods.find((one) => one.name === name);
  const write = (message) => toBinary(input, create(input, message));
  const read = (bytes) => fromBinary(output, bytes);
  return new grpcWeb.MethodDescriptor(`/${service.typeName}/${name}`, type, Object, Object, write, read);
}

function ask(client, service, name, message, headers = {}) {
  const found = method(service, name);
  return client.unaryCall(`http://${address}${found.getName()}`, message, headers, found);
}

for (const format of ["text", "binary"]) {
  const client = new grpcWeb.GrpcWebClientBase({ format });

  test(`${format}: ready`, async () => {
    assert.equal((await ask(client, inference, "ModelReady", { name: "mlp_4_16_3" })).ready, true);
  });

  test(`${format}: an inference`, async () => {
    const answer = await ask(client, inference, "ModelInfer", infer, { "x-request-id": "of-the-page" });
    assert.equal(answer.id, "web");
    assert.equal(answer.rawOutputContents[0].length, 12);
  });

  test(`${format}: a large one`, async () => {
    const large = new Uint8Array(new Float32Array(100_000).map((_, index) => index).buffer);
    const answer = await ask(client, inference, "ModelInfer", {
      modelName: "echo_fp32",
      inputs: [{ name: "x", datatype: "FP32", shape: [100_000n] }],
      rawInputContents: [large],
    });
    assert.deepEqual(Buffer.from(answer.rawOutputContents[0]), Buffer.from(large));
  });

  test(`${format}: an error has its code, message and details`, async () => {
    await assert.rejects(ask(client, inference, "ModelInfer", { ...infer, modelName: "nobody" }), (error) => {
      assert.equal(error.code, grpcWeb.StatusCode.NOT_FOUND);
      assert.match(error.message, /nobody/);
      assert.ok(error.metadata["grpc-status-details-bin"]);
      assert.equal(error.metadata["error-code"], "not_found");
      return true;
    });
  });
}

// In binary form the package cannot read a stream before it ends.
test("text: a stream of the server's, until it is given up", async () => {
  const client = new grpcWeb.GrpcWebClientBase({ format: "text" });
  const found = method(health, "Watch", grpcWeb.MethodType.SERVER_STREAMING);
  const stream = client.serverStreaming(`http://${address}${found.getName()}`, {}, {}, found);
  const status = await new Promise((resolve, reject) => {
    stream.on("data", (answer) => resolve(answer.status));
    stream.on("error", reject);
  });
  stream.cancel();
  assert.equal(status, 1);
});
