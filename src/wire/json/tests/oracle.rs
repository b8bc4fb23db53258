//! The reader against `serde_json`: the same texts are JSON, the same values come out.

use super::*;
use crate::wire::json::reader::Reader;
use proptest::prelude::*;
use serde_json::value::RawValue;

/// Whether our reader takes `json` as a whole; `None` where we are stricter on purpose.
fn ours(json: &[u8]) -> Option<bool> {
    let result = Reader::new(json, 100).and_then(|mut reader| {
        reader.skip()?;
        reader.end()
    });
    match result {
        Ok(()) => Some(true),
        Err(error) if error.to_string().contains("twice") => None,
        Err(error) if error.to_string().contains("deeper") => None,
        Err(_) => Some(false),
    }
}

/// What an element of `datatype` must be, by way of the token's text.
fn expected(datatype: DataType, token: &str) -> Option<Vec<u8>> {
    let whole = || {
        let (whole, fraction) = token.split_once('.').unwrap_or((token, ""));
        fraction.bytes().all(|digit| digit == b'0').then(|| whole.parse::<i128>().ok())?
    };
    match datatype {
        DataType::Fp32 => {
            let value = if token == "null" { f32::NAN } else { token.parse().ok()? };
            (value.is_finite() || value.is_nan()).then(|| value.to_le_bytes().to_vec())
        }
        DataType::Fp64 => {
            let value = if token == "null" { f64::NAN } else { token.parse().ok()? };
            (value.is_finite() || value.is_nan()).then(|| value.to_le_bytes().to_vec())
        }
        DataType::Int8 => Some(i8::try_from(whole()?).ok()?.to_le_bytes().to_vec()),
        DataType::Uint16 => Some(u16::try_from(whole()?).ok()?.to_le_bytes().to_vec()),
        DataType::Int64 => Some(i64::try_from(whole()?).ok()?.to_le_bytes().to_vec()),
        DataType::Uint64 => Some(u64::try_from(whole()?).ok()?.to_le_bytes().to_vec()),
        DataType::Bool => Some(vec![u8::from(token.parse::<bool>().ok()?)]),
        DataType::Bytes => {
            let string: String = serde_json::from_str(token).ok()?;
            let mut data = Vec::new();
            crate::tensor::push_string(&mut data, string.as_bytes()).unwrap();
            Some(data)
        }
        _ => unreachable!("not drawn"),
    }
}

fn json_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|flag| flag.to_string()),
        r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?",
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        r#""(\\[nrtbf/"\\]|\\u[0-9a-fA-F]{4}|[a-z ]){0,8}""#,
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(|items| format!("[{}]", items.join(" , "))),
            prop::collection::vec(("[a-z]{0,4}", inner), 0..6).prop_map(|members| {
                let members = members.into_iter().map(|(name, value)| format!("\"{name}\":\t{value}"));
                format!("{{{}}}", members.collect::<Vec<_>>().join(",\n"))
            }),
        ]
    })
}

/// Mostly what `datatype` takes; now and then something else.
fn token(datatype: DataType) -> BoxedStrategy<String> {
    let stray = prop::sample::select(vec!["null", "true", "\"x\"", "0.5", "-1", "1000", "1e9", "1e39", "1e400"]);
    let fitting = match datatype {
        DataType::Fp32 | DataType::Fp64 => prop_oneof![
            r"-?(0|[1-9][0-9]{0,3})(\.[0-9]{1,18})?",
            r"-?(0|[1-9][0-9]{0,21})(\.[0-9]{1,3})?(e[+-]?[0-9])?",
            Just("null".to_owned()),
        ]
        .boxed(),
        DataType::Bool => any::<bool>().prop_map(|flag| flag.to_string()).boxed(),
        DataType::Bytes => any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()).boxed(),
        DataType::Int8 => r"-?(0|[1-9][0-9]?)(\.0{1,3})?".boxed(),
        DataType::Uint16 => r"(0|[1-9][0-9]{0,3})(\.0{1,3})?".boxed(),
        _ => r"(0|[1-9][0-9]{0,18})(\.0{1,3})?".boxed(),
    };
    prop_oneof![40 => fitting, 1 => stray.prop_map(str::to_owned)].boxed()
}

fn datatype() -> impl Strategy<Value = DataType> {
    use DataType::*;
    prop::sample::select(vec![Fp32, Fp64, Int8, Uint16, Int64, Uint64, Bool, Bytes])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_same_texts_are_json(text in json_text()) {
        let theirs = serde_json::from_str::<serde_json::Value>(&text).is_ok();
        if let Some(ours) = ours(text.as_bytes()) {
            prop_assert_eq!(ours, theirs, "{}", text);
        }
    }

    #[test]
    fn the_same_damaged_texts_are_json(text in json_text(), at: prop::sample::Index, byte in prop::sample::select(b"{}[]\",:0123456789.eE+-tfn\\u \x00\x1f\x80\xff".to_vec()), insert: bool) {
        let mut bytes = text.into_bytes();
        let at = at.index(bytes.len());
        if insert {
            bytes.insert(at, byte);
        } else {
            bytes[at] = byte;
        }
        // Numbers beyond a double are JSON to us and none to them.
        let theirs = serde_json::from_slice::<serde_json::Value>(&bytes);
        let out_of_range = theirs.as_ref().is_err_and(|error| error.to_string().contains("out of range"));
        if let Some(ours) = ours(&bytes).filter(|_| !out_of_range) {
            prop_assert_eq!(ours, theirs.is_ok(), "{}", String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn the_same_values_come_out(
        (datatype, tokens) in datatype().prop_flat_map(|datatype| (Just(datatype), prop::collection::vec(token(datatype), 0..9))),
        columns in 1_usize..4,
        nested: bool,
        order in Just(["name", "shape", "datatype", "data"]).prop_shuffle(),
    ) {
        let is_float = matches!(datatype, DataType::Fp32 | DataType::Fp64);
        // An integer written with an exponent is one by our rules; the oracle does not know them.
        prop_assume!(is_float || !tokens.iter().any(|token| token == "1e9"));
        let rows = tokens.len() / columns;
        let tokens = &tokens[..rows * columns];
        let data = if nested {
            format!("[{}]", tokens.chunks(columns).map(|row| format!("[{}]", row.join(","))).collect::<Vec<_>>().join(", "))
        } else {
            format!("[{}]", tokens.join(" ,"))
        };
        let member = |name: &str| match name {
            "name" => r#""name":"X""#.to_owned(),
            "shape" => format!(r#""shape":[{rows},{columns}]"#),
            "datatype" => format!(r#""datatype":"{datatype}""#),
            _ => format!(r#""data":{data}"#),
        };
        let input = order.iter().map(|name| member(name)).collect::<Vec<_>>().join(",");
        let json = format!(r#"{{"inputs":[{{{input}}}]}}"#);

        // The oracle reads the tokens with serde_json and converts each by itself.
        let leaves: Vec<String> = if nested {
            let rows: Vec<Vec<&RawValue>> = serde_json::from_str(&data).unwrap();
            rows.iter().flatten().map(|raw| raw.get().to_owned()).collect()
        } else {
            let leaves: Vec<&RawValue> = serde_json::from_str(&data).unwrap();
            leaves.iter().map(|raw| raw.get().to_owned()).collect()
        };
        let expected: Option<Vec<Vec<u8>>> = leaves.iter().map(|leaf| expected(datatype, leaf)).collect();
        let found = v2(&json).map(|request| request.inputs[0].tensor.data().to_vec());
        prop_assert_eq!(found.ok(), expected.map(|leaves| leaves.concat()), "{}", json);
    }
}
