//! What the reference servers have in common: one ONNX Runtime session of one input and one output, and V2's JSON.
//!
//! Written as well as one writes such a server: typed structs, one buffer for the numbers of a request, the answer
//! written straight from ONNX Runtime's own memory, one thread. No identity, no limits, no deadlines, no metrics, no
//! log: that is what they are compared for.

use ort::{
    session::{Session, builder::GraphOptimizationLevel},
    value::TensorRef,
};
use serde::{Deserialize, Serialize};
use std::{error::Error, sync::Mutex};

/// Whatever went wrong, in words.
pub type Failure = Box<dyn Error + Send + Sync>;

/// A model of one FP32 input `x` and one FP32 output `y`.
pub struct Model {
    /// What requests call it.
    pub name: String,
    session: Mutex<Session>,
}

/// What every server is started with: `ADDRESS ONNXRUNTIME_LIBRARY MODEL [NAME]`; the name is `mlp` if it is not said.
pub struct Arguments {
    /// Where to listen.
    pub address: String,
    /// What to serve.
    pub model: Model,
}

/// An input of a V2 request.
#[derive(Deserialize)]
pub struct InputTensor {
    name: String,
    /// Its dimensions.
    pub shape: Vec<i64>,
    datatype: String,
    /// Its numbers.
    pub data: Vec<f32>,
}

/// An output of a V2 response.
#[derive(Serialize)]
pub struct OutputTensor<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: &'a [i64],
    data: &'a [f32],
}

/// A V2 request.
#[derive(Deserialize)]
pub struct InferRequest {
    /// Echoed.
    pub id: Option<String>,
    /// One is expected.
    pub inputs: Vec<InputTensor>,
}

#[derive(Serialize)]
struct InferResponse<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    model_name: &'a str,
    model_version: &'a str,
    outputs: [OutputTensor<'a>; 1],
}

impl Arguments {
    /// Reads the command line and loads the model.
    pub fn read() -> Result<Self, Failure> {
        let mut arguments = std::env::args().skip(1);
        let mut argument = || arguments.next().ok_or("usage: ADDRESS ONNXRUNTIME_LIBRARY MODEL [NAME]");
        let (address, library, file) = (argument()?, argument()?, argument()?);
        let name = argument().unwrap_or_else(|_| "mlp".to_owned());
        // A builder's error holds the builder, which no thread may share.
        let session = open(&library, &file).map_err(|error| error.to_string())?;
        Ok(Self { address, model: Model { name, session: Mutex::new(session) } })
    }
}

fn open(library: &str, file: &str) -> Result<Session, Box<dyn Error>> {
    let environment = ort::init_from(library)?.with_telemetry(false).build()?;
    Ok(Session::builder(&environment)?
        .with_intra_threads(1)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        // As in the product, where it is a matter of memory; it gains a small model some percent.
        .with_memory_pattern(false)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .commit_from_file(file)?)
}

impl Model {
    /// Runs the model and hands shape and numbers of its output, where they are, to `write`.
    pub fn run<T>(&self, shape: &[i64], data: &[f32], write: impl FnOnce(&[i64], &[f32]) -> T) -> Result<T, Failure> {
        // Checks that the shape is that of the data.
        let tensor = TensorRef::from_array_view((shape, data))?;
        let mut session = self.session.lock().map_err(|_| "an earlier run panicked")?;
        let outputs = session.run(ort::inputs![tensor])?;
        let (shape, data) = outputs[0].try_extract_tensor::<f32>()?;
        Ok(write(shape, data))
    }

    /// A V2 response as JSON.
    pub fn response(&self, id: Option<&str>, shape: &[i64], data: &[f32]) -> Result<Vec<u8>, Failure> {
        let outputs = [output(shape, data)];
        Ok(serde_json::to_vec(&InferResponse { id, model_name: &self.name, model_version: "1", outputs })?)
    }
}

/// The one input that the model takes.
pub fn input(inputs: &[InputTensor]) -> Result<&InputTensor, Failure> {
    match inputs {
        [input] if input.name == "x" && input.datatype == "FP32" => Ok(input),
        _ => Err("expected one input, `x`, FP32".into()),
    }
}

/// The one output that the model yields.
pub fn output<'a>(shape: &'a [i64], data: &'a [f32]) -> OutputTensor<'a> {
    OutputTensor { name: "y", datatype: "FP32", shape, data }
}

/// Runs a server on this thread. One thread has no one to hand work to, and none to wake: the fastest form that such a
/// server has on one core.
pub fn serve(server: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(server)
}
