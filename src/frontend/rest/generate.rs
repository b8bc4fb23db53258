//! `generate`: one plain object in, one plain object out (contract 02 section 7).

use super::{infer, render};
use crate::{
    call::{CallId, ModelRef, Operation, Pending, Reply, Surface},
    error::Error,
    frontend::{
        Connection, Frontend,
        body::{self, Counted},
        head::Fields,
        http::Response,
    },
    wire::json,
};
use hyper::body::Incoming;
use std::sync::Arc;

/// A body that will be read and decoded when the stack has decided that it may be, and its inputs when the model is known.
pub(super) fn pending(connection: &Arc<Connection>, fields: &Fields<'_>, body: Incoming, model: ModelRef) -> Pending {
    let coding = infer::json_only(fields);
    let connection = Arc::clone(connection);
    Pending::new(async move {
        let bytes = body::read_coded(body, coding?, 0, Arc::clone(&connection)).await?;
        connection.frontend.metrics.body_received(Surface::Rest, bytes.len() as u64);
        let length = bytes.len();
        let counted = Counted::of(&bytes);
        let decode = move || {
            let request = json::decode_generate(&bytes, model, &connection.frontend.settings.wire)?;
            drop(bytes);
            connection.frontend.memory.hold_inputs(request, counted)
        };
        body::offload(length, decode).await.map(Operation::Infer)
    })
}

/// Exactly one response.
///
/// # Errors
///
/// [`Error::Unimplemented`] for a model that streams; what has no JSON form.
pub(super) async fn reply(reply: Reply, id: &CallId, frontend: &Arc<Frontend>) -> Result<Response, Error> {
    let response = render::whole(reply).await?;
    render::outputs(response, id, frontend, |response, _, frontend| {
        json::encode_generate(response, &frontend.settings.wire)
    })
    .await
}
