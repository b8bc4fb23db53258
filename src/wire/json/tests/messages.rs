//! The dialect of `sluicegate.v1` (contract 06 sections C3 and C4, contract 07 section 2).

use super::*;
use bytes::Bytes;
use std::time::Duration;

fn message(json: &str, tail: Option<(&'static [u8], usize)>) -> Result<Request, Error> {
    let tail = tail.map(|(bytes, offset)| (Bytes::from_static(bytes), offset));
    decode_request(json.as_bytes(), Dialect::Message, tail, &Settings::default())
}

#[test]
fn the_members_of_a_message() {
    let request = message(
        r#"{"type":"infer","id":"a1","model":"m","version":"2","timeout_ms":250,"priority":3,"stream":false,
            "binary_outputs":true,"credit":4,"parameters":{"idempotency_key":"k"},
            "inputs":[{"name":"X","datatype":"FP32","shape":[1,2],"data":[1,2]}],
            "outputs":[{"name":"Y","binary":false},{"name":"Z"}]}"#,
        None,
    )
    .unwrap();
    assert_eq!((request.model.as_deref(), request.version.as_deref()), (Some("m"), Some("2")));
    assert_eq!(request.id.as_deref(), Some("a1"));
    assert_eq!(request.timeout, Some(Duration::from_millis(250)));
    assert_eq!(request.priority, 3);
    assert!(!request.wishes.wants_binary("Y") && request.wishes.wants_binary("Z"));
    assert_eq!(request.parameters.len(), 1);
}

#[test]
fn members_of_the_other_dialect_are_not_dropped_silently() {
    let input = r#""inputs":[{"name":"X","datatype":"FP32","shape":[1],"data":[1]}]"#;
    let error = message(&format!(r#"{{"parameters":{{"timeout":5}},{input}}}"#), None).unwrap_err();
    assert_eq!(error.to_string(), "parameter `timeout` stands below `parameters`, expected `timeout_ms` beside it");
    let request = message(&format!(r#"{{"outputs":[{{"name":"Y","classification":2}}],{input}}}"#), None).unwrap();
    assert_eq!(request.outputs[0].classes.map(usize::from), Some(2));
    for bad in [r#""timeout_ms":-1"#, r#""timeout_ms":"5""#, r#""timeout_ms":1.5"#, r#""priority":-1"#, r#""model":5"#]
    {
        assert!(message(&format!("{{{bad},{input}}}"), None).is_err(), "{bad}");
    }
    assert_eq!(message(&format!(r#"{{"timeout_ms":0,{input}}}"#), None).unwrap().timeout, None);
}

#[test]
fn raw_tensors_begin_at_multiples_of_eight() {
    let json = concat!(
        r#"{"inputs":[{"name":"A","datatype":"UINT8","shape":[3],"byte_length":3},"#,
        r#"{"name":"B","datatype":"UINT8","shape":[1],"data":[9]},"#,
        r#"{"name":"C","datatype":"UINT8","shape":[2],"byte_length":2}]}"#
    );
    // The JSON ended at 5: three bytes of padding, three of `A`, five of padding, two of `C`.
    let tail = &[0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0, 4, 5];
    let request = message(json, Some((tail, 5))).unwrap();
    let data: Vec<&[u8]> = request.inputs.iter().map(|input| &input.tensor.data()[..]).collect();
    assert_eq!(data, [&[1, 2, 3][..], &[9], &[4, 5]]);
    assert!(message(json, Some((&tail[..12], 5))).is_err(), "cut off");
    assert!(message(json, Some((&[0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0, 4, 5, 0], 5))).is_err(), "one more");
    assert!(message(json, Some((&[0, 0, 7, 1, 2, 3, 0, 0, 0, 0, 0, 4, 5], 5))).is_err(), "padding is zeros");
    assert!(message(json, None).is_err(), "no tail at all");
}

#[test]
fn an_empty_tensor_at_the_end_needs_no_padding() {
    let json = r#"{"inputs":[{"name":"A","datatype":"UINT8","shape":[0],"byte_length":0}]}"#;
    for tail in [&[][..], &[0, 0, 0]] {
        assert!(message(json, Some((tail, 5))).is_ok(), "{tail:?}");
    }
    assert!(message(json, Some((&[0; 4], 5))).is_err());
}

#[test]
fn base64_stands_for_what_json_cannot_say() {
    let tensor = |datatype: &str, data: &str| {
        let json = format!(r#"{{"inputs":[{{"name":"X","shape":[2],"datatype":"{datatype}","data":{data}}}]}}"#);
        let turned = format!(r#"{{"inputs":[{{"name":"X","data":{data},"shape":[2],"datatype":"{datatype}"}}]}}"#);
        let read = |json: &str| message(json, None).map(|request| request.inputs[0].tensor.data().to_vec());
        assert_eq!(read(&json).ok(), read(&turned).ok());
        read(&json)
    };
    assert_eq!(tensor("FP16", r#"{"b64":"AD4AwA=="}"#).unwrap(), [0x00, 0x3E, 0x00, 0xC0]);
    assert_eq!(tensor("BF16", r#"{"b64":"wD8AwA"}"#).unwrap(), [0xC0, 0x3F, 0x00, 0xC0], "padding is optional");
    assert_eq!(tensor("BYTES", r#"{"b64":"AwAAAGhpAAAAAAA="}"#).unwrap(), b"\x03\0\0\0hi\0\0\0\0\0");
    for bad in
        [r#"{"b64":"AD4="}"#, r#"{"b64":"*"}"#, r#"{"b64":7}"#, "{}", r#"{"x":1}"#, r#"{"b64":"AD4AwA==","x":1}"#]
    {
        assert!(tensor("FP16", bad).is_err(), "{bad}");
    }
    assert!(tensor("FP32", r#"{"b64":"AAAAAAAAAAA="}"#).is_err(), "numbers are numbers");
    assert!(v2(&one(r#""shape":[1],"datatype":"FP16","data":{"b64":"AD4="}"#)).is_err(), "not in V2");
}
