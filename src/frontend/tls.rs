//! rustls configuration, ALPN, reload.
