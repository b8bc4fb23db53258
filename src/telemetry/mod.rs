//! Logs and metrics.

pub mod access_log;
pub mod metrics;
