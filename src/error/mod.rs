//! What went wrong, in the words of the domain.
//!
//! Layers, codecs and back ends return [`Error`] as a value; only front-ends turn one into bytes,
//! through the table in [`code`]. This module knows no protocol: the numbers of HTTP, gRPC and
//! WebSocket stand in [`code::Row`] as plain integers and nowhere else.

mod cap;
mod code;
mod limit;

pub use cap::{Allowance, Cap};
pub use code::{Code, Row};
pub use limit::Limit;

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

/// How far a call has come; named in deadline errors and in the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Stage {
    /// The head is known; nothing has been decided yet.
    #[default]
    Received = 0,
    /// The body is being read or decoded.
    Reading = 1,
    /// The job waits for an instance.
    Queued = 2,
    /// The model runs.
    Running = 3,
    /// The reply is being sent in pieces.
    Streaming = 4,
}

impl Stage {
    /// The word used in messages, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Reading => "reading",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Streaming => "streaming",
        }
    }

    /// The stage with this discriminant; anything unknown is the last one.
    pub const fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Received,
            1 => Self::Reading,
            2 => Self::Queued,
            3 => Self::Running,
            _ => Self::Streaming,
        }
    }
}

/// A cause that only the log may read.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// What went wrong.
///
/// Cheap to clone: one failed batch is reported to many callers. [`Display`](fmt::Display) is what
/// clients read; [`source`](std::error::Error::source) is for logs only (contract 00 section 2,
/// rule 3).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// No credentials, or credentials that prove nothing.
    Unauthenticated,
    /// The caller is known and has some grant on the model, but not for this.
    Forbidden {
        /// What was tried, as a verb phrase: `infer with this model`.
        action: &'static str,
    },
    /// No such model or version, or its existence is private to others.
    ModelNotFound {
        /// The name, as the client wrote it.
        model: Arc<str>,
        /// The version, if one was named.
        version: Option<Arc<str>>,
    },
    /// No such path or method name; answered by a route table before there is a call.
    NoRoute(Cow<'static, str>),
    /// The model exists and cannot run now.
    ModelNotReady {
        /// The model's name.
        model: Arc<str>,
        /// Its state, as a word: `loading`, `failed`, `unloading`.
        state: &'static str,
    },
    /// The request as a whole is malformed.
    InvalidRequest(Cow<'static, str>),
    /// What came is no message of its protocol, which may have a status of its own for that (contract 05 section 1.4).
    MalformedMessage(Cow<'static, str>),
    /// One tensor of the request is wrong.
    InvalidTensor {
        /// Its name.
        tensor: Arc<str>,
        /// What was found and what was expected.
        reason: Cow<'static, str>,
    },
    /// A media type or content encoding that is not spoken here.
    UnsupportedMedia(Cow<'static, str>),
    /// A part of the protocol that this version does not have.
    Unimplemented(Cow<'static, str>),
    /// The path exists and has other methods.
    MethodNotAllowed {
        /// The value of `Allow`.
        allow: &'static str,
    },
    /// A body or message beyond its limit.
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// What takes more than the whole memory budget: there will never be room for it.
    NeverFits {
        /// What it needs as far as is known, in bytes, with what the same call holds besides.
        bytes: u64,
        /// The budget (`limits.concurrency.memory`), in bytes.
        budget: u64,
    },
    /// A body that inflates to far more than it is.
    InflatesTooMuch {
        /// The most that one byte may become.
        ratio: usize,
    },
    /// A body that is compressed more than once.
    StackedCodings,
    /// The fields behind a body are beyond their limit. HTTP has a status for that and we have no code, so to all else it
    /// is a malformed request (contract 00 section 2).
    TrailersTooLarge,
    /// The same thing is being done already.
    Conflict(Cow<'static, str>),
    /// The request contradicts an earlier one under the same key.
    Unprocessable(Cow<'static, str>),
    /// This caller is over its rate or quota.
    RateLimited {
        /// When the next call would be accepted.
        retry_after: Duration,
        /// What is used up.
        cap: Cap,
    },
    /// The server or the model has no room.
    Overloaded {
        /// What is full.
        limit: Limit,
    },
    /// The time is up.
    DeadlineExceeded {
        /// Where the time ran out.
        stage: Stage,
    },
    /// The client's body stopped arriving (`limits.timers.read_stall`).
    BodyStalled,
    /// The client went away or took its call back.
    Cancelled,
    /// The server is draining and takes no new work.
    ShuttingDown,
    /// The back end failed. Clients read "inference failed".
    Backend(Cause),
    /// A bug or a panic of ours. Clients read "internal error".
    Internal(Cause),
}

impl Error {
    /// The machine-readable kind of this error.
    pub fn code(&self) -> Code {
        match self {
            Self::Unauthenticated => Code::Unauthenticated,
            Self::Forbidden { .. } => Code::PermissionDenied,
            Self::ModelNotFound { .. } | Self::NoRoute(_) => Code::NotFound,
            Self::ModelNotReady { .. } | Self::ShuttingDown => Code::NotReady,
            Self::InvalidRequest(_)
            | Self::MalformedMessage(_)
            | Self::InvalidTensor { .. }
            | Self::TrailersTooLarge => Code::InvalidArgument,
            Self::UnsupportedMedia(_) => Code::UnsupportedMediaType,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::MethodNotAllowed { .. } => Code::MethodNotAllowed,
            Self::TooLarge { .. } | Self::NeverFits { .. } | Self::InflatesTooMuch { .. } | Self::StackedCodings => {
                Code::PayloadTooLarge
            }
            Self::Conflict(_) => Code::Conflict,
            Self::Unprocessable(_) => Code::Unprocessable,
            Self::RateLimited { .. } => Code::RateLimited,
            Self::Overloaded { .. } => Code::Overloaded,
            Self::DeadlineExceeded { .. } | Self::BodyStalled => Code::DeadlineExceeded,
            Self::Cancelled => Code::Cancelled,
            Self::Backend(_) | Self::Internal(_) => Code::Internal,
        }
    }

    /// How long the client should wait before it tries again, where the table says that it may.
    ///
    /// One second where we know nothing better (contract 10 section 2: at least 1).
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } => Some(*retry_after),
            Self::Overloaded { .. } | Self::ModelNotReady { .. } | Self::ShuttingDown => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// An internal error whose text goes to the log only.
    pub fn internal(text: impl Into<String>) -> Self {
        Self::Internal(Arc::new(Text(text.into())))
    }

    /// A failure of the back end whose text goes to the log only.
    pub fn backend(text: impl Into<String>) -> Self {
        Self::Backend(Arc::new(Text(text.into())))
    }

    /// A tensor that is wrong, with what was found and what was expected.
    pub fn tensor(tensor: impl Into<Arc<str>>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::InvalidTensor { tensor: tensor.into(), reason: reason.into() }
    }

    /// A malformed request, with what was found and what was expected.
    pub fn invalid(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::InvalidRequest(reason.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unauthenticated => f.write_str("valid credentials are required"),
            Self::Forbidden { action } => write!(f, "not allowed to {action}"),
            Self::ModelNotFound { model, version: None } => write!(f, "model `{model}` is unknown"),
            Self::ModelNotFound { model, version: Some(version) } => {
                write!(f, "version `{version}` of model `{model}` is unknown")
            }
            Self::ModelNotReady { model, state } => write!(f, "model `{model}` is {state}"),
            Self::NoRoute(text)
            | Self::InvalidRequest(text)
            | Self::MalformedMessage(text)
            | Self::UnsupportedMedia(text)
            | Self::Unimplemented(text)
            | Self::Conflict(text)
            | Self::Unprocessable(text) => f.write_str(text),
            Self::InvalidTensor { tensor, reason } => write!(f, "tensor `{tensor}` {reason}"),
            Self::MethodNotAllowed { allow } => write!(f, "method not allowed, expected {allow}"),
            Self::TooLarge { limit } => write!(f, "larger than the limit of {limit} bytes"),
            Self::NeverFits { bytes, budget } => {
                write!(f, "needs {bytes} bytes of memory, expected at most {budget} (`limits.concurrency.memory`)")
            }
            Self::InflatesTooMuch { ratio } => write!(f, "inflates to more than {ratio} times its size"),
            Self::StackedCodings => f.write_str("compressed more than once, expected one `content-encoding`"),
            Self::TrailersTooLarge => f.write_str("the body has more trailer fields than their limit"),
            Self::RateLimited { cap, .. } => write!(f, "rate limit reached: {cap}"),
            Self::Overloaded { limit } => write!(f, "no room: {limit}"),
            Self::DeadlineExceeded { stage } => write!(f, "deadline exceeded while {}", stage.name()),
            Self::BodyStalled => f.write_str("the request body stopped arriving"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::ShuttingDown => f.write_str("the server is shutting down"),
            Self::Backend(_) => f.write_str("inference failed"),
            Self::Internal(_) => f.write_str("internal error"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Backend(cause) | Self::Internal(cause) => Some(cause.as_ref()),
            _ => None,
        }
    }
}

/// A cause that is only words.
#[derive(Debug)]
struct Text(String);

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Text {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_never_read_the_cause() {
        let error = Error::backend("/srv/models/secret.onnx: node 7 failed");
        assert_eq!(error.to_string(), "inference failed");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn an_error_stays_small() {
        assert!(size_of::<Error>() <= 40, "{}", size_of::<Error>());
    }

    #[test]
    fn what_may_be_retried_says_when() {
        for error in [
            Error::RateLimited { retry_after: Duration::from_millis(20), cap: Cap::Address },
            Error::Overloaded { limit: Limit::Memory },
            Error::ShuttingDown,
            Error::ModelNotReady { model: "m".into(), state: "loading" },
        ] {
            assert!(error.code().row().retry);
            assert!(error.retry_after().is_some(), "{error}");
        }
    }
}
