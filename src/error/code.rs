//! The one table of HTTP, gRPC, WebSocket and retry (contract 00 section 2).
//!
//! A test copies this table into the README; changing a row is a change of the public interface.

/// The machine-readable kind of an error, spelled the same on every surface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request is malformed.
    InvalidArgument,
    /// The caller is not known.
    Unauthenticated,
    /// The caller is known and may not do this.
    PermissionDenied,
    /// No such model, version or route.
    NotFound,
    /// The route has other methods.
    MethodNotAllowed,
    /// The same thing is being done already.
    Conflict,
    /// Beyond a size limit.
    PayloadTooLarge,
    /// A media type or encoding that is not spoken.
    UnsupportedMediaType,
    /// Contradicts an earlier request under the same key.
    Unprocessable,
    /// The caller's own rate or quota.
    RateLimited,
    /// No room in the server.
    Overloaded,
    /// The model or the server is not ready.
    NotReady,
    /// The time is up.
    DeadlineExceeded,
    /// The client went away.
    Cancelled,
    /// Not part of this version.
    Unimplemented,
    /// A failed run, a panic, a bug.
    Internal,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The spelling on every surface, in metrics and in logs.
    pub name: &'static str,
    /// The HTTP status of V2 and V1 routes and of handshakes.
    pub http: u16,
    /// The gRPC status code.
    pub grpc: i32,
    /// Set only where the WebSocket session itself can be at fault (contract 06 C7).
    pub websocket_close: Option<u16>,
    /// Whether the same request may succeed later.
    pub retry: bool,
}

impl Code {
    /// Every code, in the order of the table.
    pub const ALL: [Self; 16] = [
        Self::InvalidArgument,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::PayloadTooLarge,
        Self::UnsupportedMediaType,
        Self::Unprocessable,
        Self::RateLimited,
        Self::Overloaded,
        Self::NotReady,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::Unimplemented,
        Self::Internal,
    ];

    /// This code's row.
    pub const fn row(self) -> Row {
        const fn row(name: &'static str, http: u16, grpc: i32, close: Option<u16>, retry: bool) -> Row {
            Row { name, http, grpc, websocket_close: close, retry }
        }
        match self {
            Self::InvalidArgument => row("invalid_argument", 400, 3, Some(4400), false),
            Self::Unauthenticated => row("unauthenticated", 401, 16, Some(4401), false),
            Self::PermissionDenied => row("permission_denied", 403, 7, Some(4403), false),
            Self::NotFound => row("not_found", 404, 5, None, false),
            Self::MethodNotAllowed => row("method_not_allowed", 405, 12, None, false),
            Self::Conflict => row("conflict", 409, 10, None, true),
            Self::PayloadTooLarge => row("payload_too_large", 413, 8, Some(1009), false),
            Self::UnsupportedMediaType => row("unsupported_media_type", 415, 12, None, false),
            Self::Unprocessable => row("unprocessable", 422, 9, None, false),
            Self::RateLimited => row("rate_limited", 429, 8, None, true),
            Self::Overloaded => row("overloaded", 503, 14, None, true),
            Self::NotReady => row("not_ready", 503, 14, Some(1012), true),
            Self::DeadlineExceeded => row("deadline_exceeded", 504, 4, None, false),
            Self::Cancelled => row("cancelled", 499, 1, None, false),
            Self::Unimplemented => row("unimplemented", 501, 12, None, false),
            Self::Internal => row("internal", 500, 13, Some(1011), false),
        }
    }

    /// The spelling on every surface.
    pub const fn name(self) -> &'static str {
        self.row().name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_snake_case() {
        let mut names: Vec<_> = Code::ALL.iter().map(|code| code.name()).collect();
        assert!(names.iter().all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Code::ALL.len());
    }

    #[test]
    fn the_table_lists_codes_in_their_own_order() {
        for (index, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, index);
        }
    }
}
