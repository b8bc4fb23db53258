// Connect's client for gRPC-Web (binary), over fetch.

import assert from "node:assert/strict";
import test from "node:test";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { address, health, infer, inference } from "./descriptors.mjs";

const transport = createGrpcWebTransport({ baseUrl: `http://${address}` });
const client = createClient(inference, transport);

test("ready, and the model too", async () => {
  assert.equal((await client.serverReady({})).ready, true);
  assert.equal((await client.modelReady({ name: "mlp_4_16_3" })).ready, true);
});

test("metadata has 64-bit shapes", async () => {
  const { inputs } = await client.modelMetadata({ name: "mlp_4_16_3" });
  assert.deepEqual(inputs[0].shape, [-1n, 4n]);
});

test("an inference, with headers and trailers around it", async () => {
  let headers, trailers;
  const answer = await client.modelInfer(infer, {
    onHeader: (seen) => (headers = seen),
    onTrailer: (seen) => (trailers = seen),
    timeoutMs: 10_000,
  });
  assert.equal(answer.id, "web");
  assert.deepEqual(answer.outputs[0].shape, [1n, 3n]);
  assert.equal(answer.rawOutputContents[0].length, 12);
  assert.ok(headers.get("x-request-id"));
  assert.ok(trailers);
});

test("what goes in comes out, also when it is large", async () => {
  const large = new Float32Array(300_000).map((_, index) => index);
  const answer = await client.modelInfer({
    modelName: "echo_fp32",
    inputs: [{ name: "x", datatype: "FP32", shape: [300_000n] }],
    rawInputContents: [new Uint8Array(large.buffer)],
  });
  assert.deepEqual(Buffer.from(answer.rawOutputContents[0]), Buffer.from(large.buffer));
});

test("an error has its code, message and details", async () => {
  await assert.rejects(client.modelInfer({ ...infer, modelName: "nobody" }), (error) => {
    assert.ok(error instanceof ConnectError);
    assert.equal(error.code, Code.NotFound);
    assert.match(error.rawMessage, /nobody/);
    assert.equal(error.metadata.get("error-code"), "not_found");
    const kinds = error.details.map((detail) => detail.type);
    assert.ok(kinds.includes("google.rpc.ErrorInfo") && kinds.includes("google.rpc.RequestInfo"), kinds.join());
    return true;
  });
});

test("a wrong shape names both", async () => {
  const wrong = { ...infer, inputs: [{ name: "x", datatype: "FP32", shape: [4n] }] };
  await assert.rejects(client.modelInfer(wrong), (error) => {
    assert.equal(error.code, Code.InvalidArgument);
    assert.match(error.rawMessage, /`x`.*\[4\].*\[-1, 4\]/);
    return true;
  });
});

test("a message that is not ASCII arrives whole", async () => {
  await assert.rejects(client.modelReady({ name: "模型 100%" }), (error) => {
    assert.match(error.rawMessage, /模型 100%/);
    return true;
  });
});

test("a stream of the server's, until it is given up", async () => {
  const giveUp = new AbortController();
  const seen = [];
  await assert.rejects(async () => {
    for await (const { status } of createClient(health, transport).watch({}, { signal: giveUp.signal })) {
      seen.push(status);
      giveUp.abort();
    }
  }, (error) => error.code === Code.Canceled);
  assert.deepEqual(seen, [1]);
});

test("a deadline is a status", async () => {
  const late = { headers: { "grpc-timeout": "1n" } };
  await assert.rejects(client.modelInfer(infer, late), (error) => error.code === Code.DeadlineExceeded);
});
