//! JSON header and raw tensors: the binary tensor extension of V2 REST (contract 02 section 1).
//!
//! The length of the header arrives in an HTTP header that this module never sees.

use super::{Settings, Wishes, json, raw};
use crate::{
    call::{CallId, InferRequest, InferResponse, Inputs, ModelRef, Untyped},
    error::Error,
};
use bytes::Bytes;

/// A response as a JSON header and the raw tensors that follow it.
#[derive(Clone, Debug)]
pub struct Framed {
    /// The JSON part; its length goes into `inference-header-content-length`.
    pub header: Bytes,
    /// The raw tensors, in the order of the header.
    pub tensors: Vec<Bytes>,
}

impl Framed {
    /// True if there is no byte behind the header, so that the whole body is JSON (contract 02 section 1.2).
    pub fn is_all_header(&self) -> bool {
        self.tensors.iter().all(Bytes::is_empty)
    }
}

/// Decodes a V2 REST body whose first `header` bytes are JSON and whose rest is raw tensors.
///
/// The tensors share the memory of `body`.
///
/// # Errors
///
/// As [`json::decode_request`]; also if `header` is beyond the body. With a `header` of 0 the body is the one input of
/// the model, and all outputs come back raw (contract 02 section 1.4).
pub fn decode_infer(
    body: &Bytes,
    header: usize,
    model: ModelRef,
    settings: &Settings,
) -> Result<(InferRequest, Wishes), Error> {
    if header == 0 {
        let body = body.clone();
        let inputs = Untyped::new(move |expected| raw::input(&expected, &body).map(|input| vec![input]));
        return Ok((InferRequest::new(model, Inputs::Untyped(inputs)), Wishes { binary: true, outputs: Vec::new() }));
    }
    let Some(json) = body.get(..header) else {
        let length = body.len();
        return Err(Error::invalid(format!("the JSON header is to have {header} bytes, the body has {length}")));
    };
    let tail = Some((body.slice(header..), header));
    json::decode_request(json, json::Dialect::V2, tail, settings).map(|request| request.about(model))
}

/// The work of decoding such a body, bytes: all of it if a raw tensor may be of a type that is looked through, else its
/// header.
pub fn work(body: &[u8], header: usize) -> usize {
    let Some((json, tail)) = body.split_at_checked(header) else { return 0 };
    // A name may be spelled with escapes; nobody does so for any other reason.
    let named = |name: &[u8]| json.windows(name.len()).any(|window| window == name);
    let walked = tail.len() > json.len() && (named(b"\"BYTES\"") || named(b"\"BOOL\"") || named(b"\\u"));
    if walked { body.len() } else { json.len() }
}

/// Encodes a V2 REST response with some outputs raw.
///
/// # Errors
///
/// As [`json::write_outputs`].
pub fn encode_infer(
    response: &InferResponse,
    id: &CallId,
    wishes: &Wishes,
    settings: &Settings,
) -> Result<Framed, Error> {
    json::write_response(response, id, wishes, settings).map(|(header, tensors)| Framed { header, tensors })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{ModelKey, NamedTensor, Timing},
        tensor::{DataType, Tensor},
    };
    use proptest::prelude::*;
    use std::sync::Arc;

    /// Contract 02 section 1.3.
    const HEADER: &str = concat!(
        r#"{"id":"r1","inputs":[{"name":"IDS","shape":[1,3],"datatype":"INT64","parameters":{"binary_data_size":24}},"#,
        r#"{"name":"TXT","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":11}}],"#,
        r#""outputs":[{"name":"SCORE","parameters":{"binary_data":true}}]}"#
    );
    const TAIL: [u8; 35] = [
        7, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, b'h', b'i',
        0, 0, 0, 0, 0,
    ];

    fn model() -> ModelRef {
        ModelRef { name: "m".into(), version: None }
    }

    fn body(header: &str, tail: &[u8]) -> Bytes {
        [header.as_bytes(), tail].concat().into()
    }

    fn decode(header: &str, tail: &[u8]) -> Result<(InferRequest, Wishes), Error> {
        decode_infer(&body(header, tail), header.len(), model(), &Settings::default())
    }

    fn response(outputs: Vec<NamedTensor>) -> InferResponse {
        InferResponse {
            model: Arc::new(ModelKey { name: "m".into(), version: "1".into() }),
            client_id: Some("r1".into()),
            outputs,
            parameters: Vec::new(),
            timing: Timing::default(),
        }
    }

    #[test]
    fn only_raw_tensors_of_strings_and_flags_are_work() {
        let of = |datatype: &str, tail: usize| {
            let header = format!("{{\"inputs\":[{{\"name\":\"x\",\"datatype\":\"{datatype}\"}}]}}");
            work(&body(&header, &vec![0; tail]), header.len()) - header.len()
        };
        assert_eq!([of("FP32", 9000), of("UINT8", 9000), of("BYTES", 9000), of("BOOL", 9000)], [0, 0, 9000, 9000]);
        assert_eq!((of("\\u0042YTES", 9000), of("BYTES", 1)), (9000, 0));
        assert_eq!((work(b"{}", 3), work(b"abc", 0)), (0, 0));
    }

    #[test]
    fn the_request_of_the_contract() {
        assert_eq!(HEADER.len(), 253);
        let body = body(HEADER, &TAIL);
        let (request, wishes) = decode_infer(&body, 253, model(), &Settings::default()).unwrap();
        assert_eq!(request.client_id.as_deref(), Some("r1"));
        let [ids, text] = request.inputs.tensors().unwrap() else { panic!("{request:?}") };
        assert_eq!(ids.tensor.shape().dims(), [1, 3]);
        assert_eq!(ids.tensor.data().as_ptr(), body[253..].as_ptr(), "shared, not copied");
        assert_eq!(&ids.tensor.data()[..], &TAIL[..24]);
        assert_eq!(text.tensor.iter_strings().collect::<Vec<_>>(), [&b"hi\0"[..], b""]);
        assert!(wishes.wants_binary("SCORE") && !wishes.wants_binary("OTHER"));
    }

    #[test]
    fn the_response_of_the_contract() {
        let tensor = Tensor::of(DataType::Fp32, [1, 2].into(), vec![0.25_f32, -1.5]).unwrap();
        let response = response(vec![NamedTensor { name: "SCORE".into(), tensor }]);
        let wishes = Wishes { binary: true, outputs: Vec::new() };
        let framed = encode_infer(&response, &CallId::make(), &wishes, &Settings::default()).unwrap();
        assert_eq!(
            std::str::from_utf8(&framed.header).unwrap(),
            concat!(
                r#"{"id":"r1","model_name":"m","model_version":"1","outputs":[{"name":"SCORE","datatype":"FP32","#,
                r#""shape":[1,2],"parameters":{"binary_data_size":8}}]}"#
            )
        );
        assert_eq!(framed.header.len(), 145);
        assert_eq!(framed.tensors, [&[0x00, 0x00, 0x80, 0x3e, 0x00, 0x00, 0xc0, 0xbf][..]]);
        assert!(!framed.is_all_header());
    }

    #[test]
    fn an_empty_raw_output_is_announced_and_has_no_bytes() {
        let tensor = Tensor::new(DataType::Fp32, [0, 2].into(), Bytes::new()).unwrap();
        let response = response(vec![NamedTensor { name: "Y".into(), tensor }]);
        let wishes = Wishes { binary: true, outputs: Vec::new() };
        let framed = encode_infer(&response, &CallId::make(), &wishes, &Settings::default()).unwrap();
        assert!(framed.is_all_header());
        assert!(framed.header.ends_with(br#""shape":[0,2],"parameters":{"binary_data_size":0}}]}"#));
    }

    #[test]
    fn without_a_header_the_body_is_the_input_and_outputs_come_back_raw() {
        let body = Bytes::from_static(&[1, 2, 3, 4]);
        let (request, wishes) = decode_infer(&body, 0, model(), &Settings::default()).unwrap();
        assert!(matches!(request.inputs, Inputs::Untyped(_)), "only the model knows its type");
        assert!(wishes.wants_binary("anything"));
    }

    #[test]
    fn the_header_may_be_the_whole_body_and_no_more() {
        let json = r#"{"inputs":[{"name":"X","shape":[1],"datatype":"FP32","data":[1]}]}"#;
        assert!(decode(json, b"").is_ok());
        let body = body(json, b"");
        let decode = |header| decode_infer(&body, header, model(), &Settings::default()).unwrap_err();
        let error = decode(body.len() + 1).to_string();
        assert_eq!(error, format!("the JSON header is to have {} bytes, the body has {}", body.len() + 1, body.len()));
        assert_eq!(decode(usize::MAX).code(), crate::error::Code::InvalidArgument);
        assert!(decode(body.len() - 1).to_string().starts_with("invalid JSON at byte"));
    }

    #[test]
    fn the_tail_must_be_used_up_exactly() {
        assert_eq!(
            decode(HEADER, &TAIL[..34]).unwrap_err().to_string(),
            "tensor `TXT` announces 11 bytes, 10 follow the JSON"
        );
        let longer = [&TAIL[..], b"x"].concat();
        let error = decode(HEADER, &longer).unwrap_err().to_string();
        assert_eq!(error, "1 bytes follow the last binary tensor, expected none");
    }

    #[test]
    fn json_and_binary_inputs_mix() {
        let json = concat!(
            r#"{"inputs":[{"name":"A","shape":[1],"datatype":"UINT8","parameters":{"binary_data_size":1}},"#,
            r#"{"name":"B","shape":[1],"datatype":"UINT8","data":[2]},"#,
            r#"{"name":"C","shape":[0],"datatype":"UINT8","parameters":{"binary_data_size":0}},"#,
            r#"{"name":"D","shape":[1],"datatype":"BOOL","parameters":{"binary_data_size":1}}]}"#
        );
        let (request, _) = decode(json, &[1, 4]).unwrap();
        let data: Vec<&[u8]> = request.inputs.tensors().unwrap().iter().map(|input| &input.tensor.data()[..]).collect();
        assert_eq!(data, [&[1][..], &[2], &[], &[1]], "true is 1");
    }

    #[test]
    fn null_behind_the_size_of_binary_data_is_no_data() {
        let json = concat!(
            r#"{"inputs":[{"name":"A","shape":[0],"datatype":"UINT8","parameters":{"binary_data_size":0},"data":null},"#,
            r#"{"name":"B","shape":[1],"datatype":"UINT8","parameters":{"binary_data_size":1},"data":null}]}"#
        );
        let (request, _) = decode(json, &[7]).unwrap();
        let data: Vec<&[u8]> = request.inputs.tensors().unwrap().iter().map(|input| &input.tensor.data()[..]).collect();
        assert_eq!(data, [&[][..], &[7]]);
        let error = decode(r#"{"inputs":[{"name":"A","shape":[1],"datatype":"UINT8","data":null}]}"#, &[]).unwrap_err();
        assert!(error.to_string().contains("`A`"), "{error}");
    }

    #[test]
    fn an_input_has_one_source_of_data() {
        let json = concat!(
            r#"{"inputs":[{"name":"A","shape":[1],"datatype":"UINT8","data":[1],"#,
            r#""parameters":{"binary_data_size":1}}]}"#
        );
        let error = decode(json, &[1]).unwrap_err().to_string();
        assert_eq!(error, "tensor `A` has both JSON `data` and binary data, expected one");
    }

    #[test]
    fn sixteen_bit_floats_are_told_apart_by_their_bytes() {
        for (dtype, bytes) in [("FP16", [0x00, 0x3e]), ("BF16", [0xc0, 0x3f])] {
            let json = format!(
                r#"{{"inputs":[{{"name":"A","shape":[1],"datatype":"{dtype}","parameters":{{"binary_data_size":2}}}}]}}"#
            );
            let (request, _) = decode(&json, &bytes).unwrap();
            assert_eq!(request.inputs.tensors().unwrap()[0].tensor.dtype().name(), dtype);
            assert_eq!(&request.inputs.tensors().unwrap()[0].tensor.data()[..], bytes);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, header: usize) {
            let body = Bytes::from(bytes);
            let header = header % (body.len() + 2);
            let _ = decode_infer(&body, header, model(), &Settings::default());
        }

        #[test]
        fn any_sizes_and_tails_never_panic(sizes: Vec<u32>, tail: Vec<u8>) {
            let inputs = sizes.iter().enumerate().map(|(index, size)| {
                let size = size % 16;
                format!(r#"{{"name":"{index}","shape":[{size}],"datatype":"UINT8","parameters":{{"binary_data_size":{size}}}}}"#)
            });
            let json = format!(r#"{{"inputs":[{}]}}"#, inputs.collect::<Vec<_>>().join(","));
            let announced: u32 = sizes.iter().map(|size| size % 16).sum();
            prop_assert_eq!(decode(&json, &tail).is_ok(), announced as usize == tail.len());
        }
    }
}
