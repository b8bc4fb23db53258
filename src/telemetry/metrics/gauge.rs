//! What is counted for as long as it lasts: open connections and sessions.

use prometheus::IntGauge;

/// What a connection speaks, once its first bytes have told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// WebSocket.
    WebSocket,
}

/// Lowers its gauge when dropped.
#[derive(Debug)]
pub struct Gauge(IntGauge);

// === impl Kind, Gauge ===

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::WebSocket => "websocket",
        }
    }
}

impl Gauge {
    pub(super) fn raise(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}
