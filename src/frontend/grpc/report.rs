//! Unary methods whose answer is a report: questions, and changes of the server (contract 02 sections 5, 6, 10 to 12).
//!
//! Each is a row: what the message asks for, and what of the report the client reads. Whether the caller may ask is the
//! stack's to say.

use super::{
    Request,
    parse::Readable,
    unary::{call, mismatch, respond},
};
use crate::{
    call::{CallId, Inspect, Intent, Manage, ModelRef, Operation, Reply, Report, Surface},
    error::Error,
    frontend::{Connection, http::Response},
    wire::{
        no_shared_memory,
        proto::{self, inference as pb},
    },
};
use prost::Message;
use std::sync::Arc;

/// The methods of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    ModelReady,
    ServerMetadata,
    ModelMetadata,
    ModelConfig,
    ModelStatistics,
    RepositoryIndex,
    RepositoryModelLoad,
    RepositoryModelUnload,
    SystemSharedMemoryStatus,
    SystemSharedMemoryRegister,
    SystemSharedMemoryUnregister,
    CudaSharedMemoryStatus,
    CudaSharedMemoryRegister,
    CudaSharedMemoryUnregister,
    TraceSetting,
    LogSettings,
}

impl Question {
    /// All of them.
    pub(super) const ALL: [(&str, Self); 16] = [
        ("ModelReady", Self::ModelReady),
        ("ServerMetadata", Self::ServerMetadata),
        ("ModelMetadata", Self::ModelMetadata),
        ("ModelConfig", Self::ModelConfig),
        ("ModelStatistics", Self::ModelStatistics),
        ("RepositoryIndex", Self::RepositoryIndex),
        ("RepositoryModelLoad", Self::RepositoryModelLoad),
        ("RepositoryModelUnload", Self::RepositoryModelUnload),
        ("SystemSharedMemoryStatus", Self::SystemSharedMemoryStatus),
        ("SystemSharedMemoryRegister", Self::SystemSharedMemoryRegister),
        ("SystemSharedMemoryUnregister", Self::SystemSharedMemoryUnregister),
        ("CudaSharedMemoryStatus", Self::CudaSharedMemoryStatus),
        ("CudaSharedMemoryRegister", Self::CudaSharedMemoryRegister),
        ("CudaSharedMemoryUnregister", Self::CudaSharedMemoryUnregister),
        ("TraceSetting", Self::TraceSetting),
        ("LogSettings", Self::LogSettings),
    ];

    /// The method of this name.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find_map(|(known, question)| (known == name).then_some(question))
    }

    /// Known before the message is read. A method that may change something counts as doing so.
    const fn intent(self) -> Intent {
        match self {
            Self::RepositoryModelLoad | Self::RepositoryModelUnload | Self::TraceSetting | Self::LogSettings => {
                Intent::Manage
            }
            _ => Intent::Inspect,
        }
    }
}

/// Answers one request.
pub(super) async fn serve(connection: Arc<Connection>, id: CallId, question: Question, request: Request) -> Response {
    use Report as R;
    let asked = Asked { connection, id, intent: question.intent(), request };
    match question {
        Question::ModelReady => {
            let decode = |m: pb::ModelReadyRequest| inspect(Inspect::Ready(model(m.name, m.version)?));
            let encode = |report| match report {
                R::Ready { ready, .. } => Ok(pb::ModelReadyResponse { ready }),
                _ => Err(mismatch()),
            };
            asked.answer(decode, encode).await
        }
        Question::ServerMetadata => {
            let encode = |report| match report {
                R::Server(report) => Ok(proto::encode_server(&report)),
                _ => Err(mismatch()),
            };
            asked.answer(|_: pb::ServerMetadataRequest| inspect(Inspect::Server), encode).await
        }
        Question::ModelMetadata => {
            let decode = |m: pb::ModelMetadataRequest| inspect(Inspect::Model(model(m.name, m.version)?));
            let encode = |report| match report {
                R::Model(report) => Ok(proto::encode_model(&report)),
                _ => Err(mismatch()),
            };
            asked.answer(decode, encode).await
        }
        Question::ModelConfig => {
            let decode = |m: pb::ModelConfigRequest| inspect(Inspect::Config(model(m.name, m.version)?));
            let encode = |report| match report {
                R::Config(report) => Ok(pb::ModelConfigResponse { config: Some(proto::encode_config(&report)) }),
                _ => Err(mismatch()),
            };
            asked.answer(decode, encode).await
        }
        Question::ModelStatistics => {
            let decode = |m: pb::ModelStatisticsRequest| {
                let model = (!m.name.is_empty()).then(|| model(m.name, m.version)).transpose()?;
                inspect(Inspect::Statistics(model))
            };
            let encode = |report| match report {
                R::Statistics(reports) => Ok(proto::encode_statistics(&reports)),
                _ => Err(mismatch()),
            };
            asked.answer(decode, encode).await
        }
        Question::RepositoryIndex => {
            let decode = |m: pb::RepositoryIndexRequest| {
                proto::check_repository(&m.repository_name)?;
                inspect(Inspect::Index { ready: m.ready })
            };
            let encode = |report| match report {
                R::Index(entries) => Ok(proto::encode_index(&entries)),
                _ => Err(mismatch()),
            };
            asked.answer(decode, encode).await
        }
        Question::RepositoryModelLoad => {
            let frontend = Arc::clone(&asked.connection.frontend);
            let decode = move |m: pb::RepositoryModelLoadRequest| {
                let mut request = proto::decode_load(m)?;
                // It may wait long, and what counted the files on their way in ends with the message.
                frontend.memory.hold_named(&mut request.files)?;
                Ok(Operation::Manage(Manage::Load(request)))
            };
            let encode = |report| match report {
                R::Loaded(name) => {
                    Ok(pb::RepositoryModelLoadResponse { model_name: name.as_ref().into(), is_loaded: true })
                }
                _ => Err(mismatch()),
            };
            asked.answer(decode, encode).await
        }
        Question::RepositoryModelUnload => {
            let decode = |m: pb::RepositoryModelUnloadRequest| {
                proto::decode_unload(m).map(Manage::Unload).map(Operation::Manage)
            };
            let encode = |report| match report {
                R::Unloaded(name) => {
                    Ok(pb::RepositoryModelUnloadResponse { model_name: name.as_ref().into(), is_unloaded: true })
                }
                _ => Err(mismatch()),
            };
            asked.answer(decode, encode).await
        }
        Question::TraceSetting => {
            let decode = |m: pb::TraceSettingRequest| match proto::decode_trace(m) {
                (model, None) => inspect(Inspect::Trace(model)),
                (_, Some(change)) => Ok(Operation::Manage(Manage::Trace(change))),
            };
            let encode = |report| match report {
                R::Trace(settings) => Ok(proto::encode_trace(&settings)),
                _ => Err(mismatch()),
            };
            asked.answer(decode, encode).await
        }
        Question::LogSettings => {
            let decode = |m: pb::LogSettingsRequest| match proto::decode_logging(m)? {
                None => inspect(Inspect::Logging),
                Some(change) => Ok(Operation::Manage(Manage::Logging(change))),
            };
            let encode = |report| match report {
                R::Logging(logging) => Ok(proto::encode_logging(&logging)),
                _ => Err(mismatch()),
            };
            asked.answer(decode, encode).await
        }
        // There is none: to look at is nothing, to let go of is done, and to bring is refused, each to whoever may ask.
        Question::SystemSharedMemoryStatus => {
            let decode = |_: pb::SystemSharedMemoryStatusRequest| inspect(Inspect::Server);
            asked.answer(decode, |_| Ok(pb::SystemSharedMemoryStatusResponse::default())).await
        }
        Question::SystemSharedMemoryUnregister => {
            let decode = |_: pb::SystemSharedMemoryUnregisterRequest| inspect(Inspect::Server);
            asked.answer(decode, |_| Ok(pb::SystemSharedMemoryUnregisterResponse {})).await
        }
        Question::SystemSharedMemoryRegister => {
            let decode = |_: pb::SystemSharedMemoryRegisterRequest| inspect(Inspect::Server);
            asked.answer(decode, |_| Err::<pb::SystemSharedMemoryRegisterResponse, _>(no_shared_memory())).await
        }
        Question::CudaSharedMemoryStatus => {
            let decode = |_: pb::CudaSharedMemoryStatusRequest| inspect(Inspect::Server);
            asked.answer(decode, |_| Ok(pb::CudaSharedMemoryStatusResponse::default())).await
        }
        Question::CudaSharedMemoryUnregister => {
            let decode = |_: pb::CudaSharedMemoryUnregisterRequest| inspect(Inspect::Server);
            asked.answer(decode, |_| Ok(pb::CudaSharedMemoryUnregisterResponse {})).await
        }
        Question::CudaSharedMemoryRegister => {
            let decode = |_: pb::CudaSharedMemoryRegisterRequest| inspect(Inspect::Server);
            asked.answer(decode, |_| Err::<pb::CudaSharedMemoryRegisterResponse, _>(no_shared_memory())).await
        }
    }
}

/// A request whose message is not read yet.
struct Asked {
    connection: Arc<Connection>,
    id: CallId,
    intent: Intent,
    request: Request,
}

impl Asked {
    async fn answer<M, A>(
        self,
        decode: impl FnOnce(M) -> Result<Operation, Error> + Send + 'static,
        encode: impl FnOnce(Report) -> Result<A, Error>,
    ) -> Response
    where
        M: Readable,
        A: Message + Default + 'static,
    {
        let Self { connection, id, intent, request } = self;
        let reply = match call(&connection, &id, intent, request, decode).await {
            Ok((Reply::Report(report), facts)) => {
                let message = encode(report);
                connection.frontend.encoded(Surface::Grpc, &facts);
                message
            }
            Ok(_) => Err(mismatch()),
            Err(error) => Err(error),
        };
        respond(&connection, &id, reply)
    }
}

fn inspect(question: Inspect) -> Result<Operation, Error> {
    Ok(Operation::Inspect(question))
}

fn model(name: String, version: String) -> Result<ModelRef, Error> {
    if name.is_empty() {
        return Err(Error::invalid("`name` is empty, expected a model's name"));
    }
    Ok(ModelRef { name: name.into(), version: (!version.is_empty()).then(|| version.into()) })
}
