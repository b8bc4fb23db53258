//! One message and status 0 as a body: what tonic's `EncodeBody` writes, in one buffer of the right size.

use super::arriving::PREFIX;
use crate::{
    error::Error,
    frontend::body::{Reservation, Trailed},
    wire::proto::inference::ModelInferResponse,
};
use bytes::{BufMut, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// The key of `raw_output_contents`, field 6 of bytes: the last of its message, so what is behind the rest is it.
const RAW_OUTPUT: u8 = 6 << 3 | 2;
/// Outputs of more bytes are frames of their own. To copy fewer costs less than their frames do.
const OWN_FRAME: usize = 16 * 1024;

/// `message`, which takes `length` bytes, in one frame. `reservation` counts it until it is handed over.
///
/// # Errors
///
/// [`Error::Internal`] if it is longer than its prefix can say.
pub(super) fn whole(message: &impl Message, length: usize, reservation: Option<Reservation>) -> Result<Trailed, Error> {
    let buffer = begun(message, length, length)?;
    Ok(Trailed::new(buffer.into(), Vec::new(), reservation, succeeded))
}

/// The same bytes, with large outputs in frames of their own, which are not copied.
///
/// # Errors
///
/// As [`whole`].
pub(super) fn in_frames(
    mut message: ModelInferResponse,
    length: usize,
    reservation: Option<Reservation>,
) -> Result<Trailed, Error> {
    if message.raw_output_contents.iter().all(|output| output.len() <= OWN_FRAME) {
        return whole(&message, length, reservation);
    }
    let outputs = std::mem::take(&mut message.raw_output_contents);
    let head = message.encoded_len();
    let mut buffer = begun(&message, head, length)?;
    let mut frames: Vec<Bytes> = Vec::with_capacity(2 * outputs.len() + 1);
    for output in outputs {
        buffer.put_u8(RAW_OUTPUT);
        prost::encode_length_delimiter(output.len(), &mut buffer)
            .map_err(|error| Error::internal(error.to_string()))?;
        if output.len() <= OWN_FRAME {
            buffer.put(output);
        } else {
            frames.extend([std::mem::take(&mut buffer).into(), output]);
        }
    }
    frames.push(buffer.into());
    Ok(Trailed::new(Bytes::new(), frames, reservation, succeeded))
}

/// The prefix of a message of `length` bytes, and the `written` bytes of it that `message` is.
fn begun(message: &impl Message, written: usize, length: usize) -> Result<Vec<u8>, Error> {
    let too_long = |_| Error::internal("a message is longer than its length can say");
    let mut buffer = Vec::with_capacity(PREFIX + written);
    buffer.put_u8(0);
    buffer.put_u32(u32::try_from(length).map_err(too_long)?);
    message.encode(&mut buffer).map_err(|error| Error::internal(error.to_string()))?;
    Ok(buffer)
}

fn succeeded() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::{Body, grpc::fixture::framed};
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_are_the_bytes_that_prost_writes(
            lengths in proptest::collection::vec(prop_oneof![0..20_usize, OWN_FRAME - 1..OWN_FRAME + 2, Just(70_000)], 0..5),
        ) {
            let message = ModelInferResponse {
                model_name: "m".into(),
                raw_output_contents: lengths.iter().map(|length| vec![7; *length].into()).collect(),
                ..ModelInferResponse::default()
            };
            let length = message.encoded_len();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            for body in [whole(&message, length, None), in_frames(message.clone(), length, None)] {
                let sent = runtime.block_on(Body::Trailed(body.unwrap()).collect()).unwrap();
                prop_assert_eq!(sent.trailers().map(|trailers| trailers["grpc-status"].clone()), Some("0".parse().unwrap()));
                prop_assert_eq!(sent.to_bytes(), framed(&message));
            }
        }
    }

    #[tokio::test]
    async fn a_large_output_is_sent_as_it_is() {
        let output = Bytes::from(vec![1; OWN_FRAME + 1]);
        let message = ModelInferResponse { raw_output_contents: vec![output.clone()], ..Default::default() };
        let length = message.encoded_len();
        let mut body = Body::Trailed(in_frames(message, length, None).unwrap());
        let mut data = Vec::new();
        while let Some(frame) = body.frame().await {
            data.extend(frame.unwrap().into_data());
        }
        assert_eq!(data[1].as_ptr(), output.as_ptr());
    }
}
