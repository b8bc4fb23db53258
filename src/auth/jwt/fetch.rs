//! One small document, fetched from a server that the configuration names.
//!
//! Follows nothing: a redirect is an answer that is not 200. A caller can make it happen a little earlier and say nothing of
//! where from (attack I6).

use super::{KeysError, LARGEST};
use crate::trust::Trust;
use futures_util::future::{Either, select};
use http::{
    Request, StatusCode, Uri,
    header::{ACCEPT, HOST, USER_AGENT},
};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::{fmt, pin::pin, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// Time for all of it (attack I2).
const DEADLINE: Duration = Duration::from_secs(5);

/// The document at `url`.
///
/// # Errors
///
/// Whatever came in between, in words for operators.
pub(super) async fn get(url: &Uri, trust: &Trust) -> Result<Vec<u8>, KeysError> {
    match timeout(DEADLINE, fetch(url, trust)).await {
        Ok(fetched) => fetched,
        Err(_) => Err(KeysError(format!("no answer within {} s", DEADLINE.as_secs()))),
    }
}

async fn fetch(url: &Uri, trust: &Trust) -> Result<Vec<u8>, KeysError> {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let is_tls = url.scheme_str() == Some("https");
    let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await.map_err(failed("cannot connect"))?;
    if !is_tls {
        return exchange(url, stream).await;
    }
    let name = ServerName::try_from(host.to_owned()).map_err(failed("cannot connect"))?;
    let connector = TlsConnector::from(trust.client().map_err(|error| KeysError(error.to_string()))?);
    exchange(url, connector.connect(name, stream).await.map_err(failed("cannot connect"))?).await
}

async fn exchange<S>(url: &Uri, stream: S) -> Result<Vec<u8>, KeysError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let host = url.authority().map_or("", |authority| authority.as_str());
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(HOST, host)
        .header(ACCEPT, "application/jwk-set+json, application/json")
        .header(USER_AGENT, concat!("sluicegate/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<bytes::Bytes>::new())
        .map_err(failed("cannot ask"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed("cannot ask"))?;
    let exchange = pin!(async move {
        let response = sender.send_request(request).await.map_err(failed("no answer"))?;
        if response.status() != StatusCode::OK {
            return Err(KeysError(format!("the answer is {}, expected 200", response.status().as_u16())));
        }
        let limit = usize::try_from(LARGEST).unwrap_or(usize::MAX);
        match Limited::new(response.into_body(), limit).collect().await {
            Ok(body) => Ok(body.to_bytes().to_vec()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(KeysError::large()),
            Err(error) => Err(failed("the answer broke off")(error)),
        }
    });
    match select(exchange, connection).await {
        Either::Left((fetched, _)) => fetched,
        // It may end first with all that was said.
        Either::Right((_, exchange)) => exchange.await,
    }
}

fn failed<E: fmt::Display>(what: &'static str) -> impl FnOnce(E) -> KeysError {
    move |error| KeysError(format!("{what}: {error}"))
}
