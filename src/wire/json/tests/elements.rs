//! `data`: numbers, booleans, strings, and how they may be nested.

use super::*;
use crate::wire::NonFinite;
use proptest::prelude::*;

fn elements<T: bytemuck::Pod>(datatype: &str, shape: &str, data: &str) -> Result<Vec<T>, String> {
    tensor(datatype, shape, data).map(|tensor| tensor.try_elements::<T>().expect("aligned by construction").to_vec())
}

#[test]
fn flat_and_nested_data_give_the_same_tensor() {
    let flat = tensor("FP32", "[2,2]", "[1,2.5,-3,4e0]").unwrap();
    assert_eq!(tensor("FP32", "[2,2]", " [ [1 , 2.5],\n[-3,4.0] ] ").unwrap(), flat);
    assert_eq!(elements::<f32>("FP32", "[2,2]", "[1,2.5,-3,4]").unwrap(), [1.0, 2.5, -3.0, 4.0]);
    let deep = elements::<u8>("UINT8", "[2,1,3]", "[[[1,2,3]],[[4,5,6]]]").unwrap();
    assert_eq!(deep, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn nesting_must_be_the_shape_exactly() {
    for data in [
        "[[1,2],[3]]",
        "[[1],[2,3,4]]",
        "[[1,2,3,4]]",
        "[[1,2],[3,4],[]]",
        "[[[1,2],[3,4]]]",
        "[[1,2],3,4]",
        "[1,2,[3,4]]",
        "[1,[2,3],4]",
        "[[[1],[2]],[[3],[4]]]",
        "[[],[]]",
        "[[1,2],[3,4]",
        "[[1,2],]",
        "[[1,2],[3,4],]",
        "[[1,2,],[3,4]]",
        "4",
        "{}",
    ] {
        assert!(tensor("FP32", "[2,2]", data).is_err(), "{data}");
    }
}

#[test]
fn the_count_must_be_the_shape_s() {
    let error = tensor("FP32", "[2,2]", "[1,2,3]").unwrap_err();
    assert_eq!(error, "tensor `X` has 3 elements in `data`, expected 4 for shape [2, 2]");
    let error = tensor("FP32", "[2,2]", "[1,2,3,4,5]").unwrap_err();
    assert_eq!(error, "tensor `X` has more than 4 elements in `data`, expected 4 for shape [2, 2]");
    let error = tensor("FP32", "[2,2]", "[[1,2],[3]]").unwrap_err();
    assert_eq!(error, "tensor `X` has 1 elements in a row of `data`, expected 2 for shape [2, 2]");
}

#[test]
fn a_large_shape_over_little_text_allocates_little() {
    let error = tensor("FP64", "[1000000000000]", "[1]").unwrap_err();
    assert!(error.contains("has 1 elements"), "{error}");
}

#[test]
fn a_scalar_is_one_element_with_or_without_an_array() {
    assert_eq!(elements::<i64>("INT64", "[]", "5").unwrap(), [5]);
    assert_eq!(elements::<i64>("INT64", "[]", "[5]").unwrap(), [5]);
    assert!(tensor("INT64", "[]", "[]").is_err());
    assert!(tensor("INT64", "[]", "[[5]]").is_err());
    assert!(tensor("INT64", "[1]", "5").is_err());
    assert_eq!(tensor("BYTES", "[]", "\"a\"").unwrap().iter_strings().collect::<Vec<_>>(), [b"a"]);
}

#[test]
fn no_elements_are_an_empty_array() {
    for shape in ["[0]", "[0,3]", "[2,0]", "[0,0]"] {
        assert!(tensor("FP32", shape, "[]").unwrap().data().is_empty(), "{shape}");
        assert!(tensor("FP32", shape, "[1]").is_err(), "{shape}");
    }
    assert!(tensor("FP32", "[2,0]", "[[],[]]").is_ok());
    assert!(tensor("FP32", "[2,0]", "[[]]").is_err());
    assert!(tensor("BYTES", "[0]", "[]").is_ok());
}

#[test]
fn integers_are_exact_and_in_range() {
    assert_eq!(elements::<i64>("INT64", "[1]", "[9007199254740993]").unwrap(), [9_007_199_254_740_993]);
    assert_eq!(elements::<u64>("UINT64", "[1]", "[18446744073709551615]").unwrap(), [u64::MAX]);
    assert_eq!(elements::<i64>("INT64", "[1]", "[-9223372036854775808]").unwrap(), [i64::MIN]);
    assert_eq!(elements::<i32>("INT32", "[4]", "[1.0, 1e3, -0, 25e-0]").unwrap(), [1, 1000, 0, 25]);
    let error = tensor("INT8", "[2]", "[127,128]").unwrap_err();
    assert_eq!(error, "tensor `X` has `128` at index 1, expected an integer from -128 to 127");
    let error = tensor("INT32", "[1]", "[1.5]").unwrap_err();
    assert_eq!(error, "tensor `X` has `1.5` at index 0, expected an integer from -2147483648 to 2147483647");
    for (datatype, data) in [
        ("UINT8", "-1"),
        ("UINT8", "256"),
        ("UINT16", "65536"),
        ("UINT32", "4294967296"),
        ("UINT64", "18446744073709551616"),
        ("UINT64", "-1"),
        ("INT16", "-32769"),
        ("INT64", "9223372036854775808"),
        ("INT64", "1e30"),
        ("INT64", "true"),
        ("INT64", "\"1\""),
        ("INT64", "null"),
        ("INT64", "01"),
    ] {
        assert!(tensor(datatype, "[1]", &format!("[{data}]")).is_err(), "{datatype} {data}");
    }
}

#[test]
fn floats_take_integers_and_are_rounded_once() {
    assert_eq!(
        elements::<f32>("FP32", "[3]", "[16777217, 1.00000005960464477626, -0]").unwrap()[..2],
        [16_777_216.0, 1.000_000_1]
    );
    assert_eq!(elements::<f64>("FP64", "[2]", "[9007199254740993, 0.1]").unwrap(), [9_007_199_254_740_992.0, 0.1]);
    let error = tensor("FP32", "[1]", "[1e39]").unwrap_err();
    assert_eq!(error, "tensor `X` has `1e39` at index 0, expected a finite number within the range of the type");
    for data in ["1e999", "NaN", "Infinity", "-Infinity", "\"1\"", "true", "+1", ".5", "1.", "0x1"] {
        assert!(tensor("FP64", "[1]", &format!("[{data}]")).is_err(), "{data}");
    }
}

#[test]
fn null_is_nan_where_nan_is_written_as_null() {
    for datatype in ["FP32", "FP64"] {
        let tensor = tensor(datatype, "[2]", "[null,1]").unwrap();
        let first = tensor.try_elements::<f32>().map(|values| values[0]);
        let nan = if datatype == "FP32" {
            first.unwrap().is_nan()
        } else {
            tensor.try_elements::<f64>().unwrap()[0].is_nan()
        };
        assert!(nan, "{datatype}");
    }
    for non_finite in [NonFinite::AsToken, NonFinite::Refuse] {
        let settings = Settings { non_finite, ..Settings::default() };
        assert!(tensor_with("FP32", "[1]", "[null]", &settings).is_err());
    }
    assert!(tensor("BOOL", "[1]", "[null]").is_err());
}

#[test]
fn booleans_are_words() {
    assert_eq!(tensor("BOOL", "[2]", "[true,false]").unwrap().data()[..], [1, 0]);
    let error = tensor("BOOL", "[2]", "[true,1]").unwrap_err();
    assert_eq!(error, "tensor `X` has `1` at index 1, expected `true` or `false`");
    assert!(tensor("BOOL", "[1]", "[truely]").is_err());
}

#[test]
fn strings_hold_any_character() {
    let strings = |data| {
        let tensor = tensor("BYTES", "[1]", data)?;
        Ok::<_, String>(tensor.iter_strings().next().unwrap().to_vec())
    };
    assert_eq!(strings(r#"["a\u0000b"]"#).unwrap(), b"a\0b");
    assert_eq!(strings(r#"[""]"#).unwrap(), b"");
    assert_eq!(strings(r#"["\ud83d\ude00\"\\\/\b\f\n\r\t"]"#).unwrap(), "😀\"\\/\u{8}\u{c}\n\r\t".as_bytes());
    assert_eq!(strings("[\"模型😀\"]").unwrap(), "模型😀".as_bytes());
    for bad in
        [r#"["\ud83d"]"#, r#"["\ud83dx"]"#, r#"["\ude00"]"#, r#"["\x"]"#, r#"["\u12"]"#, "[\"\n\"]", "[\"a]", "[1]"]
    {
        assert!(strings(bad).is_err(), "{bad}");
    }
}

#[test]
fn half_types_are_binary_unless_converted() {
    for datatype in ["FP16", "BF16"] {
        let error = tensor(datatype, "[1]", "[1.5]").unwrap_err();
        assert_eq!(error, format!("tensor `X` has JSON `data`, expected binary data for {datatype}"));
    }
    let settings = Settings { convert_half: true, ..Settings::default() };
    assert_eq!(tensor_with("FP16", "[2]", "[1.5,-2]", &settings).unwrap().data()[..], [0x00, 0x3E, 0x00, 0xC0]);
    assert_eq!(tensor_with("BF16", "[2]", "[1.5,-2]", &settings).unwrap().data()[..], [0xC0, 0x3F, 0x00, 0xC0]);
    assert!(tensor_with("FP16", "[1]", "[65520]", &settings).is_err());
}

proptest! {
    #[test]
    fn numbers_that_are_written_are_read_back(singles: Vec<f32>, doubles: Vec<f64>, whole: Vec<i64>, strings: Vec<String>) {
        let tensors = [
            Tensor::of(DataType::Fp32, [singles.len()].into(), singles.clone()).unwrap(),
            Tensor::of(DataType::Fp64, [doubles.len()].into(), doubles.clone()).unwrap(),
            Tensor::of(DataType::Int64, [whole.len()].into(), whole.clone()).unwrap(),
            Tensor::strings([strings.len()].into(), &strings).unwrap(),
        ];
        for tensor in tensors {
            let mut json = br#"{"inputs":"#.to_vec();
            write_outputs(&mut json, &[named("X", tensor.clone())], Dialect::V2, &Wishes::default(), &Settings::default()).unwrap();
            json.push(b'}');
            let request = v2(std::str::from_utf8(&json).unwrap()).unwrap();
            let read = &request.inputs[0].tensor;
            let finite = singles.iter().all(|value| value.is_finite()) && doubles.iter().all(|value| value.is_finite());
            prop_assert_eq!((read.dtype(), read.shape()), (tensor.dtype(), tensor.shape()));
            if finite {
                prop_assert_eq!(read.data(), tensor.data());
            }
        }
    }
}
