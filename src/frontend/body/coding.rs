//! Content codings: request bodies are inflated within their limits, responses are compressed where that is wanted.
//!
//! Knows gzip, deflate and zstd (contract 02 section 2, contract 05 section 1.1) and nothing of what is in a body. Memory is
//! counted while a body is inflated, and what a bomb would grow to is cut off while it grows; a response that is compressed
//! was counted before, and its copy is smaller and is not.

use super::{
    memory::FREE,
    read::{Buffer, Limits, read},
};
use crate::{error::Error, frontend::Connection, offload::offload};
use bytes::Bytes;
use flate2::{Compression, Decompress, FlushDecompress, Status, bufread::MultiGzDecoder, write};
use http::{
    HeaderMap, HeaderValue,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING},
};
use std::{
    io::{Read, Write},
    sync::Arc,
};

/// What is inflated at once, between two looks at the limits.
const STEP: usize = 32 * 1024;
/// A compressed byte costs as much time as so many of JSON: one may stand for hundreds.
const INFLATING: usize = 64;
/// And a byte that is compressed as so many.
const DEFLATING: usize = 8;
/// The largest window of zstd, as a power of two: 8 MiB, which RFC 8878 section 3.1.1.1.2 asks decoders for. Its memory is
/// the decoder's own and not counted.
const WINDOW: u32 = 23;

/// A coding other than identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 1950; what lacks its header (RFC 1951) is read too.
    Deflate,
    /// RFC 8878.
    Zstd,
}

/// What `accept-encoding` says of a body that was refused for its coding.
pub const ACCEPTED: HeaderValue = HeaderValue::from_static("gzip, deflate, zstd");

impl Coding {
    /// The coding of a request's body; none if it is as it is.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedMedia`] for a coding that is not known, [`Error::StackedCodings`] for several.
    pub fn of_request(headers: &HeaderMap) -> Result<Option<Self>, Error> {
        let mut found = None;
        for value in headers.get_all(CONTENT_ENCODING) {
            for name in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                match Self::parse(name) {
                    _ if name.is_empty() || name.eq_ignore_ascii_case(b"identity") => {}
                    Some(_) if found.is_some() => return Err(Error::StackedCodings),
                    Some(coding) => found = Some(coding),
                    None => {
                        return Err(Error::UnsupportedMedia(
                            "unknown `content-encoding`, expected `gzip`, `deflate`, `zstd` or `identity`".into(),
                        ));
                    }
                }
            }
        }
        Ok(found)
    }

    /// The coding that a client prefers for a response: the first of those with the highest weight that we know; none if
    /// that is identity, or if the client says nothing.
    pub fn accepted(headers: &HeaderMap) -> Option<Self> {
        let mut best: Option<(Option<Self>, u32)> = None;
        for value in headers.get_all(ACCEPT_ENCODING) {
            for entry in value.to_str().ok()?.split(',') {
                let (name, parameters) = entry.split_once(';').unwrap_or((entry, ""));
                let name = name.trim();
                let coding = match Self::parse(name.as_bytes()) {
                    Some(coding) => Some(coding),
                    None if name.eq_ignore_ascii_case("identity") => None,
                    // `*` and what we do not know: nothing that we would have to send.
                    None => continue,
                };
                let weight = weight(parameters);
                if weight > 0 && best.is_none_or(|(_, most)| weight > most) {
                    best = Some((coding, weight));
                }
            }
        }
        best.and_then(|(coding, _)| coding)
    }

    /// Its name in headers.
    pub const fn name(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
        })
    }

    /// The coding of this name, in any case.
    pub fn parse(name: &[u8]) -> Option<Self> {
        match name {
            // RFC 9110 section 8.4.1.3: the old name means the same.
            name if name.eq_ignore_ascii_case(b"gzip") || name.eq_ignore_ascii_case(b"x-gzip") => Some(Self::Gzip),
            name if name.eq_ignore_ascii_case(b"deflate") => Some(Self::Deflate),
            name if name.eq_ignore_ascii_case(b"zstd") => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// A quality value in thousandths, as RFC 9110 section 12.4.2 writes it; what is none counts as 1.
fn weight(parameters: &str) -> u32 {
    let value = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim())
    });
    let number = value.and_then(|value| value.parse::<f32>().ok()).filter(|value| (0.0..=1.0).contains(value));
    number.map_or(1000, |value| (value * 1000.0) as u32)
}

/// Reads a request's body as [`read`] does, and inflates it if it has a `coding`.
///
/// # Errors
///
/// As [`read`]; [`Error::InflatesTooMuch`] beyond `limits.size.inflate_ratio`, [`Error::InvalidRequest`] for a broken
/// coding.
pub async fn read_coded(
    body: hyper::body::Incoming,
    coding: Option<Coding>,
    offset: usize,
    connection: Arc<Connection>,
) -> Result<Bytes, Error> {
    let Some(coding) = coding else { return read(body, offset, &connection).await };
    let packed = read(body, 0, &connection).await?;
    inflate(packed, coding, offset, connection).await
}

/// Inflates what was read whole, aligned as [`read`] has it.
///
/// # Errors
///
/// As [`read_coded`].
pub async fn inflate(
    packed: Bytes,
    coding: Coding,
    offset: usize,
    connection: Arc<Connection>,
) -> Result<Bytes, Error> {
    offload(packed.len() * INFLATING, move || inflate_here(&packed, coding, offset, &connection)).await
}

fn inflate_here(packed: &[u8], coding: Coding, offset: usize, connection: &Connection) -> Result<Bytes, Error> {
    let frontend = &connection.frontend;
    let (limits, ratio) = (Limits::of(&frontend.settings), frontend.settings.size.inflate_ratio);
    let memory = frontend.memory.beside(packed.len());
    let mut out = Inflating {
        buffer: Buffer::new(offset, None, limits, &memory),
        length: 0,
        most: packed.len().saturating_mul(ratio).max(FREE),
        ratio,
    };
    match coding {
        Coding::Gzip => pull(&mut MultiGzDecoder::new(packed), "gzip", &mut out)?,
        Coding::Deflate => decompress(packed, &mut out)?,
        Coding::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(packed);
            let mut decoder = decoder.map_err(|error| broken("zstd", &error))?;
            decoder.window_log_max(WINDOW).map_err(|error| broken("zstd", &error))?;
            pull(&mut decoder, "zstd", &mut out)?;
        }
    }
    Ok(out.buffer.finish())
}

/// Bytes that came out so far.
struct Inflating<'a> {
    buffer: Buffer<'a>,
    length: usize,
    most: usize,
    ratio: usize,
}

impl Inflating<'_> {
    fn push(&mut self, data: &[u8]) -> Result<(), Error> {
        self.length += data.len();
        self.buffer.push(data)?;
        // After the limit on size, whose error says more.
        if self.length > self.most {
            return Err(Error::InflatesTooMuch { ratio: self.ratio });
        }
        Ok(())
    }
}

fn pull(decoder: &mut dyn Read, coding: &str, out: &mut Inflating<'_>) -> Result<(), Error> {
    let mut step = vec![0; STEP];
    loop {
        match decoder.read(&mut step) {
            Ok(0) => return Ok(()),
            Ok(length) => out.push(&step[..length])?,
            Err(error) => return Err(broken(coding, &error)),
        }
    }
}

fn decompress(packed: &[u8], out: &mut Inflating<'_>) -> Result<(), Error> {
    // RFC 1950 section 2.2: the method, and a check over the first two bytes. Without them it is raw.
    let has_header = packed.first_chunk().is_some_and(|[method, flags]| {
        method & 0x0F == 8 && (u16::from(*method) * 256 + u16::from(*flags)).is_multiple_of(31)
    });
    let mut decoder = Decompress::new(has_header);
    let mut step = vec![0; STEP];
    loop {
        let (read, written) = (decoder.total_in(), decoder.total_out());
        let rest = usize::try_from(read).ok().and_then(|read| packed.get(read..)).unwrap_or_default();
        let status = decoder.decompress(rest, &mut step, FlushDecompress::None);
        let status = status.map_err(|error| broken("deflate", &error))?;
        let length = usize::try_from(decoder.total_out() - written).unwrap_or_default();
        out.push(&step[..length])?;
        match status {
            Status::StreamEnd if decoder.total_in() == packed.len() as u64 => return Ok(()),
            Status::StreamEnd => return Err(broken("deflate", &"bytes follow its end")),
            Status::Ok | Status::BufError if length == 0 && decoder.total_in() == read => {
                return Err(broken("deflate", &"it has no end"));
            }
            Status::Ok | Status::BufError => {}
        }
    }
}

#[cold]
fn broken(coding: &str, reason: &dyn std::fmt::Display) -> Error {
    Error::invalid(format!("the body is no {coding}: {reason}"))
}

/// Compresses the pieces of a response.
///
/// # Errors
///
/// [`Error::Overloaded`] if too much waits to be compressed already.
pub async fn compress(pieces: Vec<Bytes>, coding: Coding) -> Result<Bytes, Error> {
    let length: usize = pieces.iter().map(Bytes::len).sum();
    offload(length * DEFLATING, move || {
        let room = Vec::with_capacity(length / 4 + 64);
        // The fastest: what is sent is mostly numbers, of which more effort gets little more.
        let packed = match coding {
            Coding::Gzip => {
                let mut encoder = write::GzEncoder::new(room, Compression::fast());
                pieces.iter().try_for_each(|piece| encoder.write_all(piece)).and_then(|()| encoder.finish())
            }
            Coding::Deflate => {
                let mut encoder = write::ZlibEncoder::new(room, Compression::fast());
                pieces.iter().try_for_each(|piece| encoder.write_all(piece)).and_then(|()| encoder.finish())
            }
            Coding::Zstd => zstd::stream::write::Encoder::new(room, 1).and_then(|mut encoder| {
                pieces.iter().try_for_each(|piece| encoder.write_all(piece)).and_then(|()| encoder.finish())
            }),
        };
        packed.map(Bytes::from).map_err(|error| Error::internal(format!("compressing into memory failed: {error}")))
    })
    .await
}

#[cfg(test)]
#[path = "coding_tests.rs"]
mod tests;
