//! The objects around `data`.

use super::*;
use crate::{call::Parameter, error::Code};
use proptest::prelude::*;
use std::time::{Duration, Instant};

const INPUT: &str = r#"{"name":"X","shape":[1],"datatype":"FP32","data":[1]}"#;

fn with(members: &str) -> Result<Request, Error> {
    v2(&format!(r#"{{{members},"inputs":[{INPUT}]}}"#))
}

fn text<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn the_request_of_the_contract() {
    let request = v2(r#"{"id":"r-1",
 "parameters":{"priority":1},
 "inputs":[{"name":"data","shape":[2,2],"datatype":"FP32","parameters":{},"data":[1.0,2.0,3.0,4.0]}],
 "outputs":[{"name":"logits","parameters":{}}]}"#)
    .unwrap();
    assert_eq!(request.id.as_deref(), Some("r-1"));
    assert_eq!(request.priority, 1);
    assert_eq!(request.inputs[0].name.as_ref(), "data");
    assert_eq!(request.inputs[0].tensor.try_elements::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(request.outputs, ["logits".into()]);
    assert!(request.parameters.is_empty());
}

#[test]
fn an_empty_id_is_absent_and_no_outputs_are_all() {
    let request = with(r#""id":"","outputs":[]"#).unwrap();
    assert!(request.id.is_none() && request.outputs.is_empty());
    let request = with(r#""id":null,"outputs":null,"parameters":null"#).unwrap();
    assert!(request.id.is_none() && request.outputs.is_empty());
    assert!(with(r#""id":7"#).is_err());
}

#[test]
fn unknown_members_are_ignored_wherever_they_stand() {
    let request = v2(r#"{"model_name":"x","extra":{"a":[1,{"b":null}],"c":-1.5e3},"inputs":[
        {"more":[[]],"name":"X","shape":[1],"datatype":"FP32","data":[1],"z":"\u0041"}],
        "outputs":[{"name":"Y","q":{}}]}"#);
    assert_eq!(request.unwrap().outputs, ["Y".into()]);
}

#[test]
fn a_name_that_stands_twice_is_refused_everywhere() {
    for json in [
        format!(r#"{{"id":"a","id":"a","inputs":[{INPUT}]}}"#),
        format!(r#"{{"inputs":[{INPUT}],"inputs":[{INPUT}]}}"#),
        format!(r#"{{"x":1,"inputs":[{INPUT}],"x":1}}"#),
        format!(r#"{{"x":{{"a":1,"b":2,"\u0061":3}},"inputs":[{INPUT}]}}"#),
        format!(r#"{{"parameters":{{"a":1,"a":2}},"inputs":[{INPUT}]}}"#),
        format!(r#"{{"parameters":{{"timeout":1,"timeout":1}},"inputs":[{INPUT}]}}"#),
        one(r#""shape":[1],"shape":[1],"datatype":"FP32","data":[1]"#),
        one(r#""shape":[1],"datatype":"FP32","data":[1],"data":[1]"#),
        format!(r#"{{"inputs":[{INPUT}],"outputs":[{{"name":"Y","name":"Y"}}]}}"#),
    ] {
        assert!(text(v2(&json)).ends_with("twice, expected once"), "{json}");
    }
    assert!(v2(&format!(r#"{{"x":{{"a":1}},"y":{{"a":1}},"a":1,"inputs":[{INPUT}]}}"#)).is_ok());
}

#[test]
fn an_object_with_absurdly_many_members_is_refused() {
    let members = |count| (0..count).map(|n| format!(r#""{n}":1"#)).collect::<Vec<_>>().join(",");
    assert!(with(&format!(r#""x":{{{}}}"#, members(1024))).is_ok());
    assert!(with(&format!(r#""x":{{{}}}"#, members(1025))).is_err());
    assert!(with(&format!(r#""parameters":{{{}}}"#, members(1025))).is_err());
}

#[test]
fn names_of_inputs_and_outputs_are_unique() {
    let json = format!(r#"{{"inputs":[{INPUT},{INPUT}]}}"#);
    assert_eq!(text(v2(&json)), "tensor `X` is there twice, expected once");
    assert!(with(r#""outputs":[{"name":"Y"},{"name":"Y"}]"#).is_err());
}

#[test]
fn what_an_input_must_have() {
    assert_eq!(text(v2(r#"{"inputs":[{"shape":[1],"datatype":"FP32","data":[1]}]}"#)), "input 0 has no `name`");
    assert_eq!(text(v2(&one(r#""datatype":"FP32","data":[1]"#))), "tensor `X` has no `shape`");
    assert_eq!(text(v2(&one(r#""shape":[1],"data":[1]"#))), "tensor `X` has no `datatype`");
    assert_eq!(
        text(v2(&one(r#""shape":[1],"datatype":"FP32""#))),
        "tensor `X` has no data, expected `data` or binary data"
    );
    assert_eq!(text(v2("{}")), "the request has no `inputs`");
    assert!(v2(r#"{"inputs":null}"#).is_err());
    assert!(v2(r#"{"inputs":[]}"#).is_ok(), "whether a model needs inputs is the model's to say");
}

#[test]
fn shapes_are_sizes_that_do_not_overflow() {
    for shape in ["[-1]", "[1.5]", "[\"1\"]", "[18446744073709551616]", "1", "[null]", "[[1]]"] {
        let json = one(&format!(r#""shape":{shape},"datatype":"FP32","data":[1]"#));
        assert!(v2(&json).is_err(), "{shape}");
    }
    let overflow = one(r#""shape":[4294967296,4294967296],"datatype":"FP32","data":[1]"#);
    assert_eq!(text(v2(&overflow)), "tensor `X` has shape [4294967296, 4294967296] whose size overflows");
    let negative = one(r#""shape":[1,-1],"datatype":"FP32","data":[1]"#);
    assert!(text(v2(&negative)).starts_with("tensor `X` has a dimension of `-1`, expected an integer from 0"));
    assert!(v2(&one(r#""shape":[1.0],"datatype":"FP32","data":[1]"#)).is_ok(), "exactly an integer");
}

#[test]
fn datatypes_are_upper_case_and_known() {
    for datatype in ["fp32", "INVALID", "", "STRING"] {
        let json = one(&format!(r#""shape":[1],"datatype":"{datatype}","data":[1]"#));
        assert!(text(v2(&json)).contains("expected a V2 name"), "{datatype}");
    }
}

#[test]
fn limits_hold_at_their_value_and_not_beyond() {
    let settings = Settings { tensors: 2, rank: 2, json_depth: 5, ..Settings::default() };
    let decode = |json: &str| decode_request(json.as_bytes(), Dialect::V2, None, &settings);
    let inputs = |count: usize| {
        let input = |n| format!(r#"{{"name":"{n}","shape":[1],"datatype":"FP32","data":[1]}}"#);
        format!(r#"{{"inputs":[{}]}}"#, (0..count).map(input).collect::<Vec<_>>().join(","))
    };
    let outputs = |count: usize| {
        let output = |n| format!(r#"{{"name":"{n}"}}"#);
        let outputs = (0..count).map(output).collect::<Vec<_>>().join(",");
        format!(r#"{{"inputs":[{INPUT}],"outputs":[{outputs}]}}"#)
    };
    let rank = |rank: usize| one(&format!(r#""shape":[{}],"datatype":"FP32","data":[1]"#, vec!["1"; rank].join(",")));
    let depth =
        |depth: usize| format!(r#"{{"x":{}{},"inputs":[{INPUT}]}}"#, "[".repeat(depth - 1), "]".repeat(depth - 1));
    assert!(decode(&inputs(2)).is_ok() && decode(&outputs(2)).is_ok() && decode(&rank(2)).is_ok());
    assert!(decode(&inputs(3)).is_err() && decode(&outputs(3)).is_err() && decode(&rank(3)).is_err());
    assert!(decode(&depth(5)).is_ok() && decode(&depth(6)).is_err());
    // `data` itself lies at depth 4 and may be one deeper here.
    assert!(decode(&one(r#""shape":[1,1],"datatype":"FP32","data":[[1]]"#)).is_ok());
    let deeper = Settings { json_depth: 4, ..settings.clone() };
    let nested = one(r#""shape":[1,1],"datatype":"FP32","data":[[1]]"#);
    assert!(decode_request(nested.as_bytes(), Dialect::V2, None, &deeper).is_err());
}

#[test]
fn a_depth_bomb_is_refused_at_once() {
    let begin = Instant::now();
    for bomb in [
        "[".repeat(1 << 20),
        format!(r#"{{"x":{}"#, r#"{"a":"#.repeat(1 << 18)),
        one(&format!(r#""shape":[1],"datatype":"FP32","data":{}"#, "[".repeat(1 << 20))),
    ] {
        assert!(v2(&bomb).is_err());
    }
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[test]
fn parameters_are_understood_kept_or_refused() {
    let request = with(r#""parameters":{"a":"x","b":-1,"c":18446744073709551615,"d":1.0,"e":true,"timeout":1500}"#);
    let request = request.unwrap();
    assert_eq!(request.timeout, Some(Duration::from_micros(1500)));
    let expected = [
        ("a", Parameter::String("x".into())),
        ("b", Parameter::Int(-1)),
        ("c", Parameter::Uint(u64::MAX)),
        ("d", Parameter::Double(1.0)),
        ("e", Parameter::Bool(true)),
    ];
    assert_eq!(request.parameters, expected.map(|(name, value)| (name.into(), value)));
    for bad in ["[1]", "{}", "null", "1e999"] {
        assert!(with(&format!(r#""parameters":{{"a":{bad}}}"#)).is_err(), "{bad}");
    }
}

#[test]
fn an_output_may_be_wanted_as_its_best_classes() {
    let request = with(r#""outputs":[{"name":"Y","parameters":{"classification":3}},{"name":"Z"}]"#).unwrap();
    let classes: Vec<_> = request.outputs.iter().map(|output| output.classes.map(usize::from)).collect();
    assert_eq!(classes, [Some(3), None]);
    for bad in ["0", "-1", "1.5", "true", "\"3\"", "null"] {
        let refused = with(&format!(r#""outputs":[{{"name":"Y","parameters":{{"classification":{bad}}}}}]"#));
        assert!(refused.unwrap_err().to_string().contains("`classification`"), "{bad}");
    }
}

#[test]
fn a_sequence_means_nothing_to_a_model_without_a_state_and_must_be_whole() {
    for id in ["7", "\"s-1\"", "0", "\"\"", "18446744073709551615"] {
        with(&format!(r#""parameters":{{"sequence_id":{id}}}"#)).unwrap();
    }
    with(r#""parameters":{"sequence_start":true,"sequence_id":7,"sequence_end":true}"#).unwrap();
    for bad in [r#"{"sequence_start":true}"#, r#"{"sequence_end":true,"sequence_id":0}"#, r#"{"sequence_id":true}"#] {
        assert_eq!(with(&format!(r#""parameters":{bad}"#)).unwrap_err().code(), Code::InvalidArgument, "{bad}");
    }
}

#[test]
fn shared_memory_is_refused_by_name() {
    let code = |members: &str| with(members).unwrap_err().code();
    assert_eq!(code(r#""outputs":[{"name":"Y","parameters":{"shared_memory_region":"r"}}]"#), Code::InvalidArgument);
    let shared = one(r#""shape":[1],"datatype":"FP32","parameters":{"shared_memory_region":"r"}"#);
    assert!(text(v2(&shared)).contains("`shared_memory_region`"));
}

#[test]
fn wishes_for_binary_outputs() {
    let request = with(
        r#""parameters":{"binary_data_output":true},"outputs":[{"name":"A"},{"name":"B","parameters":{"binary_data":false}}]"#,
    );
    let wishes = request.unwrap().wishes;
    assert!(wishes.wants_binary("A") && !wishes.wants_binary("B") && wishes.wants_binary("C"));
    let wishes = with(r#""outputs":[{"name":"A","parameters":{"binary_data":true}}]"#).unwrap().wishes;
    assert!(wishes.wants_binary("A") && !wishes.wants_binary("C"));
    assert!(with(r#""outputs":[{"name":"A","parameters":{"binary_data":1}}]"#).is_err());
}

#[test]
fn binary_data_without_a_tail_is_refused_unless_it_is_empty() {
    let json =
        |size| one(&format!(r#""shape":[{size}],"datatype":"UINT8","parameters":{{"binary_data_size":{size}}}"#));
    assert_eq!(text(v2(&json(4))), "tensor `X` announces binary data, none follows the JSON");
    assert!(v2(&json(0)).is_ok());
}

#[test]
fn broken_json_says_where_and_what() {
    assert_eq!(text(v2("")), "invalid JSON at byte 0: found the end, expected an object");
    assert_eq!(text(v2("[]")), "invalid JSON at byte 0: found `[`, expected an object");
    assert_eq!(text(v2(r#"{"inputs":[}"#)), "invalid JSON at byte 11: found `}`, expected an object");
    assert_eq!(
        text(v2(&format!(r#"{{"inputs":[{INPUT}]}} x"#))),
        format!("invalid JSON at byte {}: found `x`, expected the end", INPUT.len() + 14)
    );
    assert_eq!(
        text(decode_request(b"{\"\xff\"}", Dialect::V2, None, &Settings::default())),
        "invalid JSON: no UTF-8 at byte 2, expected UTF-8"
    );
}

#[test]
fn names_have_a_sane_length() {
    let json = |length| {
        format!(r#"{{"inputs":[{{"name":"{}","shape":[1],"datatype":"FP32","data":[1]}}]}}"#, "x".repeat(length))
    };
    assert!(v2(&json(1024)).is_ok() && v2(&json(1025)).is_err());
}

#[test]
fn the_body_becomes_an_operation_on_the_model_of_the_path() {
    let model = ModelRef { name: "m".into(), version: Some("2".into()) };
    let (request, _) = decode_infer(
        one(r#""shape":[],"datatype":"BOOL","data":true"#).as_bytes(),
        model.clone(),
        &Settings::default(),
    )
    .unwrap();
    assert_eq!(request.model, model);
    assert_eq!(request.inputs.tensors().unwrap().len(), 1);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        for dialect in [Dialect::V2, Dialect::Message] {
            let _ = decode_request(&bytes, dialect, None, &Settings::default());
        }
    }

    #[test]
    fn a_damaged_request_never_panics(at in 0_usize..300, byte: u8, cut in 0_usize..300) {
        let mut json = br#"{"id":"r\u0041","parameters":{"priority":1,"x":-1.5e3},"inputs":[{"name":"a","shape":[2,2],"datatype":"FP32","data":[[1.0,2.0],[3.0,4.0]]},{"data":["x","y"],"name":"b","shape":[2],"datatype":"BYTES"}],"outputs":[{"name":"o","parameters":{"binary_data":true}}]}"#.to_vec();
        let at = at % json.len();
        json[at] = byte;
        let _ = decode_request(&json, Dialect::V2, None, &Settings::default());
        json.truncate(cut % json.len());
        prop_assert!(decode_request(&json, Dialect::V2, None, &Settings::default()).is_err());
    }
}
