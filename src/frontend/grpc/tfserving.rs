//! TensorFlow Serving's services: predictions, metadata and states of versions (contract 03 in protobuf).
//!
//! Of its other methods each is known by name and not served.

use super::{
    Request, head,
    parse::Parsed,
    refuse,
    unary::{call, mismatch, respond, send, whole},
};
use crate::{
    call::{
        CallId, Credentials, Head, InferRequest, Inputs, Inspect, Intent, ModelRef, Operation, Reply, Report, Surface,
        Untyped,
    },
    error::Error,
    frontend::{
        Connection,
        body::{self, Counted, Reservation},
        http::Response,
        quota,
    },
    wire::tfserving::{self as tf, Contents, pb::serving as pb},
};
use std::sync::{Arc, OnceLock};

/// The service of predictions.
pub(super) const PREDICTION: &str = "tensorflow.serving.PredictionService";
/// The service of models.
pub(super) const MODEL: &str = "tensorflow.serving.ModelService";
/// The service of sessions, of which nothing is served.
const SESSION: &str = "tensorflow.serving.SessionService";

/// The methods of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Predict,
    GetModelMetadata,
    GetModelStatus,
    /// One that TensorFlow Serving has.
    Other(&'static str),
}

/// Those that are not served.
const OTHERS: [(&str, &str, &str); 5] = [
    (PREDICTION, "Classify", "`Classify` is not served over gRPC, use REST or `Predict`"),
    (PREDICTION, "Regress", "`Regress` is not served over gRPC, use REST or `Predict`"),
    (PREDICTION, "MultiInference", "`MultiInference` is not served, use `Predict`"),
    (MODEL, "HandleReloadConfigRequest", "`HandleReloadConfigRequest` is not served, use `RepositoryModelLoad`"),
    (SESSION, "SessionRun", "`SessionRun` is not served, use `Predict`"),
];

impl Method {
    /// The method of this name.
    pub(super) fn parse(service: &str, name: &str) -> Option<Self> {
        match (service, name) {
            (PREDICTION, "Predict") => Some(Self::Predict),
            (PREDICTION, "GetModelMetadata") => Some(Self::GetModelMetadata),
            (MODEL, "GetModelStatus") => Some(Self::GetModelStatus),
            _ => OTHERS.iter().find(|other| (other.0, other.1) == (service, name)).map(|other| Self::Other(other.2)),
        }
    }
}

/// Answers one request.
pub(super) async fn serve(connection: Arc<Connection>, id: CallId, method: Method, request: Request) -> Response {
    match method {
        Method::Predict => {
            let (head, sender) = match head::open(&connection, &id, Intent::Infer, &request) {
                Ok(opened) => opened,
                Err(error) => return respond::<pb::PredictResponse>(&connection, &id, Err(error)),
            };
            let facts = Arc::clone(&head.facts);
            let reply = predict(&connection, head, sender, request).await;
            let error = reply.as_ref().err().cloned();
            let mut response = respond(&connection, &id, reply);
            quota::insert(response.headers_mut(), &facts, error.as_ref());
            response
        }
        Method::GetModelMetadata => {
            let decode = |m: pb::GetModelMetadataRequest| {
                tf::check_fields(&m.metadata_field)?;
                tf::model(m.model_spec).map(Inspect::Model).map(Operation::Inspect)
            };
            let reply = match call(&connection, &id, Intent::Inspect, request, decode).await {
                Ok((Reply::Report(Report::Model(report)), _)) => Ok(tf::encode_metadata(&report)),
                Ok(_) => Err(mismatch()),
                Err(error) => Err(error),
            };
            respond(&connection, &id, reply)
        }
        Method::GetModelStatus => {
            let decode =
                |m: pb::GetModelStatusRequest| tf::model(m.model_spec).map(Inspect::Versions).map(Operation::Inspect);
            let reply = match call(&connection, &id, Intent::Inspect, request, decode).await {
                Ok((Reply::Report(Report::Versions(report)), _)) => Ok(tf::encode_status(&report)),
                Ok(_) => Err(mismatch()),
                Err(error) => Err(error),
            };
            respond(&connection, &id, reply)
        }
        Method::Other(why) => refuse(&id, &Error::Unimplemented(why.into())),
    }
}

async fn predict(
    connection: &Arc<Connection>,
    head: Head,
    sender: Credentials,
    request: Request,
) -> Result<pb::PredictResponse, Error> {
    let contents = Arc::new(OnceLock::new());
    let found = Arc::clone(&contents);
    let decode = move |connection: &Arc<Connection>, parsed: Parsed<pb::PredictRequest>| {
        // Set once: a message is decoded once.
        let _ = found.set(tf::contents(&parsed.message.inputs));
        operation(connection, parsed)
    };
    let facts = Arc::clone(&head.facts);
    let response = whole(send(connection, head, sender, request, decode).await?).await?;
    let contents: Contents = contents.get().copied().unwrap_or_default();
    let message = tf::encode_predict(&response, contents);
    connection.frontend.encoded(Surface::Grpc, &facts);
    Ok(message)
}

/// What a request asks for. Its lists become tensors only when the caller may, off the lane if they are large.
fn operation(connection: &Arc<Connection>, parsed: Parsed<pb::PredictRequest>) -> Result<Operation, Error> {
    let Parsed { message, length, whole, made, .. } = parsed;
    let limit = connection.frontend.settings.size.body;
    // A short list may stand for a large tensor, which must not be larger than one that was sent could be.
    let weight = tf::weight(&message.inputs);
    if weight > limit {
        return Err(Error::TooLarge { limit: limit as u64 });
    }
    // What came is counted with what becomes of it.
    drop(whole);
    let held = made.as_ref().map_or(0, Reservation::bytes);
    let reservation = connection.frontend.memory.beside(held).reserve_large(length.saturating_add(weight))?;
    let pb::PredictRequest { model_spec, inputs, output_filter } = message;
    let (model, outputs): (ModelRef, _) = tf::about(model_spec, output_filter)?;
    let (memory, connection) = (connection.frontend.memory.clone(), Arc::clone(connection));
    let work = weight.max(tf::raw_work(&inputs));
    let inputs = Untyped::later(move |_| {
        body::offload(work, move || {
            // Until the last list has become a tensor.
            let _made = made;
            tf::decode_inputs(inputs, &connection.frontend.settings.wire)
        })
    });
    let request = InferRequest { outputs, ..InferRequest::new(model, Inputs::Untyped(inputs)) };
    memory.hold_inputs(request, Counted::by(reservation)).map(Operation::Infer)
}
