//! V2 JSON of 768 floats, the size of a usual embedding: read and written.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluicegate::{
    call::{CallId, InferResponse, ModelKey, ModelRef, NamedTensor, Timing},
    tensor::{DataType, Shape, Tensor},
    wire::{Settings, json},
};
use std::{hint::black_box, sync::Arc};

const FLOATS: usize = 768;

/// Numbers as embeddings have them: seven significant digits, both signs.
fn numbers() -> Vec<f32> {
    (0..FLOATS).map(|index| ((index as f32 * 0.618_034).fract() - 0.5) * 1.7).collect()
}

fn request() -> String {
    let numbers: Vec<_> = numbers().iter().map(|number| format!("{number}")).collect();
    format!(r#"{{"inputs":[{{"name":"x","shape":[1,{FLOATS}],"datatype":"FP32","data":[{}]}}]}}"#, numbers.join(","))
}

fn response() -> InferResponse {
    let tensor = Tensor::of(DataType::Fp32, Shape::new([1, FLOATS]), numbers()).expect("the length is right");
    InferResponse {
        model: Arc::new(ModelKey { name: "m".into(), version: "1".into() }),
        client_id: None,
        outputs: vec![NamedTensor { name: "y".into(), tensor }],
        parameters: Vec::new(),
        timing: Timing::default(),
    }
}

fn codec(criterion: &mut Criterion) {
    let settings = Settings::default();
    let mut group = criterion.benchmark_group("json");
    group.throughput(Throughput::Elements(FLOATS as u64));

    let body = request();
    let model = ModelRef { name: "m".into(), version: None };
    group.bench_function("decode 768 floats", |bencher| {
        bencher.iter(|| {
            json::decode_infer(black_box(body.as_bytes()), model.clone(), &settings).expect("the request is valid")
        });
    });

    let (response, id) = (response(), CallId::make());
    group.bench_function("encode 768 floats", |bencher| {
        bencher.iter(|| json::encode_infer(black_box(&response), &id, &settings).expect("floats have a JSON form"));
    });
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
