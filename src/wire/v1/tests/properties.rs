//! What holds for every input: V1 and V2 read the same bits, forms agree, nothing panics.

use super::*;
use crate::{
    call::ModelRef,
    tensor::{Shape, Tensor},
    wire::json,
};
use proptest::prelude::*;

/// Values of `dtype` as JSON that both protocols take: integers, floats of all sizes, strings with escapes.
fn token(dtype: DataType) -> BoxedStrategy<String> {
    match dtype {
        DataType::Bool => any::<bool>().prop_map(|value| value.to_string()).boxed(),
        DataType::Uint8 => any::<u8>().prop_map(|value| value.to_string()).boxed(),
        DataType::Uint16 => any::<u16>().prop_map(|value| value.to_string()).boxed(),
        DataType::Uint32 => any::<u32>().prop_map(|value| value.to_string()).boxed(),
        DataType::Uint64 => any::<u64>().prop_map(|value| value.to_string()).boxed(),
        DataType::Int8 => any::<i8>().prop_map(|value| value.to_string()).boxed(),
        DataType::Int16 => any::<i16>().prop_map(|value| value.to_string()).boxed(),
        DataType::Int32 => any::<i32>().prop_map(|value| value.to_string()).boxed(),
        DataType::Int64 => any::<i64>().prop_map(|value| value.to_string()).boxed(),
        DataType::Fp16 => (-60000.0_f32..60000.0).prop_map(|value| format!("{value}")).boxed(),
        DataType::Bf16 | DataType::Fp32 => any::<u32>()
            .prop_map(f32::from_bits)
            .prop_filter("finite, and so for BF16", |value| value.is_finite() && value.abs() < 3.3e38)
            .prop_map(|value| format!("{value:e}"))
            .boxed(),
        DataType::Fp64 => {
            any::<f64>().prop_filter("finite", |value| value.is_finite()).prop_map(|value| format!("{value:e}")).boxed()
        }
        DataType::Bytes => any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()).boxed(),
    }
}

/// `tokens` as nested lists of shape `[rows, n / rows]`.
fn nested(tokens: &[String], rows: usize) -> String {
    let rows: Vec<_> = tokens.chunks(tokens.len() / rows).map(|row| format!("[{}]", row.join(","))).collect();
    format!("[{}]", rows.join(","))
}

/// As V2 reads them, half types as numbers too.
fn v2(dtype: DataType, shape: &[usize], data: &str) -> Tensor {
    let body = format!(r#"{{"inputs":[{{"name":"x","datatype":"{dtype}","shape":{shape:?},"data":{data}}}]}}"#);
    let settings = Settings { convert_half: true, ..Settings::default() };
    let model = ModelRef { name: "m".into(), version: None };
    let (request, _) = json::decode_infer(body.as_bytes(), model, &settings).unwrap();
    request.inputs.tensors().unwrap()[0].tensor.clone()
}

fn any_case() -> impl Strategy<Value = (DataType, usize, Vec<String>)> {
    (0..DataType::ALL.len(), 1_usize..4, 1_usize..5).prop_flat_map(|(at, rows, width)| {
        let dtype = DataType::ALL[at];
        (Just(dtype), Just(rows), prop::collection::vec(token(dtype), rows * width))
    })
}

proptest! {
    #[test]
    fn columns_rows_and_v2_read_the_same_bits((dtype, rows, tokens) in any_case()) {
        let (expected, data) = (of(dtype, &[None, None]), nested(&tokens, rows));
        let width = tokens.len() / rows;
        let theirs = v2(dtype, &[rows, width], &data);
        for member in ["inputs", "instances"] {
            let (tensors, form) = predict(&expected, &format!(r#"{{"{member}":{data}}}"#)).unwrap();
            prop_assert_eq!(form.member(), member);
            prop_assert_eq!(&tensors[0].tensor, &theirs);
        }
        let flat = v2(dtype, &[rows, width], &format!("[{}]", tokens.join(",")));
        prop_assert_eq!(&flat, &theirs);
        let named = tokens.chunks(width).map(|row| format!(r#"{{"x":[{}]}}"#, row.join(","))).collect::<Vec<_>>();
        let (tensors, _) = predict(&expected, &format!(r#"{{"instances":[{}]}}"#, named.join(","))).unwrap();
        prop_assert_eq!(&tensors[0].tensor, &theirs);
    }

    /// Any bits of any type, as numbers and back: what is no number comes back as one that is none.
    #[test]
    fn what_is_written_is_read_back(at in 0..DataType::ALL.len(), bytes in prop::collection::vec(any::<u8>(), 48), rows in 1_usize..4) {
        let dtype = DataType::ALL[at];
        let tensor = match dtype.size() {
            Some(size) => {
                let bytes = if dtype == DataType::Bool { bytes.iter().map(|byte| byte & 1).collect() } else { bytes };
                let shape = Shape::new([rows, 48 / size / rows]);
                let length = shape.elements().unwrap() * size;
                Tensor::new(dtype, shape, bytes[..length].to_vec().into()).unwrap()
            }
            None => Tensor::strings(Shape::new([rows, 48 / rows]), bytes.chunks(1).take(rows * (48 / rows))).unwrap(),
        };
        let outputs = [NamedTensor { name: "x".into(), tensor: tensor.clone() }];
        let settings = Settings { non_finite: crate::wire::NonFinite::AsToken, ..Settings::default() };
        for form in [Form::Rows, Form::Columns] {
            let text = encode_predict(&outputs, form, &settings).unwrap();
            let text = std::str::from_utf8(&text).unwrap().replacen("predictions", "instances", 1).replacen("outputs", "inputs", 1);
            let (back, _) = decode_predict(text.as_bytes(), &of(dtype, &[None, None]), &settings).unwrap();
            prop_assert_eq!(back[0].tensor.shape(), tensor.shape());
            let again = encode_predict(&back, form, &settings).unwrap();
            let again = std::str::from_utf8(&again).unwrap().replacen("predictions", "instances", 1).replacen("outputs", "inputs", 1);
            prop_assert_eq!(again, text);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        for expected in [tagged(), of(DataType::Bytes, &[None]), of(DataType::Fp32, &[])] {
            let settings = Settings::default();
            let _ = decode_predict(&bytes, &expected, &settings);
            let _ = decode_object(&bytes, &expected, &Names::default(), &settings);
            let _ = decode_examples(&bytes, &expected, Task::Regress, &settings);
        }
    }

    /// Nearly right: pieces of real bodies in any order.
    #[test]
    fn pieces_of_bodies_never_panic(pieces in prop::collection::vec(prop::sample::select(vec![
        "{", "}", "[", "]", ",", ":", "\"instances\"", "\"inputs\"", "\"examples\"", "\"context\"", "\"b64\"", "\"x\"", "\"tag\"",
        "\"box\"", "1", "-", "NaN", "null", "true", "\"YQ==\"", " ", "\"\\ud800\"", "1e9",
    ]), 0..40)) {
        let body = pieces.concat();
        for expected in [tagged(), of(DataType::Bytes, &[None]), of(DataType::Fp32, &[None, None])] {
            let settings = Settings::default();
            for text in [body.clone(), format!("{{\"instances\":[{body}"), format!("{{\"examples\":[{{{body}")] {
                let _ = decode_predict(text.as_bytes(), &expected, &settings);
                let _ = decode_object(text.as_bytes(), &expected, &Names::default(), &settings);
                let _ = decode_examples(text.as_bytes(), &expected, Task::Regress, &settings);
            }
        }
    }
}
