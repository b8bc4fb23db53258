//! How an instance is made: threads, memory, execution providers and options of the runtime.
//!
//! Plain data. How it is written in a file is `config`'s to know, what of it a library has the runtime's.

use std::fmt;

/// How an instance is made (`models.defaults`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSettings {
    /// Threads within one operator (`threads`), at least 1, that of the caller included.
    pub threads: usize,
    /// Instances that are going to share what is opened ([`Backend::another`](super::Backend::another)), at least 1. Their
    /// threads are made at once: together no more than `sharers` × `threads` run.
    pub sharers: usize,
    /// What becomes of memory after a run.
    pub arena: Arena,
    /// Whether the first dimension of inputs does not count rows alone, but how long callers made them.
    pub ragged: bool,
    /// Where nodes run, best first; never empty. What none of them can run, the CPU does.
    pub providers: Vec<Provider>,
    /// Options of ONNX Runtime (`session`).
    pub options: SessionOptions,
    /// Whether to keep in mind which provider runs which node, for [`Backend::notes`](super::Backend::notes).
    pub explain: bool,
}

/// What becomes of the memory that a run needed besides its outputs (`arena`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arena {
    /// For models with a free dimension besides the rows, it goes back every few seconds, after a run; for others it is kept.
    #[default]
    Auto,
    /// The arena keeps it for the next run: the fastest, and the most that any run has ever needed.
    Keep,
    /// It goes back to the system after each run.
    Shrink,
    /// There is no arena: the system's allocator, for each tensor of each run.
    None,
}

/// An execution provider, and what it is given (`providers`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// Which.
    pub kind: ProviderKind,
    /// Its options, by ONNX Runtime's names for them.
    pub options: Vec<(String, String)>,
}

/// The execution providers that can be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of products")]
pub enum ProviderKind {
    Cpu,
    Cuda,
    TensorRt,
    TensorRtRtx,
    OpenVino,
    CoreMl,
    DirectMl,
    MiGraphX,
    Qnn,
    Xnnpack,
    WebGpu,
    VitisAi,
}

/// Options of ONNX Runtime that a model may set (`session`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionOptions {
    /// How far a graph is rewritten before it runs.
    pub optimization: Optimization,
    /// Threads that run nodes of one graph beside each other; 1: one node after the other.
    pub parallel: Option<usize>,
    /// Entries of ONNX Runtime's session configuration, checked against a list of those that are allowed.
    pub entries: Vec<(String, String)>,
}

/// How far a graph is rewritten before it runs (`session.graph_optimization_level`); each includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Optimization {
    /// As it is.
    Disabled,
    /// Constants folded, what is redundant taken out.
    Basic,
    /// Nodes fused.
    Extended,
    /// Layouts changed.
    Layout,
    /// All that there is.
    #[default]
    All,
}

// === impl Optimization ===

impl Optimization {
    /// All of them, the least first.
    pub const ALL: [Self; 5] = [Self::Disabled, Self::Basic, Self::Extended, Self::Layout, Self::All];

    /// The word used in configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Basic => "basic",
            Self::Extended => "extended",
            Self::Layout => "layout",
            Self::All => "all",
        }
    }

    /// The level of this [`Optimization::name`].
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }
}

// === impl SessionSettings ===

impl Default for SessionSettings {
    fn default() -> Self {
        Self {
            threads: 1,
            sharers: 1,
            arena: Arena::Auto,
            ragged: false,
            providers: vec![Provider::CPU],
            options: SessionOptions::default(),
            explain: false,
        }
    }
}

impl SessionSettings {
    /// True if nothing but the CPU runs the model, whatever the machine has.
    pub fn is_cpu_only(&self) -> bool {
        self.providers.first().is_none_or(|provider| provider.kind == ProviderKind::Cpu)
    }
}

// === impl Provider ===

impl Provider {
    /// The CPU, which needs no options.
    pub const CPU: Self = Self { kind: ProviderKind::Cpu, options: Vec::new() };
}

impl ProviderKind {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Cpu,
        Self::Cuda,
        Self::TensorRt,
        Self::TensorRtRtx,
        Self::OpenVino,
        Self::CoreMl,
        Self::DirectMl,
        Self::MiGraphX,
        Self::Qnn,
        Self::Xnnpack,
        Self::WebGpu,
        Self::VitisAi,
    ];

    /// The word used in configuration and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
            Self::TensorRtRtx => "tensorrt_rtx",
            Self::OpenVino => "openvino",
            Self::CoreMl => "coreml",
            Self::DirectMl => "directml",
            Self::MiGraphX => "migraphx",
            Self::Qnn => "qnn",
            Self::Xnnpack => "xnnpack",
            Self::WebGpu => "webgpu",
            Self::VitisAi => "vitisai",
        }
    }

    /// The provider of this [`ProviderKind::name`].
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
