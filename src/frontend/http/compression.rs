//! Responses of REST in the coding that a client takes (`rest.compression`, contract 02 section 2).
//!
//! Only what is whole and worth it: events flow, and a small answer would gain nothing. Of V2's answers only those of
//! models: Triton compresses no others, and its asyncio client takes any coding, yet reads those others as they come. Errors
//! are never compressed, for the same reason. The length of a JSON header counts its bytes before this.

use super::Response;
use crate::frontend::{
    Body,
    body::{Coding, compress},
};
use http::{HeaderValue, header};

/// Whether what a path answers may be compressed.
pub(super) fn may(path: &str) -> bool {
    !path.starts_with("/v2") || ["/infer", "/generate"].iter().any(|end| path.ends_with(end))
}

/// `response` in `coding`, if it is a success, whole and has more than `above` bytes. What cannot be compressed stays as it is.
pub(super) async fn compressed(response: Response, coding: Coding, above: usize) -> Response {
    if !response.status().is_success() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let pieces = match body {
        Body::Full(bytes) if bytes.len() > above => vec![bytes],
        Body::Frames(frames) if frames.iter().map(bytes::Bytes::len).sum::<usize>() > above => frames.into(),
        body => return Response::from_parts(parts, body),
    };
    // Sent as it is if there is no room to compress it: an answer is worth more than its size.
    let Ok(packed) = compress(pieces.clone(), coding).await else {
        return Response::from_parts(parts, Body::Frames(pieces.into()));
    };
    parts.headers.insert(header::CONTENT_ENCODING, coding.name());
    parts.headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    Response::from_parts(parts, Body::Full(packed))
}
