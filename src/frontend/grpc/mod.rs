//! gRPC.

mod stream;

use super::{
    Connection,
    http::{Request, Response},
};
use std::sync::Arc;

/// Answers one request of this surface.
pub async fn serve(connection: Arc<Connection>, request: Request) -> Response {
    let _ = (connection, request);
    unimplemented!()
}
