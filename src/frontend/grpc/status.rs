//! Errors as gRPC says them: status, message, metadata and rich details (contract 05 section 5).
//!
//! The numbers come from the one table; the two exceptions, which gRPC itself demands, stand in [`code`].

use super::encoding;
use crate::{
    call::CallId,
    error::{self, Error},
    frontend::{Body, head::REQUEST_ID, http::Response, rest::id_value},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use std::time::Duration;
use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::{ErrorDetails, StatusExt};

const DOMAIN: &str = "sluicegate";
const ERROR_CODE: HeaderName = HeaderName::from_static("error-code");
const DETAILS_BIN: HeaderName = HeaderName::from_static("grpc-status-details-bin");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// The longest message, bytes: clients choose some of the names in it, and the whole header has to stay below 8 KiB
/// (contract 05 section 5) after percent-encoding, which can treble it.
const MESSAGE: usize = 1024;
/// The longest rich details, bytes, before base64; beyond it there are none.
const DETAILS: usize = 3 * 1024;

/// `error` as a status with everything beside it, for the head of an answer or for trailers.
pub(in crate::frontend) fn status(error: &Error, id: &CallId) -> Status {
    let (code, message) = (code(error), cut(&error.to_string()).to_owned());
    let mut headers = http::HeaderMap::with_capacity(4);
    headers.insert(ERROR_CODE, HeaderValue::from_static(error.code().name()));
    headers.insert(REQUEST_ID, id_value(id));
    if let Some(after) = error.retry_after() {
        headers.insert(PUSHBACK, HeaderValue::from(milliseconds(after)));
    }
    if matches!(error, Error::UnsupportedMedia(_)) {
        headers.insert(encoding::ACCEPT, encoding::ACCEPTED);
    }
    let details = details(error, id, &message);
    let mut status =
        Status::with_error_details_and_metadata(code, message, details, MetadataMap::from_headers(headers));
    if status.details().len() > DETAILS {
        let metadata = std::mem::take(status.metadata_mut());
        status = Status::with_details_and_metadata(code, status.message(), Bytes::new(), metadata);
    }
    status
}

/// What only a service of gRPC's own has to say, which no [`Error`] does, in the form of every other status.
pub(super) fn of_service(code: error::Code, text: &str, id: &CallId, add: impl FnOnce(&mut ErrorDetails)) -> Status {
    let mut details = always(code, id);
    add(&mut details);
    let mut headers = http::HeaderMap::with_capacity(2);
    headers.insert(ERROR_CODE, HeaderValue::from_static(code.name()));
    headers.insert(REQUEST_ID, id_value(id));
    let number = Code::from(code.row().grpc);
    Status::with_error_details_and_metadata(number, text, details, MetadataMap::from_headers(headers))
}

/// A whole answer that is nothing but `error`: one block of headers (contract 05 section 1.3, trailers-only).
pub(in crate::frontend) fn refuse(id: &CallId, error: &Error) -> Response {
    let mut response = status(error, id).into_http::<Body>();
    if let Some(details) = response.headers_mut().get_mut(DETAILS_BIN) {
        // The id is in them: HTTP/2 need not remember what never comes again.
        details.set_sensitive(true);
    }
    response
}

fn code(error: &Error) -> Code {
    Code::from(match error {
        // An unknown RPC is not an unknown thing (contract 00 section 2).
        Error::NoRoute(_) => Code::Unimplemented as i32,
        // No message at all, as gRPC's own table says it (contract 05 sections 1.2 and 1.4).
        Error::MalformedMessage(_) => Code::Internal as i32,
        error => error.code().row().grpc,
    })
}

/// What every refusal has: which it is, and which call it was.
fn always(code: error::Code, id: &CallId) -> ErrorDetails {
    let mut details = ErrorDetails::new();
    details.set_error_info(code.name().to_ascii_uppercase(), DOMAIN, std::collections::HashMap::new());
    details.set_request_info(id.to_string(), "");
    details
}

fn details(error: &Error, id: &CallId, message: &str) -> ErrorDetails {
    let mut details = always(error.code(), id);
    if let Some(after) = error.retry_after() {
        details.set_retry_info(Some(after));
    }
    match error {
        Error::InvalidTensor { tensor, reason } => {
            details.add_bad_request_violation(cut(tensor), cut(reason));
        }
        Error::RateLimited { cap, .. } => {
            // Tells the caller's own limit from a message that is too large, which has the same number.
            let about = std::collections::HashMap::from([("policy".to_owned(), cap.name().to_owned())]);
            details.set_error_info(error.code().name().to_ascii_uppercase(), DOMAIN, about);
            details.add_quota_failure_violation(cap.name(), message);
        }
        Error::ModelNotFound { model, version } => {
            let name = match version {
                Some(version) => format!("{}/{}", cut(model), cut(version)),
                None => cut(model).to_owned(),
            };
            details.set_resource_info("model", name, "", message);
        }
        Error::NoRoute(_) => {
            details.set_resource_info("method", "", "", message);
        }
        error if error.code() == error::Code::InvalidArgument => {
            details.add_bad_request_violation("request", message);
        }
        _ => {}
    }
    details
}

/// Whole milliseconds, rounded up: a client that comes a moment early is refused again.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MESSAGE)]
}

/// One value of a status's metadata.
#[cfg(test)]
pub(super) fn metadata<'a>(status: &'a Status, key: &str) -> Option<&'a str> {
    status.metadata().get(key).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Limit;
    use std::sync::Arc;

    fn id() -> CallId {
        CallId::Given("call-1".into())
    }

    #[test]
    fn a_status_has_the_number_of_the_table_and_the_text_of_the_error() {
        for (error, number) in [
            (Error::Unauthenticated, 16),
            (Error::invalid("x"), 3),
            (Error::TooLarge { limit: 9 }, 8),
            (Error::Overloaded { limit: Limit::Memory }, 14),
            (Error::BodyStalled, 4),
            (Error::internal("secret"), 13),
        ] {
            let status = status(&error, &id());
            assert_eq!(status.code() as i32, number, "{error}");
            assert_eq!(status.message(), error.to_string());
            assert_eq!(metadata(&status, "error-code"), Some(error.code().name()));
            assert_eq!(metadata(&status, "x-request-id"), Some("call-1"));
            let details = status.get_error_details();
            let info = details.error_info().unwrap();
            assert_eq!(
                (info.reason.as_str(), info.domain.as_str()),
                (&*error.code().name().to_uppercase(), "sluicegate")
            );
            assert_eq!(details.request_info().unwrap().request_id, "call-1");
            assert!(details.debug_info().is_none());
        }
    }

    #[test]
    fn grpc_has_numbers_of_its_own_for_unknown_methods_and_for_what_is_no_message() {
        assert_eq!(status(&Error::NoRoute("x".into()), &id()).code(), Code::Unimplemented);
        let error = Error::MalformedMessage("truncated".into());
        assert_eq!(status(&error, &id()).code(), Code::Internal);
    }

    #[test]
    fn what_may_be_retried_says_when_in_both_forms() {
        let status =
            status(&Error::RateLimited { retry_after: Duration::from_micros(1500), cap: error::Cap::Address }, &id());
        assert_eq!(metadata(&status, "grpc-retry-pushback-ms"), Some("2"));
        let violations = status.get_details_quota_failure().unwrap().violations;
        assert_eq!(&*violations[0].subject, "address");
        let retry = status.get_details_retry_info().unwrap().retry_delay;
        assert_eq!(retry, Some(Duration::from_micros(1500)));
        let other = super::status(&Error::Unauthenticated, &id());
        assert!(other.get_details_retry_info().is_none());
    }

    #[test]
    fn a_tensor_is_a_field_and_a_model_a_resource() {
        let status = status(&Error::tensor("x", "has 3 bytes, expected 4"), &id());
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!((&*violations[0].field, &*violations[0].description), ("x", "has 3 bytes, expected 4"));

        let unknown = Error::ModelNotFound { model: "m".into(), version: Some("7".into()) };
        let resource = super::status(&unknown, &id()).get_details_resource_info().unwrap();
        assert_eq!((&*resource.resource_type, &*resource.resource_name), ("model", "m/7"));
    }

    #[test]
    fn a_limit_of_the_caller_is_told_from_a_size_by_its_details() {
        let limited =
            status(&Error::RateLimited { retry_after: Duration::from_secs(2), cap: error::Cap::Calls }, &id());
        let large = status(&Error::TooLarge { limit: 9 }, &id());
        assert_eq!((limited.code(), large.code()), (Code::ResourceExhausted, Code::ResourceExhausted));
        let violations = limited.get_details_quota_failure().unwrap().violations;
        assert_eq!((&*violations[0].subject, &*violations[0].description), ("concurrency", limited.message()));
        assert!(large.get_details_quota_failure().is_none() && large.get_details_retry_info().is_none());
    }

    #[test]
    fn whatever_is_wrong_with_a_request_is_a_violation() {
        for error in [Error::invalid("x"), Error::MalformedMessage("x".into()), Error::TrailersTooLarge] {
            let violations = status(&error, &id()).get_details_bad_request().unwrap().field_violations;
            assert_eq!((&*violations[0].field, &*violations[0].description), ("request", &*error.to_string()));
        }
    }

    #[test]
    fn a_name_of_any_length_leaves_a_header_below_8_kib() {
        for text in ["\u{6a21}", "x", "%"] {
            let long: Arc<str> = text.repeat(100_000).into();
            for error in [
                Error::ModelNotFound { model: Arc::clone(&long), version: Some(Arc::clone(&long)) },
                Error::tensor(Arc::clone(&long), long.to_string()),
                Error::NoRoute(long.to_string().into()),
            ] {
                let response = refuse(&id(), &error);
                let size: usize =
                    response.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
                assert!(size < 8 * 1024, "{size}");
                let back = Status::from_header_map(response.headers()).unwrap();
                assert_eq!(back.code() as i32, code(&error) as i32);
            }
        }
    }

    #[test]
    fn a_refusal_is_one_block_of_headers_with_status_200() {
        let response = refuse(&id(), &Error::UnsupportedMedia("grpc-encoding `br`".into()));
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert_eq!(response.headers()["grpc-status"], "12");
        assert_eq!(response.headers()["grpc-accept-encoding"], "gzip,deflate,zstd,identity");
        assert!(http_body::Body::is_end_stream(response.body()));
    }

    #[test]
    fn every_code_has_a_status_that_tonic_knows() {
        for code in error::Code::ALL {
            assert_eq!(Code::from(code.row().grpc) as i32, code.row().grpc);
        }
    }
}
