//! Messages of TensorFlow Serving: lists and bytes, versions and labels, what is refused by name.

use super::*;
use crate::{
    call::{ModelKey, NamedTensor, Timing, VersionState},
    tensor::{DataType, Shape, Signature, Tensor},
    wire::Settings,
};
use proptest::prelude::*;
use std::sync::Arc;

fn proto(dtype: pb::DataType, dims: &[i64]) -> pb::TensorProto {
    let dim = dims.iter().map(|size| pb::tensor_shape_proto::Dim { size: *size, name: String::new() }).collect();
    pb::TensorProto {
        dtype: dtype.into(),
        tensor_shape: Some(pb::TensorShapeProto { dim, unknown_rank: false }),
        ..pb::TensorProto::default()
    }
}

fn decode(tensor: pb::TensorProto) -> Result<Tensor, String> {
    let inputs = HashMap::from([("x".to_owned(), tensor)]);
    let weight = weight(&inputs);
    let decoded = decode_inputs(inputs, &Settings::default()).map_err(|error| error.to_string())?;
    let tensor = decoded.into_iter().next().unwrap().tensor;
    assert!(weight == 0 || weight == tensor.data().len(), "{weight}: {tensor:?}");
    Ok(tensor)
}

fn response(tensor: Tensor) -> InferResponse {
    InferResponse {
        model: Arc::new(ModelKey { name: "m".into(), version: "3".into() }),
        client_id: None,
        outputs: vec![NamedTensor { name: "y".into(), tensor }],
        parameters: Vec::new(),
        timing: Timing::default(),
    }
}

#[test]
fn a_short_list_goes_on_with_its_last_value_and_an_empty_one_is_zeros() {
    let float =
        |values: &[f32]| pb::TensorProto { float_val: values.to_vec(), ..proto(pb::DataType::DtFloat, &[2, 2]) };
    let floats = |tensor: Tensor| -> Vec<f32> { tensor.try_elements().unwrap().to_vec() };
    assert_eq!(floats(decode(float(&[1.0, 2.0, 3.0, 4.0])).unwrap()), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(floats(decode(float(&[1.0, 2.0])).unwrap()), [1.0, 2.0, 2.0, 2.0]);
    assert_eq!(floats(decode(float(&[])).unwrap()), [0.0; 4]);
    assert_eq!(
        decode(float(&[1.0; 5])).unwrap_err(),
        "tensor `x` has 5 values in `float_val`, expected at most 4 for shape [2, 2]"
    );
    let text = |values: &[&'static str]| pb::TensorProto {
        string_val: values.iter().map(|value| (*value).into()).collect(),
        ..proto(pb::DataType::DtString, &[3])
    };
    let strings = |tensor: Tensor| tensor.iter_strings().map(<[u8]>::to_vec).collect::<Vec<_>>();
    assert_eq!(strings(decode(text(&["a", "bc"])).unwrap()), [&b"a"[..], b"bc", b"bc"]);
    assert_eq!(strings(decode(text(&[])).unwrap()), [b""; 3]);
    let scalar = pb::TensorProto { dtype: pb::DataType::DtInt64.into(), int64_val: vec![7], ..Default::default() };
    assert_eq!(decode(scalar).unwrap().shape().rank(), 0);
}

#[test]
fn half_types_are_bits_in_integers() {
    for kind in [pb::DataType::DtHalf, pb::DataType::DtBfloat16] {
        let tensor = pb::TensorProto { half_val: vec![0x3E00, 0xFFFF], ..proto(kind, &[2]) };
        assert_eq!(decode(tensor).unwrap().data()[..], [0x00, 0x3E, 0xFF, 0xFF]);
        let beyond = pb::TensorProto { half_val: vec![0x1_0000], ..proto(kind, &[1]) };
        assert!(decode(beyond).unwrap_err().contains("has `65536` at index 0, beyond the range"));
    }
}

#[test]
fn what_is_wrong_with_a_tensor_is_named() {
    let cases = [
        (
            pb::TensorProto { float_val: vec![1.0], ..proto(pb::DataType::DtInt32, &[1]) },
            "has `float_val`, expected `int_val` or `tensor_content` for DT_INT32",
        ),
        (
            pb::TensorProto { int_val: vec![300], ..proto(pb::DataType::DtUint8, &[1]) },
            "has `300` at index 0, beyond the range of UINT8",
        ),
        (
            pb::TensorProto { int_val: vec![-1], ..proto(pb::DataType::DtUint16, &[1]) },
            "has `-1` at index 0, beyond the range of UINT16",
        ),
        (
            pb::TensorProto { tensor_content: vec![0; 3].into(), ..proto(pb::DataType::DtFloat, &[1]) },
            "has 3 bytes, expected 4",
        ),
        (
            pb::TensorProto {
                tensor_content: vec![0; 4].into(),
                float_val: vec![1.0],
                ..proto(pb::DataType::DtFloat, &[1])
            },
            "has both `tensor_content` and `float_val`, expected one",
        ),
        (
            pb::TensorProto { tensor_content: vec![1, b'a'].into(), ..proto(pb::DataType::DtString, &[1]) },
            "has `tensor_content`, expected `string_val` for DT_STRING",
        ),
        (proto(pb::DataType::DtComplex64, &[1]), "has dtype DT_COMPLEX64, which no model here takes"),
        (proto(pb::DataType::DtInvalid, &[1]), "has dtype DT_INVALID, which no model here takes"),
        (pb::TensorProto { dtype: 29, ..pb::TensorProto::default() }, "has dtype 29, which no model here takes"),
        (proto(pb::DataType::DtFloat, &[-1]), "has a dimension of `-1`, expected an integer from 0 on"),
        (proto(pb::DataType::DtFloat, &[1; 17]), "has 17 dimensions, expected at most 16"),
        (
            pb::TensorProto {
                tensor_shape: Some(pb::TensorShapeProto { dim: vec![], unknown_rank: true }),
                ..proto(pb::DataType::DtFloat, &[])
            },
            "has a shape of unknown rank, expected its dimensions",
        ),
    ];
    for (tensor, said) in cases {
        let inputs = HashMap::from([("x".to_owned(), tensor)]);
        let error = decode_inputs(inputs, &Settings::default()).unwrap_err();
        assert_eq!(error.to_string(), format!("tensor `x` {said}"));
    }
}

#[test]
fn a_few_bytes_that_ask_for_much_are_weighed_first() {
    let of = |tensor| weight(&HashMap::from([("x".to_owned(), tensor)]));
    assert_eq!(of(pb::TensorProto { float_val: vec![1.0], ..proto(pb::DataType::DtFloat, &[1 << 30]) }), 4 << 30);
    assert_eq!(of(proto(pb::DataType::DtFloat, &[i64::MAX, i64::MAX])), usize::MAX);
    assert_eq!(of(proto(pb::DataType::DtFloat, &[-1, 4])), 0, "no size at all, and refused as such");
    let text = pb::TensorProto { string_val: vec!["abcd".into()], ..proto(pb::DataType::DtString, &[1 << 20]) };
    assert_eq!(of(text), 8 << 20);
    assert_eq!(
        of(pb::TensorProto { tensor_content: vec![0; 4].into(), ..proto(pb::DataType::DtFloat, &[1 << 30]) }),
        0
    );
}

#[test]
fn raw_contents_are_shared_and_lists_are_answered_with_lists() {
    let raw = bytes::Bytes::from(vec![0; 8]);
    let tensor = pb::TensorProto { tensor_content: raw.clone(), ..proto(pb::DataType::DtFloat, &[2]) };
    let inputs = HashMap::from([("x".to_owned(), tensor.clone())]);
    assert_eq!(contents(&inputs), Contents::Raw);
    assert_eq!(decode(tensor).unwrap().data().as_ptr(), raw.as_ptr());
    let listed = pb::TensorProto { float_val: vec![1.0], ..proto(pb::DataType::DtFloat, &[1]) };
    assert_eq!(contents(&HashMap::from([("x".to_owned(), listed)])), Contents::Typed);
}

#[test]
fn an_answer_names_its_model_and_version() {
    let tensor = Tensor::of(DataType::Fp32, Shape::new([1, 2]), vec![0.5_f32, 2.0]).unwrap();
    let answer = encode_predict(&response(tensor.clone()), Contents::Raw);
    let spec = answer.model_spec.unwrap();
    assert_eq!(
        (&*spec.name, spec.version_choice, &*spec.signature_name),
        ("m", Some(VersionChoice::Version(3)), "serving_default")
    );
    assert_eq!(answer.outputs["y"].tensor_content, tensor.data());
    assert_eq!(encode_predict(&response(tensor), Contents::Typed).outputs["y"].float_val, [0.5, 2.0]);
    let text = Tensor::strings(Shape::new([1]), ["a\u{80}"]).unwrap();
    assert_eq!(encode_predict(&response(text), Contents::Raw).outputs["y"].string_val[0], "a\u{80}");
}

#[test]
fn a_model_has_a_version_a_label_or_neither() {
    let spec = |choice| Some(pb::serving::ModelSpec { name: "m".into(), version_choice: choice, ..Default::default() });
    assert_eq!(model(spec(None)).unwrap().version, None);
    assert_eq!(model(spec(Some(VersionChoice::Version(7)))).unwrap().version.as_deref(), Some("7"));
    let labelled = model(spec(Some(VersionChoice::VersionLabel("stable".into())))).unwrap();
    assert_eq!(labelled, ModelRef::labelled("m", "stable"));
    assert!(model(None).unwrap_err().to_string().contains("`model_spec.name`"));
    let named = |signature: &str| {
        let spec = pb::serving::ModelSpec { signature_name: signature.into(), ..spec(None).unwrap() };
        about(Some(spec), vec!["y".into()])
    };
    assert_eq!(named("serving_default").unwrap().1, ["y".into()]);
    assert_eq!(named("other").unwrap_err().to_string(), "signature `other` is unknown, expected `serving_default`");
}

#[test]
fn metadata_is_a_signature_in_an_any() {
    let spec = |name: &str, dtype, dims: &[Option<usize>]| TensorSpec { name: name.into(), dtype, dims: dims.to_vec() };
    let signature = Signature {
        inputs: vec![spec("x", Some(DataType::Fp32), &[None, Some(4)])],
        outputs: vec![spec("y", None, &[])],
    };
    let report = ModelReport {
        name: "m".into(),
        version: "1".into(),
        versions: vec![],
        platform: "p".into(),
        signature: Arc::new(signature),
    };
    let answer = encode_metadata(&report);
    let any = &answer.metadata["signature_def"];
    assert_eq!(any.type_url, "type.googleapis.com/tensorflow.serving.SignatureDefMap");
    let map = pb::serving::SignatureDefMap::decode(&*any.value).unwrap();
    let signature = &map.signature_def["serving_default"];
    assert_eq!(signature.method_name, "tensorflow/serving/predict");
    let x = &signature.inputs["x"];
    assert_eq!(
        (x.dtype(), x.encoding.clone()),
        (pb::DataType::DtFloat, Some(pb::tensor_info::Encoding::Name("x:0".into())))
    );
    let sizes: Vec<_> = x.tensor_shape.as_ref().unwrap().dim.iter().map(|dim| dim.size).collect();
    assert_eq!(sizes, [-1, 4]);
    assert_eq!(signature.outputs["y"].dtype(), pb::DataType::DtInvalid);
    assert!(check_fields(&["signature_def".into()]).is_ok());
    for fields in [&[][..], &["graph".to_owned()]] {
        assert!(check_fields(fields).is_err());
    }
}

#[test]
fn states_are_those_of_rest() {
    let report = VersionsReport {
        name: "m".into(),
        ready: true,
        since: 0,
        versions: vec![("2".into(), VersionState::Failed, "why".into()), ("1".into(), VersionState::Ready, "".into())],
    };
    let status = encode_status(&report).model_version_status;
    assert_eq!((status[0].version, status[0].state().as_str_name()), (2, "END"));
    let failed = status[0].status.as_ref().unwrap();
    assert_eq!((failed.error_code(), &*failed.error_message), (pb::error::Code::Internal, "why"));
    assert_eq!((status[1].version, status[1].state().as_str_name()), (1, "AVAILABLE"));
    assert_eq!(status[1].status.as_ref().unwrap().error_code(), pb::error::Code::Ok);
}

/// The names in JSON and the numbers on the wire are of one table each; both say the same.
#[test]
fn types_have_the_same_name_in_json() {
    for dtype in DataType::ALL.map(Some).into_iter().chain([None]) {
        assert_eq!(tensor::dtype_of(dtype).as_str_name(), crate::wire::v1::dtype_name(dtype));
    }
}

proptest! {
    /// Any tensor goes out and comes back with the same bits, as bytes and as lists.
    #[test]
    fn tensors_come_back(at in 0..DataType::ALL.len(), bytes in prop::collection::vec(any::<u8>(), 48), rows in 0_usize..4) {
        let dtype = DataType::ALL[at];
        let tensor = match dtype.size() {
            Some(size) => {
                let shape = Shape::new([rows, 2]);
                let bytes: Vec<u8> = if dtype == DataType::Bool { bytes.iter().map(|byte| byte & 1).collect() } else { bytes };
                Tensor::new(dtype, shape, bytes[..rows * 2 * size].to_vec().into()).unwrap()
            }
            None => Tensor::strings(Shape::new([rows]), bytes.chunks(3).take(rows)).unwrap(),
        };
        for contents in [Contents::Raw, Contents::Typed] {
            let encoded = tensor::encode(&tensor, contents);
            prop_assert_eq!(&decode(encoded).unwrap(), &tensor);
        }
    }

    #[test]
    fn arbitrary_messages_never_panic(bytes: Vec<u8>, dtype in -1..40, dims in prop::collection::vec(-2_i64..6, 0..4)) {
        if let Ok(message) = pb::serving::PredictRequest::decode(&*bytes) {
            let _ = (weight(&message.inputs), decode_inputs(message.inputs, &Settings::default()));
            let _ = about(message.model_spec, message.output_filter);
        }
        let tensor = pb::TensorProto { int_val: vec![1], ..pb::TensorProto { dtype, ..proto(pb::DataType::DtInvalid, &dims) } };
        let inputs = HashMap::from([("x".to_owned(), tensor)]);
        if weight(&inputs) < 1 << 16 {
            let _ = decode_inputs(inputs, &Settings::default());
        }
    }
}
