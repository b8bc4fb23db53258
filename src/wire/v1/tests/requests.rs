//! Requests: rows, columns, the bare object, and what is wrong with them.

use super::*;

const FREE: Option<usize> = None;

#[test]
fn rows_of_one_input_are_values_or_named_objects() {
    let expected = of(DataType::Fp32, &[FREE, Some(2)]);
    let bytes = floats(&[1.0, 2.0, 3.0, 4.5]);
    for body in [
        r#"{"instances":[[1.0,2.0],[3,4.5]]}"#,
        r#"{"instances":[{"x":[1.0,2.0]},{"x":[3,4.5]}]}"#,
        r#" { "signature_name" : "serving_default" , "instances" : [ [ 1 , 2 ] , [ 3 , 4.5 ] ] } "#,
        r#"{"instances":[[1,2],[3,4.5]],"parameters":{"a":[NaN,{"b":null}]},"signature_name":""}"#,
        r#"{"inputs":[[1,2],[3,4.5]]}"#,
        r#"{"inputs":{"x":[[1,2],[3,4.5]]}}"#,
    ] {
        assert_eq!(only(&expected, body), (vec![2, 2], bytes.clone()), "{body}");
    }
    assert_eq!(predict(&expected, r#"{"instances":[[1,2]]}"#).unwrap().1, Form::Rows);
    assert_eq!(predict(&expected, r#"{"inputs":[[1,2]]}"#).unwrap().1, Form::Columns);
}

#[test]
fn several_inputs_are_objects_with_exactly_their_names() {
    let rows = r#"{"instances":[{"tag":"cat","box":[1,2,3,4]},{"box":[5,6,7,8],"tag":"dog"}]}"#;
    let columns = r#"{"inputs":{"box":[[1,2,3,4],[5,6,7,8]],"tag":["cat","dog"]}}"#;
    for body in [rows, columns] {
        let (tensors, _) = predict(&tagged(), body).unwrap();
        assert_eq!((&*tensors[0].name, tensors[0].tensor.shape().dims()), ("tag", &[2][..]));
        assert_eq!(strings(&tensors[0]), [b"cat", b"dog"]);
        assert_eq!((&*tensors[1].name, tensors[1].tensor.shape().dims()), ("box", &[2, 4][..]));
    }
    for (body, said) in [
        (r#"{"instances":[{"tag":"a","box":[1,2,3,4]},{"tag":"b"}]}"#, "`instances[1]` has no `box`"),
        (
            r#"{"instances":[{"tag":"a","box":[1,2,3,4],"bag":1}]}"#,
            "`instances[0]` has `bag`, which is no input, expected `tag`, `box`",
        ),
        (r#"{"instances":[{"tag":"a","tag":"b","box":[1,2,3,4]}]}"#, "an object has `tag` twice, expected once"),
        (r#"{"instances":["a"]}"#, "`instances[0]` is `\"a\"`, expected an object with `tag`, `box`"),
        (r#"{"instances":[{"b64":"YQ=="}]}"#, "`instances[0]` is `{`, expected an object with `tag`, `box`"),
        (r#"{"inputs":{"tag":["a"]}}"#, "`inputs` has no `box`"),
        (
            r#"{"inputs":{"tag":["a"],"box":[[1,2,3,4]],"extra":1}}"#,
            "`inputs` has `extra`, which is no input, expected `tag`, `box`",
        ),
        (r#"{"inputs":[["a"]]}"#, "`inputs` is `[`, expected an object with `tag`, `box`"),
    ] {
        assert_eq!(refusal(&tagged(), body), said);
    }
}

#[test]
fn exactly_one_form_is_there() {
    let expected = of(DataType::Fp32, &[FREE]);
    for (body, said) in [
        (r#"{"instances":[1],"inputs":[1]}"#, "the request has both `instances` and `inputs`, expected one of them"),
        (r#"{"inputs":[1],"instances":[1]}"#, "the request has both `instances` and `inputs`, expected one of them"),
        ("{}", "the request has neither `instances` nor `inputs`, expected one of them"),
        (r#"{"instances":[]}"#, "`instances` is empty, expected one value at least"),
        (r#"{"instances":{"x":[1]}}"#, "`instances` is `{`, expected a list"),
        (r#"{"instances":5}"#, "`instances` is `5`, expected a list"),
        (r#"{"instances":[1],"instances":[1]}"#, "an object has `instances` twice, expected once"),
        (r#"{"instances":[1],"a":1,"a":2}"#, "an object has `a` twice, expected once"),
        (r#"{"instances":[1],"signature_name":"other"}"#, "signature `other` is unknown, expected `serving_default`"),
        (r#"{"instances":[1],"signature_name":7}"#, "`signature_name` is `7`, expected a string"),
        (r#"{"signature_name":"","signature_name":""}"#, "an object has `signature_name` twice, expected once"),
        (r#"{"instances":[1,{"x":1}]}"#, "`instances[1]` is an object, expected a value as in the first one"),
        (r#"{"instances":[{"x":1},1]}"#, "`instances[1]` is a value, expected an object as in the first one"),
    ] {
        assert_eq!(refusal(&expected, body), said);
    }
    for body in ["", "null", "[1]", r#"{"instances":[1]} x"#, r#"{"instances":[1]"#, r#"{"instances":[1,]}"#] {
        refusal(&expected, body);
    }
}

#[test]
fn what_is_ragged_is_told_where() {
    let expected = of(DataType::Fp32, &[FREE, FREE, FREE]);
    let named = |body: &str| refusal(&expected, body);
    assert_eq!(
        named(r#"{"instances":[[[1,2],[3]]]}"#),
        "tensor `x` is ragged: found a list of 1 at `instances[0][1]`, expected 2 as in the first one"
    );
    assert_eq!(
        named(r#"{"instances":[[[1,2],[3,4]],[[1,2]]]}"#),
        "tensor `x` is ragged: found a list of 1 at `instances[1]`, expected 2 as in the first one"
    );
    assert_eq!(
        named(r#"{"inputs":[[[1,2],3]]}"#),
        "tensor `x` is ragged: found `3` at `inputs[0][1]`, expected a list as in the first one"
    );
    assert_eq!(
        named(r#"{"instances":[{"x":[[1]]},{"x":[[[1]]]}]}"#),
        "tensor `x` is ragged: found a list at `instances[1].x[0][0]`, expected a single value as in the first one"
    );
    for body in ["[[],[1]]", "[[1],[]]", "[[[1]],[]]", "[[],[[]]]", "[1,[2]]", "[[1],2]"] {
        refusal(&expected, &format!(r#"{{"inputs":{body}}}"#));
    }
    let deep = format!(r#"{{"inputs":{}1{}}}"#, "[".repeat(17), "]".repeat(17));
    assert_eq!(named(&deep), "tensor `x` is nested deeper than 16 lists, expected at most 16");
    let deeper = format!(r#"{{"instances":[1],"a":{}}}"#, "[".repeat(5000));
    assert!(refusal(&of(DataType::Fp32, &[FREE]), &deeper).contains("deeper than 100 levels"));
}

#[test]
fn empty_lists_are_shapes_too() {
    let expected = of(DataType::Fp32, &[FREE, FREE]);
    assert_eq!(only(&expected, r#"{"inputs":[]}"#), (vec![0], vec![]));
    assert_eq!(only(&expected, r#"{"inputs":[[],[]]}"#), (vec![2, 0], vec![]));
    assert_eq!(only(&expected, r#"{"instances":[[],[]]}"#), (vec![2, 0], vec![]));
}

#[test]
fn a_scalar_is_a_column_and_no_row() {
    let expected = of(DataType::Fp32, &[]);
    assert_eq!(only(&expected, r#"{"inputs":0.5}"#), (vec![], floats(&[0.5])));
    assert_eq!(only(&expected, r#"{"inputs":{"x":0.5}}"#), (vec![], floats(&[0.5])));
    let said = "tensor `x` has no dimensions, so there are no rows of it: send `inputs` instead of `instances`";
    assert_eq!(refusal(&expected, r#"{"instances":[0.5]}"#), said);
    let reduced = model(vec![spec("x", DataType::Fp32, &[FREE])], vec![spec("total", DataType::Fp32, &[])], &[]);
    let said = "output `total` has no dimensions, so the answer has no rows: send `inputs` instead of `instances`";
    assert_eq!(refusal(&reduced, r#"{"instances":[1]}"#), said);
    assert!(predict(&reduced, r#"{"inputs":[1]}"#).is_ok());
    let untold = TensorSpec { dtype: None, ..spec("total", DataType::Fp32, &[]) };
    let untold = model(vec![spec("x", DataType::Fp32, &[FREE])], vec![untold], &[]);
    assert!(matches!(predict(&untold, r#"{"instances":[1]}"#), Err(Error::Unimplemented(_))), "columns would not help");
}

#[test]
fn binary_data_may_stand_for_any_string() {
    let expected = of(DataType::Bytes, &[FREE]);
    let read = |body: &str| strings(&predict(&expected, body).unwrap().0[0]);
    let (rows, column) = (
        r#"{"instances":[{"b64":"gGE="},"b",{"b64":"gGE"}]}"#,
        r#"{"inputs":[{"b64":"gGE="},"b",{ "b64" : "gGE=" }]}"#,
    );
    for body in [rows, column, r#"{"instances":[{"x":{"b64":"gGE="}},{"x":"b"},{"x":{"b64":"gGE="}}]}"#] {
        assert_eq!(read(body), [&b"\x80a"[..], b"b", b"\x80a"], "{body}");
    }
    assert_eq!(only(&of(DataType::Bytes, &[]), r#"{"inputs":{"b64":"YQ=="}}"#).0, [0; 0]);
    let nested = of(DataType::Bytes, &[FREE, FREE]);
    assert_eq!(only(&nested, r#"{"instances":[["a",{"b64":""}]]}"#), (vec![1, 2], b"\x01\0\0\0a\0\0\0\0".to_vec()));
    // The alphabet of URLs, a stray character, a stray bit.
    for text in ["_-8=", "a%==", "YR==", "Y"] {
        let said = refusal(&expected, &format!(r#"{{"instances":["a",{{"b64":"{text}"}}]}}"#));
        assert_eq!(said, "tensor `x` has `{` at `instances[1]`, expected standard base64 in `b64` for BYTES");
    }
    let numbers = of(DataType::Fp32, &[FREE]);
    assert!(refusal(&numbers, r#"{"instances":[{"b64":"YQ=="}]}"#).contains("expected a number for FP32"));
    // Not the one member, or no string in it: an object like any other.
    assert!(refusal(&expected, r#"{"instances":[{"b64":"YQ==","c":1}]}"#).contains("has `b64`, which is no input"));
    assert!(refusal(&expected, r#"{"instances":[{"b64":1}]}"#).contains("has `b64`, which is no input"));
    assert!(refusal(&expected, r#"{"instances":[{}]}"#).contains("has no `x`"));
    let odd = model(vec![spec("b64", DataType::Fp32, &[FREE])], vec![], &[]);
    assert!(predict(&odd, r#"{"instances":[{"b64":1}]}"#).is_ok());
    assert!(predict(&odd, r#"{"instances":[{"b64":"YQ=="}]}"#).is_err());
}

#[test]
fn integers_are_exact_and_only_integer_tokens() {
    let long = of(DataType::Int64, &[FREE]);
    let (shape, data) = only(&long, r#"{"instances":[9007199254740993,-9223372036854775808]}"#);
    assert_eq!(
        (shape, data),
        (vec![2], [9_007_199_254_740_993_i64, i64::MIN].iter().flat_map(|v| v.to_le_bytes()).collect())
    );
    let unsigned = of(DataType::Uint64, &[FREE]);
    assert_eq!(only(&unsigned, r#"{"inputs":[18446744073709551615]}"#).1, u64::MAX.to_le_bytes());
    for token in ["1.0", "1e3", "1.5", "9223372036854775808", "\"1\"", "true", "NaN", "null"] {
        let said = refusal(&long, &format!(r#"{{"instances":[0,{token}]}}"#));
        let expected = format!("tensor `x` has `{token}` at `instances[1]`, expected an integer from ");
        assert!(said.starts_with(&expected), "{said}");
    }
    assert!(refusal(&of(DataType::Uint8, &[FREE]), r#"{"inputs":[256]}"#).contains("from 0 to 255"));
    assert!(refusal(&of(DataType::Uint8, &[FREE]), r#"{"inputs":[-1]}"#).contains("from 0 to 255"));
}

#[test]
fn booleans_are_for_bool_and_strings_for_bytes() {
    assert_eq!(only(&of(DataType::Bool, &[FREE]), r#"{"inputs":[true,false]}"#).1, [1, 0]);
    for (dtype, token) in [
        (DataType::Bool, "1"),
        (DataType::Bool, "\"true\""),
        (DataType::Fp32, "true"),
        (DataType::Fp32, "\"1\""),
        (DataType::Bytes, "1"),
        (DataType::Bytes, "null"),
        (DataType::Fp32, "1e39"),
    ] {
        assert!(refusal(&of(dtype, &[FREE]), &format!(r#"{{"inputs":[{token}]}}"#)).contains("`inputs[0]`"), "{token}");
    }
}

#[test]
fn floats_take_integers_and_the_three_tokens() {
    let (_, data) = only(&of(DataType::Fp32, &[FREE]), r#"{"inputs":[16777217,NaN,Infinity,-Infinity,null,-0]}"#);
    let values: Vec<f32> = data.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    assert_eq!(values[0], 16_777_216.0, "rounded, not refused (contract 03 section 2.3)");
    assert!(values[1].is_nan() && values[4].is_nan());
    assert_eq!((values[2], values[3]), (f32::INFINITY, f32::NEG_INFINITY));
    assert!(values[5].is_sign_negative());
    let settings = Settings { non_finite: crate::wire::NonFinite::AsToken, ..Settings::default() };
    let null = decode_predict(br#"{"inputs":[null]}"#, &of(DataType::Fp32, &[FREE]), &settings);
    assert!(null.is_err(), "`null` is a number only where it is written for one");
    for word in ["nan", "Inf", "+Infinity", "-NaN", "NaN5"] {
        refusal(&of(DataType::Fp64, &[FREE]), &format!(r#"{{"inputs":[{word}]}}"#));
    }
}

#[test]
fn half_types_are_numbers_rounded_to_the_nearest_even() {
    let (_, data) = only(&of(DataType::Fp16, &[FREE]), r#"{"inputs":[1.5,-2,2049,2051,Infinity,-Infinity]}"#);
    let bits: Vec<u16> = data.chunks(2).map(|bytes| u16::from_le_bytes(bytes.try_into().unwrap())).collect();
    assert_eq!(bits, [0x3E00, 0xC000, 0x6800, 0x6802, 0x7C00, 0xFC00]);
    assert_eq!(only(&of(DataType::Bf16, &[FREE]), r#"{"inputs":[1.5]}"#).1, [0xC0, 0x3F]);
    refusal(&of(DataType::Fp16, &[FREE]), r#"{"inputs":[65520]}"#);
}

#[test]
fn a_type_without_a_name_is_unimplemented() {
    let mut unnamed = spec("x", DataType::Fp32, &[FREE]);
    unnamed.dtype = None;
    let error = predict(&model(vec![unnamed], vec![], &[]), r#"{"inputs":[1]}"#).unwrap_err();
    assert_eq!(error.code(), crate::error::Code::Unimplemented);
}

#[test]
fn the_bare_object_has_the_clients_names() {
    let names = Names { inputs: vec![("x".into(), "box".into())], outputs: vec![] };
    let decode = |body: &str| decode_object(body.as_bytes(), &tagged(), &names, &Settings::default());
    let tensors = decode(r#"{"x":[[1,2,3,4]],"tag":["a"]}"#).unwrap();
    assert_eq!((&*tensors[1].name, tensors[1].tensor.shape().dims()), ("box", &[1, 4][..]));
    let said = |body: &str| decode(body).unwrap_err().to_string();
    assert_eq!(
        said(r#"{"box":[[1,2,3,4]],"tag":["a"]}"#),
        "the request has `box`, which is no input, expected `tag`, `x`"
    );
    assert_eq!(said(r#"{"tag":["a"]}"#), "the request has no `x`");
    assert_eq!(
        said(r#"{"x":[[1,2],[3]],"tag":["a"]}"#),
        "tensor `x` is ragged: found a list of 1 at `x[1]`, expected 2 as in the first one"
    );
    assert!(said("[1]").contains("expected an object"));
}
