//! Real models, through real ONNX Runtime and real sockets.

use crate::support::{
    Running, Setup,
    client::{Answer, Client, Data, Request, grpc, http_request, http1, websocket},
};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use sluicegate::{call::Surface, wire::proto::inference};
use std::path::Path;
use tokio_tungstenite::tungstenite::Message;

fn models(folder: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

async fn shipped() -> Running {
    Setup::new().start_over("models").await
}

/// The held-out image that the training script wrote beside the model.
fn image() -> Vec<f32> {
    let text = std::fs::read(models("models/digits/example.json")).unwrap();
    let body: Value = serde_json::from_slice(&text).unwrap();
    let data = body["inputs"][0]["data"].as_array().unwrap();
    data.iter().map(|value| value.to_string().parse().unwrap()).collect()
}

fn digit() -> Request {
    Request { input: "image".into(), ..Request::new("digits", &[1, 64], image()) }
}

fn bits(answer: &Answer) -> Vec<u32> {
    let Data::Floats(values) = &answer.outputs["probabilities"].1 else { panic!("floats") };
    values.iter().map(|value| value.to_bits()).collect()
}

#[tokio::test]
async fn the_same_digit_is_bit_identical_on_every_surface() {
    let running = shipped().await;
    let mut seen = Vec::new();
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        seen.push(bits(&client.infer(&digit()).await.unwrap()));
    }
    assert_eq!(seen[0].len(), 10);
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
    let sum: f32 = seen[0].iter().map(|bits| f32::from_bits(*bits)).sum();
    assert!((sum - 1.0).abs() < 1e-5, "probabilities sum to {sum}");
}

#[tokio::test]
async fn binary_forms_give_the_same_bits_as_json() {
    let running = shipped().await;
    let raw: Vec<u8> = image().iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut client = Client::connect(Surface::Rest, &running, None).await.unwrap();
    let expected = bits(&client.infer(&digit()).await.unwrap());
    let floats = |raw: &[u8]| -> Vec<u32> {
        raw.chunks_exact(4).map(|chunk| u32::from_le_bytes(chunk.try_into().unwrap())).collect()
    };

    // REST with the binary tensor extension, both ways.
    let header = json!({ "inputs": [{ "name": "image", "datatype": "FP32", "shape": [1, 64],
        "parameters": { "binary_data_size": raw.len() } }],
        "outputs": [{ "name": "probabilities", "parameters": { "binary_data": true } }] })
    .to_string();
    let mut request =
        http_request(&running, "POST", "/v2/models/digits/infer", None, [header.as_bytes(), &raw].concat());
    request.headers_mut().insert("content-type", "application/octet-stream".parse().unwrap());
    request.headers_mut().insert("inference-header-content-length", header.len().into());
    let response = http1(&running, request).await;
    assert_eq!(response.status(), 200, "{:?}", response.body());
    let length: usize = response.headers()["inference-header-content-length"].to_str().unwrap().parse().unwrap();
    assert_eq!(floats(&response.body()[length..]), expected);

    // gRPC, raw.
    let answer = grpc(&running)
        .await
        .model_infer(inference::ModelInferRequest {
            model_name: "digits".into(),
            inputs: vec![inference::model_infer_request::InferInputTensor {
                name: "image".into(),
                datatype: "FP32".into(),
                shape: vec![1, 64],
                ..Default::default()
            }],
            raw_input_contents: vec![raw.clone().into()],
            ..Default::default()
        })
        .await
        .unwrap();
    assert_eq!(floats(&answer.get_ref().raw_output_contents[0]), expected);

    // A binary WebSocket frame, both ways.
    let mut socket = websocket(&running, None).await.unwrap();
    let header = json!({ "type": "infer", "id": "b", "model": "digits", "binary_outputs": true,
        "inputs": [{ "name": "image", "datatype": "FP32", "shape": [1, 64], "byte_length": raw.len() }] })
    .to_string();
    let mut frame = u32::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    frame.extend_from_slice(header.as_bytes());
    frame.resize(frame.len().next_multiple_of(8), 0);
    frame.extend_from_slice(&raw);
    socket.send(Message::binary(frame)).await.unwrap();
    let Some(Ok(Message::Binary(frame))) = socket.next().await else { panic!("a binary frame") };
    let header = u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize;
    let message: Value = serde_json::from_slice(&frame[4..4 + header]).unwrap();
    assert_eq!(message["outputs"][0]["byte_length"], 40);
    assert_eq!(floats(&frame[(4 + header).next_multiple_of(8)..]), expected);
}

#[tokio::test]
async fn strings_are_measured_in_characters() {
    let running = shipped().await;
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let strings = ["", "abc", "Füße", "a\u{0}b"].map(str::to_owned).to_vec();
        let request =
            Request { input: "text".into(), data: Data::Strings(strings), ..Request::new("text_length", &[4], vec![]) };
        let answer = client.infer(&request).await.unwrap();
        assert_eq!(answer.outputs["length"].1, Data::Ints(vec![0, 3, 4, 3]), "{surface:?}");
    }
}

#[tokio::test]
async fn concurrent_rows_come_back_to_those_who_sent_them() {
    let running = shipped().await;
    let mut calls = Vec::new();
    for index in 0..64_u16 {
        let running = running.clone();
        calls.push(tokio::spawn(async move {
            let surface = Surface::ALL[usize::from(index) % 4];
            let mut client = Client::connect(surface, &running, None).await.unwrap();
            let mut pixels = image();
            pixels[usize::from(index)] = f32::from(index % 17);
            let request = Request { input: "image".into(), ..Request::new("digits", &[1, 64], pixels) };
            let together = bits(&client.infer(&request).await.unwrap());
            (request, together)
        }));
    }
    let mut alone = Client::connect(Surface::Rest, &running, None).await.unwrap();
    for call in calls {
        let (request, together) = call.await.unwrap();
        let expected = bits(&alone.infer(&request).await.unwrap());
        // A batch of several rows takes other kernels than one of a single row: equal up to rounding.
        for (a, b) in together.iter().zip(&expected) {
            let (a, b) = (f32::from_bits(*a), f32::from_bits(*b));
            assert!((a - b).abs() <= 1e-5, "{a} and {b}");
        }
    }
}

#[tokio::test]
async fn onnx_runtime_opens_no_connection_of_its_own() {
    let _running = shipped().await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    // Every TCP socket of this process that is connected to another host than loopback.
    let mut inodes = std::collections::HashSet::new();
    for entry in std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        if let Ok(target) = std::fs::read_link(entry.path())
            && let Some(inode) = target.to_string_lossy().strip_prefix("socket:[").and_then(|s| s.strip_suffix(']'))
        {
            inodes.insert(inode.to_owned());
        }
    }
    for (table, loopback) in
        [("/proc/self/net/tcp", "0100007F"), ("/proc/self/net/tcp6", "0000000000000000FFFF00000100007F")]
    {
        let Ok(text) = std::fs::read_to_string(table) else { continue };
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let (Some(remote), Some(inode)) = (fields.get(2), fields.get(9)) else { continue };
            let foreign = !remote.starts_with(loopback) && !remote.starts_with("00000000");
            assert!(!(inodes.contains(*inode) && foreign), "an outbound connection: {line}");
        }
    }
}

#[tokio::test]
async fn a_raw_body_is_the_one_input_and_comes_back_raw() {
    let running = shipped().await;
    let raw: Vec<u8> = image().iter().flat_map(|value| value.to_le_bytes()).collect();
    let ask = |body: Vec<u8>| {
        let mut request = http_request(&running, "POST", "/v2/models/digits/infer", None, body);
        request.headers_mut().insert("content-type", "application/octet-stream".parse().unwrap());
        request.headers_mut().insert("inference-header-content-length", 0.into());
        request
    };
    let response = http1(&running, ask(raw.clone())).await;
    assert_eq!(response.status(), 200, "{:?}", response.body());
    let length: usize = response.headers()["inference-header-content-length"].to_str().unwrap().parse().unwrap();
    let outputs: Vec<u32> =
        response.body()[length..].chunks_exact(4).map(|chunk| u32::from_le_bytes(chunk.try_into().unwrap())).collect();
    let mut client = Client::connect(Surface::Rest, &running, None).await.unwrap();
    assert_eq!(outputs, bits(&client.infer(&digit()).await.unwrap()));
    let response = http1(&running, ask(raw[..255].to_vec())).await;
    let body: Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(body["code"], "invalid_argument");
    assert!(body["error"].as_str().unwrap().contains("255 raw bytes, expected 256"), "{body}");
}

#[tokio::test]
async fn the_best_digits_have_their_names_on_every_surface() {
    let running = shipped().await;
    let labels = std::fs::read_to_string(models("models/digits/labels.txt")).unwrap();
    let labels: Vec<_> = labels.lines().collect();
    let request = Request { outputs: vec!["probabilities".into()], classes: Some(3), ..digit() };
    let mut seen = Vec::new();
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let answer = client.infer(&request).await.unwrap();
        let (shape, Data::Strings(best)) = &answer.outputs["probabilities"] else { panic!("strings") };
        assert_eq!(*shape, [1, 3], "{surface:?}");
        seen.push(best.clone());
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
    let mut alone = Client::connect(Surface::Rest, &running, None).await.unwrap();
    let Data::Floats(values) = alone.infer(&digit()).await.unwrap().outputs["probabilities"].1.clone() else {
        panic!()
    };
    let mut best: Vec<usize> = (0..10).collect();
    best.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    let expected: Vec<_> = best[..3].iter().map(|n| format!("{:.6}:{n}:{}", values[*n], labels[*n])).collect();
    assert_eq!(seen[0], expected);
}
