//! What may be said of shapes, and what is refused.

use super::*;
use crate::model::Batching;
use serde_json::json;

fn spec(name: &str, dtype: DataType, dims: &[Option<usize>]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: Some(dtype), dims: dims.to_vec() }
}

/// Ids, their mask and segments, each [rows, seq]; each token's state, [rows, seq, 4], and the text's, [rows, 4].
fn text() -> (Arc<Signature>, AxisNames) {
    let input = |name| spec(name, DataType::Int64, &[None, None]);
    let signature = Signature {
        inputs: vec![input("ids"), input("mask"), input("segments")],
        outputs: vec![
            spec("states", DataType::Fp32, &[None, None, Some(4)]),
            spec("pooled", DataType::Fp32, &[None, Some(4)]),
        ],
    };
    let names = |axes: &[Option<&str>]| axes.iter().map(|name| name.map(Into::into)).collect::<Vec<_>>();
    let rows = names(&[Some("rows"), Some("seq")]);
    let names = AxisNames {
        inputs: vec![rows.clone(), rows.clone(), rows],
        outputs: vec![names(&[Some("rows"), Some("seq"), None]), names(&[Some("rows"), None])],
    };
    (Arc::new(signature), names)
}

fn input(pad: Option<Value>, mask: Option<&str>, optional: bool) -> InputSettings {
    InputSettings { pad, mask: mask.map(Into::into), optional, ragged: None }
}

fn settings(inputs: &[(&str, InputSettings)]) -> ModelSettings {
    let inputs = inputs.iter().map(|(name, input)| ((*name).into(), input.clone())).collect();
    ModelSettings { inputs, ..ModelSettings::default() }
}

fn usual() -> ModelSettings {
    settings(&[("ids", input(Some(json!(0)), Some("mask"), false)), ("segments", input(Some(json!(0)), None, true))])
}

fn refusal(settings: &ModelSettings, (signature, names): &(Arc<Signature>, AxisNames)) -> String {
    shapes(settings, signature, names).unwrap_err()
}

#[test]
fn axes_of_one_name_are_filled_up_together_and_cut_back() {
    let (signature, names) = text();
    let shapes = shapes(&usual(), &signature, &names).unwrap();
    assert_eq!(shapes.signature, signature);
    let padding = shapes.padding().unwrap();
    assert_eq!((&*padding.axes, &padding.reach), (&["seq".into()][..], &Reach::Worth));
    assert!(padding.inputs.iter().all(|input| input.axes == [(1, 0)] && input.element[..] == [0; 8]));
    assert_eq!(padding.outputs, [vec![(1, 0)], Vec::new()]);
    assert_eq!(
        shapes.lines,
        [
            "along `seq`: calls of different lengths run together where that costs less than a run, which is measured at \
             warm-up",
            "`ids` is filled up with 0",
            "`mask` is filled up with 0, the mask of `ids`",
            "`segments` is filled up with 0",
            "`states` is cut back",
            "`pooled` has no such axis and is left as it is",
            "`mask` may be left out: it is then 1 for every element",
            "`segments` may be left out: it is then its `pad`",
        ]
    );
}

#[test]
fn a_model_that_says_nothing_is_not_padded() {
    let (signature, names) = text();
    let shapes = shapes(&ModelSettings::default(), &signature, &names).unwrap();
    assert!(shapes.padding().is_none() && shapes.lines.is_empty() && !shapes.absent.allows(1));
}

#[test]
fn off_still_makes_masks() {
    let (signature, names) = text();
    for settings in [
        ModelSettings { pad: Pad::Off, ..usual() },
        ModelSettings { batching: Batching { enabled: Some(false), ..Batching::default() }, ..usual() },
    ] {
        let shapes = shapes(&settings, &signature, &names).unwrap();
        assert!(shapes.padding().is_none() && shapes.absent.allows(1));
        assert_eq!(shapes.lines[0], "nothing is filled up: only calls of one shape run together");
    }
}

#[test]
fn how_far_is_as_configured() {
    let (signature, names) = text();
    for (pad, warmup, reach, says) in [
        (Pad::Ratio(150), true, Reach::Ratio(150), "whose lengths differ by a factor of 1.50 at most"),
        (Pad::Lengths(vec![8, 64]), true, Reach::Lengths(vec![8, 64]), "filled up to 8, 64; longer ones as they are"),
        (Pad::Auto, false, UNMEASURED, "by a factor of 1.25 at most"),
    ] {
        let shapes = shapes(&ModelSettings { pad, warmup, ..usual() }, &signature, &names).unwrap();
        assert_eq!(shapes.padding().unwrap().reach, reach);
        assert!(shapes.lines[0].ends_with(says), "{:?}", shapes.lines[0]);
    }
}

#[test]
fn what_contradicts_the_model_is_refused_by_key() {
    let ids = |mask| ("ids", input(Some(json!(0)), Some(mask), false));
    for (inputs, says) in [
        (
            vec![("id", input(None, None, false))],
            "`inputs`: the model has no input `id`; it has `ids`, `mask`, `segments`",
        ),
        (vec![ids("attention")], "`inputs.ids.mask`: the model has no input `attention`"),
        (vec![ids("ids")], "`inputs.ids.mask`: `ids` is INT64 of shape [-1, -1], expected numbers"),
        (vec![("ids", input(None, Some("mask"), false))], "`inputs.ids.mask`: there is no `pad` for `ids`"),
        (vec![("ids", input(Some(json!(0.5)), None, false))], "`inputs.ids.pad`: is 0.5, expected a value of INT64"),
        (vec![ids("mask")], "`segments` has the axis `seq`, which is filled up, and no `pad` of its own"),
        (vec![ids("mask"), ("mask", input(Some(json!(1)), None, false))], "something else is said of it too"),
        (
            vec![ids("mask"), ("segments", input(Some(json!(0)), Some("mask"), false))],
            "`inputs.segments.mask`: `mask` is filled up with 0, and something else",
        ),
        (vec![("ids", input(None, None, true))], "`inputs.ids.optional`: there is no `pad`"),
        (vec![("ids", input(Some(json!(0)), Some("mask"), true))], "`inputs.ids.optional`: `ids` has a mask"),
    ] {
        let error = refusal(&settings(&inputs), &text());
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn outputs_whose_axes_have_no_names_cannot_be_cut_back() {
    let (signature, mut names) = text();
    names.outputs[0][1] = None;
    let error = refusal(&usual(), &(Arc::clone(&signature), names.clone()));
    assert!(error.contains("output `states` has shape [-1, -1, 4] and axis 1 has no name"), "{error}");
    let off = ModelSettings { pad: Pad::Off, ..usual() };
    assert!(shapes(&off, &signature, &names).is_ok(), "what is not padded need not be cut back");
}

#[test]
fn without_names_one_input_and_its_mask_may_be_filled_up_if_no_output_is_longer_for_it() {
    let (signature, _) = text();
    let mut pooled = Signature { outputs: signature.outputs[1..].to_vec(), ..(*signature).clone() };
    let nameless = AxisNames::default();
    let error = refusal(
        &settings(&[
            ("ids", input(Some(json!(0)), Some("mask"), false)),
            ("segments", input(Some(json!(0)), None, false)),
        ]),
        &(Arc::new(pooled.clone()), nameless.clone()),
    );
    assert!(error.contains("its free axes have no names"), "{error}");
    let error = refusal(&usual(), &(Arc::new(pooled.clone()), nameless.clone()));
    assert!(error.contains("axis 1 of `segments` is free, and no input that is always sent has it by name"), "{error}");
    pooled.inputs.pop();
    let one = settings(&[("ids", input(Some(json!(0)), Some("mask"), false))]);
    let shapes = shapes(&one, &Arc::new(pooled), &nameless).unwrap();
    let padding = shapes.padding().unwrap();
    assert_eq!((padding.axes.len(), &padding.inputs[1].axes), (1, &padding.inputs[0].axes));
}

#[test]
fn fixed_rows_are_free_for_callers() {
    let fixed = |rows: &[usize]| {
        let spec = |at: usize| spec(&format!("t{at}"), DataType::Fp32, &[Some(rows[at]), Some(3)]);
        Arc::new(Signature { inputs: vec![spec(0)], outputs: vec![spec(1)] })
    };
    let settings = ModelSettings { fixed_rows: true, ..ModelSettings::default() };
    let shapes = super::shapes(&settings, &fixed(&[8, 8]), &AxisNames::default()).unwrap();
    assert_eq!(shapes.signature.inputs[0].dims, [None, Some(3)]);
    assert!(shapes.signature.is_batchable());
    assert_eq!(shapes.padding().unwrap().rows, Some(8));
    assert_eq!(shapes.lines, ["a run has 8 rows: what is missing is filled up and cut off again"]);
    let error = refusal(&settings, &(fixed(&[8, 1]), AxisNames::default()));
    assert_eq!(error, "`batching.rows: fixed`: `t1` has shape [1, 3], expected 8 rows");
    let error = refusal(&settings, &text());
    assert_eq!(error, "`batching.rows: fixed`: `ids` has shape [-1, -1], expected a fixed first dimension");
}

#[test]
fn an_element_is_of_the_inputs_type() {
    let of = |dtype, value: Value| element(&spec("x", dtype, &[None]), &value).map(|bytes| bytes.to_vec());
    for (dtype, value, bytes) in [
        (DataType::Bool, json!(true), vec![1]),
        (DataType::Bool, json!(0), vec![0]),
        (DataType::Uint8, json!(255), vec![255]),
        (DataType::Int8, json!(-1), vec![255]),
        (DataType::Uint64, json!(u64::MAX), vec![255; 8]),
        (DataType::Int64, json!(-100), (-100_i64).to_le_bytes().to_vec()),
        (DataType::Fp16, json!(1.5), vec![0, 0x3E]),
        (DataType::Bf16, json!("-inf"), vec![0x80, 0xFF]),
        (DataType::Fp32, json!(3), 3_f32.to_le_bytes().to_vec()),
        (DataType::Fp64, json!("inf"), f64::INFINITY.to_le_bytes().to_vec()),
        (DataType::Bytes, json!("[PAD]"), b"[PAD]".to_vec()),
    ] {
        assert_eq!(of(dtype, value.clone()), Ok(bytes), "{dtype} {value}");
    }
    for (dtype, value) in [
        (DataType::Bool, json!(2)),
        (DataType::Uint8, json!(256)),
        (DataType::Uint8, json!(-1)),
        (DataType::Int64, json!(1.0)),
        (DataType::Int64, json!("0")),
        (DataType::Fp16, json!(70_000)),
        (DataType::Fp32, json!("zero")),
        (DataType::Fp32, json!(true)),
        (DataType::Bytes, json!(0)),
    ] {
        assert_eq!(of(dtype, value.clone()), Err(format!("is {value}, expected a value of {dtype}")));
    }
}
