//! hyper and nothing else: reads the body of whatever it is asked and answers the same bytes each time, as many as
//! Sluicegate does.
//!
//! No JSON is read or written and no model runs. What this server takes for a request, each of the others takes too: it is
//! the floor under both of them.
//!
//! `bare ADDRESS`

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use std::error::Error;

/// What the model says to the request of the bench.
const ANSWER: &[u8] = br#"{"id":"019aba5d-0000-7000-8000-000000000000","model_name":"mlp","model_version":"1","outputs":[{"name":"y","datatype":"FP32","shape":[1,3],"data":[-5.2652817,-7.0590954,16.228867]}]}"#;

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).ok_or("usage: bare ADDRESS")?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // A connection that breaks off concerns nobody but its client.
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
        }
    })
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    request.into_body().collect().await?;
    let mut response = Response::new(Full::new(Bytes::from_static(ANSWER)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
