//! A client of `POST /v2/stream` over HTTP/2 with prior knowledge, full duplex.

use super::{Running, client::Failure};
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use std::{convert::Infallible, time::Duration};
use tokio::{net::TcpStream, sync::mpsc};

/// One stream.
pub struct Ndjson {
    lines: mpsc::Sender<Result<http_body::Frame<bytes::Bytes>, Infallible>>,
    body: hyper::body::Incoming,
    buffer: Vec<u8>,
    pub trailers: Option<http::HeaderMap>,
}

impl Ndjson {
    /// Opens the stream and waits for its headers.
    pub async fn open(running: &Running, key: Option<&str>) -> Result<Self, Failure> {
        Self::open_at(running, key, "/v2/stream").await
    }

    pub async fn open_at(running: &Running, key: Option<&str>, path: &str) -> Result<Self, Failure> {
        let stream = TcpStream::connect(running.address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let (lines, frames) = mpsc::channel(16);
        let mut request = http::Request::builder()
            .method("POST")
            .uri(format!("http://{}{path}", running.address))
            .header("content-type", "application/x-ndjson");
        for (name, value) in running.headers(key) {
            request = request.header(name, value);
        }
        let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(frames));
        let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
        if response.status() != 200 {
            let retry_after = response
                .headers()
                .get("retry-after")
                .map(|value| Duration::from_secs(value.to_str().unwrap().parse().unwrap()));
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&body).expect("a problem");
            return Err(Failure {
                code: body["code"].as_str().unwrap().to_owned(),
                message: body["detail"].as_str().unwrap_or_default().to_owned(),
                retry_after,
            });
        }
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        Ok(Self { lines, body: response.into_body(), buffer: Vec::new(), trailers: None })
    }

    pub async fn send(&mut self, message: &Value) {
        self.send_raw(format!("{message}\n")).await;
    }

    /// Sends a line if the stream still takes any.
    pub async fn offer(&mut self, message: &Value) {
        let line = format!("{message}\n");
        let _ = self.lines.send(Ok(http_body::Frame::data(line.into()))).await;
    }

    pub async fn send_raw(&mut self, text: impl Into<bytes::Bytes>) {
        self.lines.send(Ok(http_body::Frame::data(text.into()))).await.expect("the stream is open");
    }

    /// The client's half is over.
    pub fn finish(&mut self) {
        let (closed, _) = mpsc::channel(1);
        self.lines = closed;
    }

    /// The next line that is not blank; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Value> {
        self.next_line().await.map(|line| serde_json::from_slice(&line).expect("a JSON line"))
    }

    /// The bytes of the next line that is not blank; `None` at the end of the stream.
    pub async fn next_line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Some(line);
            }
            let frame =
                tokio::time::timeout(Duration::from_secs(20), self.body.frame()).await.expect("a frame in time")?;
            match frame {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
                Err(_) => return None,
            }
        }
    }
}
