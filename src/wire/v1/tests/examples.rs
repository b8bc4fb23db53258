//! Classification and regression: which models, which features, which answers.

use super::*;
use crate::{
    error::Code,
    tensor::{Shape, Tensor},
};

fn classifier() -> Expected {
    let inputs = vec![spec("image", DataType::Fp32, &[None, Some(2)]), spec("tag", DataType::Bytes, &[None])];
    model(inputs, vec![spec("scores", DataType::Fp32, &[None, Some(3)])], &["cat", "dog"])
}

fn decode(expected: &Expected, task: Task, body: &str) -> Result<Vec<NamedTensor>, Error> {
    decode_examples(body.as_bytes(), expected, task, &Settings::default()).map(|(tensors, _)| tensors)
}

#[test]
fn features_become_the_inputs_of_their_names() {
    let body = r#"{"signature_name":"serving_default","examples":[{"image":[1,2],"tag":"a"},{"tag":{"b64":"gA=="},"image":[3,4]}]}"#;
    let tensors = decode(&classifier(), Task::Classify, body).unwrap();
    assert_eq!((&*tensors[0].name, tensors[0].tensor.shape().dims()), ("image", &[2, 2][..]));
    assert_eq!(tensors[0].tensor.data(), &floats(&[1.0, 2.0, 3.0, 4.0]));
    assert_eq!(strings(&tensors[1]), [&b"a"[..], b"\x80"]);
}

#[test]
fn context_counts_for_every_example_that_says_nothing_else() {
    let examples = r#""examples":[{"image":[1,2]},{"image":[3,4],"tag":"own"},{"image":[NaN,6]}]"#;
    for body in
        [format!(r#"{{"context":{{"tag":"all"}},{examples}}}"#), format!(r#"{{{examples},"context":{{"tag":"all"}}}}"#)]
    {
        let tensors = decode(&classifier(), Task::Classify, &body).unwrap();
        assert_eq!(strings(&tensors[1]), [&b"all"[..], b"own", b"all"], "{body}");
        assert_eq!(tensors[0].tensor.shape().dims(), [3, 2]);
    }
}

#[test]
fn context_does_not_make_a_small_body_large() {
    let long = "x".repeat(5000);
    let examples = vec![r#"{"image":[1,2]}"#; 5000].join(",");
    let body = format!(r#"{{"context":{{"tag":"{long}"}},"examples":[{examples}]}}"#);
    let said = decode(&classifier(), Task::Classify, &body).unwrap_err().to_string();
    assert!(said.starts_with("`context` and its copies are larger than"), "{said}");
}

#[test]
fn what_is_wrong_with_examples_is_said() {
    for (body, said) in [
        ("{}", "the request has no `examples`"),
        (r#"{"examples":[]}"#, "`examples` is empty, expected one at least"),
        (r#"{"examples":{}}"#, "`examples` is `{`, expected a list"),
        (r#"{"examples":[{"image":[1,2]}]}"#, "`examples[0]` has no `tag`"),
        (r#"{"examples":[{"image":[1,2],"tag":"a","age":3}]}"#, "feature `age` is no input of the model"),
        (r#"{"examples":[{"tag":"a","tag":"b"}]}"#, "an object has `tag` twice, expected once"),
        (
            r#"{"examples":[{"image":[[1,2]],"tag":"a"}]}"#,
            "tensor `image` has nested lists, expected a value or a flat list in each example",
        ),
        (r#"{"examples":[{"image":[1,2],"tag":["a","b"]}]}"#, "tensor `tag` has 2 values in each example, expected 1"),
        (r#"{"examples":[],"examples":[]}"#, "an object has `examples` twice, expected once"),
        (r#"{"examples":[],"signature_name":"x"}"#, "signature `x` is unknown, expected `serving_default`"),
    ] {
        let error = decode(&classifier(), Task::Classify, body).unwrap_err();
        assert_eq!((error.code(), &*error.to_string()), (Code::InvalidArgument, said));
    }
    assert!(decode(&classifier(), Task::Classify, r#"{"examples":[{"image":[1,2],"tag":["a"]}]}"#).is_ok());
}

#[test]
fn examples_are_bounded_in_depth() {
    let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let refused = |body: &str| decode(&classifier(), Task::Classify, body).unwrap_err().to_string();
    let beside = |levels| refused(&format!(r#"{{"more":{}}}"#, nested(levels)));
    assert!(!beside(99).contains("deeper"), "{}", beside(99));
    assert!(beside(100).contains("deeper than 100 levels") && beside(1_000_000).contains("deeper than 100 levels"));
    for body in [r#"{"examples":[{"image":"#, r#"{"context":{"tag":"#, r#"{"examples":"#] {
        assert!(refused(&(body.to_owned() + &nested(1_000_000))).contains("deeper than 100 levels"), "{body}");
    }
}

#[test]
fn a_model_that_is_none_for_the_task_says_why() {
    let x = || vec![spec("x", DataType::Fp32, &[None, Some(2)])];
    let scores = || vec![spec("y", DataType::Fp32, &[None, Some(3)])];
    let two = || vec![spec("y", DataType::Fp32, &[None]), spec("z", DataType::Fp32, &[None])];
    let image = vec![spec("x", DataType::Fp32, &[None, Some(8), Some(8)])];
    for (task, expected, why) in [
        (Task::Classify, model(x(), scores(), &[]), "no labels"),
        (Task::Classify, model(x(), two(), &["a"]), "1 inputs and 2 outputs"),
        (Task::Classify, model(image, scores(), &["a"]), "input `x` has 3 dimensions"),
        (Task::Classify, model(x(), vec![spec("y", DataType::Int64, &[None, Some(3)])], &["a"]), "output `y` is INT64"),
        (Task::Regress, model(x(), scores(), &[]), "output `y` is FP32 with 2 dimensions"),
        (Task::Regress, model(x(), vec![spec("y", DataType::Bytes, &[None])], &[]), "output `y` is BYTES"),
        (Task::Regress, model(vec![], vec![spec("y", DataType::Fp32, &[None])], &[]), "0 inputs"),
    ] {
        let error = decode(&expected, task, r#"{"examples":[{"x":[1,2]}]}"#).unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented);
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn answers_are_labelled_scores_or_numbers() {
    let settings = Settings::default();
    let of = |dims: &[usize], values: Vec<f32>| NamedTensor {
        name: "y".into(),
        tensor: Tensor::of(DataType::Fp32, Shape::new(dims.iter().copied()), values).unwrap(),
    };
    let labels = classifier().labels[0].clone();
    let scores = [of(&[2, 3], vec![0.5, 0.25, 1.0, 0.1, 0.2, 0.3])];
    assert_eq!(
        encode_results(&scores, Task::Classify, labels.as_ref(), &settings).unwrap(),
        r#"{"results":[[["cat",0.5],["dog",0.25],["2",1.0]],[["cat",0.1],["dog",0.2],["2",0.3]]]}"#
    );
    for dims in [&[2][..], &[2, 1]] {
        let numbers = encode_results(&[of(dims, vec![1.0, 2.5])], Task::Regress, None, &settings).unwrap();
        assert_eq!(numbers, r#"{"results":[1.0,2.5]}"#);
    }
    assert!(encode_results(&scores, Task::Regress, None, &settings).is_err());
}
