//! What the head of an RPC says beyond what all HTTP requests say: `grpc-timeout`.

use super::Request;
use crate::{
    call::{CallId, Credentials, Head, Intent, Route, Surface},
    error::Error,
    frontend::{Connection, head::Fields},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::{sync::Arc, time::Duration};

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The head of a call, and claims about its sender: nothing of the message is read.
///
/// # Errors
///
/// [`Error::RateLimited`] by the address gate, and what [`timeout`] answers.
pub(super) fn open(
    connection: &Connection,
    id: &CallId,
    intent: Intent,
    request: &Request,
) -> Result<(Head, Credentials), Error> {
    open_at(connection, id, intent, Route::named(request.uri().path()), &Fields::of(request.headers()))
}

/// The same for a call whose route is known, and whose fields were looked through.
///
/// # Errors
///
/// As [`open`].
pub(super) fn open_at(
    connection: &Connection,
    id: &CallId,
    intent: Intent,
    route: Route,
    fields: &Fields<'_>,
) -> Result<(Head, Credentials), Error> {
    connection.gate()?;
    let timeout = fields.grpc_timeout.map(wish).transpose()?;
    let head = Head::new(id.clone(), Surface::Grpc, intent, Arc::clone(&connection.peer));
    let head = head.with_timeout(timeout).at(route).part_of(fields.context());
    Ok((head.steered(connection.steered(fields.headers())), fields.credentials()))
}

/// The client's wish for a deadline: `grpc-timeout`, 1 to 8 digits and a unit (contract 05 section 1.1).
///
/// # Errors
///
/// [`Error::InvalidRequest`] if it is malformed.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    headers.get(GRPC_TIMEOUT).map(wish).transpose()
}

fn wish(value: &HeaderValue) -> Result<Duration, Error> {
    parse_timeout(value.as_bytes()).ok_or_else(|| {
        let found = value.as_bytes().escape_ascii();
        Error::invalid(format!("`grpc-timeout` is `{found}`, expected 1 to 8 digits and one of H, M, S, m, u, n"))
    })
}

fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    match unit {
        // Eight digits of hours are 3.6e11 seconds.
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use proptest::prelude::*;

    fn headers(name: HeaderName, value: &[u8]) -> HeaderMap {
        [(name, HeaderValue::from_bytes(value).unwrap())].into_iter().collect()
    }

    #[test]
    fn a_timeout_has_six_units_and_up_to_eight_digits() {
        for (text, expected) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("4m", Duration::from_millis(4)),
            ("5u", Duration::from_micros(5)),
            ("6n", Duration::from_nanos(6)),
            ("0n", Duration::ZERO),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
            ("00000001S", Duration::from_secs(1)),
        ] {
            assert_eq!(timeout(&headers(GRPC_TIMEOUT, text.as_bytes())).unwrap(), Some(expected), "{text}");
        }
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn a_malformed_timeout_is_refused_with_what_was_expected() {
        for text in ["", "S", "100", "1s", "-1S", "123456789S", "1.5S", "1 S", "0x1S", "1SS"] {
            let error = timeout(&headers(GRPC_TIMEOUT, text.as_bytes())).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{text}");
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_timeout_panics(value in proptest::collection::vec(any::<u8>(), 0..12)) {
            let _ = parse_timeout(&value);
        }
    }
}
