//! HTTP/2 frame by frame, as a test writes them: for what no honest client would send.

use super::Running;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 0x1;
pub const ACK: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;

/// ENHANCE_YOUR_CALM.
pub const CALM: u32 = 0xb;

/// A connection that has begun, with the client's (empty) SETTINGS sent.
pub struct Wire {
    stream: TcpStream,
}

/// One frame of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// How a connection ended: the frames until then, and the last GOAWAY: its last stream and its error.
#[derive(Debug)]
pub struct Ended {
    pub frames: Vec<Frame>,
    pub goodbye: Option<(u32, u32)>,
}

/// A frame, as bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header field that no table knows yet, or ever will. The name may be an index of the static table.
pub fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    assert!(name.len() < 127 && value.len() < 127, "one byte tells these lengths");
    [&[0, name.len() as u8], name, &[value.len() as u8], value].concat()
}

/// The pseudo-headers of a request: its method is GET or POST, its path short.
pub fn head(method: &str, path: &str) -> Vec<u8> {
    let method = if method == "GET" { 0x82 } else { 0x83 };
    // `:scheme http`, `:path`, `:authority`.
    [&[method, 0x86, 0x04, path.len() as u8][..], path.as_bytes(), &[0x01, 1, b'a']].concat()
}

/// A whole request without a body.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &head("GET", path))
}

/// A whole request to infer with `model`, body included.
pub fn infer(stream: u32, model: &str) -> Vec<u8> {
    let body = br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}"#;
    let length = field(b"content-length", body.len().to_string().as_bytes());
    let head = [head("POST", &format!("/v2/models/{model}/infer")), length].concat();
    [frame(HEADERS, END_HEADERS, stream, &head), frame(DATA, END_STREAM, stream, body)].concat()
}

/// A reset of the client.
pub fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

/// Streams that a client may open, in their order.
pub fn streams() -> impl Iterator<Item = u32> {
    (1..).step_by(2)
}

impl Wire {
    pub async fn open(running: &Running) -> Self {
        Self::open_with(running, &[]).await
    }

    /// A connection whose SETTINGS frame has this payload.
    pub async fn open_with(running: &Running, settings: &[u8]) -> Self {
        let stream = TcpStream::connect(running.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut wire = Self { stream };
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        wire.send([&preface[..], &frame(SETTINGS, 0, 0, settings)].concat()).await;
        wire
    }

    /// Writes, unless the server has closed: what is written then is nobody's.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// The next frame; `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        tokio::time::timeout(Duration::from_secs(20), self.read()).await.expect("a frame in time")
    }

    async fn read(&mut self) -> Option<Frame> {
        let mut header = [0; 9];
        self.stream.read_exact(&mut header).await.ok()?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes(header[5..].try_into().unwrap());
        Some(Frame { kind: header[3], flags: header[4], stream, payload })
    }

    /// The next frame of a kind; what comes before it is passed over. Panics at the end of the connection.
    pub async fn expect(&mut self, kind: u8) -> Frame {
        loop {
            let frame =
                self.next().await.unwrap_or_else(|| panic!("the connection ended before a frame of kind {kind}"));
            if frame.kind == GOAWAY && kind != GOAWAY {
                panic!("the server said goodbye before a frame of kind {kind}: {frame:?}");
            }
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// Asks something on `stream` and waits for the beginning of the answer: the connection is in order.
    pub async fn works(&mut self, stream: u32) {
        self.send(get(stream, "/")).await;
        while self.expect(HEADERS).await.stream != stream {}
    }

    /// Reads to the end of the connection.
    pub async fn end(&mut self) -> Ended {
        let mut ended = Ended { frames: Vec::new(), goodbye: None };
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                let number = |at: usize| u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap());
                ended.goodbye = Some((number(0), number(4)));
            }
            ended.frames.push(frame);
        }
        ended
    }
}
