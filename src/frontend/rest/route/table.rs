//! Every path of REST that leads somewhere, as data: requests are matched against it, and the OpenAPI document and the
//! tests that walk all routes are made from it.

use super::{
    super::v1::{Ask, Task, Verb},
    Change, Page, Probe, Route, SharedMemory,
};
use crate::call::{self, Inspect, ModelRef};
use std::sync::LazyLock;

/// A path, and what may be asked of it.
#[derive(Clone, Copy, Debug)]
pub(in crate::frontend::rest) struct Row {
    /// Its segments: `{…}` stands for any that is not empty, [`VERSION`] for the version of a model or nothing, and
    /// `:verb` for the end of the segment before it.
    pub(in crate::frontend::rest) path: &'static [&'static str],
    pub(in crate::frontend::rest) get: Option<Operation>,
    pub(in crate::frontend::rest) post: Option<Operation>,
    /// Whether it is there only by configuration: then what is there says which methods it has.
    pub(in crate::frontend::rest) configured: bool,
}

/// What a method of a path does.
#[derive(Clone, Copy, Debug)]
pub(in crate::frontend::rest) struct Operation {
    /// Its name in the OpenAPI document.
    pub(in crate::frontend::rest) id: &'static str,
    pub(super) route: fn(&Found<'_>) -> Route,
}

/// What a path named.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::frontend::rest) struct Found<'a> {
    model: &'a str,
    version: Option<&'a str>,
    label: Option<&'a str>,
}

/// `versions/{version}`, below `/v1` also `labels/{label}`, or nothing.
pub(in crate::frontend::rest) const VERSION: &str = "?";

/// All of them, the hot one first: they are tried from the top.
pub(in crate::frontend::rest) const TABLE: &[Row] = &[
    post(&["v2", "models", "{model}", VERSION, "infer"], "infer", |found| Route::Infer(found.model())),
    get(&[""], "alive", |_| Route::Probe(Probe::Root)),
    get(&["v2", "health", "live"], "serverLive", |_| Route::Probe(Probe::Live)),
    get(&["v2", "health", "ready"], "serverReady", |_| Route::Probe(Probe::Ready)),
    get(&["v2"], "serverMetadata", |_| Inspect::Server.into()),
    get(&["v2", "models"], "listModels", |_| Inspect::Models.into()),
    // No model has this name (contract 02 section 6).
    get(&["v2", "models", "stats"], "allStatistics", |_| Inspect::Statistics(None).into()),
    get(&["v2", "models", "{model}", VERSION], "modelMetadata", |found| Inspect::Model(found.model()).into()),
    get(&["v2", "models", "{model}", VERSION, "ready"], "modelReady", |found| Inspect::Ready(found.model()).into()),
    get(&["v2", "models", "{model}", VERSION, "config"], "modelConfig", |found| Inspect::Config(found.model()).into()),
    get(&["v2", "models", "{model}", VERSION, "stats"], "modelStatistics", |found| {
        Inspect::Statistics(Some(found.model())).into()
    }),
    both(
        &["v2", "models", "{model}", VERSION, "trace", "setting"],
        ("modelTraceSetting", |found| Inspect::Trace(Some(found.model())).into()),
        ("changeModelTraceSetting", |found| Change::Trace(Some(found.model())).into()),
    ),
    post(&["v2", "models", "{model}", VERSION, "infer_stream"], "inferStream", |found| {
        Route::InferStream(found.model())
    }),
    post(&["v2", "models", "{model}", VERSION, "generate"], "generate", |found| Route::Generate(found.model(), false)),
    post(&["v2", "models", "{model}", VERSION, "generate_stream"], "generateStream", |found| {
        Route::Generate(found.model(), true)
    }),
    post(&["v2", "repository", "index"], "repositoryIndex", |_| Change::Index.into()),
    post(&["v2", "repository", "models", "{model}", VERSION, "load"], "loadModel", |found| {
        Change::Load(found.model()).into()
    }),
    post(&["v2", "repository", "models", "{model}", VERSION, "unload"], "unloadModel", |found| {
        Change::Unload(found.model()).into()
    }),
    both(
        &["v2", "trace", "setting"],
        ("traceSetting", |_| Inspect::Trace(None).into()),
        ("changeTraceSetting", |_| Change::Trace(None).into()),
    ),
    both(&["v2", "logging"], ("logging", |_| Inspect::Logging.into()), ("changeLogging", |_| Change::Logging.into())),
    get(&["v2", "systemsharedmemory", "status"], "systemMemory", |_| Route::SharedMemory(SharedMemory::Status)),
    get(&["v2", "systemsharedmemory", "region", "{region}", "status"], "systemMemoryRegion", |_| {
        Route::SharedMemory(SharedMemory::Status)
    }),
    post(&["v2", "systemsharedmemory", "region", "{region}", "register"], "registerSystemMemory", |_| {
        Route::SharedMemory(SharedMemory::Register)
    }),
    post(&["v2", "systemsharedmemory", "region", "{region}", "unregister"], "unregisterSystemMemoryRegion", |_| {
        Route::SharedMemory(SharedMemory::Unregister)
    }),
    post(&["v2", "systemsharedmemory", "unregister"], "unregisterSystemMemory", |_| {
        Route::SharedMemory(SharedMemory::Unregister)
    }),
    get(&["v2", "cudasharedmemory", "status"], "cudaMemory", |_| Route::SharedMemory(SharedMemory::Status)),
    get(&["v2", "cudasharedmemory", "region", "{region}", "status"], "cudaMemoryRegion", |_| {
        Route::SharedMemory(SharedMemory::Status)
    }),
    post(&["v2", "cudasharedmemory", "region", "{region}", "register"], "registerCudaMemory", |_| {
        Route::SharedMemory(SharedMemory::Register)
    }),
    post(&["v2", "cudasharedmemory", "region", "{region}", "unregister"], "unregisterCudaMemoryRegion", |_| {
        Route::SharedMemory(SharedMemory::Unregister)
    }),
    post(&["v2", "cudasharedmemory", "unregister"], "unregisterCudaMemory", |_| {
        Route::SharedMemory(SharedMemory::Unregister)
    }),
    get(&["v1", "models"], "catalog", |_| Ask::List.into()),
    get(&["v1", "models", "{model}"], "modelStatus", |found| Ask::Model(found.model()).into()),
    get(&["v1", "models", "{model}", "versions", "{version}"], "versionStatus", |found| {
        Ask::Status(found.model()).into()
    }),
    get(&["v1", "models", "{model}", "labels", "{label}"], "labelStatus", |found| Ask::Status(found.model()).into()),
    get(&["v1", "models", "{model}", VERSION, "metadata"], "signature", |found| Ask::Metadata(found.model()).into()),
    post(&["v1", "models", "{model}", VERSION, ":predict"], "predict", |found| {
        Ask::Run(found.model(), Verb::Predict).into()
    }),
    post(&["v1", "models", "{model}", VERSION, ":classify"], "classify", |found| {
        Ask::Run(found.model(), Verb::Examples(Task::Classify)).into()
    }),
    post(&["v1", "models", "{model}", VERSION, ":regress"], "regress", |found| {
        Ask::Run(found.model(), Verb::Examples(Task::Regress)).into()
    }),
    Row { configured: true, ..post(&["predict"], "plainPredict", |_| Ask::Plain.into()) },
    post(&["v1", "ws", "tickets"], "createTicket", |_| Route::Ticket),
    Row { configured: true, ..get(&["metrics"], "metrics", |_| Route::Metrics) },
    get(&["openapi.json"], "openapi", |_| Route::Page(Page::OpenApi)),
    get(&["docs"], "docs", |_| Route::Page(Page::Docs)),
];

type Make = fn(&Found<'_>) -> Route;

const fn get(path: &'static [&'static str], id: &'static str, route: Make) -> Row {
    Row { path, get: Some(Operation { id, route }), post: None, configured: false }
}

const fn post(path: &'static [&'static str], id: &'static str, route: Make) -> Row {
    Row { path, get: None, post: Some(Operation { id, route }), configured: false }
}

const fn both(path: &'static [&'static str], look: (&'static str, Make), change: (&'static str, Make)) -> Row {
    let (get, post) = (Operation { id: look.0, route: look.1 }, Operation { id: change.0, route: change.1 });
    Row { path, get: Some(get), post: Some(post), configured: false }
}

/// The labels of the rows, in their order.
static LABELS: LazyLock<Vec<call::Route>> =
    LazyLock::new(|| TABLE.iter().map(|row| call::Route::named(&row.template())).collect());

/// The row of a path with its label, and what the path names.
pub(super) fn look_up<'a>(segments: &[&'a str]) -> Option<(&'static Row, call::Route, Found<'a>)> {
    // The one path with two spellings.
    let segments = if segments == ["v2", ""] { &segments[..1] } else { segments };
    TABLE.iter().zip(LABELS.iter()).find_map(|(row, label)| row.find(segments).map(|found| (row, *label, found)))
}

// === impl Operation, Row, Found ===

impl Operation {
    /// Its route, of a path that names nothing.
    pub(in crate::frontend::rest) fn of_nothing(&self) -> Route {
        (self.route)(&Found::default())
    }
}

impl Row {
    /// The path as it is written where nothing is known of the model's version.
    pub(super) fn template(&self) -> String {
        let mut template = String::new();
        for part in self.path.iter().filter(|part| **part != VERSION) {
            if !part.starts_with(':') {
                template.push('/');
            }
            template.push_str(part);
        }
        template
    }

    fn find<'a>(&self, mut segments: &[&'a str]) -> Option<Found<'a>> {
        let mut found = Found::default();
        for (index, part) in self.path.iter().enumerate() {
            if *part == VERSION {
                if let [kind @ ("versions" | "labels"), value, rest @ ..] = segments
                    && rest.len() == self.path.len() - index - 1
                    && !value.is_empty()
                {
                    match *kind {
                        "versions" => found.version = Some(value),
                        _ if self.path[0] == "v1" => found.label = Some(value),
                        _ => return None,
                    }
                    segments = rest;
                }
                continue;
            }
            let (first, rest) = segments.split_first()?;
            // Below `/v1` what begins with a colon is a verb and names nothing.
            let is_verb = self.path[0] == "v1" && first.starts_with(':');
            let names = !first.is_empty() && !is_verb;
            match *part {
                "{model}" if names => found.model = first,
                "{version}" if names => found.version = Some(first),
                "{label}" if names => found.label = Some(first),
                "{region}" if names => {}
                part if part == *first => {}
                _ => return None,
            }
            segments = rest;
        }
        segments.is_empty().then_some(found)
    }
}

impl Found<'_> {
    fn model(&self) -> ModelRef {
        match self.label {
            Some(label) => ModelRef::labelled(self.model, label),
            None => ModelRef { name: self.model.into(), version: self.version.map(Into::into) },
        }
    }
}
