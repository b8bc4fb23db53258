//! Looks through an ONNX model without loading it: for the external files that it names, and for weights that claim to be
//! larger than what holds them. What its nodes are called is read on the way, for [`growth`](super::growth).
//!
//! A walk over the protobuf messages that can hold a tensor, by their field numbers in `onnx.proto`: weights and
//! everything else are skipped unread, so that a model of gigabytes is looked through in no time and no memory. What
//! the model computes is not known here; ONNX Runtime parses it in earnest later.

use super::growth::{Node, grows_with_values};
use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    io::{self, BufReader, Read, Seek},
};

/// Messages within messages. Protobuf's own parsers stop at 100, so no runtime could load a deeper one.
const DEPTH: usize = 100;
/// Bytes of a key or value of an entry: PATH_MAX of Linux.
const TEXT: u64 = 4096;
/// Files that one model may name.
const FILES: usize = 10_000;
/// Nodes that are looked at. A model of more of them is none that takes a few microseconds.
const NODES: usize = 100_000;
/// Names of inputs and outputs that are kept, of all nodes together: two bytes of a file are an empty one, and many times that
/// in memory.
const NAMES: usize = 4 * NODES;
/// Elements that a byte of weights can hold at most: the smallest types have two bits.
const PER_BYTE: u64 = 4;

/// Why a file is not a model.
#[derive(Debug)]
pub(super) enum ScanError {
    /// It could not be read.
    Io(io::Error),
    /// It is no protobuf message, or no model.
    Malformed(&'static str),
    /// One of its weights has dimensions that its data cannot fill.
    Weight { name: String, what: String },
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "cannot be read: {error}"),
            Self::Malformed(what) => write!(f, "is not an ONNX model: {what}"),
            Self::Weight { name, what } => write!(f, "has a weight `{name}` {what}"),
        }
    }
}

impl From<io::Error> for ScanError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Malformed("it is cut off"),
            _ => Self::Io(error),
        }
    }
}

/// What is found in a model.
#[derive(Debug)]
pub(super) struct Found {
    /// The `location` of every tensor that says its data lies elsewhere, each once, with the first byte behind all that is to be
    /// read there.
    pub(super) external: BTreeMap<Vec<u8>, u64>,
    /// The operator by which its work grows with values that callers send, if there is one.
    pub(super) grows: Option<&'static str>,
}

/// Looks through a model.
///
/// `source` is at its start and has `length` bytes.
///
/// # Errors
///
/// [`ScanError`] if it cannot be read, is malformed, holds no graph, or has a weight whose data cannot fill its dimensions.
pub(super) fn look_through(source: impl Read + Seek, length: u64) -> Result<Found, ScanError> {
    let mut walk = Walk {
        source: BufReader::with_capacity(64 * 1024, source),
        at: 0,
        has_graph: false,
        entry: Entry::default(),
        tensor: Tensor::default(),
        found: BTreeMap::new(),
        nodes: Vec::new(),
        open_nodes: Vec::new(),
        names: 0,
        weights: HashSet::new(),
    };
    walk.model(length)?;
    if !walk.has_graph {
        return Err(ScanError::Malformed("it holds no graph"));
    }
    Ok(Found { external: walk.found, grows: grows_with_values(&walk.nodes, walk.weights) })
}

/// The messages of `onnx.proto` through which a tensor can be reached.
#[derive(Clone, Copy, PartialEq)]
enum Message {
    Model,
    Training,
    Graph,
    Node,
    Attribute,
    Function,
    Sparse,
    Tensor,
    /// `StringStringEntryProto` within `external_data`.
    Entry,
}

#[derive(Default)]
struct Entry {
    key: Vec<u8>,
    value: Vec<u8>,
}

/// What is known of a `TensorProto` so far. Tensors hold no tensors, so there is one at a time.
#[derive(Default)]
struct Tensor {
    name: Vec<u8>,
    /// The product of its dimensions: `None` beyond 64 bits; a negative one is kept apart.
    elements: Product,
    negative: bool,
    /// Bytes of its data within the model, as they are written.
    data: u64,
    /// All that are named, though one is read: which one is not ours to guess.
    locations: Vec<Vec<u8>>,
    offset: u64,
    length: Option<u64>,
}

struct Product(Option<u64>);

impl Default for Product {
    fn default() -> Self {
        Self(Some(1))
    }
}

struct Walk<R> {
    source: BufReader<R>,
    at: u64,
    has_graph: bool,
    entry: Entry,
    tensor: Tensor,
    found: BTreeMap<Vec<u8>, u64>,
    /// Those that were read, and those that are being read, which lie within each other.
    nodes: Vec<Node>,
    open_nodes: Vec<Node>,
    /// How many names they have.
    names: usize,
    /// The names of initializers.
    weights: HashSet<Vec<u8>>,
}

// === impl Message ===

impl Message {
    /// The message in this field, if a tensor can be reached through it.
    fn field(self, number: u64) -> Option<Self> {
        match (self, number) {
            (Self::Model, 7) | (Self::Training, 1 | 2) | (Self::Attribute, 6 | 11) => Some(Self::Graph),
            (Self::Model, 20) => Some(Self::Training),
            (Self::Model, 25) => Some(Self::Function),
            (Self::Graph, 1) | (Self::Function, 7) => Some(Self::Node),
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::Sparse, 1 | 2) => Some(Self::Tensor),
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Some(Self::Sparse),
            (Self::Node, 5) | (Self::Function, 11) => Some(Self::Attribute),
            (Self::Tensor, 13) => Some(Self::Entry),
            _ => None,
        }
    }
}

// === impl Tensor ===

impl Tensor {
    /// One more dimension, an `int64`.
    fn dimension(&mut self, value: u64) {
        self.negative |= i64::try_from(value).is_err();
        self.elements.0 = match (self.elements.0, value) {
            // Nothing times whatever is nothing, even what was too much before.
            (_, 0) => Some(0),
            (Some(0), _) => Some(0),
            (product, value) => product.and_then(|product| product.checked_mul(value)),
        };
    }
}

/// A number of bytes in decimal; none if there is no text, as some writers leave it.
fn bytes(text: &[u8]) -> Result<Option<u64>, ScanError> {
    let wrong =
        || ScanError::Malformed("an offset or length of external data is something else, expected a number of bytes");
    let text = std::str::from_utf8(text).map_err(|_| wrong())?.trim();
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| wrong()) }
}

// === impl Walk ===

impl<R: Read + Seek> Walk<R> {
    fn model(&mut self, length: u64) -> Result<(), ScanError> {
        // Where each open message ends; a stack of our own, so that nesting costs no call frames.
        let mut open = vec![(Message::Model, length)];
        while let Some((message, end)) = open.last().copied() {
            if self.at == end {
                match message {
                    Message::Entry => self.finish_entry()?,
                    Message::Tensor => {
                        let is_weight = matches!(open.iter().rev().nth(1), Some((Message::Graph, _)));
                        if is_weight && !self.tensor.name.is_empty() && self.weights.len() < NODES {
                            self.weights.insert(self.tensor.name.clone());
                        }
                        self.finish_tensor()?;
                    }
                    Message::Node => self.nodes.extend(self.open_nodes.pop().filter(|_| self.nodes.len() < NODES)),
                    _ => {}
                }
                open.pop();
                continue;
            }
            let tag = self.varint(end)?;
            let number = tag >> 3;
            if number == 0 {
                return Err(ScanError::Malformed("it has a field without a number"));
            }
            match tag & 7 {
                0 => {
                    let value = self.varint(end)?;
                    match (message, number) {
                        (Message::Tensor, 1) => self.tensor.dimension(value),
                        (Message::Tensor, 4..=7 | 9..=11) => self.tensor.data += 1,
                        _ => {}
                    }
                }
                kind @ (1 | 5) => {
                    let size = if kind == 1 { 8 } else { 4 };
                    self.skip(size, end)?;
                    if let (Message::Tensor, 4..=7 | 9..=11) = (message, number) {
                        self.tensor.data += size;
                    }
                }
                2 => {
                    let size = self.varint(end)?;
                    if size > end - self.at {
                        return Err(ScanError::Malformed("a field is longer than what it is in"));
                    }
                    match (message.field(number), message, number) {
                        (Some(inner), ..) => {
                            if open.len() == DEPTH {
                                return Err(ScanError::Malformed("its messages are nested too deeply"));
                            }
                            self.has_graph |= message == Message::Model && inner == Message::Graph;
                            if inner == Message::Tensor {
                                self.tensor = Tensor::default();
                            }
                            if inner == Message::Node {
                                self.open_nodes.push(Node::default());
                            }
                            if let (Message::Attribute, Message::Graph, Some(node)) =
                                (message, inner, self.open_nodes.last_mut())
                            {
                                node.has_graph = true;
                            }
                            open.push((inner, self.at + size));
                        }
                        (None, Message::Node, 1 | 2 | 4) => self.node(number, size, end)?,
                        (None, Message::Entry, 1) => self.entry.key = self.text(size)?,
                        (None, Message::Entry, 2) => self.entry.value = self.text(size)?,
                        (None, Message::Tensor, 1) => self.dimensions(size)?,
                        (None, Message::Tensor, 8) if size <= TEXT => self.tensor.name = self.text(size)?,
                        (None, Message::Tensor, 4..=7 | 9..=11) => {
                            self.skip(size, end)?;
                            // A string may be empty; its length is not.
                            self.tensor.data += size + 1;
                        }
                        (None, ..) => self.skip(size, end)?,
                    }
                }
                // Groups were given up before ONNX was made.
                _ => return Err(ScanError::Malformed("it has a field of an unknown kind")),
            }
        }
        Ok(())
    }

    /// A name in a node: of an input, of an output, or its operator.
    fn node(&mut self, number: u64, size: u64, end: u64) -> Result<(), ScanError> {
        let is_operator = number == 4;
        if !is_operator && self.names == NAMES {
            // As with nodes beyond those that are looked at.
            return self.skip(size, end);
        }
        self.names += usize::from(!is_operator);
        // A longer name is nobody's, and what has it is not followed.
        let name = if size <= TEXT {
            self.text(size)?
        } else {
            self.skip(size, end)?;
            vec![0]
        };
        let Some(node) = self.open_nodes.last_mut() else { return Ok(()) };
        match number {
            1 => node.inputs.push(name),
            2 => node.outputs.push(name),
            _ => node.operator = name,
        }
        Ok(())
    }

    fn finish_entry(&mut self) -> Result<(), ScanError> {
        let entry = std::mem::take(&mut self.entry);
        match &*entry.key {
            b"location" => {
                if self.tensor.locations.len() == FILES {
                    return Err(ScanError::Malformed("it names too many external files"));
                }
                self.tensor.locations.push(entry.value);
            }
            b"offset" => self.tensor.offset = bytes(&entry.value)?.unwrap_or(0),
            b"length" => self.tensor.length = bytes(&entry.value)?,
            _ => {}
        }
        Ok(())
    }

    fn finish_tensor(&mut self) -> Result<(), ScanError> {
        let tensor = std::mem::take(&mut self.tensor);
        let wrong = |what: String| {
            let name = String::from_utf8_lossy(&tensor.name).chars().filter(|c| !c.is_control()).take(80).collect();
            Err(ScanError::Weight { name, what })
        };
        if tensor.negative {
            return wrong("of a negative dimension".to_owned());
        }
        let Some(elements) = tensor.elements.0 else {
            return wrong("of more elements than 64 bits can count".to_owned());
        };
        // Without a length it is the rest of the file, whose size is known elsewhere.
        let data = if tensor.locations.is_empty() { Some(tensor.data) } else { tensor.length };
        if let Some(data) = data
            && elements.div_ceil(PER_BYTE) > data
        {
            return wrong(format!("of {elements} elements, and {data} bytes of data for them"));
        }
        let least = tensor.length.unwrap_or(elements.div_ceil(PER_BYTE));
        for location in tensor.locations {
            if self.found.len() == FILES && !self.found.contains_key(&location) {
                return Err(ScanError::Malformed("it names too many external files"));
            }
            let end = self.found.entry(location).or_default();
            *end = (*end).max(tensor.offset.saturating_add(least));
        }
        Ok(())
    }

    /// Dimensions that are packed into one field.
    fn dimensions(&mut self, size: u64) -> Result<(), ScanError> {
        let end = self.at + size;
        while self.at < end {
            let value = self.varint(end)?;
            self.tensor.dimension(value);
        }
        Ok(())
    }

    fn varint(&mut self, end: u64) -> Result<u64, ScanError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            if self.at == end {
                return Err(ScanError::Malformed("a number runs past what it is in"));
            }
            let mut byte = [0];
            self.source.read_exact(&mut byte)?;
            self.at += 1;
            // What does not fit into 64 bits is cut off, as protobuf's parsers do.
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(value);
            }
        }
        Err(ScanError::Malformed("a number is longer than ten bytes"))
    }

    fn skip(&mut self, size: u64, end: u64) -> Result<(), ScanError> {
        let too_long = ScanError::Malformed("a field is longer than what it is in");
        if size > end - self.at {
            return Err(too_long);
        }
        self.source.seek_relative(i64::try_from(size).map_err(|_| too_long)?)?;
        self.at += size;
        Ok(())
    }

    fn text(&mut self, size: u64) -> Result<Vec<u8>, ScanError> {
        if size > TEXT {
            return Err(ScanError::Malformed("it describes external data in more than 4096 bytes"));
        }
        let mut text = vec![0; usize::try_from(size).unwrap_or_default()];
        self.source.read_exact(&mut text)?;
        self.at += size;
        Ok(text)
    }
}

#[cfg(test)]
#[path = "protobuf_tests.rs"]
mod tests;
