//! Four clients behind one type: the same request, on any surface.
//!
//! They are made of other people's parts (hyper, tonic's client, tokio-tungstenite), so that the
//! product's own codecs are not tested against themselves.

use super::Running;
pub use super::ndjson::Ndjson;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sluicegate::{call::Surface, wire::proto::inference};
use std::{collections::BTreeMap, time::Duration};
use tokio::net::TcpStream;
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

/// One inference, as a test writes it.
#[derive(Clone, Debug)]
pub struct Request {
    pub model: String,
    pub version: Option<String>,
    pub id: String,
    pub input: String,
    pub shape: Vec<usize>,
    pub data: Data,
    /// The datatype to claim; absent: that of `data`.
    pub dtype: Option<&'static str>,
    pub outputs: Vec<String>,
    /// The best so many classes of each of `outputs`, instead of its numbers.
    pub classes: Option<i64>,
    pub timeout: Option<Duration>,
    /// 1 is the highest.
    pub priority: Option<u32>,
    /// Parameters that are text.
    pub parameters: Vec<(&'static str, String)>,
}

/// The values of an input or output.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Strings(Vec<String>),
}

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub model: String,
    pub version: String,
    pub id: String,
    pub outputs: BTreeMap<String, (Vec<i64>, Data)>,
}

/// An error as the surface says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: String,
    pub message: String,
    pub retry_after: Option<Duration>,
}

impl Request {
    pub fn new(model: &str, shape: &[usize], floats: Vec<f32>) -> Self {
        Self {
            model: model.into(),
            version: None,
            id: "t1".into(),
            input: "x".into(),
            shape: shape.to_vec(),
            data: Data::Floats(floats),
            dtype: None,
            outputs: Vec::new(),
            classes: None,
            timeout: None,
            priority: None,
            parameters: Vec::new(),
        }
    }

    fn dtype(&self) -> &'static str {
        self.dtype.unwrap_or(match self.data {
            Data::Floats(_) => "FP32",
            Data::Ints(_) => "INT64",
            Data::Strings(_) => "BYTES",
        })
    }

    fn json_inputs(&self) -> Value {
        let data = match &self.data {
            Data::Floats(values) => json!(values),
            Data::Ints(values) => json!(values),
            Data::Strings(values) => json!(values),
        };
        json!([{ "name": self.input, "datatype": self.dtype(), "shape": self.shape, "data": data }])
    }

    /// In a message what is asked of an output stands beside its name, in V2 below its `parameters`.
    fn json_outputs(&self, message: bool) -> Value {
        let output = |name| match (self.classes, message) {
            (None, _) => json!({ "name": name }),
            (Some(classes), true) => json!({ "name": name, "classification": classes }),
            (Some(classes), false) => json!({ "name": name, "parameters": { "classification": classes } }),
        };
        self.outputs.iter().map(output).collect()
    }

    pub fn json_v2(&self) -> Value {
        let mut body = json!({ "id": self.id, "inputs": self.json_inputs(), "outputs": self.json_outputs(false) });
        if let Some(timeout) = self.timeout {
            body["parameters"]["timeout"] = json!(u64::try_from(timeout.as_micros()).unwrap());
        }
        if let Some(priority) = self.priority {
            body["parameters"]["priority"] = json!(priority);
        }
        for (name, text) in &self.parameters {
            body["parameters"][name] = json!(text);
        }
        body
    }

    pub fn json_message(&self) -> Value {
        let mut body = json!({
            "type": "infer", "id": self.id, "model": self.model,
            "inputs": self.json_inputs(), "outputs": self.json_outputs(true),
        });
        if let Some(version) = &self.version {
            body["version"] = json!(version);
        }
        if let Some(timeout) = self.timeout {
            body["timeout_ms"] = json!(u64::try_from(timeout.as_millis()).unwrap());
        }
        if let Some(priority) = self.priority {
            body["priority"] = json!(priority);
        }
        for (name, text) in &self.parameters {
            body["parameters"][name] = json!(text);
        }
        body
    }

    pub fn proto(&self) -> inference::ModelInferRequest {
        let mut raw = Vec::new();
        match &self.data {
            Data::Floats(values) => values.iter().for_each(|value| raw.extend_from_slice(&value.to_le_bytes())),
            Data::Ints(values) => values.iter().for_each(|value| raw.extend_from_slice(&value.to_le_bytes())),
            Data::Strings(values) => {
                for value in values {
                    raw.extend_from_slice(&u32::try_from(value.len()).unwrap().to_le_bytes());
                    raw.extend_from_slice(value.as_bytes());
                }
            }
        }
        inference::ModelInferRequest {
            model_name: self.model.clone(),
            model_version: self.version.clone().unwrap_or_default(),
            id: self.id.clone(),
            inputs: vec![inference::model_infer_request::InferInputTensor {
                name: self.input.clone(),
                datatype: self.dtype().into(),
                shape: self.shape.iter().map(|dim| i64::try_from(*dim).unwrap()).collect(),
                ..Default::default()
            }],
            outputs: self
                .outputs
                .iter()
                .map(|name| inference::model_infer_request::InferRequestedOutputTensor {
                    name: name.clone(),
                    parameters: self.classes.map(|k| integer("classification", k)).into_iter().collect(),
                })
                .collect(),
            raw_input_contents: vec![raw.into()],
            // Not `grpc-timeout`: tonic's client would start a timer of its own and race the server's answer.
            parameters: self
                .timeout
                .map(|timeout| integer("timeout", i64::try_from(timeout.as_micros()).unwrap()))
                .into_iter()
                .chain(self.priority.map(|priority| integer("priority", priority.into())))
                .chain(self.parameters.iter().map(|(name, value)| text(name, value)))
                .collect(),
        }
    }
}

fn text(name: &str, text: &str) -> (String, inference::InferParameter) {
    let choice = inference::infer_parameter::ParameterChoice::StringParam(text.to_owned());
    (name.to_owned(), inference::InferParameter { parameter_choice: Some(choice) })
}

fn integer(name: &str, number: i64) -> (String, inference::InferParameter) {
    let choice = inference::infer_parameter::ParameterChoice::Int64Param(number);
    (name.to_owned(), inference::InferParameter { parameter_choice: Some(choice) })
}

/// A client of one surface, with its own connection.
pub enum Client {
    Rest { running: Running, key: Option<String> },
    Grpc { client: GrpcClient, key: Option<String> },
    WebSocket { socket: Box<Socket> },
    H2Stream { running: Running, key: Option<String> },
}

pub type GrpcClient = inference::grpc_inference_service_client::GrpcInferenceServiceClient<tonic::transport::Channel>;
pub type Socket = WebSocketStream<TcpStream>;

impl Client {
    /// Connects; on WebSocket the handshake itself may be refused.
    pub async fn connect(surface: Surface, running: &Running, key: Option<&str>) -> Result<Self, Failure> {
        let key = key.map(str::to_owned);
        Ok(match surface {
            Surface::Rest => Self::Rest { running: running.clone(), key },
            Surface::H2Stream => Self::H2Stream { running: running.clone(), key },
            Surface::Grpc => Self::Grpc { client: grpc(running).await, key },
            Surface::WebSocket => Self::WebSocket { socket: Box::new(websocket(running, key.as_deref()).await?) },
        })
    }

    /// Sends one inference and waits for its end.
    pub async fn infer(&mut self, request: &Request) -> Result<Answer, Failure> {
        match self {
            Self::Rest { running, key } => rest_infer(running, key.as_deref(), request).await,
            Self::Grpc { client, key } => grpc_infer(client, key.as_deref(), request).await,
            Self::WebSocket { socket } => {
                socket.send(Message::text(request.json_message().to_string())).await.expect("socket is open");
                loop {
                    let message = next_json(socket).await.expect("an answer before the close");
                    if message["id"] == json!(request.id) {
                        return terminal(&message);
                    }
                }
            }
            Self::H2Stream { running, key } => {
                let mut stream = Ndjson::open(running, key.as_deref()).await?;
                stream.send(&request.json_message()).await;
                let message = stream.next().await.expect("a line before the end");
                terminal(&message)
            }
        }
    }
}

/// A plain HTTP/1.1 exchange.
pub async fn http1(running: &Running, request: http::Request<Full<bytes::Bytes>>) -> http::Response<bytes::Bytes> {
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(request).await.unwrap();
    let (parts, body) = response.into_parts();
    http::Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
}

/// A request to the gateway with the headers every test needs.
pub fn http_request(
    running: &Running,
    method: &str,
    path: &str,
    key: Option<&str>,
    body: impl Into<bytes::Bytes>,
) -> http::Request<Full<bytes::Bytes>> {
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", running.address.to_string())
        .header("content-type", "application/json");
    if let Some(key) = key {
        let (name, value) = credential(key);
        request = request.header(name, value);
    }
    request.body(Full::new(body.into())).unwrap()
}

/// The header that carries `key`: `authorization`, or, where it begins with the name of another one, that.
pub fn credential(key: &str) -> (http::HeaderName, String) {
    match key.split_once(' ') {
        Some((name, key)) => (name.parse().unwrap(), key.to_owned()),
        None => (http::header::AUTHORIZATION, format!("Bearer {key}")),
    }
}

async fn rest_infer(running: &Running, key: Option<&str>, request: &Request) -> Result<Answer, Failure> {
    let version = request.version.as_ref().map_or(String::new(), |version| format!("/versions/{version}"));
    let path = format!("/v2/models/{}{version}/infer", request.model);
    let response = http1(running, http_request(running, "POST", &path, key, request.json_v2().to_string())).await;
    let body: Value = serde_json::from_slice(response.body()).expect("a JSON body");
    if response.status() == 200 {
        return Ok(answer(&body, &body["model_name"], &body["model_version"]));
    }
    assert_eq!(response.headers()["content-type"], "application/json");
    let code = body["code"].as_str().expect("a code").to_owned();
    Err(Failure {
        code,
        message: body["error"].as_str().expect("`error` is a string").to_owned(),
        retry_after: response
            .headers()
            .get("retry-after")
            .map(|value| Duration::from_secs(value.to_str().unwrap().parse().unwrap())),
    })
}

/// A tonic channel to the gateway.
pub async fn grpc_channel(running: &Running) -> tonic::transport::Channel {
    tonic::transport::Endpoint::from_shared(format!("http://{}", running.address)).unwrap().connect().await.unwrap()
}

/// A client of the inference service.
pub async fn grpc(running: &Running) -> GrpcClient {
    GrpcClient::new(grpc_channel(running).await)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

async fn grpc_infer(client: &mut GrpcClient, key: Option<&str>, request: &Request) -> Result<Answer, Failure> {
    let mut message = tonic::Request::new(request.proto());
    if let Some(key) = key {
        present(message.metadata_mut(), key);
    }
    match client.model_infer(message).await {
        Ok(response) => Ok(proto_answer(response.get_ref())),
        Err(status) => Err(status_failure(&status)),
    }
}

/// Puts the header of `key` into `metadata`.
pub fn present(metadata: &mut tonic::metadata::MetadataMap, key: &str) {
    let (name, value) = credential(key);
    let name = tonic::metadata::AsciiMetadataKey::from_bytes(name.as_str().as_bytes()).unwrap();
    metadata.insert(name, value.parse().unwrap());
}

/// What a gRPC status says, by its metadata.
pub fn status_failure(status: &tonic::Status) -> Failure {
    use tonic_types::StatusExt;
    let code = status.metadata().get("error-code").unwrap_or_else(|| panic!("no error-code in {status:?}"));
    Failure {
        code: code.to_str().unwrap().to_owned(),
        message: status.message().to_owned(),
        retry_after: status.get_details_retry_info().and_then(|info| info.retry_delay),
    }
}

/// A gRPC response as an answer.
pub fn proto_answer(response: &inference::ModelInferResponse) -> Answer {
    let outputs = response
        .outputs
        .iter()
        .zip(&response.raw_output_contents)
        .map(|(output, raw)| {
            let data = match output.datatype.as_str() {
                "FP32" => Data::Floats(
                    raw.chunks_exact(4).map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap())).collect(),
                ),
                "INT64" => {
                    Data::Ints(raw.chunks_exact(8).map(|chunk| i64::from_le_bytes(chunk.try_into().unwrap())).collect())
                }
                "BYTES" => Data::Strings(strings(raw)),
                other => panic!("no test needs {other}"),
            };
            (output.name.clone(), (output.shape.clone(), data))
        })
        .collect();
    Answer {
        model: response.model_name.clone(),
        version: response.model_version.clone(),
        id: response.id.clone(),
        outputs,
    }
}

fn strings(mut raw: &[u8]) -> Vec<String> {
    let mut strings = Vec::new();
    while let Some((length, rest)) = raw.split_first_chunk::<4>() {
        let (string, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        strings.push(String::from_utf8(string.to_vec()).unwrap());
        raw = rest;
    }
    strings
}

/// The HTTP upgrade alone; a refusal comes back as the problem it is.
pub async fn websocket_upgrade(running: &Running, key: Option<&str>) -> Result<Socket, Failure> {
    use tokio_tungstenite::tungstenite::{Error, client::IntoClientRequest};
    let mut request = format!("ws://{}/v1/ws", running.address).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "sluicegate.v1".parse().unwrap());
    if let Some(key) = key {
        let (name, value) = credential(key);
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let stream = TcpStream::connect(running.address).await.unwrap();
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(response)) => {
            let retry_after = response
                .headers()
                .get("retry-after")
                .map(|value| Duration::from_secs(value.to_str().unwrap().parse().unwrap()));
            let body: Value = serde_json::from_slice(response.body().as_deref().unwrap_or_default())
                .unwrap_or_else(|_| panic!("a problem for {}", response.status()));
            Err(Failure {
                code: body["code"].as_str().unwrap().to_owned(),
                message: body["detail"].as_str().unwrap_or_default().to_owned(),
                retry_after,
            })
        }
        Err(error) => panic!("{error}"),
    }
}

/// A socket that has said `hello` and was welcomed.
pub async fn websocket(running: &Running, key: Option<&str>) -> Result<Socket, Failure> {
    let mut socket = websocket_upgrade(running, key).await?;
    socket.send(Message::text(r#"{"type":"hello","protocol":1}"#)).await.unwrap();
    match tokio::time::timeout(Duration::from_secs(20), socket.next()).await.expect("a message in time") {
        Some(Ok(Message::Text(text))) => {
            let welcome: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(welcome["type"], "welcome", "{welcome}");
            Ok(socket)
        }
        // Who brings no key at the handshake may still bring it in `hello`; who does not is closed (contract 06 C7).
        Some(Ok(Message::Close(Some(frame)))) => {
            let code = match u16::from(frame.code) {
                4401 => "unauthenticated",
                4403 => "permission_denied",
                other => panic!("{other}: {frame:?}"),
            };
            Err(Failure { code: code.into(), message: frame.reason.to_string(), retry_after: None })
        }
        other => panic!("{other:?}"),
    }
}

/// The next JSON message; `None` after a close.
pub async fn next_json(socket: &mut Socket) -> Option<Value> {
    loop {
        match tokio::time::timeout(Duration::from_secs(20), socket.next()).await.expect("a message in time")? {
            Ok(Message::Text(text)) => return Some(serde_json::from_str(&text).expect("JSON")),
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

fn terminal(message: &Value) -> Result<Answer, Failure> {
    match message["type"].as_str() {
        Some("output") => Ok(answer(message, &message["model"], &message["version"])),
        Some("error") => Err(Failure {
            code: message["code"].as_str().unwrap().to_owned(),
            message: message["message"].as_str().unwrap().to_owned(),
            retry_after: message["retry_after_ms"].as_u64().map(Duration::from_millis),
        }),
        _ => panic!("not a terminal message: {message}"),
    }
}

fn answer(body: &Value, model: &Value, version: &Value) -> Answer {
    let outputs = body["outputs"]
        .as_array()
        .expect("outputs")
        .iter()
        .map(|output| {
            let values = output["data"].as_array().expect("data");
            let data = match output["datatype"].as_str().unwrap() {
                // From the token's text, never through a double.
                "FP32" => {
                    Data::Floats(values.iter().map(|value| value.to_string().parse().unwrap_or(f32::NAN)).collect())
                }
                "INT64" => Data::Ints(values.iter().map(|value| value.as_i64().unwrap()).collect()),
                "BYTES" => Data::Strings(values.iter().map(|value| value.as_str().unwrap().to_owned()).collect()),
                other => panic!("no test needs {other}"),
            };
            let shape = output["shape"].as_array().unwrap().iter().map(|dim| dim.as_i64().unwrap()).collect();
            (output["name"].as_str().unwrap().to_owned(), (shape, data))
        })
        .collect();
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    Answer { model: text(model), version: text(version), id: text(&body["id"]), outputs }
}
