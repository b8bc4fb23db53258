//! A repository whose files say what to do, and a gateway over it that takes load and unload calls.

use super::{Running, Setup, client, until};
use bytes::Bytes;
use serde_json::Value;
use sluicegate::{
    backend::{
        Backend, Open, OpenError, SessionSettings,
        fake::{Fake, FakeControl},
    },
    error::Error,
    tensor::{DataType, Signature, Tensor, Tensors},
};
use std::{
    fs,
    path::Path,
    sync::{Arc, Condvar, Mutex},
};
use tempfile::TempDir;

/// Opens files by their text: `double`, `times N` (N times what goes in), `renamed` (its input is `zz`), `fails`, `held` (runs wait while told so), `gate` (opening it waits), and anything else is
/// no model.
#[derive(Debug, Default)]
struct Scripts {
    held: FakeSlot,
    gate: Arc<Gate>,
}

#[derive(Debug)]
struct FakeSlot(Fake);

/// Keeps whoever opens a model waiting.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    opened: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    waiting: usize,
}

/// A gateway over such a repository.
pub struct World {
    pub running: Running,
    gate: Arc<Gate>,
    folder: TempDir,
}

impl Default for FakeSlot {
    fn default() -> Self {
        Self(Fake::new())
    }
}

impl Open for Scripts {
    fn open(&self, path: &Path, _: &SessionSettings) -> Result<Box<dyn Backend>, OpenError> {
        let text = fs::read_to_string(path).map_err(|error| OpenError(format!("`{}`: {error}", path.display())))?;
        match text.trim() {
            "double" => Ok(Box::new(Fake::new())),
            "fails" => Ok(Box::new(Fake::new().failing())),
            "held" => Ok(Box::new(self.held.0.clone())),
            "gate" => {
                let mut state = self.gate.state.lock().unwrap();
                state.waiting += 1;
                drop(self.gate.opened.wait_while(state, |state| !state.open).unwrap());
                Ok(Box::new(Fake::new()))
            }
            text if text.starts_with("times ") => {
                Ok(Box::new(Times(text[6..].parse().unwrap(), Arc::clone(Fake::new().signature()))))
            }
            "renamed" => {
                let mut signature = Signature::clone(Fake::new().signature());
                signature.inputs[0].name = "zz".into();
                Ok(Box::new(Times(2.0, Arc::new(signature))))
            }
            // As ONNX Runtime words it: with the path.
            text => Err(OpenError(format!("load model from {} failed: {text}", path.display()))),
        }
    }
}

/// Multiplies what goes in, with the inputs and outputs of a fake: its answers tell which of several it is.
struct Times(f32, Arc<Signature>);

impl Backend for Times {
    fn signature(&self) -> &Arc<Signature> {
        &self.1
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        let values = inputs[0].data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes) * self.0);
        let output = Tensor::of(DataType::Fp32, inputs[0].shape().clone(), values.collect()).unwrap();
        Ok([output].into_iter().collect())
    }
}

impl World {
    /// Starts it over these files, `(path, text)` each, with `models.control: explicit` and `load`.
    pub async fn explicit(load: &str, files: &[(&str, &str)]) -> Self {
        let setup = Setup::new().yaml(&format!("models: {{ control: explicit, load: {load} }}"));
        Self::start(setup, files).await
    }

    pub async fn start(setup: Setup, files: &[(&str, &str)]) -> Self {
        let world = Self::begin(setup, files).await;
        world.running.loaded().await;
        world
    }

    /// The same while the models are still being loaded.
    pub async fn begin(setup: Setup, files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let opener = Scripts::default();
        let (held, gate) = (opener.held.0.control(), Arc::clone(&opener.gate));
        let controls: Vec<(&'static str, FakeControl)> = vec![("held", held)];
        let write = |(path, text): &(&str, &str)| write(folder.path(), path, text);
        files.iter().for_each(write);
        let running = setup.begin_with(folder.path(), Arc::new(opener), controls).await;
        Self { running, gate, folder }
    }

    /// Puts a file into the repository, or another in its place.
    pub fn write(&self, path: &str, text: &str) {
        write(self.folder.path(), path, text);
    }

    /// Takes a folder out of the repository.
    pub fn remove(&self, path: &str) {
        fs::remove_dir_all(self.folder.path().join(path)).unwrap();
    }

    /// What no caller may read: where the models are, and where the files of calls are put.
    pub fn secrets(&self) -> [String; 2] {
        [self.folder.path(), std::env::temp_dir().as_path()].map(|path| path.display().to_string())
    }

    /// Waits until somebody waits for the gate.
    pub async fn at_the_gate(&self) {
        until(|| self.gate.state.lock().unwrap().waiting > 0, "the model is being opened").await;
    }

    pub fn open_the_gate(&self) {
        self.gate.state.lock().unwrap().open = true;
        self.gate.opened.notify_all();
    }

    /// An exchange over REST: the status, and the body as JSON (`null` if it is empty).
    pub async fn rest(&self, method: &str, path: &str, body: impl Into<Bytes>) -> (u16, Value) {
        self.rest_as(None, method, path, body).await
    }

    pub async fn rest_as(&self, key: Option<&str>, method: &str, path: &str, body: impl Into<Bytes>) -> (u16, Value) {
        let request = client::http_request(&self.running, method, path, key, body);
        let response = client::http1(&self.running, request).await;
        let status = response.status().as_u16();
        if response.body().is_empty() {
            return (status, Value::Null);
        }
        assert_eq!(response.headers()["content-type"], "application/json", "{method} {path}");
        (status, serde_json::from_slice(response.body()).expect("a JSON body"))
    }

    pub async fn grpc(&self) -> client::GrpcClient {
        client::grpc(&self.running).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A loader that waits for ever would keep the process.
        self.open_the_gate();
    }
}

fn write(folder: &Path, path: &str, text: &str) {
    let path = folder.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    // In one piece, as whoever publishes models should.
    let hidden = folder.join(".written");
    fs::write(&hidden, text).unwrap();
    fs::rename(hidden, path).unwrap();
}
