//! How much longer a tokenizer may make a text before it cuts it off: a file of a few bytes may say that each letter becomes
//! a megabyte.
//!
//! What it may become at most is read from the file. Where that is too much for a text, the text is normalised in parts
//! before it is tokenised, each so short that it cannot become too much, and what they become is summed up.

use crate::{builtin::Wanted, error::Error};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, Tokenizer};

/// A text that is normalised may have as many times `max_bytes`: blanks that become `▁` are three times as long.
pub(super) const ALLOWED: usize = 4;
/// Times as long as it is that a file may make a text. Replacements of one letter by a few, one after the other, stay below.
const MOST: usize = 4096;
/// Longest text that normalisers put in for another one, bytes. Unicode's longest is 33.
const LONGEST: usize = 64;
/// Normalisers one after the other, and splitters. Tokenizers that people use have less than ten.
const STAGES: usize = 64;
/// What Unicode's own forms make of a letter at most (U+FDFA in NFKC: 3 bytes become 33).
const UNICODE: usize = 11;
/// Times that the tokenizers that people use say at most, Unicode's forms aside: 12, for Llama's.
const USUAL: usize = 16;

/// How many times as long a text may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Growth {
    /// By normalisers.
    normalised: usize,
    /// And then by splitters.
    split: usize,
    /// By both, by what the file puts in alone.
    put_in: usize,
}

impl Growth {
    /// What the text of `tokenizer.json` says.
    ///
    /// # Errors
    ///
    /// After the name of the file: what would make texts far too long.
    pub(super) fn of(file: &str) -> Result<Self, String> {
        let file: Value = serde_json::from_str(file).map_err(|error| format!("is no tokenizer: {error}"))?;
        let of = |part: &str| {
            let mut stages = Vec::new();
            flatten(&file[part], &mut stages);
            if stages.len() > STAGES {
                return Err(format!("has a {part} of {} stages, expected at most {STAGES}", stages.len()));
            }
            let (mut grown, mut unicode) = (1_usize, 1);
            for stage in stages {
                match each(stage)? {
                    // Once they were applied there is nothing more for another of them.
                    None => unicode = UNICODE,
                    Some(times) => grown = grown.saturating_mul(times),
                }
            }
            if grown > MOST {
                return Err(format!(
                    "has a {part} that may make a text {grown} times as long, expected at most {MOST}"
                ));
            }
            Ok((grown * unicode, grown))
        };
        let ((normalised, by), (split, and)) = (of("normalizer")?, of("pre_tokenizer")?);
        Ok(Self { normalised, split, put_in: by * and })
    }

    /// How many times more than the tokenizers that people use, as work: 1 for those.
    pub(super) fn beyond_the_usual(self) -> usize {
        (self.put_in / USUAL).max(1)
    }

    /// How many times at most.
    fn most(self) -> usize {
        self.normalised.saturating_mul(self.split)
    }

    /// Whether `text` stays within `most` bytes when it is normalised and split.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`] if nobody waits any more; a normaliser that fails.
    pub(super) fn fits(
        self,
        tokenizer: &Tokenizer,
        text: &str,
        most: usize,
        wanted: &Wanted<'_>,
    ) -> Result<bool, Error> {
        if text.len().saturating_mul(self.most()) <= most {
            return Ok(true);
        }
        let (mut rest, mut grown) = (text, 0_usize);
        while !rest.is_empty() {
            if !wanted() {
                return Err(Error::Cancelled);
            }
            let (part, behind) = rest.split_at(rest.ceil_char_boundary((most / self.most()).max(1).min(rest.len())));
            rest = behind;
            let mut normalised = NormalizedString::from(part);
            if let Some(normaliser) = tokenizer.get_normalizer() {
                let done = normaliser.normalize(&mut normalised);
                done.map_err(|error| Error::backend(format!("a normaliser failed: {error}")))?;
            }
            grown = grown.saturating_add(normalised.get().len().saturating_mul(self.split));
            if grown > most {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Normalisers, or splitters, one after the other, however deep in sequences they lie.
fn flatten<'a>(value: &'a Value, stages: &mut Vec<&'a Value>) {
    let inner = ["normalizers", "pretokenizers"].iter().find_map(|key| value[*key].as_array());
    match inner {
        Some(inner) => inner.iter().for_each(|stage| flatten(stage, stages)),
        None if value.is_null() => {}
        None => stages.push(value),
    }
}

/// How many times as long one makes a text at most; `None`: as Unicode's forms do.
fn each(stage: &Value) -> Result<Option<usize>, String> {
    let content = stage["content"].as_str().or(stage["prepend"].as_str()).unwrap_or_default();
    let put_in = match stage["precompiled_charsmap"].as_str() {
        Some(map) => longest(map).ok_or("has a `precompiled_charsmap` that is none")?,
        None => content.len(),
    };
    if put_in > LONGEST {
        return Err(format!("puts {put_in} bytes in for others, expected at most {LONGEST}"));
    }
    if !stage["precompiled_charsmap"].is_null() {
        return Ok(None);
    }
    Ok(match (stage["pattern"]["String"].as_str(), stage["type"].as_str()) {
        (Some(pattern), _) if !pattern.is_empty() => Some(content.len().div_ceil(pattern.len()).max(1)),
        // An expression may match where there is nothing, and what stands before is put before each part.
        _ if !content.is_empty() => Some(1 + content.len()),
        // Each byte becomes a letter, of two bytes at most.
        (_, Some("ByteLevel")) => Some(2),
        (_, Some("NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" | "Nmt" | "BertNormalizer")) => None,
        _ => Some(1),
    })
}

/// The longest text that a map of SentencePiece puts in: a number of bytes, so many bytes of a trie, and texts that end in
/// zeros.
fn longest(map: &str) -> Option<usize> {
    let map = STANDARD.decode(map).ok()?;
    let (size, rest) = map.split_first_chunk()?;
    let texts = rest.get(u32::from_le_bytes(*size) as usize..)?;
    texts.split(|byte| *byte == 0).map(<[u8]>::len).max()
}
