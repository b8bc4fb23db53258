//! Sluicegate serves ONNX models over REST, gRPC, WebSocket and HTTP/2 streams: one process, one port, one policy.

pub mod auth;
pub mod backend;
pub mod call;
pub mod config;
pub mod error;
pub mod frontend;
pub mod layer;
pub mod limit;
pub mod model;
pub mod schedule;
pub mod stack;
pub mod telemetry;
pub mod tensor;
pub mod wire;
