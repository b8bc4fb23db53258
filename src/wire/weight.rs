//! What decoding a protobuf message would make, found before anything is made.
//!
//! Two bytes are an empty entry of a list, and a hundred times that once it is decoded. So the fields that can repeat are
//! walked first, by tables that name them: too many entries are refused as later checks would refuse them, and the bytes
//! that lists would take are counted, for the memory budget. Nothing is allocated, and no payload is looked at but that of
//! packed numbers. What is malformed ends the walk: the decoder stops at the same place, and says why.

use super::{Settings, json::MEMBERS};
use crate::error::Error;
use prost::{
    DecodeError,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

/// What a field costs to decode, as bytes of text that take as long.
const STEP: usize = 16;
/// Most fields of one table.
const FIELDS: usize = 12;
/// Fields of a message among which its text is looked for when it is refused: writers begin with the lowest numbers.
const FIRST: usize = 16;
/// Messages, groups and what is in them, one within the other: as many as prost reads.
const DEPTH: usize = 100;

/// A message whose fields that can repeat are known.
pub trait Weighed {
    /// These fields. Others are numbers, text, or messages of such.
    const FIELDS: &'static [Field] = &[];
}

/// A field that can repeat, or in which there is one.
#[derive(Debug)]
pub struct Field {
    number: u32,
    holds: Holds,
    /// Bytes of an entry once decoded, beside those of its text.
    takes: usize,
    most: Most,
}

#[derive(Debug)]
enum Holds {
    /// Bytes that are shared with the message.
    Bytes,
    /// Text, which is copied, or a message of nothing else.
    Text,
    /// Numbers of so many bytes each on the wire, packed or not.
    Fixed(usize),
    /// Numbers of any length, packed or not.
    Varint,
    /// A message with fields of these.
    Message(&'static [Field]),
}

/// How many entries one list may have.
#[derive(Clone, Copy, Debug)]
enum Most {
    /// As many as the memory budget has room for.
    Any,
    /// `limits.size.tensors`, of what is named.
    Tensors(&'static str),
    /// [`MEMBERS`].
    Parameters,
    /// `limits.size.rank`.
    Dimensions,
}

/// What decoding a message makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Bytes, beside those that are shared with the message.
    pub bytes: usize,
    /// How much work it is: bytes of text that take as long.
    pub work: usize,
}

/// Why a walk ends early.
enum Stop {
    /// The decoder will say so itself.
    Malformed,
    /// Found to be much work.
    Much,
    /// A tensor of so many dimensions; what it is called is known further out.
    Dimensions(usize),
    Refused(Error),
}

// === impl Field ===

/// A growing list may have twice the room that it needs, and entries beyond those of numbers are where a short message
/// becomes a large one. Lists of numbers are counted as they are.
const GROWN: usize = 2;

impl Field {
    /// One message with fields of these, or a list of such that is limited by what it is in.
    pub(super) const fn message(number: u32, fields: &'static [Self]) -> Self {
        Self { number, holds: Holds::Message(fields), takes: 0, most: Most::Any }
    }

    /// `bytes` that do not repeat.
    pub(super) const fn bytes(number: u32) -> Self {
        Self { number, holds: Holds::Bytes, takes: 0, most: Most::Any }
    }

    /// A list of `bytes`.
    pub(super) const fn byte_strings(number: u32) -> Self {
        Self { takes: GROWN * size_of::<bytes::Bytes>(), ..Self::bytes(number) }
    }

    /// A list of texts, or of messages that hold nothing else; `T` is what an entry becomes.
    pub(super) const fn texts<T>(number: u32) -> Self {
        Self { number, holds: Holds::Text, takes: GROWN * size_of::<T>(), most: Most::Any }
    }

    /// A list of messages with fields of these; `T` is what an entry becomes.
    pub(super) const fn messages<T>(number: u32, fields: &'static [Self]) -> Self {
        Self { takes: GROWN * size_of::<T>(), ..Self::message(number, fields) }
    }

    /// A list of `fixed32`, `fixed64`, `float` or `double`; `T` is what an entry becomes.
    pub(super) const fn fixed<T>(number: u32) -> Self {
        Self { number, holds: Holds::Fixed(size_of::<T>()), takes: size_of::<T>(), most: Most::Any }
    }

    /// A list of other numbers; `T` is what an entry becomes.
    pub(super) const fn varints<T>(number: u32) -> Self {
        Self { number, holds: Holds::Varint, takes: size_of::<T>(), most: Most::Any }
    }

    /// Of which there are no more than `limits.size.tensors`; `what` names them in the error.
    pub(super) const fn most_tensors(mut self, what: &'static str) -> Self {
        self.most = Most::Tensors(what);
        self
    }

    /// Of which there are no more than parameters of a request.
    pub(super) const fn most_parameters(mut self) -> Self {
        self.most = Most::Parameters;
        self
    }

    /// Of which there are no more than `limits.size.rank`.
    pub(super) const fn most_dimensions(mut self) -> Self {
        self.most = Most::Dimensions;
        self
    }
}

impl Most {
    /// Refuses a list of so many entries.
    fn check(self, count: usize, settings: &Settings) -> Result<(), Stop> {
        let error = match self {
            Self::Tensors(what) if count > settings.tensors => too_many_tensors(what, settings),
            Self::Parameters if count > MEMBERS => too_many_parameters(),
            // Those of a tensor are counted to the last, to be told.
            _ => return Ok(()),
        };
        Err(Stop::Refused(error))
    }
}

/// The error of a request with too many of `what`.
pub(super) fn too_many_tensors(what: &str, settings: &Settings) -> Error {
    let most = settings.tensors;
    Error::invalid(format!("the request has more than {most} {what}, expected at most {most}"))
}

/// The error of a request, or of a tensor in it, with too many parameters.
pub(super) fn too_many_parameters() -> Error {
    Error::invalid(format!("more than {MEMBERS} parameters"))
}

/// Why a tensor with so many dimensions is refused.
pub(super) fn too_many_dimensions(found: usize, settings: &Settings) -> String {
    format!("has {found} dimensions, expected at most {}", settings.rank)
}

/// The error of a message that is nested deeper than it is read, if that is what `error` says. It is refused for a limit, as
/// JSON that is nested too deeply; what the rest of it is nobody knows.
pub fn too_deep(error: &DecodeError) -> Option<Error> {
    // prost has no other name for it.
    let is_depth = error.to_string().ends_with("recursion limit reached");
    is_depth.then(|| Error::invalid(format!("the message is nested too deeply, expected at most {DEPTH} levels")))
}

/// Weighs a message of type `M` before it is decoded, for as long as the work so far is `little`.
///
/// Resolves to `None` once it is not. Of a malformed message it is what was found before the fault.
///
/// # Errors
///
/// [`Error::InvalidRequest`] or [`Error::InvalidTensor`] for more entries than a list may have, as decoding it would answer;
/// [`too_deep`] for groups that are.
pub fn weigh<M: Weighed>(
    message: &[u8],
    settings: &Settings,
    little: impl Fn(usize) -> bool,
) -> Result<Option<Weight>, Error> {
    const { assert!(fit(M::FIELDS), "a table is longer than its counts") };
    let mut walk = Walk { settings, little, weight: Weight::default() };
    match walk.message(message, M::FIELDS) {
        Ok(()) | Err(Stop::Malformed) => Ok(Some(walk.weight)),
        Err(Stop::Much) => Ok(None),
        Err(Stop::Refused(error)) => Err(error),
        Err(Stop::Dimensions(found)) => Err(Error::tensor("", too_many_dimensions(found, settings))),
    }
}

/// The text of the field `number` of a message, if it is among its first ones; empty if not, and if it is no text.
pub fn text_of(mut message: &[u8], number: u32) -> &str {
    for _ in 0..FIRST {
        let Ok((found, wire)) = decode_key(&mut message) else { break };
        if wire == WireType::StartGroup {
            break;
        }
        let before = message;
        if skip_field(wire, found, &mut message, DecodeContext::default()).is_err() {
            break;
        }
        if (found, wire) == (number, WireType::LengthDelimited) {
            let mut field = &before[..before.len() - message.len()];
            let length = decode_varint(&mut field);
            return length.ok().and_then(|_| std::str::from_utf8(field).ok()).unwrap_or_default();
        }
    }
    ""
}

/// Whether there is a count for each field, here and further in.
const fn fit(fields: &[Field]) -> bool {
    let mut at = 0;
    while at < fields.len() {
        if let Holds::Message(inner) = fields[at].holds
            && !fit(inner)
        {
            return false;
        }
        at += 1;
    }
    at <= FIELDS
}

struct Walk<'a, F> {
    settings: &'a Settings,
    little: F,
    weight: Weight,
}

// === impl Walk ===

impl<F: Fn(usize) -> bool> Walk<'_, F> {
    /// Recurses as deep as the tables do.
    fn message(&mut self, mut rest: &[u8], fields: &'static [Field]) -> Result<(), Stop> {
        let mut counts = [0_usize; FIELDS];
        while !rest.is_empty() {
            let (number, wire) = decode_key(&mut rest).map_err(|_| Stop::Malformed)?;
            let known = fields.iter().zip(&mut counts).find(|(field, _)| field.number == number);
            self.weight.work += STEP;
            let payload = match wire {
                WireType::LengthDelimited => Some(delimited(&mut rest)?),
                WireType::StartGroup => {
                    // Skipped field by field, and nobody writes them.
                    self.weight.work += STEP * rest.len();
                    self.check()?;
                    skip(number, wire, &mut rest)?;
                    None
                }
                _ => {
                    skip(number, wire, &mut rest)?;
                    None
                }
            };
            match (known, payload) {
                (Some((field, count)), payload) => {
                    *count += self.entries(field, payload);
                    self.check()?;
                    field.most.check(*count, self.settings)?;
                    if let (Holds::Message(inner), Some(payload)) = (&field.holds, payload) {
                        self.message(payload, inner).map_err(|stop| named(stop, field, payload, self.settings))?;
                    }
                }
                (None, Some(text)) => {
                    self.copied(text.len());
                    self.check()?;
                }
                (None, None) => self.check()?,
            }
        }
        let mut counted = fields.iter().zip(counts);
        match counted.find(|(field, count)| matches!(field.most, Most::Dimensions) && *count > self.settings.rank) {
            Some((_, found)) => Err(Stop::Dimensions(found)),
            None => Ok(()),
        }
    }

    /// Weighs the entries in one field, and says how many they are.
    fn entries(&mut self, field: &Field, payload: Option<&[u8]>) -> usize {
        let count = match (&field.holds, payload) {
            (Holds::Fixed(size), Some(payload)) => {
                self.weight.work += payload.len();
                payload.len() / size
            }
            (Holds::Varint, Some(payload)) => {
                self.weight.work += payload.len();
                // Each has one byte that does not say that more follow.
                payload.iter().filter(|byte| **byte < 0x80).count()
            }
            (Holds::Text, Some(payload)) => {
                self.copied(payload.len());
                1
            }
            (Holds::Bytes | Holds::Message(_), Some(_)) | (Holds::Fixed(_) | Holds::Varint, None) => 1,
            // Not what the field is; the decoder says so.
            (Holds::Text | Holds::Bytes | Holds::Message(_), None) => 0,
        };
        self.weight.bytes = self.weight.bytes.saturating_add(count.saturating_mul(field.takes));
        count
    }

    fn copied(&mut self, bytes: usize) {
        self.weight.bytes += bytes;
        self.weight.work += bytes;
    }

    fn check(&self) -> Result<(), Stop> {
        if (self.little)(self.weight.work) { Ok(()) } else { Err(Stop::Much) }
    }
}

/// The error of a tensor by its name, the first field of what it is in, be it a message or an entry of a map.
fn named(stop: Stop, field: &Field, entry: &[u8], settings: &Settings) -> Stop {
    match (stop, field.most) {
        (Stop::Dimensions(found), Most::Tensors(_)) => {
            Stop::Refused(Error::tensor(text_of(entry, 1), too_many_dimensions(found, settings)))
        }
        (stop, _) => stop,
    }
}

fn delimited<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Stop> {
    let length = decode_varint(rest).map_err(|_| Stop::Malformed)?;
    let length = usize::try_from(length).map_err(|_| Stop::Malformed)?;
    let (payload, after) = rest.split_at_checked(length).ok_or(Stop::Malformed)?;
    *rest = after;
    Ok(payload)
}

fn skip(number: u32, wire: WireType, rest: &mut &[u8]) -> Result<(), Stop> {
    skip_field(wire, number, rest, DecodeContext::default())
        .map_err(|error| too_deep(&error).map_or(Stop::Malformed, Stop::Refused))
}

#[cfg(test)]
#[path = "weight_tests.rs"]
mod tests;
