//! One connection on its lane: TLS, which HTTP, and hyper with every one of its settings.

use super::{
    Accepted,
    flood::Allowance,
    guard::Guard,
    patience::{Activity, Served, drive},
    socket::{PREFACE, Prefix, Raw, Socket, Stream},
    stall::{Outgoing, Streams},
};
use crate::{
    call::{Peer, Surface},
    frontend::{
        Connection, Frontend, Settings, Surfaces,
        http::answer,
        tls::{Tls, shown},
    },
    telemetry::metrics::Kind,
};
use hyper::{
    Request,
    body::Incoming,
    server::conn::{http1, http2},
    service::{HttpService, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{error::Error as _, io, pin::Pin, sync::Arc, time::Duration};
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};
use tokio_rustls::server::TlsStream;

/// The first bytes of HTTP/2 with prior knowledge (contract 00 section 4).
const HTTP2: &[u8; PREFACE] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// hyper's own number of header fields, which costs no allocation.
const FIELDS_INLINE: usize = 100;
/// The least and the most that an HTTP/1.1 connection reads or buffers at once. It starts with 8 KiB and adapts.
const BUFFER: usize = 64 * 1024;
/// As many times `size.headers` may a header block be on the wire. Compressed and padded it is hardly larger than the
/// headers in it, so what is more is no header list. Not less: up to four times the limit h2 answers 431, and whoever is
/// a little above it should hear that.
const HEADER_BLOCK: usize = 3;
/// As many times `http2.resets` may faults of the peer be in a connection's whole life.
const UNSENT_RESETS: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Http {
    One,
    Two,
}

/// Serves one connection on this lane until it is over. What goes wrong with it is the peer's business: logged at
/// debug, and never more than this connection's end.
pub async fn serve(accepted: Accepted, frontend: Arc<Frontend>) {
    let remote = accepted.remote;
    if let Err(error) = run(accepted, frontend).await {
        tracing::debug!(%error, %remote, "a connection did not begin");
    }
}

async fn run(accepted: Accepted, frontend: Arc<Frontend>) -> io::Result<()> {
    let Accepted { stream, remote, local, surfaces, tls, proxies, mut place } = accepted;
    let stream = TcpStream::from_std(stream)?;
    stream.set_nodelay(true)?;
    let activity = Arc::new(Activity::default());
    let raw = Raw::new(stream, Arc::clone(&activity));
    let mut peer = Peer { tls: tls.is_some(), ..Peer::new(remote, local) };

    let (mut stream, agreed) = match tls {
        Some((tls, handshakes)) => {
            let tls = handshake(raw, &tls, &handshakes, &frontend).await?;
            peer.certificate = shown(&tls).map(Arc::new);
            let agreed = match tls.get_ref().1.alpn_protocol() {
                Some(b"h2") => Some(Http::Two),
                Some(_) => Some(Http::One),
                None => None,
            };
            (Stream::Tls(Box::new(tls)), agreed)
        }
        None => (Stream::Plain(raw), None),
    };
    let mut prefix = Prefix::default();
    // Also where TLS has agreed on one: the first bytes have their time whoever sends them.
    let Some(found) = sniff(&mut stream, &mut prefix, &frontend).await? else { return Ok(()) };
    // They are a head's: from here on it has its time.
    activity.hear();
    let http = agreed.unwrap_or(found);

    let kind = if http == Http::Two { Kind::Http2 } else { Kind::Http1 };
    frontend.metrics.connection_is(&mut place.gauge, kind);
    let connection = Arc::new(Connection::new(Arc::clone(&frontend), Arc::new(peer), surfaces).behind(proxies));
    let socket = Socket::new(stream, prefix, Arc::clone(&activity), place);
    let (timers, phase) = (frontend.settings.timers, frontend.phase.clone());
    match http {
        Http::One => {
            let io = TokioIo::new(socket);
            let requests = Arc::clone(&activity);
            // HTTP/1.1 has TCP as its only flow control, and hyper buffers no more than it may: no pieces.
            let service = service_fn(move |request: Request<Incoming>| {
                answer(Arc::clone(&connection), requests.begin(), request, usize::MAX)
            });
            let served = http1(&frontend.settings).serve_connection(io, service).with_upgrades();
            // A client of HTTP/1.1 opens connections as it needs them: none lives so long that it would matter.
            drive(served, &activity, timers, None, phase).await;
        }
        Http::Two => {
            let io = TokioIo::new(socket.guarded(Guard::new(allowance(&frontend.settings))));
            let requests = Arc::clone(&activity);
            let piece = frontend.settings.http2.stream_buffer;
            let service = service_fn(move |request: Request<Incoming>| {
                answer(Arc::clone(&connection), requests.begin(), request, piece)
            });
            let served = http2(&frontend.settings, surfaces).serve_connection(io, service);
            let age = frontend.settings.http2.max_age.map(about);
            let error = drive(served, &activity, timers, age, phase).await;
            if activity.is_flooded() || error.as_ref().is_some_and(is_flood) {
                frontend.metrics.refused("flood");
                tracing::debug!(%remote, "a connection was closed: its peer sent too many frames of a kind");
            }
        }
    }
    Ok(())
}

/// `age`, up to a tenth more or less: connections that were opened together do not all come again together.
fn about(age: Duration) -> Duration {
    let mut random = [0; 4];
    // Without any, all are as old as was said.
    let share = match getrandom::fill(&mut random) {
        Ok(()) => f64::from(u32::from_ne_bytes(random)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    };
    age.mul_f64(0.9 + 0.2 * share)
}

/// Whether h2 itself told the peer to calm down.
fn is_flood(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| cause.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) && cause.is_library())
}

async fn handshake(raw: Raw, tls: &Tls, places: &Semaphore, frontend: &Frontend) -> io::Result<TlsStream<Raw>> {
    let handshake = async {
        // Held only for the handshake: it bounds what strangers make us compute at once.
        let _place = places.acquire().await.map_err(io::Error::other)?;
        tls.acceptor().accept(raw).await
    };
    match timeout(frontend.settings.timers.handshake, handshake).await {
        Ok(stream) => stream.inspect_err(|_| frontend.metrics.refused("tls")),
        Err(_) => {
            frontend.metrics.refused("timeout");
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

/// Which HTTP this is, from its first bytes; `None` if there were none in time, or not enough to tell.
async fn sniff(stream: &mut Stream, prefix: &mut Prefix, frontend: &Frontend) -> io::Result<Option<Http>> {
    let timers = frontend.settings.timers;
    let late = || frontend.metrics.refused("timeout");
    let Ok(first) = timeout(timers.first_byte, prefix.read(stream)).await else {
        late();
        return Ok(None);
    };
    if !first? {
        return Ok(None);
    }
    let rest = async {
        loop {
            match prefix.bytes() {
                bytes if bytes == HTTP2 => return Ok(Some(Http::Two)),
                bytes if !HTTP2.starts_with(bytes) => return Ok(Some(Http::One)),
                _ if !prefix.read(stream).await? => return Ok(None),
                _ => {}
            }
        }
    };
    timeout(timers.header, rest).await.unwrap_or_else(|_| {
        late();
        Ok(None)
    })
}

fn allowance(settings: &Settings) -> Allowance {
    let small = |number| u32::try_from(number).unwrap_or(u32::MAX);
    Allowance {
        control_frames: small(settings.http2.control_frames),
        resets: small(settings.http2.resets),
        header_block: small(settings.size.headers.saturating_mul(HEADER_BLOCK)),
        frame: settings.http2.frame,
    }
}

fn http1(settings: &Settings) -> http1::Builder {
    let size = settings.size;
    let mut builder = http1::Builder::new();
    builder
        // A client that has closed its half has gone: that is how we notice (architecture section 7).
        .half_close(false)
        .keep_alive(true)
        .timer(TokioTimer::new())
        // Our own timers know heads from idle connections (`patience`).
        .header_read_timeout(None)
        .max_buf_size(BUFFER.max(size.headers + size.request_line))
        .max_header_size(size.headers + size.request_line);
    if size.header_fields != FIELDS_INLINE {
        builder.max_headers(size.header_fields);
    }
    builder
}

fn http2(settings: &Settings, surfaces: Surfaces) -> http2::Builder<Streams> {
    let (limits, timers) = (settings.http2, settings.timers);
    let mut builder = http2::Builder::new(Streams { stall: timers.write_stall });
    builder
        .timer(TokioTimer::new())
        .adaptive_window(false)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_frame_size(limits.frame)
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(settings.size.headers).unwrap_or(u32::MAX))
        // A burst that hyper has not even accepted; whatever comes slower is counted by the guard.
        .max_pending_accept_reset_streams(limits.resets)
        // h2 counts these for the whole life of a connection and the guard in 10 s, but only once they are sent: this
        // bounds what a peer that does not read can make us keep.
        .max_local_error_reset_streams(limits.resets.saturating_mul(UNSENT_RESETS))
        .max_send_buf_size(limits.stream_buffer)
        .keep_alive_interval(limits.ping)
        .keep_alive_timeout(limits.ping_timeout);
    if surfaces.has(Surface::WebSocket) {
        // RFC 8441: browsers then open WebSockets on the connection that they have.
        builder.enable_connect_protocol();
    }
    builder
}

impl<S> Served for http1::UpgradeableConnection<TokioIo<Socket>, S>
where
    S: HttpService<Incoming, ResBody = Outgoing>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    const HTTP1: bool = true;

    fn close(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S> Served for http2::Connection<TokioIo<Socket>, S, Streams>
where
    S: HttpService<Incoming, ResBody = Outgoing>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    Streams: hyper::rt::bounds::Http2ServerConnExec<S::Future, Outgoing>,
{
    const HTTP1: bool = false;

    fn close(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}
