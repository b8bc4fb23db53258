//! The one integration binary: it links once. Every test starts its own gateway on port 0.

// A test binary has no interface that others could read.
#![allow(missing_docs, unreachable_pub, missing_debug_implementations, clippy::unwrap_used)]

mod age;
mod allocations;
mod auth;
mod bad_input;
mod bench;
mod cache;
mod canary;
mod cancel;
mod collisions;
mod copies;
mod datatypes;
mod depth;
mod doors;
mod drain;
mod ensembles;
mod floods;
mod forwarded;
mod grpc;
mod hostile;
mod limits;
mod listeners;
mod matrix;
mod memory;
mod observed;
mod onnx;
mod overload;
mod padding;
mod parity;
mod program;
mod ragged;
mod reload;
mod renewal;
mod repository;
mod secrets;
mod shared_limits;
mod statistics;
mod support;
mod surfaces;
mod switches;
mod tidy;
mod tls;
mod traces;
mod tunnels;
mod turns;
mod v1;
mod v2;
mod versions;
