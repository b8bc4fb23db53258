//! How often the bytes of a tensor are copied on their way: the table of copies of the architecture, row by row.
//!
//! Counted, not timed: a copy of a large tensor takes as much memory again, so it shows in what the server's thread
//! allocates. Clients run on threads of their own, which are not counted; neither is what the kernel or ONNX Runtime
//! (whose memory an output is, to the end) allocate.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sluicegate::{
    backend::{Backend, Open, SessionSettings, ort::Runtime},
    call::{
        CallId, Gateway, Inbound, InferResponse, ModelKey, ModelRef, NamedTensor, Operation, Readiness, Reply, Report,
        Timing,
    },
    error::Error,
    frontend::{
        Frontend, Phase, Settings, Surfaces, Tickets,
        accept::{Listener, Places, serve},
        body::Memory,
    },
    limit::address::{self, AddressGate},
    tensor::{DataType, Shape, Tensor, batch, view},
    wire::{
        self, framed, json,
        message::{self, Encoded},
        proto::inference::{self, grpc_inference_service_client::GrpcInferenceServiceClient},
    },
};
use std::{net::SocketAddr, path::Path, slice::from_ref, sync::Arc};
use tokio::{
    net::TcpStream,
    runtime::Builder,
    sync::{oneshot, watch},
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};
use tonic::transport::Endpoint;

/// Bytes of a tensor: buffers of sockets are smaller by far, and that of a body starts with a little more.
const TENSOR: usize = 960 * 1024;
const FLOATS: usize = TENSOR / 4;

/// How many tensors would fit into what this thread allocates while it does `work`.
fn copies(work: impl FnOnce()) -> u64 {
    allocation_counter::measure(work).bytes_total / TENSOR as u64
}

fn settings() -> wire::Settings {
    wire::Settings::default()
}

fn model() -> ModelRef {
    ModelRef { name: "m".into(), version: None }
}

fn tensor() -> Tensor {
    Tensor::of(DataType::Fp32, Shape::new([8, FLOATS / 8]), (0..FLOATS).map(|n| n as f32 / 7.0).collect()).unwrap()
}

fn response(outputs: Vec<NamedTensor>) -> InferResponse {
    InferResponse {
        model: Arc::new(ModelKey { name: "m".into(), version: "1".into() }),
        client_id: None,
        outputs,
        parameters: Vec::new(),
        timing: Timing::default(),
    }
}

fn named(tensor: Tensor) -> NamedTensor {
    NamedTensor { name: "x".into(), tensor }
}

// --- codecs ---

#[test]
fn numbers_of_json_are_parsed_into_the_tensor_itself() {
    let values = (0..FLOATS).map(|n| (n as f32 / 7.0).to_string()).collect::<Vec<_>>().join(",");
    let (shape, dtype) = (format!(r#""shape":[{FLOATS}]"#), r#""datatype":"FP32""#);
    let data = format!(r#""data":[{values}]"#);
    for members in [[&shape, dtype, &data], [&data, &shape, dtype]] {
        let text = format!(r#"{{"inputs":[{{"name":"x",{}}}]}}"#, members.join(","));
        let mut decoded = None;
        let copies = copies(|| decoded = json::decode_infer(text.as_bytes(), model(), &settings()).ok());
        let (request, _) = decoded.unwrap();
        assert_eq!(request.inputs.tensors().unwrap()[0].tensor.data().len(), TENSOR);
        assert_eq!(copies, 1, "the tensor and nothing else");
    }
}

#[test]
fn numbers_are_printed_into_the_body_itself() {
    let response = response(vec![named(tensor())]);
    let mut body = Bytes::new();
    let counted = allocation_counter::measure(|| {
        body = json::encode_infer(&response, &CallId::make(), &settings()).unwrap();
    });
    // Room for more than it comes to, so that it is not moved while it grows.
    assert!(counted.count_total <= 2 && counted.bytes_total < 2 * body.len() as u64, "{counted:?} for {}", body.len());
}

#[test]
fn raw_tensors_are_slices_of_the_body_and_outputs_frames_of_their_own() {
    let header = format!(
        r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[{FLOATS}],"parameters":{{"binary_data_size":{TENSOR}}}}}]}}"#
    );
    let body = Bytes::from([header.as_bytes(), tensor().data()].concat());
    let wishes = wire::Wishes { binary: true, outputs: Vec::new() };
    let copies = copies(|| {
        let (request, _) = framed::decode_infer(&body, header.len(), model(), &settings()).unwrap();
        let response = response(request.inputs.tensors().unwrap().to_vec());
        let framed = framed::encode_infer(&response, &CallId::make(), &wishes, &settings()).unwrap();
        assert_eq!(framed.tensors[0].as_ptr(), body[header.len()..].as_ptr());
        let message = message::output("a", 0, true, &response, &wishes, &settings()).unwrap();
        let Encoded::Binary(pieces) = message else { panic!("raw") };
        assert_eq!(pieces[1].as_ptr(), body[header.len()..].as_ptr());
    });
    assert_eq!(copies, 0);
}

// --- runs ---

fn open(model: &str) -> Box<dyn Backend> {
    let runtime = Runtime::load(None).unwrap_or_else(|error| panic!("{error}"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/models/good/{model}/1/model.onnx"));
    runtime.open(&path, &SessionSettings::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// The same numbers, on no alignment.
fn unaligned(tensor: &Tensor) -> Tensor {
    let bytes = view::aligned_copy(&[&[0][..], tensor.data()].concat()).slice(1..);
    Tensor::new(tensor.dtype(), tensor.shape().clone(), bytes).unwrap()
}

fn flat() -> Tensor {
    Tensor::new(DataType::Fp32, Shape::new([FLOATS]), tensor().data().clone()).unwrap()
}

#[test]
fn onnx_runtime_reads_aligned_bytes_in_place_and_its_outputs_are_shared() {
    let (mut echo, input) = (open("echo_fp32"), flat());
    let copies = copies(|| {
        let output = echo.run(from_ref(&input)).unwrap().remove(0);
        assert_eq!(output, input);
    });
    assert_eq!(copies, 0);
}

#[test]
fn bytes_on_no_alignment_are_copied_once_into_memory_that_is_kept() {
    let (mut echo, input) = (open("echo_fp32"), unaligned(&flat()));
    let mut run = || copies(|| drop(echo.run(from_ref(&input)).unwrap()));
    assert_eq!((run(), run()), (1, 0));
}

#[test]
fn an_output_that_is_an_input_is_copied_once() {
    let mut model = open("passthrough");
    let input = flat();
    assert_eq!(copies(|| drop(model.run(from_ref(&input)).unwrap())), 1);
}

#[test]
fn rows_are_laid_together_once_and_cut_apart_without_a_copy() {
    let parts: Vec<_> = (0..8).map(|row| batch::rows(&tensor(), row..row + 1).unwrap()).collect();
    let parts: Vec<_> = parts.iter().map(unaligned).collect();
    let parts: Vec<_> = parts.iter().collect();
    let mut all = None;
    assert_eq!(copies(|| all = Some(batch::gather(&parts).unwrap())), 1);
    let all = all.unwrap();
    assert!(all.try_elements::<f64>().is_some() || view::is_aligned(all.data(), 8), "alignment comes for free");
    assert_eq!(copies(|| drop(batch::rows(&all, 3..8).unwrap())), 0);
}

// --- sockets ---

/// Answers every inference with its inputs.
async fn echo(call: Inbound) -> Result<Reply, Error> {
    let Operation::Infer(request) = call.input.await? else { return Ok(Reply::Report(Report::Models(Vec::new()))) };
    Ok(Reply::Infer(response(request.inputs.tensors().unwrap().to_vec())))
}

/// What this thread copies as the server of `client`, which runs on another.
fn served<F, R>(client: F) -> u64
where
    F: FnOnce(SocketAddr) -> R + Send + 'static,
    R: Future<Output = ()>,
{
    let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime();
    let (_phase, phase) = watch::channel(Phase::Serving);
    let settings = Settings::default();
    let readiness = Readiness::default();
    readiness.set_loaded(true);
    let frontend = Arc::new(Frontend {
        gateway: Gateway::new(tower::service_fn(echo)),
        memory: Memory::new(settings.concurrency.memory),
        tickets: Tickets::new(settings.websocket.tickets),
        proofs: watch::channel(()).1,
        readiness,
        phase: phase.clone(),
        metrics: Arc::default(),
        addresses: Arc::new(AddressGate::new(address::Settings::default())),
        steering: Default::default(),
        settings,
    });
    let _guard = server.enter();
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), Surfaces::ALL, None).unwrap();
    let (address, places) = (listener.local(), Places::new(frontend.settings.connections));
    let (addresses, metrics) = (Arc::clone(&frontend.addresses), Arc::clone(&frontend.metrics));
    server.spawn(listener.accept(places, addresses, metrics, phase, move |accepted| {
        tokio::spawn(serve(accepted, Arc::clone(&frontend)));
    }));
    let (over, done) = oneshot::channel();
    let client = std::thread::spawn(move || {
        runtime().block_on(client(address));
        over.send(()).unwrap();
    });
    let copies = copies(|| server.block_on(done).expect("the client is answered"));
    client.join().unwrap();
    copies
}

/// A binary body of REST, and the length of its header.
fn rest_body() -> (Vec<u8>, usize) {
    let header = format!(
        r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[{FLOATS}],"parameters":{{"binary_data_size":{TENSOR}}}}}],"parameters":{{"binary_data_output":true}}}}"#
    );
    ([header.as_bytes(), tensor().data()].concat(), header.len())
}

fn rest_request(address: SocketAddr) -> http::Request<Full<Bytes>> {
    let (body, header) = rest_body();
    let request = http::Request::post(format!("http://{address}/v2/models/m/infer"));
    let request = request.header("host", address.to_string()).header("inference-header-content-length", header);
    request.body(Bytes::from(body).into()).unwrap()
}

async fn answered(response: http::Response<Incoming>) {
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body[body.len() - TENSOR..], tensor().data()[..]);
}

#[test]
fn a_body_of_http1_is_gathered_once_and_its_answer_is_not_copied() {
    let copies = served(async |address| {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        let connection = tokio::spawn(connection);
        answered(sender.send_request(rest_request(address)).await.unwrap()).await;
        connection.abort();
    });
    assert_eq!(copies, 1);
}

#[test]
fn a_body_of_http2_is_gathered_once_and_its_answer_is_not_copied() {
    let copies = served(async |address| {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let connection = tokio::spawn(connection);
        answered(sender.send_request(rest_request(address)).await.unwrap()).await;
        connection.abort();
    });
    // Its frames are memory of their own until they are laid together.
    assert!((1..=2).contains(&copies), "{copies}");
}

#[test]
fn a_message_of_grpc_is_gathered_once_and_written_once() {
    let copies = served(async |address| {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let mut client = GrpcInferenceServiceClient::new(channel);
        let request = inference::ModelInferRequest {
            model_name: "m".into(),
            inputs: vec![inference::model_infer_request::InferInputTensor {
                name: "x".into(),
                datatype: "FP32".into(),
                shape: vec![i64::try_from(FLOATS).unwrap()],
                ..Default::default()
            }],
            raw_input_contents: vec![tensor().data().clone()],
            ..Default::default()
        };
        let answer = client.model_infer(request).await.unwrap().into_inner();
        assert_eq!(answer.raw_output_contents, [tensor().data().clone()]);
    });
    // The frames that it comes in, the message, and the answer: the last two are the table's.
    assert!(copies <= 3, "{copies}");
}

/// A call on a WebSocket whose request comes as `fragments`.
async fn websocket(address: SocketAddr, fragments: usize) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{address}/v1/ws"), stream).await.unwrap();
    socket.send(Message::text(r#"{"type":"hello","protocol":1}"#)).await.unwrap();
    assert!(socket.next().await.unwrap().unwrap().is_text());
    let header = format!(
        r#"{{"type":"infer","id":"a","model":"m","binary_outputs":true,"inputs":[{{"name":"x","datatype":"FP32","shape":[{FLOATS}],"byte_length":{TENSOR}}}]}}"#
    );
    let mut frame = u32::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    frame.extend_from_slice(header.as_bytes());
    frame.resize(frame.len().next_multiple_of(8), 0);
    frame.extend_from_slice(tensor().data());
    let pieces = frame.chunks(frame.len().div_ceil(fragments));
    for (index, piece) in pieces.enumerate() {
        let kind = if index == 0 { Data::Binary } else { Data::Continue };
        let piece = Frame::message(Bytes::copy_from_slice(piece), OpCode::Data(kind), index + 1 == fragments);
        socket.send(Message::Frame(piece)).await.unwrap();
    }
    let answer = socket.next().await.unwrap().unwrap().into_data();
    assert_eq!(answer[answer.len() - TENSOR..], tensor().data()[..]);
}

#[test]
fn a_message_of_one_frame_stays_where_it_came() {
    // The memory that it came in, and for the answer a buffer of two fragments.
    assert_eq!(served(|address| websocket(address, 1)), 1);
}

#[test]
fn a_message_in_fragments_is_laid_together() {
    // Memory that grows as they come.
    let copies = served(|address| websocket(address, 12));
    assert!((1..=3).contains(&copies), "{copies}");
}
