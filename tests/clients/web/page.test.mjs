// What a browser asks before a page of another origin may call, and what it is told. Under Node nobody asks by himself.

import assert from "node:assert/strict";
import { request } from "node:http";
import test from "node:test";
import { address } from "./descriptors.mjs";

const origin = "https://app.example";
const path = `http://${address}/inference.GRPCInferenceService/ModelInfer`;
const ask = {
  "access-control-request-method": "POST",
  "access-control-request-headers": "content-type,x-grpc-web,x-user-agent,grpc-timeout,authorization",
};

/** What is sent is said header by header: fetch keeps some of them to itself. */
function send(method, headers, url = path) {
  return new Promise((resolve, reject) => {
    const sent = request(url, { method, headers }, (answer) => {
      answer.resume();
      answer.on("end", () => resolve(answer));
    });
    sent.on("error", reject);
    sent.end();
  });
}

test("a preflight of a page that may call", async () => {
  for (const url of [path, `http://${address}/v2/models/mlp_4_16_3/infer`]) {
    const answer = await send("OPTIONS", { origin, ...ask }, url);
    assert.equal(answer.statusCode, 200);
    assert.equal(answer.headers["access-control-allow-origin"], origin);
    assert.match(answer.headers["access-control-allow-methods"], /POST/);
    for (const name of ask["access-control-request-headers"].split(",")) {
      assert.ok(answer.headers["access-control-allow-headers"].split(/, ?/).includes(name), name);
    }
  }
});

test("a preflight of a page that may not", async () => {
  const answer = await send("OPTIONS", { origin: "https://elsewhere.example", ...ask });
  assert.equal(answer.headers["access-control-allow-origin"], undefined);
});

test("a page may read the status, also of an error", async () => {
  const answer = await send("POST", { origin, "content-type": "application/grpc-web+proto" });
  assert.equal(answer.statusCode, 200);
  assert.equal(answer.headers["access-control-allow-origin"], origin);
  const exposed = answer.headers["access-control-expose-headers"];
  for (const name of ["grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id"]) {
    assert.ok(exposed.split(/, ?/).includes(name), name);
  }
});

test("a stream of the client's is not for gRPC-Web", async () => {
  const path = `http://${address}/inference.GRPCInferenceService/ModelStreamInfer`;
  const answer = await fetch(path, { method: "POST", headers: { "content-type": "application/grpc-web+proto" } });
  assert.equal(answer.status, 200);
  assert.match(await answer.text(), /grpc-status:12\r\n/);
});
