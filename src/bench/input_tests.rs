//! A request in every form, read back by the codecs of the server.

use super::*;
use crate::{tensor::DataType, wire::proto};
use clap::Parser;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    arguments: Arguments,
}

fn arguments(line: &str) -> Arguments {
    let words = ["bench", "http://127.0.0.1:1", "--model", "m"].into_iter().chain(line.split_whitespace());
    Line::parse_from(words).arguments
}

fn spec(name: &str, dtype: DataType, dims: &[Option<usize>]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: Some(dtype), dims: dims.to_vec() }
}

fn signature() -> Signature {
    let inputs = vec![spec("a:0", DataType::Fp32, &[None, Some(2)]), spec("b", DataType::Int64, &[None, None])];
    Signature { inputs, outputs: Vec::new() }
}

fn model() -> ModelRef {
    ModelRef { name: "m".into(), version: Some("2".into()) }
}

fn shapes(line: &str) -> Result<Vec<Vec<usize>>, String> {
    let payload = Payload::made(&signature(), &arguments(line)).map_err(|error| error.to_string())?;
    Ok(payload.inputs().iter().map(|input| input.tensor.shape().dims().to_vec()).collect())
}

#[test]
fn free_dimensions_are_rows_or_what_was_said() {
    assert_eq!(shapes("").unwrap(), [[1, 2], [1, 1]]);
    assert_eq!(shapes("--rows 5").unwrap(), [[5, 2], [5, 1]]);
    assert_eq!(shapes("--rows 5 --shape b:5,9").unwrap(), [[5, 2], [5, 9]]);
    assert_eq!(shapes("--shape a:0:1,3").unwrap_err(), "input `a:0`: has shape [-1, 2], and [1, 3] does not fit it");
    assert_eq!(shapes("--shape c:1").unwrap_err(), "the model has no input `c`; it has `a:0`, `b`");
    assert_eq!(shapes("--shape b:1,3 --shape b:1,4").unwrap_err(), "input `b` has two shapes");
    let scalar = Signature { inputs: vec![spec("x", DataType::Bool, &[])], outputs: Vec::new() };
    assert_eq!(Payload::made(&scalar, &arguments("--rows 5")).unwrap().rows(), 1);
}

#[test]
fn every_form_says_the_same() {
    let payload = Payload::made(&signature(), &arguments("--rows 3")).unwrap();
    assert_eq!(payload.rows(), 3);
    let settings = Settings::default();
    let json = json::decode_request(&payload.json().unwrap(), Dialect::V2, None, &settings).unwrap();
    assert_eq!(json.inputs, payload.inputs());
    let (body, length) = payload.binary().unwrap();
    let tail = Some((body.slice(length..), length));
    let binary = json::decode_request(&body[..length], Dialect::V2, tail, &settings).unwrap();
    assert_eq!(binary.inputs, payload.inputs());
    assert!(binary.wishes.binary, "outputs come raw too");
    let line = json::decode_request(&payload.line(&model(), "c1"), Dialect::Message, None, &settings).unwrap();
    assert_eq!(line.inputs, payload.inputs());
    assert_eq!(
        (line.id.as_deref(), line.model.as_deref(), line.version.as_deref()),
        (Some("c1"), Some("m"), Some("2"))
    );
    let message = proto::decode_infer(payload.message(&model()), &settings).unwrap();
    assert_eq!(message.inputs.tensors(), Some(payload.inputs()));
    assert_eq!(message.model, model());
}

#[test]
fn a_file_is_sent_as_it_is_and_translated_for_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("request.json");
    let text =
        r#"{ "inputs": [{"name":"x","datatype":"FP32","shape":[2,1],"data":[1.5, 2]}], "outputs": [{"name":"y"}] }"#;
    fs::write(&path, text).unwrap();
    let payload = Payload::read(&path).unwrap();
    assert_eq!(payload.json().unwrap(), text);
    assert_eq!(payload.rows(), 2);
    assert_eq!(payload.message(&model()).outputs[0].name, "y");
    let line = payload.line(&model(), "c0");
    let line = json::decode_request(&line, Dialect::Message, None, &Settings::default()).unwrap();
    assert_eq!(&*line.outputs[0].name, "y");
    fs::write(&path, "{}").unwrap();
    let error = Payload::read(&path).unwrap_err().to_string();
    assert!(error.contains("request.json"), "{error}");
    assert!(Payload::read(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
}

#[test]
fn what_has_no_json_form_is_refused_and_has_a_binary_one() {
    let halves = Signature { inputs: vec![spec("h", DataType::Fp16, &[None])], outputs: Vec::new() };
    let payload = Payload::made(&halves, &arguments("")).unwrap();
    assert!(payload.json().unwrap_err().to_string().contains("`h`"));
    assert!(payload.binary().is_ok());
}
