//! Finds the external files that an ONNX model names, without loading it.
//!
//! A walk over the protobuf messages that can hold a tensor, by their field numbers in `onnx.proto`: weights and
//! everything else are skipped unread, so that a model of gigabytes is looked through in no time and no memory. What
//! the model computes is not known here; ONNX Runtime parses it in earnest later.

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, BufReader, Read, Seek},
};

/// Messages within messages. Protobuf's own parsers stop at 100, so no runtime could load a deeper one.
const DEPTH: usize = 100;
/// Bytes of a key or value of an entry: PATH_MAX of Linux.
const TEXT: u64 = 4096;
/// Files that one model may name.
const FILES: usize = 10_000;

/// Why a file is not a model.
#[derive(Debug)]
pub(super) enum ScanError {
    /// It could not be read.
    Io(io::Error),
    /// It is no protobuf message, or no model.
    Malformed(&'static str),
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "cannot be read: {error}"),
            Self::Malformed(what) => write!(f, "is not an ONNX model: {what}"),
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

/// The `location` of every tensor that says its data lies elsewhere, each once.
///
/// `source` is at its start and has `length` bytes.
///
/// # Errors
///
/// [`ScanError`] if it cannot be read, is malformed, or holds no graph.
pub(super) fn external_locations(source: impl Read + Seek, length: u64) -> Result<BTreeSet<Vec<u8>>, ScanError> {
    let mut walk = Walk {
        source: BufReader::with_capacity(64 * 1024, source),
        at: 0,
        has_graph: false,
        entry: Entry::default(),
        found: BTreeSet::new(),
    };
    walk.model(length)?;
    if !walk.has_graph {
        return Err(ScanError::Malformed("it holds no graph"));
    }
    Ok(walk.found)
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

struct Walk<R> {
    source: BufReader<R>,
    at: u64,
    has_graph: bool,
    entry: Entry,
    found: BTreeSet<Vec<u8>>,
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

// === impl Walk ===

impl<R: Read + Seek> Walk<R> {
    fn model(&mut self, length: u64) -> Result<(), ScanError> {
        // Where each open message ends; a stack of our own, so that nesting costs no call frames.
        let mut open = vec![(Message::Model, length)];
        while let Some((message, end)) = open.last().copied() {
            if self.at == end {
                if message == Message::Entry {
                    self.finish_entry()?;
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
                0 => drop(self.varint(end)?),
                1 => self.skip(8, end)?,
                5 => self.skip(4, end)?,
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
                            open.push((inner, self.at + size));
                        }
                        (None, Message::Entry, 1) => self.entry.key = self.text(size)?,
                        (None, Message::Entry, 2) => self.entry.value = self.text(size)?,
                        (None, ..) => self.skip(size, end)?,
                    }
                }
                // Groups were given up before ONNX was made.
                _ => return Err(ScanError::Malformed("it has a field of an unknown kind")),
            }
        }
        Ok(())
    }

    fn finish_entry(&mut self) -> Result<(), ScanError> {
        let entry = std::mem::take(&mut self.entry);
        if entry.key == b"location" {
            if self.found.len() == FILES {
                return Err(ScanError::Malformed("it names too many external files"));
            }
            self.found.insert(entry.value);
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn scan(bytes: &[u8]) -> Result<Vec<String>, String> {
        external_locations(Cursor::new(bytes), bytes.len() as u64)
            .map(|found| found.into_iter().map(|text| String::from_utf8(text).unwrap()).collect())
            .map_err(|error| error.to_string())
    }

    fn varint(mut value: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value > 0x7f {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    /// A field that holds bytes.
    fn field(number: usize, content: &[u8]) -> Vec<u8> {
        [varint(number << 3 | 2), varint(content.len()), content.to_vec()].concat()
    }

    fn entry(key: &str, value: &str) -> Vec<u8> {
        field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
    }

    fn within(numbers: &[usize], content: Vec<u8>) -> Vec<u8> {
        numbers.iter().rev().fold(content, |inner, number| field(*number, &inner))
    }

    #[test]
    fn a_location_is_found_wherever_a_tensor_can_be() {
        let tensor = entry("location", "w.bin");
        for path in [
            &[7, 5][..],       // graph, initializer
            &[7, 15, 1],       // graph, sparse initializer, values
            &[7, 15, 2],       // graph, sparse initializer, indices
            &[7, 1, 5, 5],     // graph, node, attribute, tensor
            &[7, 1, 5, 10],    // ..., tensors
            &[7, 1, 5, 22, 1], // ..., sparse tensor
            &[7, 1, 5, 23, 2], // ..., sparse tensors
            &[7, 1, 5, 6, 5],  // ..., graph, initializer
            &[7, 1, 5, 11, 5], // ..., graphs, initializer
            &[25, 7, 5, 5],    // function, node, attribute, tensor
            &[25, 11, 5],      // function, attribute, tensor
            &[20, 1, 5],       // training, initialization, initializer
            &[20, 2, 5],       // training, algorithm, initializer
        ] {
            let model = [field(7, b""), within(path, tensor.clone())].concat();
            assert_eq!(scan(&model).unwrap(), ["w.bin"], "{path:?}");
        }
    }

    #[test]
    fn only_the_location_counts_and_each_once() {
        let weight = [entry("offset", "0"), entry("location", "a"), entry("length", "16")].concat();
        let model = within(&[7], [field(5, &weight), field(5, &weight), field(5, &entry("location", "b"))].concat());
        assert_eq!(scan(&model).unwrap(), ["a", "b"]);
    }

    #[test]
    fn the_last_key_and_value_of_an_entry_win_as_in_protobuf() {
        let twice = [field(1, b"offset"), field(2, b"x"), field(1, b"location"), field(2, b"../y")].concat();
        assert_eq!(scan(&within(&[7, 5, 13], twice)).unwrap(), ["../y"]);
    }

    #[test]
    fn what_is_no_model_is_refused() {
        for (bytes, reason) in [
            (&b""[..], "it holds no graph"),
            (b"version https://", "unknown kind"),
            (b"\x3a\x05ab", "longer than what it is in"),
            (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "longer than what it is in"),
            (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "longer than ten bytes"),
            (b"\x02\x00", "without a number"),
            (b"\x08", "runs past"),
            (b"\x09\x00", "longer than what it is in"),
        ] {
            let error = scan(bytes).unwrap_err();
            assert!(error.contains(reason), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn nesting_ends_at_a_hundred() {
        let mut path = vec![7];
        (0..20).for_each(|_| path.extend([1, 5, 6]));
        assert!(scan(&within(&path, Vec::new())).is_ok());
        (0..20).for_each(|_| path.extend([1, 5, 6]));
        assert!(scan(&within(&path, Vec::new())).unwrap_err().contains("too deeply"));
    }

    #[test]
    fn a_file_that_shrinks_meanwhile_is_cut_off() {
        let model = within(&[7, 5], entry("location", "w.bin"));
        let error = external_locations(Cursor::new(&model[..model.len() - 2]), model.len() as u64).unwrap_err();
        assert!(error.to_string().contains("cut off"), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = scan_lossy(&bytes);
        }

        #[test]
        fn a_model_with_one_byte_changed_never_panics(at in 0_usize..200, byte in any::<u8>()) {
            let mut model = within(&[7, 1, 5, 6, 5], entry("location", "weights.bin"));
            let at = at % model.len();
            model[at] = byte;
            let _ = scan_lossy(&model);
        }
    }

    fn scan_lossy(bytes: &[u8]) -> Result<BTreeSet<Vec<u8>>, ScanError> {
        external_locations(Cursor::new(bytes), bytes.len() as u64)
    }
}
