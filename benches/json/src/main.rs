//! V2 JSON of 768 floats, read and written by Sluicegate and by the general libraries that one would take instead.
//!
//! Each reads the same request into its name, shape and a vector of singles, and writes the same response. The others do
//! less: they do not look whether the data fits the shape, keep no limits, and round over a double where they do not know
//! singles. `cargo run --release --manifest-path benches/json/Cargo.toml --target-dir target/json`

use criterion::{Criterion, Throughput};
use serde::{Deserialize, Serialize};
use sluicegate::{
    call::{CallId, InferResponse, ModelKey, ModelRef, NamedTensor, Timing},
    tensor::{DataType, Shape, Tensor},
    wire::{Settings, json},
};
use std::{hint::black_box, sync::Arc};

const FLOATS: usize = 768;

#[derive(Deserialize)]
#[allow(dead_code)]
struct Request<'a> {
    #[serde(borrow)]
    inputs: Vec<Input<'a>>,
}

#[derive(Deserialize)]
#[allow(dead_code)]
struct Input<'a> {
    name: &'a str,
    shape: Vec<usize>,
    datatype: &'a str,
    data: Vec<f32>,
}

#[derive(Serialize)]
struct Response<'a> {
    model_name: &'a str,
    model_version: &'a str,
    outputs: [Output<'a>; 1],
}

#[derive(Serialize)]
struct Output<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: [usize; 2],
    data: &'a [f32],
}

/// Numbers as embeddings have them: seven significant digits, both signs.
fn numbers() -> Vec<f32> {
    (0..FLOATS).map(|index| ((index as f32 * 0.618_034).fract() - 0.5) * 1.7).collect()
}

fn read(criterion: &mut Criterion) {
    let numbers: Vec<_> = numbers().iter().map(f32::to_string).collect();
    let data = numbers.join(",");
    let body = format!(r#"{{"inputs":[{{"name":"x","shape":[1,{FLOATS}],"datatype":"FP32","data":[{data}]}}]}}"#);
    let mut group = criterion.benchmark_group("read 768 floats");
    group.throughput(Throughput::Elements(FLOATS as u64));
    let (settings, model) = (Settings::default(), ModelRef { name: "m".into(), version: None });
    group.bench_function("sluicegate", |bencher| {
        bencher.iter(|| json::decode_infer(black_box(body.as_bytes()), model.clone(), &settings).expect("valid"));
    });
    group.bench_function("serde_json", |bencher| {
        bencher.iter(|| {
            black_box(serde_json::from_slice::<Request<'_>>(black_box(body.as_bytes())).expect("valid").inputs.len())
        });
    });
    group.bench_function("sonic-rs", |bencher| {
        bencher.iter(|| {
            black_box(sonic_rs::from_slice::<Request<'_>>(black_box(body.as_bytes())).expect("valid").inputs.len())
        });
    });
    group.bench_function("simd-json", |bencher| {
        // It reads in place, so it is given a copy each time, as a server would keep none.
        bencher.iter(|| {
            let mut body = body.clone().into_bytes();
            black_box(simd_json::from_slice::<Request<'_>>(black_box(&mut body)).expect("valid").inputs.len())
        });
    });
    group.finish();
}

fn write(criterion: &mut Criterion) {
    let numbers = numbers();
    let tensor = Tensor::of(DataType::Fp32, Shape::new([1, FLOATS]), numbers.clone()).expect("the length is right");
    let response = InferResponse {
        model: Arc::new(ModelKey { name: "m".into(), version: "1".into() }),
        client_id: None,
        outputs: vec![NamedTensor { name: "y".into(), tensor }],
        parameters: Vec::new(),
        timing: Timing::default(),
    };
    let output = Output { name: "y", datatype: "FP32", shape: [1, FLOATS], data: &numbers };
    let typed = Response { model_name: "m", model_version: "1", outputs: [output] };
    let mut group = criterion.benchmark_group("write 768 floats");
    group.throughput(Throughput::Elements(FLOATS as u64));
    let (settings, id) = (Settings::default(), CallId::make());
    group.bench_function("sluicegate", |bencher| {
        bencher.iter(|| json::encode_infer(black_box(&response), &id, &settings).expect("floats have a JSON form"));
    });
    group.bench_function("serde_json", |bencher| {
        bencher.iter(|| serde_json::to_vec(black_box(&typed)).expect("it has a JSON form"))
    });
    group.bench_function("sonic-rs", |bencher| {
        bencher.iter(|| sonic_rs::to_vec(black_box(&typed)).expect("it has a JSON form"))
    });
    group.bench_function("simd-json", |bencher| {
        bencher.iter(|| simd_json::to_vec(black_box(&typed)).expect("it has a JSON form"))
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default();
    read(&mut criterion);
    write(&mut criterion);
    criterion.final_summary();
}
