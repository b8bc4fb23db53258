//! The messages of `sluicegate.v1` (contract 06 C3), as WebSocket and NDJSON carry them.
