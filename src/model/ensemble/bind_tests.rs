//! What is wrong with a graph is named before anybody calls it.

use super::*;
use crate::{
    builtin,
    model::ensemble::{IN_FLIGHT, Step, What},
};
use std::path::Path;

fn spec(name: &str, dtype: DataType, dims: &[Option<usize>]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: Some(dtype), dims: dims.to_vec() }
}

/// `encoder`: ids to vectors; `head`: vectors to 3 classes; `single`: the same of one row; `stream`: decoupled.
fn look(wanted: &ModelRef) -> Result<Served, String> {
    let of = |input: TensorSpec, output: TensorSpec, batches: bool| {
        let signature = Arc::new(Signature { inputs: vec![input], outputs: vec![output] });
        Ok(Served { signature, batches, decoupled: *wanted.name == *"stream", optional: Vec::new() })
    };
    let vector = |name| spec(name, DataType::Fp32, &[None, Some(8)]);
    match &*wanted.name {
        "encoder" => of(spec("ids", DataType::Int64, &[None, None]), vector("hidden"), true),
        "head" => of(vector("x"), spec("y", DataType::Fp32, &[None, Some(3)]), true),
        "single" | "stream" => of(spec("x", DataType::Fp32, &[Some(1), Some(8)]), vector("y"), false),
        "biased" => {
            let inputs = vec![vector("x"), vector("bias")];
            let signature = Arc::new(Signature { inputs, outputs: vec![vector("y")] });
            Ok(Served { signature, batches: true, decoupled: false, optional: vec!["bias".into()] })
        }
        other => Err(format!("model `{other}` is unknown")),
    }
}

fn pairs(text: &str) -> Vec<(Arc<str>, Arc<str>)> {
    text.split_whitespace().map(|pair| pair.split_once('=').map(|(a, b)| (a.into(), b.into())).unwrap()).collect()
}

/// A step `NAME`, its inputs and outputs as `name=tensor`.
fn step(name: &str, inputs: &str, outputs: &str) -> Step {
    let what = match name {
        "softmax" => What::Builtin(builtin::Settings::Softmax),
        name => What::Model(ModelRef { name: name.into(), version: None }),
    };
    Step { what, inputs: pairs(inputs), outputs: pairs(outputs) }
}

fn graph(steps: Vec<Step>) -> Settings {
    Settings { steps, in_flight: IN_FLIGHT, inputs: None, outputs: None }
}

fn declared(name: &str, dtype: Option<DataType>, dims: Option<&[Option<usize>]>) -> Declared {
    Declared { name: name.into(), dtype, dims: dims.map(<[_]>::to_vec) }
}

fn bound(settings: &Settings) -> Result<Graph, String> {
    bind(settings, settings.open(Path::new("/nowhere")).unwrap(), &look)
}

fn problems(settings: &Settings) -> Vec<String> {
    bound(settings).unwrap_err().split("; ").map(str::to_owned).collect()
}

#[test]
fn what_a_step_may_do_without_may_be_fed_by_nothing() {
    let inputs = |graph: &Graph| graph.signature.inputs.iter().map(|spec| spec.name.to_string()).collect::<Vec<_>>();
    assert_eq!(inputs(&bound(&graph(vec![step("biased", "x=a", "y=b")])).unwrap()), ["a"]);
    assert_eq!(inputs(&bound(&graph(vec![step("biased", "x=a bias=c", "y=b")])).unwrap()), ["a", "c"]);
    let problems = problems(&graph(vec![step("biased", "bias=c", "y=b")]));
    assert_eq!(problems, ["step 1 (`biased`): input `x` is fed by nothing"]);
}

fn chain() -> Vec<Step> {
    vec![
        step("softmax", "x=logits", "y=scores"),
        step("head", "x=hidden", "y=logits"),
        step("encoder", "ids=tokens", "hidden=hidden"),
    ]
}

#[test]
fn inputs_and_outputs_are_derived_from_the_models_in_whatever_order_they_are_written() {
    let graph = bound(&graph(chain())).unwrap();
    assert_eq!(graph.signature.inputs, [spec("tokens", DataType::Int64, &[None, None])]);
    assert_eq!(graph.signature.outputs, [spec("scores", DataType::Fp32, &[None, Some(3)])]);
    assert!(graph.batches);
}

#[test]
fn what_is_declared_chooses_and_narrows() {
    let settings = Settings {
        inputs: Some(vec![declared("tokens", None, Some(&[None, Some(16)]))]),
        outputs: Some(vec![declared("scores", None, None), declared("hidden", Some(DataType::Fp32), None)]),
        ..graph(chain())
    };
    let signature = bound(&settings).unwrap().signature;
    assert_eq!(signature.inputs[0], spec("tokens", DataType::Int64, &[None, Some(16)]));
    let names: Vec<_> = signature.outputs.iter().map(|spec| &*spec.name).collect();
    assert_eq!(names, ["scores", "hidden"]);
}

#[test]
fn an_ensemble_with_a_model_that_runs_single_calls_does_too() {
    assert!(!bound(&graph(vec![step("single", "x=x", "y=y")])).unwrap().batches);
}

#[test]
fn each_problem_is_named_with_its_step() {
    let of = |steps: &[Step]| problems(&graph(steps.to_vec()));
    assert_eq!(of(&[step("heat", "x=a", "y=b")])[0], "step 1 (`heat`): model `heat` is unknown");
    assert_eq!(
        of(&[step("stream", "x=a", "y=b")])[0],
        "step 1 (`stream`): answers with streams, and a step answers once"
    );
    assert_eq!(
        of(&[step("head", "z=a", "w=b")]),
        [
            "step 1 (`head`): has no input `z`, it has `x`",
            "step 1 (`head`): input `x` is fed by nothing",
            "step 1 (`head`): has no output `w`, it has `y`",
            "of `a` no shape is known",
            "say which in `inputs`",
            "of `b` no shape is known",
            "say which in `inputs`",
        ]
    );
    assert_eq!(
        of(&[step("encoder", "ids=a", "hidden=b"), step("encoder", "ids=b", "hidden=c")]),
        ["step 2 (`encoder`): input `ids` cannot be `b`: it has datatype FP32, expected INT64"]
    );
    assert_eq!(
        of(&[step("head", "x=a", "y=b"), step("head", "x=b", "y=c")]),
        ["step 2 (`head`): input `x` cannot be `b`: it has shape [-1, 3], expected [-1, 8]"]
    );
    assert_eq!(
        of(&[step("head", "x=a", "y=b"), step("head", "x=a", "y=b")])[0],
        "tensor `b` is yielded twice: by step 1 (`head`) and by step 2 (`head`)"
    );
    assert_eq!(
        of(&[step("single", "x=a", "y=b"), step("single", "x=b", "y=a")])[0],
        "steps wait for each other in a circle: step 1 (`single`), step 2 (`single`)"
    );
    assert_eq!(of(&[step("softmax", "x=a", "y=b")])[0], "step 1 (`builtin/softmax`): `x` may have any shape");
}

#[test]
fn what_is_declared_is_held_against_the_steps() {
    let with = |inputs: Vec<Declared>, outputs: Vec<Declared>| {
        problems(&Settings { inputs: Some(inputs), outputs: Some(outputs), ..graph(chain()) })
    };
    let (tokens, scores) = (declared("tokens", None, None), declared("scores", None, None));
    assert_eq!(
        with(vec![declared("token", None, None)], vec![scores.clone()]),
        [
            "step 3 (`encoder`): input `ids` is fed by `tokens`, which no step yields and is no input",
            "input `token` is taken by no step",
            "of `token` no shape is known",
            "say which in `inputs`",
        ]
    );
    assert_eq!(
        with(vec![tokens.clone()], vec![declared("score", None, None)])[0],
        "output `score` is yielded by no step"
    );
    assert_eq!(
        with(vec![tokens.clone()], vec![declared("scores", Some(DataType::Int64), None)]),
        ["output `scores` is not what is declared: it has datatype FP32, expected INT64"]
    );
    assert_eq!(
        with(vec![tokens, declared("hidden", None, None)], vec![scores])[0],
        "input `hidden` is yielded by step 3 (`encoder`) too"
    );
}

#[test]
fn what_is_no_tensor_goes_from_no_step_to_another() {
    let sequence = |name: &str| TensorSpec { name: name.into(), dtype: None, dims: Vec::new() };
    let look = |wanted: &ModelRef| {
        let x = spec("x", DataType::Fp32, &[None]);
        let signature = match &*wanted.name {
            "splits" => Signature { inputs: vec![x], outputs: vec![sequence("y")] },
            _ => Signature { inputs: vec![sequence("y")], outputs: vec![x] },
        };
        Ok(Served { signature: Arc::new(signature), batches: false, decoupled: false, optional: Vec::new() })
    };
    let bound = |steps: Vec<Step>| {
        let settings = graph(steps);
        bind(&settings, settings.open(Path::new("/nowhere")).unwrap(), &look).unwrap_err()
    };
    let problem = bound(vec![step("splits", "x=a", "y=b")]);
    assert_eq!(problem, "step 1 (`splits`): output `y` is no tensor, and only tensors go from step to step");
    let problem = bound(vec![step("splits", "x=a", "y=b"), step("joins", "y=b", "x=c")]);
    assert!(problem.contains("step 2 (`joins`): input `y` is no tensor"), "{problem}");
}

#[test]
fn a_circle_of_ensembles_is_one_and_callers_hear_no_names_of_models() {
    let graphs = |name: &str| {
        let steps = match name {
            "self" => vec![step("self", "x=a", "y=b")],
            "e1" => vec![step("head", "x=a", "y=b"), step("e2", "x=b", "y=c")],
            "e2" => vec![step("e1", "x=a", "y=b")],
            "apart" => vec![step("e1", "x=a", "y=b")],
            _ => return None,
        };
        Some(Arc::new(graph(steps)))
    };
    let circle = |name| crate::model::ensemble::circle(name, &graphs);
    assert_eq!(circle("self").unwrap(), "`self` would be a part of itself");
    assert_eq!(circle("e1").unwrap(), "`e1` would be a part of itself");
    assert_eq!(circle("e2").unwrap(), "`e2` would be a part of itself");
    assert_eq!((circle("apart"), circle("head")), (None, None));
    let settings = graph(vec![step("head", "x=a", "y=b")]);
    let told = settings.for_callers("e", "step 1 (`head`): version `7` of model `head` is unknown; input `z` is none");
    assert_eq!(told, "step 1: version `7` of its model is unknown; input `z` is none");
}
