//! Reflection: what methods and messages there are, for tools (contract 05 section 3).
//!
//! Shows the API and never models. Both versions are served by one set of messages, whose bytes are the same. Not
//! tonic-reflection's service: it ends the stream at an unknown symbol, where the protocol answers and goes on.

use super::{
    Request,
    arriving::{self, Wait},
    head,
    leash::Leash,
    refuse, status,
    unary::{alone, messages, stream_of},
};
use crate::{
    call::CallId,
    error::Error,
    frontend::{Connection, http::Response, settings::Reflection},
    wire::{proto, weight::Weighed},
};
use bytes::Bytes;
use futures_util::{Stream, stream::unfold};
use prost::Message;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, LazyLock},
};
use tonic::{Status, Streaming};
use tonic_reflection::pb::v1::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest,
    ServerReflectionResponse, ServiceResponse, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};

/// The service's name.
pub(super) const V1: &str = "grpc.reflection.v1.ServerReflection";
/// Its name for older tools.
pub(super) const V1ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";

/// Whether this connection may look (`grpc.reflection`).
pub(super) fn is_open(connection: &Connection) -> bool {
    match connection.frontend.settings.grpc.reflection {
        Reflection::Always => true,
        Reflection::Loopback => connection.peer.is_loopback(),
        Reflection::Never => false,
    }
}

/// Answers questions until the client has no more, is silent for `timers.read_stall`, or the server drains.
pub(super) async fn serve(connection: Arc<Connection>, id: CallId, request: Request) -> Response {
    let opened = connection.gate().and_then(|()| {
        let timeout = head::timeout(request.headers())?;
        Ok((timeout, messages(&connection, request, Wait::Throughout)?))
    });
    let (timeout, questions) = match opened {
        Ok(opened) => opened,
        Err(error) => return refuse(&id, &error),
    };
    let leash = Leash::new(&connection, timeout);
    stream_of(&id, answers(Asking { connection, id: id.clone(), questions, leash, over: false }))
}

struct Asking {
    connection: Arc<Connection>,
    id: CallId,
    questions: Streaming<Bytes>,
    leash: Leash,
    over: bool,
}

fn answers(asking: Asking) -> impl Stream<Item = Result<ServerReflectionResponse, Status>> + Send + 'static {
    unfold(asking, |mut asking| async move {
        let item = asking.next().await?;
        Some((item, asking))
    })
}

// === impl Asking ===

impl Asking {
    async fn next(&mut self) -> Option<Result<ServerReflectionResponse, Status>> {
        if self.over {
            return None;
        }
        let question = tokio::select! {
            biased;
            error = self.leash.pulled() => Err(error),
            question = self.questions.message() => {
                let limit = self.connection.frontend.settings.size.body;
                question.map_err(|status| arriving::error(&status, limit))
            }
        };
        let question = match question {
            Ok(Some(message)) => alone(&self.connection, message).await.map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        match question {
            Ok(Some(question)) => Some(Ok(INDEX.respond(question))),
            Ok(None) => None,
            // Tools keep the stream open and forget it; that is no error of theirs.
            Err(Error::BodyStalled) => None,
            Err(error) => {
                self.over = true;
                Some(Err(status(&error, &self.id)))
            }
        }
    }
}

impl Weighed for ServerReflectionRequest {}

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    Index::new(&[
        proto::DESCRIPTOR,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ])
});

/// Files by name and by the symbols they define; the bytes are those that the compiler wrote.
#[derive(Debug, Default)]
struct Index {
    files: HashMap<String, Bytes>,
    symbols: HashMap<String, Bytes>,
    services: BTreeSet<String>,
}

// === impl Index ===

impl Index {
    fn new(sets: &[&'static [u8]]) -> Self {
        let mut index = Self::default();
        for set in sets {
            let set = FileSet::decode(*set).expect("descriptors are written by the build");
            for bytes in set.files {
                let file = File::decode(bytes.clone()).expect("descriptors are written by the build");
                index.add(&file, &bytes);
            }
        }
        index
    }

    fn add(&mut self, file: &File, bytes: &Bytes) {
        self.files.insert(file.name.clone(), bytes.clone());
        for message in &file.messages {
            self.add_message(&file.package, message, bytes);
        }
        for name in &file.enums {
            self.symbols.insert(join(&file.package, &name.name), bytes.clone());
        }
        for service in &file.services {
            let name = join(&file.package, &service.name);
            for method in &service.methods {
                self.symbols.insert(join(&name, &method.name), bytes.clone());
            }
            self.symbols.insert(name.clone(), bytes.clone());
            self.services.insert(name);
        }
    }

    fn add_message(&mut self, scope: &str, message: &DescribedMessage, bytes: &Bytes) {
        let name = join(scope, &message.name);
        for inner in &message.messages {
            self.add_message(&name, inner, bytes);
        }
        for inner in message.fields.iter().chain(&message.enums) {
            self.symbols.insert(join(&name, &inner.name), bytes.clone());
        }
        self.symbols.insert(name, bytes.clone());
    }

    fn respond(&self, question: ServerReflectionRequest) -> ServerReflectionResponse {
        let answer = match &question.message_request {
            Some(MessageRequest::FileByFilename(name)) => file(self.files.get(name)),
            Some(MessageRequest::FileContainingSymbol(symbol)) => {
                file(self.symbols.get(symbol.trim_start_matches('.')))
            }
            Some(MessageRequest::ListServices(_)) => {
                let service = self.services.iter().map(|name| ServiceResponse { name: name.clone() }).collect();
                MessageResponse::ListServicesResponse(ListServiceResponse { service })
            }
            // proto3 has no extensions of messages of ours; some tools ask all the same and expect an empty list.
            Some(MessageRequest::AllExtensionNumbersOfType(kind)) if self.symbols.contains_key(kind) => {
                MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
                    base_type_name: kind.clone(),
                    extension_number: Vec::new(),
                })
            }
            Some(MessageRequest::AllExtensionNumbersOfType(_) | MessageRequest::FileContainingExtension(_)) => {
                file(None)
            }
            None => failure(tonic::Code::InvalidArgument, "the question is empty, expected one of five"),
        };
        ServerReflectionResponse {
            valid_host: question.host.clone(),
            original_request: Some(question),
            message_response: Some(answer),
        }
    }
}

fn file(found: Option<&Bytes>) -> MessageResponse {
    match found {
        Some(bytes) => MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
            file_descriptor_proto: vec![bytes.to_vec()],
        }),
        None => failure(tonic::Code::NotFound, "not found"),
    }
}

fn failure(code: tonic::Code, text: &str) -> MessageResponse {
    MessageResponse::ErrorResponse(ErrorResponse { error_code: code as i32, error_message: text.to_owned() })
}

fn join(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

/// `google.protobuf.FileDescriptorSet`, as far as an index needs it: files stay the bytes that they are.
#[derive(Clone, PartialEq, prost::Message)]
struct FileSet {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    files: Vec<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct File {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "4")]
    messages: Vec<DescribedMessage>,
    #[prost(message, repeated, tag = "5")]
    enums: Vec<Named>,
    #[prost(message, repeated, tag = "6")]
    services: Vec<Service>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DescribedMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    fields: Vec<Named>,
    #[prost(message, repeated, tag = "3")]
    messages: Vec<DescribedMessage>,
    #[prost(message, repeated, tag = "4")]
    enums: Vec<Named>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    methods: Vec<Named>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(question: MessageRequest) -> MessageResponse {
        let request = ServerReflectionRequest { host: "h".into(), message_request: Some(question) };
        let response = INDEX.respond(request.clone());
        assert_eq!((response.valid_host.as_str(), response.original_request), ("h", Some(request)));
        response.message_response.unwrap()
    }

    fn defines(answer: MessageResponse) -> Option<String> {
        match answer {
            MessageResponse::FileDescriptorResponse(found) => {
                Some(File::decode(&*found.file_descriptor_proto[0]).unwrap().name)
            }
            MessageResponse::ErrorResponse(error) => {
                assert_eq!(error.error_code, 5);
                None
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_service_is_listed() {
        let MessageResponse::ListServicesResponse(list) = ask(MessageRequest::ListServices(String::new())) else {
            panic!("a list")
        };
        let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
        let ours = [super::super::INFERENCE, super::super::tfserving::MODEL, super::super::tfserving::PREDICTION];
        assert_eq!(names, [&[super::super::health::SERVICE, V1, V1ALPHA][..], &ours].concat());
    }

    #[test]
    fn a_symbol_of_each_kind_leads_to_its_file() {
        for symbol in [
            "inference.GRPCInferenceService",
            "inference.GRPCInferenceService.ModelInfer",
            "inference.ModelInferRequest",
            "inference.ModelInferRequest.InferInputTensor",
            "inference.ModelInferRequest.model_name",
            ".inference.InferParameter",
        ] {
            let file = defines(ask(MessageRequest::FileContainingSymbol(symbol.into())));
            assert_eq!(file.as_deref(), Some("open_inference.proto"), "{symbol}");
        }
        for (symbol, file) in [
            ("tensorflow.serving.PredictionService.Predict", "tfserving/serving.proto"),
            ("tensorflow.serving.ModelVersionStatus.State", "tfserving/serving.proto"),
            ("tensorflow.TensorProto.float_val", "tfserving/tensorflow.proto"),
            ("tensorflow.error.Code", "tfserving/error.proto"),
            ("google.protobuf.Any", "google/protobuf/any.proto"),
        ] {
            let found = defines(ask(MessageRequest::FileContainingSymbol(symbol.into())));
            assert_eq!(found.as_deref(), Some(file), "{symbol}");
        }
        let file = ask(MessageRequest::FileContainingSymbol("grpc.health.v1.HealthCheckResponse.ServingStatus".into()));
        assert!(defines(file).is_some());
        assert!(defines(ask(MessageRequest::FileByFilename("open_inference.proto".into()))).is_some());
    }

    #[test]
    fn what_is_unknown_is_an_answer_and_not_the_end() {
        assert_eq!(defines(ask(MessageRequest::FileContainingSymbol("inference.Nothing".into()))), None);
        assert_eq!(defines(ask(MessageRequest::FileByFilename("nothing.proto".into()))), None);
        assert_eq!(defines(ask(MessageRequest::AllExtensionNumbersOfType("inference.Nothing".into()))), None);
    }
}
