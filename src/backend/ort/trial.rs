//! The process in which a model file is tried, as seen from the one that wants it tried: it opens the file, and runs it on what
//! it is sent, one run after the other, until it is told that there is no more.
//!
//! What goes over the pipes is ours in both directions, but whoever reads must not trust the other end: a file may have taken
//! the process over. A message is [`MARK`], the bytes of its head and of its data, the head as JSON, the data.

use super::probe::{COMMAND, Settings, judge};
use crate::{
    backend::Backend,
    error::Error,
    tensor::{AxisNames, DataType, Shape, Signature, Tensor, TensorSpec, Tensors, view},
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsString,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

/// What of our environment a process is given: how its library finds others, and which devices there are.
pub(super) const VARIABLES: &[&str] =
    &["LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"];

/// Bytes that are read of what a process says in words, and characters that are kept.
const SAID: u64 = 64 * 1024;
pub(super) const KEPT: usize = 1000;

/// How often a process is looked at while it is waited for: the standard library has no wait that ends.
const LOOK: Duration = Duration::from_millis(2);

/// Begins a message; anything else is words.
const MARK: [u8; 4] = *b"SGP1";

/// Bytes of a message's head: 10,000 inputs of long names.
const HEAD: u64 = 4 << 20;

/// Bytes of data that are taken back of a run: as much as one call brings unless more is configured. The values are looked at
/// only to see whether rows depend on each other, and this end holds them up to three times while it reads them; of larger
/// outputs only the shapes are told.
const DATA: u64 = 64 << 20;

/// What one process tells the other.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// The file is open.
    Opened { inputs: Vec<Outlet>, outputs: Vec<Outlet> },
    /// What it is to be run on, or what came of it.
    Tensors(Vec<Head>),
    /// What came of it, whose data is more than is taken back.
    Shapes(Vec<Head>),
    /// A run failed.
    Failed(String),
}

/// An input or output, and what its axes are called.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Outlet {
    name: Arc<str>,
    dtype: Option<String>,
    dims: Vec<Option<usize>>,
    axes: Vec<Option<Arc<str>>>,
}

/// A tensor without its data.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    dtype: String,
    dims: Vec<usize>,
    bytes: u64,
}

/// What was heard of a process.
enum Heard {
    Message(Message, Vec<u8>),
    Words(String),
}

/// A process that has opened a file. It is ended when this is dropped.
#[derive(Debug)]
pub(super) struct Trial {
    process: Child,
    /// Dropped to say that there is no more.
    requests: Option<mpsc::Sender<Vec<u8>>>,
    replies: mpsc::Receiver<Heard>,
    complaint: mpsc::Receiver<String>,
    timeout: Duration,
    memory: u64,
    path: PathBuf,
}

// === impl Trial ===

impl Trial {
    /// Has a process open the file at `path`, as `words` say, and run it on zeros; it may take `memory` bytes.
    ///
    /// # Errors
    ///
    /// In plain words: what the process said, what it died of, or which limit it ran into.
    pub(super) fn start(
        settings: &Settings,
        library: &Path,
        path: &Path,
        memory: u64,
        words: &[String],
    ) -> Result<(Self, Arc<Signature>, AxisNames), String> {
        let option = |name: &str, value: OsString| [OsString::from(name), value];
        let mut command = Command::new(&settings.program);
        command
            .arg(COMMAND)
            .args(option("--onnxruntime", library.into()))
            .args(option("--memory", memory.to_string().into()))
            .args(option("--parent", std::process::id().to_string().into()))
            .args(words.iter().flat_map(|word| option("--session", word.into())))
            .arg("--")
            .arg(path)
            .env_clear()
            .envs(VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command.spawn().map_err(|error| format!("cannot be tried (`models.probe`): {error}"))?;
        let (sender, requests) = mpsc::channel();
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let replies = talk(input, output, requests, DATA);
        let complaint = hear(process.stderr.take());
        let (timeout, path) = (settings.timeout, path.to_owned());
        let mut trial = Self { process, requests: Some(sender), replies, complaint, timeout, memory, path };
        match trial.reply()? {
            (Message::Opened { inputs, outputs }, _) => {
                let names = AxisNames {
                    inputs: inputs.iter().map(|outlet| outlet.axes.clone()).collect(),
                    outputs: outputs.iter().map(|outlet| outlet.axes.clone()).collect(),
                };
                let specs = |outlets: Vec<Outlet>| outlets.into_iter().map(spec).collect();
                let signature = Signature { inputs: specs(inputs), outputs: specs(outputs) };
                Ok((trial, Arc::new(signature), names))
            }
            _ => Err(trial.confused()),
        }
    }

    /// What a run on `inputs` came to there; zeros, where that is more than is taken back.
    ///
    /// # Errors
    ///
    /// As [`Trial::start`]: the process is of no use any more. That a run failed is none of them.
    pub(super) fn run(&mut self, inputs: &[Tensor]) -> Result<Result<Tensors, String>, String> {
        let message = encode(inputs);
        let sent = self.requests.as_ref().is_some_and(|requests| requests.send(message).is_ok());
        if !sent {
            return Err(self.ended(None));
        }
        match self.reply()? {
            (Message::Tensors(heads), data) => decode(heads, &data).map(Ok).map_err(|_| self.confused()),
            (Message::Shapes(heads), _) => zeros(heads, self.memory).map(Ok).map_err(|_| self.confused()),
            (Message::Failed(reason), _) => Ok(Err(reason)),
            (Message::Opened { .. }, _) => Err(self.confused()),
        }
    }

    /// Says that there is no more, and waits until it has ended.
    ///
    /// # Errors
    ///
    /// As [`Trial::start`].
    pub(super) fn end(mut self) -> Result<(), String> {
        self.requests = None;
        match wait(&mut self.process, self.timeout) {
            Ok(Some(status)) => judge(status, self.memory, String::new),
            Ok(None) => Err(self.late()),
            Err(error) => Err(format!("cannot be tried (`models.probe`): {error}")),
        }
    }

    fn reply(&mut self) -> Result<(Message, Vec<u8>), String> {
        let (began, mut is_gone) = (Instant::now(), false);
        loop {
            match self.replies.recv_timeout(LOOK * 10) {
                Ok(Heard::Message(message, data)) => return Ok((message, data)),
                Ok(Heard::Words(words)) => return Err(self.ended(Some(words))),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(self.ended(None)),
                // Something that it started may hold the other end.
                Err(mpsc::RecvTimeoutError::Timeout) if is_gone => return Err(self.ended(None)),
                Err(mpsc::RecvTimeoutError::Timeout) if began.elapsed() >= self.timeout => return Err(self.late()),
                // What it said before it went is heard first.
                Err(mpsc::RecvTimeoutError::Timeout) => is_gone = matches!(self.process.try_wait(), Ok(Some(_))),
            }
        }
    }

    /// Why it has ended, or is about to.
    fn ended(&mut self, words: Option<String>) -> String {
        self.requests = None;
        if let Ok(complaint) = self.complaint.recv_timeout(LOOK)
            && !complaint.is_empty()
        {
            tracing::debug!(model = %self.path.display(), complaint, "the process that tried the model says");
        }
        let status = match wait(&mut self.process, self.timeout) {
            Ok(Some(status)) => status,
            Ok(None) => return self.late(),
            Err(error) => return format!("cannot be tried (`models.probe`): {error}"),
        };
        match judge(status, self.memory, || words.unwrap_or_default()) {
            Err(reason) => reason,
            Ok(()) => format!("cannot be loaded: the process that tried it ended with {status} before it was told to"),
        }
    }

    fn late(&mut self) -> String {
        let limit = self.timeout;
        let _ = self.process.kill();
        format!("cannot be loaded: it was not loaded and run within {limit:?} (`models.probe_timeout`)")
    }

    fn confused(&mut self) -> String {
        let _ = self.process.kill();
        "cannot be loaded: the process that tried it says what makes no sense".to_owned()
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let _ = self.process.kill();
        // Nothing may stay of it.
        let _ = self.process.wait();
    }
}

/// Answers the process that wants the file tried: says what `backend` is, and runs it on whatever comes, until no more does.
/// The other half of [`Trial`].
///
/// # Errors
///
/// If the pipes are gone, or hold no messages.
pub fn serve(backend: &mut dyn Backend, mut requests: impl Read, mut replies: impl Write) -> io::Result<()> {
    let (signature, names) = (Arc::clone(backend.signature()), backend.axis_names());
    let outlets = |specs: &[TensorSpec], axes: &[Vec<Option<Arc<str>>>]| {
        let axes = |at: usize| axes.get(at).cloned().unwrap_or_default();
        specs.iter().enumerate().map(|(at, spec)| outlet(spec, axes(at))).collect()
    };
    let (inputs, outputs) = (outlets(&signature.inputs, &names.inputs), outlets(&signature.outputs, &names.outputs));
    replies.write_all(&frame(&Message::Opened { inputs, outputs }, &[]))?;
    replies.flush()?;
    while let Some(message) = read(&mut requests, u64::MAX)? {
        let Heard::Message(Message::Tensors(heads), data) = message else {
            return Err(io::Error::other("there is nothing to run in what was sent"));
        };
        let inputs = decode(heads, &data).map_err(io::Error::other)?;
        let answer = match backend.run(&inputs) {
            Ok(outputs) => answer(&outputs),
            Err(error) => frame(&Message::Failed(cause(&error)), &[]),
        };
        replies.write_all(&answer)?;
        replies.flush()?;
    }
    Ok(())
}

fn cause(error: &Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn outlet(spec: &TensorSpec, axes: Vec<Option<Arc<str>>>) -> Outlet {
    let dtype = spec.dtype.map(|dtype| dtype.name().to_owned());
    Outlet { name: Arc::clone(&spec.name), dtype, dims: spec.dims.clone(), axes }
}

fn spec(outlet: Outlet) -> TensorSpec {
    let dtype = outlet.dtype.and_then(|name| DataType::parse(&name));
    TensorSpec { name: outlet.name, dtype, dims: outlet.dims }
}

fn frame(message: &Message, data: &[&[u8]]) -> Vec<u8> {
    let head = serde_json::to_vec(message).unwrap_or_default();
    let bytes: usize = data.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(MARK.len() + 16 + head.len() + bytes);
    frame.extend(MARK);
    frame.extend((head.len() as u64).to_le_bytes());
    frame.extend((bytes as u64).to_le_bytes());
    frame.extend(head);
    data.iter().for_each(|part| frame.extend_from_slice(part));
    frame
}

pub(super) fn encode(tensors: &[Tensor]) -> Vec<u8> {
    let data: Vec<_> = tensors.iter().map(|tensor| &tensor.data()[..]).collect();
    frame(&Message::Tensors(tensors.iter().map(head).collect()), &data)
}

/// What came of a run, as far as the other end takes it back.
fn answer(outputs: &[Tensor]) -> Vec<u8> {
    let bytes: u64 = outputs.iter().map(|tensor| tensor.data().len() as u64).sum();
    if bytes <= DATA { encode(outputs) } else { frame(&Message::Shapes(outputs.iter().map(head).collect()), &[]) }
}

fn head(tensor: &Tensor) -> Head {
    Head {
        dtype: tensor.dtype().name().to_owned(),
        dims: tensor.shape().dims().to_vec(),
        bytes: tensor.data().len() as u64,
    }
}

/// Zeros, or empty strings, of these types and shapes: memory that nobody writes is not there. More than `most` bytes of them
/// is an error: the process could not have held what it speaks of.
fn zeros(heads: Vec<Head>, most: u64) -> Result<Tensors, String> {
    let (mut tensors, mut left) = (Tensors::new(), usize::try_from(most).unwrap_or(usize::MAX));
    for Head { dtype, dims, .. } in heads {
        let dtype = DataType::parse(&dtype).ok_or("an unknown type")?;
        let shape = Shape::new(dims);
        // An empty string is its length and nothing else: four zero bytes.
        let bytes = shape.elements().and_then(|elements| elements.checked_mul(dtype.size().unwrap_or(4)));
        let bytes = bytes.filter(|bytes| *bytes <= left).ok_or("more than it may hold")?;
        left -= bytes;
        let words = bytes.div_ceil(8);
        // Asked for first where no is an answer: there may not be as much to be had.
        Vec::<u64>::new().try_reserve_exact(words).map_err(|error| error.to_string())?;
        let data = view::bytes_of(vec![0_u64; words]).slice(..bytes);
        tensors.push(Tensor::new(dtype, shape, data).map_err(|error| error.to_string())?);
    }
    Ok(tensors)
}

fn decode(heads: Vec<Head>, mut data: &[u8]) -> Result<Tensors, String> {
    let mut tensors = Tensors::new();
    for Head { dtype, dims, bytes } in heads {
        let dtype = DataType::parse(&dtype).ok_or("an unknown type")?;
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= data.len()).ok_or("too little data")?;
        let (own, rest) = data.split_at(bytes);
        data = rest;
        let tensor = Tensor::new(dtype, Shape::new(dims), view::aligned_copy(own));
        tensors.push(tensor.map_err(|error| error.to_string())?);
    }
    Ok(tensors)
}

/// The next message, or words until the end; `None` at the end. Data of more than `most` bytes is an error.
fn read(source: &mut impl Read, most: u64) -> io::Result<Option<Heard>> {
    let mut start = Vec::new();
    source.by_ref().take(MARK.len() as u64).read_to_end(&mut start)?;
    if start.is_empty() {
        return Ok(None);
    }
    if start != MARK {
        source.by_ref().take(SAID).read_to_end(&mut start)?;
        return Ok(Some(Heard::Words(line(&start))));
    }
    let mut size = || {
        let mut bytes = [0; 8];
        source.read_exact(&mut bytes).map(|()| u64::from_le_bytes(bytes))
    };
    let (head, bytes) = (size()?, size()?);
    if head > HEAD || bytes > most {
        return Err(io::Error::other("a message is too large"));
    }
    // Grows with what comes, whatever was announced.
    let mut part = |bytes: u64| {
        let mut part = Vec::new();
        source.by_ref().take(bytes).read_to_end(&mut part)?;
        if part.len() as u64 == bytes { Ok(part) } else { Err(io::Error::from(io::ErrorKind::UnexpectedEof)) }
    };
    let (head, data) = (part(head)?, part(bytes)?);
    Ok(Some(Heard::Message(serde_json::from_slice(&head)?, data)))
}

/// Sends what is to be sent and hears what comes of it, on a thread of its own: a pipe has no waits that end.
fn talk(
    input: Option<impl Write + Send + 'static>,
    output: Option<impl Read + Send + 'static>,
    requests: mpsc::Receiver<Vec<u8>>,
    most: u64,
) -> mpsc::Receiver<Heard> {
    let (sender, heard) = mpsc::channel();
    let work = move || {
        let (Some(mut input), Some(mut output)) = (input, output) else { return };
        while let Ok(Some(heard)) = read(&mut output, most) {
            let is_last = matches!(heard, Heard::Words(_));
            if sender.send(heard).is_err() || is_last {
                break;
            }
            let Ok(request) = requests.recv() else { break };
            // One that has ended is heard of as the end of its output.
            let _ = input.write_all(&request).and_then(|()| input.flush());
        }
        drop(input);
        // So that the writer does not wait.
        let _ = io::copy(&mut output, &mut io::sink());
    };
    // Without a thread nothing is heard, and the process is ended.
    drop(thread::Builder::new().name("probe".to_owned()).spawn(work));
    heard
}

/// What comes out of a pipe, up to a limit, as one line of text; what is beyond it is read and dropped, so that the writer
/// does not wait.
fn hear(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (sender, heard) = mpsc::channel();
    let work = move || {
        let Some(mut pipe) = pipe else { return };
        let mut bytes = Vec::new();
        let _ = pipe.by_ref().take(SAID).read_to_end(&mut bytes);
        let _ = sender.send(line(&bytes));
        let _ = io::copy(&mut pipe, &mut io::sink());
    };
    drop(thread::Builder::new().name("probe".to_owned()).spawn(work));
    heard
}

fn line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(KEPT).collect()
}

/// Waits for a process, and ends it when its time is up: `None` then. Blocks.
fn wait(process: &mut Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    loop {
        let ended = process.try_wait();
        match ended {
            Ok(Some(status)) => return Ok(Some(status)),
            Ok(None) if began.elapsed() < timeout => thread::park_timeout(LOOK),
            Ok(None) | Err(_) => {
                let _ = process.kill();
                // Nothing may stay of it, whatever went wrong.
                let _ = process.wait();
                return ended;
            }
        }
    }
}

#[cfg(test)]
#[path = "trial_tests.rs"]
mod tests;
