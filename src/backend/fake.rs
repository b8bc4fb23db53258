//! A deterministic back end for tests and benches: slow, failing, panicking or streaming on demand.
