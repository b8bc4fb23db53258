//! Text to tokens, by a `tokenizer.json` as Hugging Face's libraries write it.
//!
//! The crate that reads it is the one that Python uses, so the tokens are the same, whatever the tokenizer is made of.

mod growth;

use super::{Builtin, Fed, Pieces, Wanted, files, spec, yielded};
use crate::{
    error::Error,
    tensor::{DataType, Shape, Signature, Tensor, Tensors},
};
use growth::Growth;
use std::{path::Path, sync::Arc};
use tokenizers::{Encoding, PaddingDirection, PostProcessor, Tokenizer, TruncationParams};

/// Bytes of JSON that take as long as one byte of text, some 2 MB of which are tokenised in a second.
const TOKENISING: usize = 128;
/// Bytes of texts that are done in one piece, some 10 ms. A longer text is one of its own.
const PIECE: usize = 16 << 10;

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The tokenizer, in the ensemble's folder.
    pub file: std::path::PathBuf,
    /// Most tokens of a text, special ones included; what is longer is cut off.
    pub max_length: usize,
    /// Whether every text is filled up to `max_length`, and not to the longest of its call.
    pub fill: bool,
    /// Whether special tokens are added, as the tokenizer says.
    pub special_tokens: bool,
    /// Longest text, bytes.
    pub max_bytes: usize,
    /// Most texts of a call: each takes up to `max_length` tokens, however short it is.
    pub max_texts: usize,
}

/// `text`, BYTES `[rows]`, to `input_ids`, `attention_mask` and `token_type_ids`, INT64 `[rows, tokens]`.
#[derive(Debug)]
pub struct Tokenize {
    settings: Settings,
    tokenizer: Tokenizer,
    pad: Pad,
    growth: Growth,
}

/// What fills a row up.
#[derive(Clone, Copy, Debug)]
struct Pad {
    id: i64,
    type_id: i64,
    /// Whether it stands before the text.
    before: bool,
}

/// The outputs, in order.
const OUTPUTS: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];

impl Tokenize {
    pub(super) fn open(settings: &Settings, folder: &Path) -> Result<Self, String> {
        let name = files::name(&settings.file).into_owned();
        let text = files::text(folder, &settings.file)?.ok_or_else(|| format!("`{name}` is not there"))?;
        let wrong = |error: &dyn std::fmt::Display| format!("`{name}` is no tokenizer: {error}");
        let mut tokenizer: Tokenizer = text.parse().map_err(|error: tokenizers::Error| wrong(&error))?;
        let growth = Growth::of(&text).map_err(|reason| format!("`{name}` {reason}"))?;
        let special = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        // Whether they are added or not: the crate takes them off when it is told the length.
        if settings.max_length < special {
            let most = settings.max_length;
            return Err(format!("`{name}` adds {special} special tokens, and `max_length` has room for {most}"));
        }
        let pad = match tokenizer.get_padding() {
            Some(found) => Pad {
                id: found.pad_id.into(),
                type_id: found.pad_type_id.into(),
                before: matches!(found.direction, PaddingDirection::Left),
            },
            None => {
                // Names of the token in the families that there are; where there is none, the mask says what counts.
                let known = ["[PAD]", "<pad>", "<|endoftext|>"].iter().find_map(|name| tokenizer.token_to_id(name));
                Pad { id: known.unwrap_or(0).into(), type_id: 0, before: false }
            }
        };
        let truncation = match tokenizer.get_truncation() {
            Some(found) => TruncationParams { max_length: settings.max_length, stride: 0, ..found.clone() },
            None => TruncationParams { max_length: settings.max_length, ..TruncationParams::default() },
        };
        tokenizer.with_padding(None);
        tokenizer.with_truncation(Some(truncation)).map_err(|error| wrong(&error))?;
        Ok(Self { settings: settings.clone(), tokenizer, pad, growth })
    }
}

impl Builtin for Tokenize {
    fn signature(&self, fed: &Fed<'_>) -> Result<Signature, String> {
        let rows = fed("text").and_then(|spec| *spec.dims.first()?);
        let tokens = self.settings.fill.then_some(self.settings.max_length);
        Ok(Signature {
            inputs: vec![spec("text", DataType::Bytes, [rows])],
            outputs: OUTPUTS.map(|name| spec(name, DataType::Int64, [rows, tokens])).into(),
        })
    }

    /// What texts may become counts, not what they are.
    fn work(&self, inputs: &[Tensor]) -> usize {
        let each = TOKENISING.saturating_mul(self.growth.beyond_the_usual());
        inputs.iter().map(|input| input.data().len().saturating_mul(each)).sum()
    }

    fn begin(self: Arc<Self>, inputs: Tensors) -> Pieces {
        let mut encoded = Vec::new();
        Box::new(move |wanted| self.next(&inputs[0], &mut encoded, wanted))
    }
}

impl Tokenize {
    /// Does some more of the texts.
    fn next(&self, texts: &Tensor, encoded: &mut Vec<Encoding>, wanted: &Wanted<'_>) -> Result<Option<Tensors>, Error> {
        let (rows, mut spent) = (texts.rows(), 0);
        let wrong = |reason: String| Error::tensor("text", reason);
        if rows > self.settings.max_texts {
            return Err(wrong(format!("has {rows} texts, expected at most {}", self.settings.max_texts)));
        }
        for (row, text) in texts.iter_strings().enumerate().skip(encoded.len()) {
            if text.len() > self.settings.max_bytes {
                let (found, most) = (text.len(), self.settings.max_bytes);
                return Err(wrong(format!("has {found} bytes in row {row}, expected at most {most}")));
            }
            if spent > 0 && spent + text.len() > PIECE {
                return Ok(None);
            }
            spent += text.len();
            let text = std::str::from_utf8(text).map_err(|_| wrong(format!("is not UTF-8 in row {row}")))?;
            let most = self.settings.max_bytes.saturating_mul(growth::ALLOWED);
            if !self.growth.fits(&self.tokenizer, text, most, wanted)? {
                return Err(wrong(format!("becomes more than {most} bytes when row {row} is normalised")));
            }
            if !wanted() {
                return Err(Error::Cancelled);
            }
            let found = self.tokenizer.encode_fast(text, self.settings.special_tokens);
            encoded.push(found.map_err(|error| Error::backend(format!("a tokenizer failed: {error}")))?);
        }
        self.columns(encoded).map(Some)
    }

    /// All texts as tensors, filled up.
    fn columns(&self, encoded: &[Encoding]) -> Result<Tensors, Error> {
        let longest = encoded.iter().map(|row| row.get_ids().len()).max().unwrap_or(0);
        let width = if self.settings.fill { self.settings.max_length } else { longest };
        let mut columns = [(); 3].map(|()| Vec::<i64>::with_capacity(encoded.len() * width));
        for row in encoded {
            let values = [row.get_ids(), row.get_attention_mask(), row.get_type_ids()];
            for ((column, values), pad) in columns.iter_mut().zip(values).zip([self.pad.id, 0, self.pad.type_id]) {
                let padding = std::iter::repeat_n(pad, width.saturating_sub(values.len()));
                let values = values.iter().map(|value| i64::from(*value));
                if self.pad.before {
                    column.extend(padding.chain(values));
                } else {
                    column.extend(values.chain(padding));
                }
            }
        }
        let shape = Shape::from([encoded.len(), width]);
        columns.into_iter().map(|column| yielded(Tensor::of(DataType::Int64, shape.clone(), column))).collect()
    }
}

#[cfg(test)]
#[path = "tokenize_tests.rs"]
mod tests;
