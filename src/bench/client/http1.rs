//! HTTP/1.1, as far as a bench needs it: one request at a time, written once; of the head only what tells where the
//! answer ends.
//!
//! hyper's client would do the same and more, at several microseconds a request: with a server that takes ten, the
//! client would be what is measured.

use super::{Failure, Kept};
use crate::bench::{address::Address, source::Target};
use bytes::Bytes;
use std::ops::Range;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Headers of an answer at most.
const HEADERS: usize = 32;

/// Room for most answers, head included.
const ROOM: usize = 16 * 1024;

/// A connection that carries one request at a time.
#[derive(Debug)]
pub(in crate::bench) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What is known of an answer; its bytes are in the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::bench) struct Answer {
    /// The HTTP status.
    pub(in crate::bench) status: u16,
    body: Range<usize>,
    json: Option<usize>,
}

/// One caller of REST.
pub(in crate::bench) struct Caller {
    address: Address,
    request: Bytes,
    connection: Connection,
}

/// What the head of an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    length: usize,
    /// Bytes of the head itself.
    end: usize,
    json: Option<usize>,
}

// === impl Connection ===

impl Connection {
    pub(in crate::bench) async fn open(address: &Address) -> Result<Self, Failure> {
        Ok(Self { stream: dial(address).await?, buffer: Vec::with_capacity(ROOM) })
    }

    /// Sends `request`, head and body, and reads the answer.
    ///
    /// # Errors
    ///
    /// [`Failure::Broken`] if the connection ends or what comes is no answer with a known length.
    pub(in crate::bench) async fn exchange(&mut self, request: &[u8]) -> Result<Answer, Failure> {
        self.stream.write_all(request).await.map_err(Failure::broken)?;
        self.buffer.clear();
        let head = self.head().await?;
        let end = head.end + head.length;
        self.buffer.reserve(end.saturating_sub(self.buffer.len()));
        while self.buffer.len() < end {
            self.read().await?;
        }
        Ok(Answer { status: head.status, body: head.end..end, json: head.json })
    }

    /// The body of the last answer.
    pub(in crate::bench) fn body(&self, answer: &Answer) -> &[u8] {
        self.buffer.get(answer.body.clone()).unwrap_or_default()
    }

    /// The socket, once it speaks another protocol, and what came behind the last head.
    pub(super) fn into_upgraded(self, answer: &Answer) -> (TcpStream, Vec<u8>) {
        let rest = self.buffer.get(answer.body.end..).unwrap_or_default().to_vec();
        (self.stream, rest)
    }

    async fn head(&mut self) -> Result<Head, Failure> {
        loop {
            self.read().await?;
            if let Some(head) = parse(&self.buffer).map_err(Failure::Broken)? {
                return Ok(head);
            }
        }
    }

    async fn read(&mut self) -> Result<(), Failure> {
        if self.buffer.len() == self.buffer.capacity() {
            self.buffer.reserve(ROOM);
        }
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err(Failure::broken("the server closed the connection")),
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::broken(error)),
        }
    }
}

/// A socket to `address`.
pub(super) async fn dial(address: &Address) -> Result<TcpStream, Failure> {
    let authority = address.authority();
    let stream = TcpStream::connect(authority).await;
    let stream = stream.map_err(|error| Failure::Broken(format!("cannot connect to `{authority}`: {error}")))?;
    stream.set_nodelay(true).map_err(Failure::broken)?;
    Ok(stream)
}

/// The head at the beginning of `bytes`; `None` if more of it must come.
fn parse(bytes: &[u8]) -> Result<Option<Head>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let end = match response.parse(bytes) {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("what came is no HTTP/1.1 answer: {error}")),
    };
    let status = response.code.unwrap_or_default();
    let number = |value: &[u8]| std::str::from_utf8(value).ok()?.trim().parse::<usize>().ok();
    let (mut length, mut json) = (None, None);
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            length = number(header.value);
        } else if header.name.eq_ignore_ascii_case("inference-header-content-length") {
            json = number(header.value);
        }
    }
    // These have no body, and need not say so.
    let empty = matches!(status, 100..200 | 204 | 304);
    match length.or(empty.then_some(0)) {
        Some(length) => Ok(Some(Head { status, length, end, json })),
        None => Err(format!("an answer of status {status} has no `content-length`")),
    }
}

// === impl Caller ===

impl Caller {
    pub(super) async fn connect(target: &Target, caller: usize) -> Result<Self, Failure> {
        let connection = Connection::open(&target.server().address).await?;
        Ok(Self { address: target.server().address.clone(), request: target.rest_request(caller), connection })
    }

    pub(super) async fn exchange(&mut self, kept: Option<&mut Kept>) -> Result<(), Failure> {
        let answer = self.connection.exchange(&self.request).await?;
        let body = self.connection.body(&answer);
        if answer.status != 200 {
            return Err(Failure::Refused(refusal(answer.status, body)));
        }
        if let Some(kept) = kept {
            *kept = Kept { body: body.to_vec(), json: answer.json };
        }
        Ok(())
    }

    pub(super) async fn mend(&mut self) -> bool {
        match Connection::open(&self.address).await {
            Ok(connection) => {
                self.connection = connection;
                true
            }
            Err(_) => false,
        }
    }
}

/// The code of a refusal: our own word where there is one, else the status.
pub(in crate::bench) fn refusal(status: u16, body: &[u8]) -> String {
    let said = serde_json::from_slice::<serde_json::Value>(body).ok();
    let code = said.as_ref().and_then(|body| body.get("code")).and_then(|code| code.as_str());
    code.map_or_else(|| format!("http_{status}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_tells_where_the_answer_ends() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nInference-Header-Content-Length: 7\r\n\r\n{\"a\":1}";
        let head = parse(text).unwrap().unwrap();
        assert_eq!(head, Head { status: 200, length: 12, end: text.len() - 7, json: Some(7) });
        for cut in 0..text.len() - 7 {
            assert_eq!(parse(&text[..cut]), Ok(None), "{cut}");
        }
        let upgraded = parse(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n").unwrap().unwrap();
        assert_eq!((upgraded.status, upgraded.length), (101, 0));
    }

    #[test]
    fn what_has_no_known_end_is_refused() {
        let error = parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").unwrap_err();
        assert_eq!(error, "an answer of status 200 has no `content-length`");
        assert!(parse(b"SSH-2.0-OpenSSH_9.6\r\n").unwrap_err().contains("no HTTP/1.1 answer"));
    }

    #[test]
    fn a_refusal_is_called_by_its_code() {
        assert_eq!(refusal(429, br#"{"error":"slow down","code":"rate_limited"}"#), "rate_limited");
        assert_eq!(refusal(503, b"upstream is gone"), "http_503");
        assert_eq!(refusal(400, br#"{"code":7}"#), "http_400");
    }
}
