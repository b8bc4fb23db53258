//! Every datatype, in every form of every surface: the bits that go in are the bits that come out.

use crate::support::{
    Running, Setup,
    client::{Ndjson, grpc, http_request, http1, next_json, websocket},
};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use sluicegate::wire::proto::inference::{
    InferTensorContents, ModelInferRequest, ModelInferResponse, model_infer_request::InferInputTensor,
};
use tokio_tungstenite::tungstenite::Message;

/// Models that answer with their input, one for each datatype, and the real runtime to run them.
async fn echoes(yaml: &str) -> Running {
    Setup::new().yaml(yaml).start_over("tests/models/good").await
}

/// A tensor as its bytes, and as whoever writes JSON by hand would write it.
struct Sample {
    dtype: &'static str,
    raw: Vec<u8>,
    /// Empty where JSON has no form for it.
    json: Vec<String>,
    elements: usize,
}

impl Sample {
    fn of<T: Copy + ToString, const N: usize>(dtype: &'static str, values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Self {
        Self {
            dtype,
            raw: values.iter().flat_map(|value| bytes(*value)).collect(),
            json: values.iter().map(ToString::to_string).collect(),
            elements: values.len(),
        }
    }

    /// As [`Sample::of`], of values that JSON cannot say.
    fn unsaid<T: Copy, const N: usize>(dtype: &'static str, values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Self {
        let raw = values.iter().flat_map(|value| bytes(*value)).collect();
        Self { dtype, raw, json: Vec::new(), elements: values.len() }
    }

    fn strings(values: &[&[u8]], said: bool) -> Self {
        let mut raw = Vec::new();
        for value in values {
            raw.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
            raw.extend(*value);
        }
        let text = |value: &&[u8]| Value::from(std::str::from_utf8(value).unwrap()).to_string();
        let json = if said { values.iter().map(text).collect() } else { Vec::new() };
        Self { dtype: "BYTES", raw, json, elements: values.len() }
    }

    fn all() -> Vec<Self> {
        let halves = [0x3E00_u16, 0x3FC0, 0xC000, 0x7E01, 0xFE00, 0x7C00, 0xFC00, 0x8000, 0x0001, 0xFF81];
        vec![
            Self::of("BOOL", &[true, false, true], |value| [u8::from(value)]),
            Self::of("UINT8", &[0, 7, u8::MAX], u8::to_le_bytes),
            Self::of("UINT16", &[0, 7, u16::MAX], u16::to_le_bytes),
            Self::of("UINT32", &[0, 7, u32::MAX], u32::to_le_bytes),
            Self::of("UINT64", &[0, (1 << 53) + 1, u64::MAX], u64::to_le_bytes),
            Self::of("INT8", &[i8::MIN, -1, i8::MAX], i8::to_le_bytes),
            Self::of("INT16", &[i16::MIN, -1, i16::MAX], i16::to_le_bytes),
            Self::of("INT32", &[i32::MIN, -1, i32::MAX], i32::to_le_bytes),
            Self::of("INT64", &[i64::MIN, -((1 << 53) + 1), i64::MAX], i64::to_le_bytes),
            Self::of("FP32", &[0.1, -0.0, f32::MAX, f32::MIN_POSITIVE, 1e-45, 16_777_216.0], f32::to_le_bytes),
            Self::of("FP64", &[0.1, -0.0, f64::MAX, f64::MIN_POSITIVE, 5e-324, 0.1 + 0.2], f64::to_le_bytes),
            Self::unsaid("FP16", &halves, u16::to_le_bytes),
            Self::unsaid("BF16", &halves, u16::to_le_bytes),
            Self::unsaid("FP32", &[0x7FC0_0001_u32, 0xFFC0_0000, 0x7F80_0000, 0xFF80_0000], u32::to_le_bytes),
            Self::unsaid("FP64", &[0x7FF8_0000_0000_0001_u64, 0xFFF0_0000_0000_0000], u64::to_le_bytes),
            Self::strings(&[b"", "𝄞 \"Füße\"\\".as_bytes(), b"a\0b\n"], true),
            Self::strings(&[b"\xFF\xFE", b"\x80"], false),
            // Nothing at all is a tensor too.
            Self::of::<i64, 8>("INT64", &[], i64::to_le_bytes),
            Self::strings(&[], true),
        ]
    }

    fn model(&self) -> String {
        format!("echo_{}", self.dtype.to_lowercase())
    }

    /// `None` where JSON has no form.
    fn json_inputs(&self) -> Option<String> {
        (self.json.len() == self.elements).then(|| {
            let (dtype, elements, data) = (self.dtype, self.elements, self.json.join(","));
            format!(r#"[{{"name":"x","datatype":"{dtype}","shape":[{elements}],"data":[{data}]}}]"#)
        })
    }

    /// The bytes that the elements of a JSON array stand for.
    fn bytes_of(&self, data: &[Box<RawValue>]) -> Vec<u8> {
        fn number<T: std::str::FromStr>(text: &RawValue) -> T {
            text.get().parse().unwrap_or_else(|_| panic!("{text} is no number of its type"))
        }
        let one = |text: &RawValue| -> Vec<u8> {
            match self.dtype {
                "BOOL" => vec![u8::from(number::<bool>(text))],
                "UINT8" => number::<u8>(text).to_le_bytes().into(),
                "UINT16" => number::<u16>(text).to_le_bytes().into(),
                "UINT32" => number::<u32>(text).to_le_bytes().into(),
                "UINT64" => number::<u64>(text).to_le_bytes().into(),
                "INT8" => number::<i8>(text).to_le_bytes().into(),
                "INT16" => number::<i16>(text).to_le_bytes().into(),
                "INT32" => number::<i32>(text).to_le_bytes().into(),
                "INT64" => number::<i64>(text).to_le_bytes().into(),
                "FP32" => number::<f32>(text).to_le_bytes().into(),
                "FP64" => number::<f64>(text).to_le_bytes().into(),
                _ => {
                    let text: String = serde_json::from_str(text.get()).unwrap();
                    [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat()
                }
            }
        };
        data.iter().flat_map(|text| one(text)).collect()
    }

    /// Typed contents; `None` for what has no field.
    fn contents(&self) -> Option<InferTensorContents> {
        let mut contents = InferTensorContents::default();
        let raw = &self.raw[..];
        match self.dtype {
            "BOOL" => contents.bool_contents = each(raw, |[byte]| byte == 1),
            "UINT8" => contents.uint_contents = each(raw, |bytes| u8::from_le_bytes(bytes).into()),
            "UINT16" => contents.uint_contents = each(raw, |bytes| u16::from_le_bytes(bytes).into()),
            "UINT32" => contents.uint_contents = each(raw, u32::from_le_bytes),
            "UINT64" => contents.uint64_contents = each(raw, u64::from_le_bytes),
            "INT8" => contents.int_contents = each(raw, |bytes| i8::from_le_bytes(bytes).into()),
            "INT16" => contents.int_contents = each(raw, |bytes| i16::from_le_bytes(bytes).into()),
            "INT32" => contents.int_contents = each(raw, i32::from_le_bytes),
            "INT64" => contents.int64_contents = each(raw, i64::from_le_bytes),
            "FP32" => contents.fp32_contents = each(raw, f32::from_le_bytes),
            "FP64" => contents.fp64_contents = each(raw, f64::from_le_bytes),
            "BYTES" => {
                let mut rest = raw;
                while let Some((length, after)) = rest.split_first_chunk::<4>() {
                    let (string, after) = after.split_at(u32::from_le_bytes(*length) as usize);
                    contents.bytes_contents.push(string.to_vec().into());
                    rest = after;
                }
            }
            _ => return None,
        }
        Some(contents)
    }
}

fn each<T, const N: usize>(raw: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    raw.chunks_exact(N).map(|chunk| value(chunk.try_into().unwrap())).collect()
}

#[derive(Deserialize)]
struct JsonAnswer {
    outputs: Vec<JsonOutput>,
}

#[derive(Deserialize)]
struct JsonOutput {
    datatype: String,
    shape: Vec<usize>,
    data: Vec<Box<RawValue>>,
}

/// What a JSON text says, in bytes; its datatype and shape are those of `sample`.
fn said(sample: &Sample, text: &[u8]) -> Vec<u8> {
    let answer: JsonAnswer =
        serde_json::from_slice(text).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(text)));
    let output = &answer.outputs[0];
    assert_eq!((&*output.datatype, &output.shape[..]), (sample.dtype, &[sample.elements][..]));
    sample.bytes_of(&output.data)
}

#[tokio::test]
async fn rest_in_json_and_in_binary() {
    let running = echoes("").await;
    for sample in Sample::all() {
        let path = format!("/v2/models/{}/infer", sample.model());
        if let Some(inputs) = sample.json_inputs() {
            let request = http_request(&running, "POST", &path, None, format!(r#"{{"inputs":{inputs}}}"#));
            let response = http1(&running, request).await;
            assert_eq!(said(&sample, response.body()), sample.raw, "{} in JSON", sample.dtype);
        }
        let header = json!({
            "inputs": [{ "name": "x", "datatype": sample.dtype, "shape": [sample.elements],
                "parameters": { "binary_data_size": sample.raw.len() } }],
            "parameters": { "binary_data_output": true },
        })
        .to_string();
        let mut request = http_request(&running, "POST", &path, None, [header.as_bytes(), &sample.raw].concat());
        request.headers_mut().insert("inference-header-content-length", header.len().into());
        let response = http1(&running, request).await;
        assert_eq!(response.status(), 200, "{} in binary: {:?}", sample.dtype, response.body());
        // Without a byte of binary there is no such header (contract 02 section 1.2).
        let length = response.headers().get("inference-header-content-length");
        let length = length.map_or(response.body().len(), |length| length.to_str().unwrap().parse().unwrap());
        assert_eq!(response.body()[length..], sample.raw, "{} in binary", sample.dtype);
    }
}

async fn ask_grpc(running: &Running, sample: &Sample, contents: Option<InferTensorContents>) -> ModelInferResponse {
    let raw = if contents.is_none() { vec![sample.raw.clone().into()] } else { Vec::new() };
    let input = InferInputTensor {
        name: "x".into(),
        datatype: sample.dtype.into(),
        shape: vec![i64::try_from(sample.elements).unwrap()],
        contents,
        ..InferInputTensor::default()
    };
    let message = ModelInferRequest {
        model_name: sample.model(),
        inputs: vec![input],
        raw_input_contents: raw,
        ..ModelInferRequest::default()
    };
    grpc(running).await.model_infer(message).await.unwrap_or_else(|status| panic!("{status:?}")).into_inner()
}

#[tokio::test]
async fn grpc_raw_and_typed() {
    let raw = echoes("").await;
    let mirror = echoes("grpc: { output_contents: mirror }").await;
    for sample in Sample::all() {
        let answer = ask_grpc(&raw, &sample, None).await;
        assert_eq!(answer.raw_output_contents[0], sample.raw, "{} raw", sample.dtype);
        let Some(contents) = sample.contents() else { continue };
        let answer = ask_grpc(&raw, &sample, Some(contents.clone())).await;
        assert_eq!(answer.raw_output_contents[0], sample.raw, "{} typed, answered raw", sample.dtype);
        let answer = ask_grpc(&mirror, &sample, Some(contents.clone())).await;
        assert!(answer.raw_output_contents.is_empty());
        // By their bits: NaN is not even equal to itself.
        let mirrored = format!("{:?}", answer.outputs[0].contents.as_ref().unwrap());
        assert_eq!(mirrored, format!("{contents:?}"), "{} typed", sample.dtype);
        let bits = |contents: &InferTensorContents| -> Vec<u64> {
            let singles = contents.fp32_contents.iter().map(|value| value.to_bits().into());
            singles.chain(contents.fp64_contents.iter().map(|value| value.to_bits())).collect()
        };
        assert_eq!(bits(answer.outputs[0].contents.as_ref().unwrap()), bits(&contents));
    }
}

fn message(sample: &Sample, inputs: &Value, binary: bool) -> Value {
    json!({ "type": "infer", "id": "a", "model": sample.model(), "inputs": inputs, "binary_outputs": binary })
}

#[tokio::test]
async fn websocket_in_json_and_in_binary() {
    let running = echoes("").await;
    let mut socket = websocket(&running, None).await.unwrap();
    for sample in Sample::all() {
        if let Some(inputs) = sample.json_inputs() {
            let model = sample.model();
            let text = format!(r#"{{"type":"infer","id":"a","model":"{model}","inputs":{inputs}}}"#);
            socket.send(Message::text(text)).await.unwrap();
            let Some(Ok(Message::Text(answer))) = socket.next().await else { panic!("an answer") };
            assert_eq!(said(&sample, answer.as_bytes()), sample.raw, "{} in JSON", sample.dtype);
        }
        let inputs = json!([{ "name": "x", "datatype": sample.dtype, "shape": [sample.elements],
            "byte_length": sample.raw.len() }]);
        let header = message(&sample, &inputs, true).to_string();
        let mut frame = u32::try_from(header.len()).unwrap().to_le_bytes().to_vec();
        frame.extend_from_slice(header.as_bytes());
        frame.resize(frame.len().next_multiple_of(8), 0);
        frame.extend_from_slice(&sample.raw);
        socket.send(Message::binary(frame)).await.unwrap();
        let frame = match socket.next().await {
            Some(Ok(Message::Binary(frame))) => frame,
            other => panic!("{}: {other:?}", sample.dtype),
        };
        let header = u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize;
        let tensors = &frame[(4 + header).next_multiple_of(8).min(frame.len())..];
        assert_eq!(tensors[..sample.raw.len()], sample.raw, "{} in binary", sample.dtype);
    }
    // The connection is as good as before.
    socket.send(Message::text(r#"{"type":"ping","id":"p"}"#)).await.unwrap();
    assert_eq!(next_json(&mut socket).await.unwrap()["type"], "pong");
}

#[tokio::test]
async fn ndjson() {
    let running = echoes("").await;
    let mut stream = Ndjson::open(&running, None).await.unwrap();
    for sample in Sample::all() {
        let Some(inputs) = sample.json_inputs() else { continue };
        let model = sample.model();
        stream
            .send_raw(format!("{{\"type\":\"infer\",\"id\":\"a\",\"model\":\"{model}\",\"inputs\":{inputs}}}\n"))
            .await;
        let answer = stream.next_line().await.expect("a line");
        assert_eq!(said(&sample, &answer), sample.raw, "{}", sample.dtype);
    }
}

/// What JSON cannot say is refused by name, on each surface that speaks it, and not rounded.
#[tokio::test]
async fn halves_have_no_json() {
    let running = echoes("").await;
    for dtype in ["fp16", "bf16"] {
        let inputs = json!([{ "name": "x", "datatype": dtype.to_uppercase(), "shape": [1], "data": [1.5] }]);
        let path = format!("/v2/models/echo_{dtype}/infer");
        let response =
            http1(&running, http_request(&running, "POST", &path, None, json!({ "inputs": inputs }).to_string())).await;
        let body: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(response.status(), 400, "{body}");
        assert!(body["error"].as_str().unwrap().contains("binary"), "{body}");
        let ask = json!({ "type": "infer", "id": "a", "model": format!("echo_{dtype}"), "inputs": inputs });
        let mut socket = websocket(&running, None).await.unwrap();
        socket.send(Message::text(ask.to_string())).await.unwrap();
        let mut stream = Ndjson::open(&running, None).await.unwrap();
        stream.send(&ask).await;
        for said in [next_json(&mut socket).await.unwrap(), stream.next().await.unwrap()] {
            assert_eq!(said["code"], "invalid_argument", "{said}");
            assert!(said["message"].as_str().unwrap().contains("binary"), "{said}");
        }
    }
}
