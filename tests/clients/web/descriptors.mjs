// What the clients need to know of the services: descriptors that the server's own reflection told, in one file.

import { readFileSync } from "node:fs";
import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";

export const address = process.env.GATE;
export const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(process.env.DESCRIPTORS)));
export const inference = registry.getService("inference.GRPCInferenceService");
export const health = registry.getService("grpc.health.v1.Health");

/** A row for `mlp_4_16_3`, as bytes, and a request with it. */
const row = new Uint8Array(new Float32Array([0, 0.125, 0.25, 0.375]).buffer);
export const infer = {
  modelName: "mlp_4_16_3",
  id: "web",
  inputs: [{ name: "x", datatype: "FP32", shape: [1n, 4n] }],
  rawInputContents: [row],
};
