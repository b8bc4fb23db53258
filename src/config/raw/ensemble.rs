//! `ensemble` in `NAME/model.yaml`, as people write it.

use super::choice::Version;
use crate::config::units::{Number, Size};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// A model that is made of others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in docs/ensembles.md")]
pub struct Ensemble {
    pub steps: Vec<Step>,
    pub in_flight: Number,
    pub inputs: Option<BTreeMap<String, Tensor>>,
    pub outputs: Option<BTreeMap<String, Tensor>>,
}

/// One of them, or a step that is built in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in docs/ensembles.md")]
pub struct Step {
    pub model: String,
    /// A version, or a label.
    pub version: Option<Named>,
    pub inputs: BTreeMap<String, String>,
    pub outputs: BTreeMap<String, String>,
    /// Of a built-in step, which knows its own.
    pub parameters: Option<serde_json::Value>,
}

/// A version or a label, as text or as a number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Named {
    /// A version.
    Version(Version),
    /// A label.
    Label(String),
}

/// What an input or output is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in docs/ensembles.md")]
pub struct Tensor {
    pub datatype: Option<String>,
    /// -1 for a free dimension.
    pub shape: Option<Vec<i64>>,
}

/// What a step that takes no parameters takes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nothing {}

/// `builtin/top_k`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in docs/ensembles.md")]
pub struct TopK {
    pub k: Number,
    pub labels: Option<PathBuf>,
}

/// `builtin/tokenize`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in docs/ensembles.md")]
pub struct Tokenize {
    pub file: PathBuf,
    pub max_length: Number,
    pub pad: Pad,
    pub special_tokens: bool,
    pub max_bytes: Size,
    pub max_texts: Number,
}

/// How far the texts of a call are filled up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the keys are explained in docs/ensembles.md")]
pub enum Pad {
    #[default]
    Longest,
    MaxLength,
}

/// `builtin/image`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in docs/ensembles.md")]
pub struct Image {
    pub width: Number,
    pub height: Number,
    pub layout: Layout,
    pub channels: Channels,
    pub scale: f32,
    pub mean: [f32; 3],
    pub std: [f32; 3],
    pub max_pixels: Number,
    pub max_images: Number,
    /// Of a call; `None`: of eight of its largest pictures.
    pub max_call_pixels: Option<Number>,
}

/// Where channels stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the keys are explained in docs/ensembles.md")]
pub enum Layout {
    #[default]
    Nchw,
    Nhwc,
}

/// Which channel comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the keys are explained in docs/ensembles.md")]
pub enum Channels {
    #[default]
    Rgb,
    Bgr,
}

// === defaults ===

impl Default for Tokenize {
    fn default() -> Self {
        Self {
            file: "tokenizer.json".into(),
            max_length: Number(512),
            pad: Pad::Longest,
            special_tokens: true,
            max_bytes: Size(1 << 20),
            max_texts: Number(1024),
        }
    }
}

impl Default for Image {
    fn default() -> Self {
        Self {
            width: Number(224),
            height: Number(224),
            layout: Layout::Nchw,
            channels: Channels::Rgb,
            scale: 1.0 / 255.0,
            mean: [0.0; 3],
            std: [1.0; 3],
            max_pixels: Number(16 << 20),
            max_images: Number(64),
            max_call_pixels: None,
        }
    }
}

impl Default for Ensemble {
    fn default() -> Self {
        let in_flight = Number(crate::model::ensemble::IN_FLIGHT);
        Self { steps: Vec::new(), in_flight, inputs: None, outputs: None }
    }
}

impl Default for TopK {
    fn default() -> Self {
        Self { k: Number(5), labels: None }
    }
}
