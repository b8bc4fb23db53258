//! Calls of different shapes that run together, on every surface, with the real runtime: each answer is that of the call alone.

use crate::support::{
    Running, Setup,
    client::{Answer, Client, Data, Request},
};
use sluicegate::{backend::ort::Runtime, call::Surface};
use std::{fs, path::Path, sync::Arc};

/// The id that fills up: its state is 1000, so that it would be seen in every sum that it is not masked in.
const FILL: i64 = 9;

/// A server over `model` of `tests/models/good`, which says `yaml` of itself.
pub async fn over(model: &str, yaml: &str) -> Running {
    over_with(model, "model.yaml", yaml).await
}

/// The same with what it says in this file.
pub async fn over_with(model: &str, file: &str, text: &str) -> Running {
    let setup = Setup::new();
    let models = setup.folder().join("models");
    fs::create_dir_all(models.join(model).join("1")).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/models/good/{model}/1/model.onnx"));
    fs::copy(from, models.join(model).join("1/model.onnx")).unwrap();
    fs::write(models.join(model).join(file), text).unwrap();
    let runtime = Runtime::load(None).unwrap_or_else(|error| panic!("{error}"));
    setup.start_with(&models, Arc::new(runtime), Vec::new()).await
}

fn ids(rows: usize, length: usize, seed: usize) -> Request {
    let ids = (0..rows * length).map(|at| ((seed + at) % 8) as i64).collect();
    let shape = vec![rows, length];
    Request { input: "ids".into(), shape, data: Data::Ints(ids), ..Request::new("masked", &[], Vec::new()) }
}

/// What the model makes of a request that has no mask.
fn expect(request: &Request, answer: &Answer) {
    let (Data::Ints(ids), &[rows, length]) = (&request.data, &request.shape[..]) else { panic!("ids") };
    let states = ids.iter().flat_map(|id| [*id as f32, 10.0 * *id as f32]).collect();
    let shape = |dims: &[usize]| dims.iter().map(|dim| i64::try_from(*dim).unwrap()).collect::<Vec<_>>();
    assert_eq!(answer.outputs["states"], (shape(&[rows, length, 2]), Data::Floats(states)));
    let sums = ids.chunks(length).flat_map(|row| {
        let sum = row.iter().sum::<i64>() as f32;
        [sum, 10.0 * sum]
    });
    assert_eq!(answer.outputs["sum"], (shape(&[rows, 2]), Data::Floats(sums.collect())));
}

fn filled_up(page: &str) -> u64 {
    let line = page.lines().find(|line| line.contains("sluicegate_batch_elements_total{kind=\"padding\""));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{page}"))
}

#[tokio::test]
async fn calls_of_different_lengths_run_together_on_every_surface() {
    let pad = format!("inputs: {{ ids: {{ pad: {FILL}, mask: mask }} }}\n");
    let running =
        over("masked", &(pad + "batching: { pad: { ratio: 100 }, max_delay: 20ms }\nexecution: thread\n")).await;
    for surface in Surface::ALL {
        let before = filled_up(&running.metrics().await);
        // On a busy machine a round may find no two calls waiting at once; the answers are right in any case.
        for round in 0.. {
            let calls = (0..12).map(|at| {
                let running = running.clone();
                async move {
                    let request = ids(1 + at % 3, 1 + (5 * at + round) % 17, at);
                    let mut client = Client::connect(surface, &running, None).await.unwrap();
                    expect(&request, &client.infer(&request).await.unwrap());
                }
            });
            futures_util::future::join_all(calls).await;
            if filled_up(&running.metrics().await) > before {
                break;
            }
            assert!(round < 100, "{surface:?}: never filled up");
        }
    }
}

#[tokio::test]
async fn with_lengths_a_call_alone_is_filled_up_and_cut_back() {
    let yaml =
        format!("inputs: {{ ids: {{ pad: {FILL}, mask: mask }} }}\nbatching: {{ pad: {{ lengths: [4, 16] }} }}\n");
    let running = over("masked", &yaml).await;
    let mut client = Client::connect(Surface::Rest, &running, None).await.unwrap();
    for length in [1, 4, 5, 16, 17] {
        let request = ids(2, length, length);
        expect(&request, &client.infer(&request).await.unwrap());
    }
    // Ids and their mask, two rows each: 3 and 11 are missing.
    assert_eq!(filled_up(&running.metrics().await), 2 * 2 * (3 + 11));
}

#[tokio::test]
async fn a_mask_may_be_left_out_with_padding_off_too_and_what_is_none_is_named() {
    let yaml = format!("inputs: {{ ids: {{ pad: {FILL}, mask: mask }} }}\nbatching: {{ pad: off }}\n");
    let running = over("masked", &yaml).await;
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let request = ids(2, 3, 1);
        expect(&request, &client.infer(&request).await.unwrap());
        let mask = Request { input: "mask".into(), ..ids(1, 2, 1) };
        let failure = client.infer(&mask).await.unwrap_err();
        assert_eq!((&*failure.code, &*failure.message), ("invalid_argument", "input `ids` is missing"));
    }
}

#[tokio::test]
async fn a_model_of_four_rows_takes_fewer_and_no_more() {
    let running = over("four", "batching: { rows: fixed }\n").await;
    for surface in Surface::ALL {
        let calls = (0..6_usize).map(|at| {
            let running = running.clone();
            async move {
                let rows = at % 5;
                let values: Vec<f32> = (0..rows * 3).map(|value| (at + value) as f32).collect();
                let mut client = Client::connect(surface, &running, None).await.unwrap();
                let answer = client.infer(&Request::new("four", &[rows, 3], values.clone())).await.unwrap();
                let doubled = values.iter().map(|value| 2.0 * value).collect();
                let (shape, found) = &answer.outputs["y"];
                assert_eq!(*shape, [rows as i64, 3]);
                if rows > 0 {
                    assert_eq!(*found, Data::Floats(doubled));
                }
            }
        });
        futures_util::future::join_all(calls).await;
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let failure = client.infer(&Request::new("four", &[5, 3], vec![0.0; 15])).await.unwrap_err();
        let expected = "tensor `x` has 5 rows, expected at most 4";
        assert_eq!((&*failure.code, &*failure.message), ("invalid_argument", expected));
    }
    let plain = over("four", "").await;
    let mut client = Client::connect(Surface::Rest, &plain, None).await.unwrap();
    let failure = client.infer(&Request::new("four", &[1, 3], vec![0.0; 3])).await.unwrap_err();
    assert_eq!(failure.message, "tensor `x` has shape [1, 3], expected [4, 3]");
}
