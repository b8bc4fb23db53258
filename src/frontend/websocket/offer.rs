//! What a handshake offers, read from its head (contract 06 A1, A2 and C1).

use crate::{
    call::{Credentials, Peer},
    frontend::{http::Request, settings},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use sha1::{Digest, Sha1};

/// The one subprotocol.
pub(super) const PROTOCOL: &str = "sluicegate.v1";
/// What the entry begins with that carries a token; it is never answered.
const BEARER: &str = "sluicegate.bearer.";
/// Joined to the key of a handshake (RFC 6455).
const MAGIC: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes of a key.
const KEY: usize = 16;

/// What subprotocols a handshake offers.
#[derive(Debug)]
pub(super) struct Protocols {
    /// Ours is among them, and has to be named in the answer.
    pub(super) ours: bool,
    /// A token in the place of one.
    pub(super) token: Option<Credentials>,
}

/// The answer to `sec-websocket-key`; `None` unless there is exactly one of 16 bytes.
pub(super) fn accept(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    let (Some(key), None) = (keys.next(), keys.next()) else { return None };
    let key = key.as_bytes().trim_ascii();
    if STANDARD.decode(key).ok()?.len() != KEY {
        return None;
    }
    let digest = Sha1::new().chain_update(key).chain_update(MAGIC).finalize();
    HeaderValue::from_str(&STANDARD.encode(digest)).ok()
}

/// Whether the handshake is of the one version there is.
pub(super) fn is_version_13(headers: &HeaderMap) -> bool {
    let mut versions = tokens(headers, &header::SEC_WEBSOCKET_VERSION);
    versions.next() == Some("13") && versions.next().is_none()
}

/// Reads the subprotocols.
///
/// # Errors
///
/// If some are offered and ours is not among them.
pub(super) fn protocols(headers: &HeaderMap) -> Result<Protocols, ()> {
    let mut protocols = Protocols { ours: false, token: None };
    let mut any = false;
    for offered in tokens(headers, &header::SEC_WEBSOCKET_PROTOCOL) {
        any = true;
        if offered == PROTOCOL {
            protocols.ours = true;
        } else if let Some(token) = offered.strip_prefix(BEARER) {
            protocols.token.get_or_insert_with(|| bearer(token));
        }
    }
    if any && !protocols.ours { Err(()) } else { Ok(protocols) }
}

/// A token that cannot be read is a claim that proves nothing, not an absent one.
fn bearer(token: &str) -> Credentials {
    let token = URL_SAFE_NO_PAD.decode(token).ok().and_then(|token| String::from_utf8(token).ok());
    Credentials::Bearer(token.unwrap_or_default().into())
}

/// Members of lists in a header that may be there several times.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// The ticket that the query names. The query is gone from the head afterwards.
pub(super) fn take_ticket(request: &mut Request) -> Option<String> {
    let query = request.uri().query()?;
    let ticket = query.split('&').find_map(|pair| pair.strip_prefix("ticket="));
    // One without a value is one that proves nothing.
    let ticket = ticket.or_else(|| query.split('&').find(|pair| *pair == "ticket").map(|_| "")).map(str::to_owned);
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = request.uri().path().parse().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    ticket
}

/// Whether pages of the handshake's origin may open a socket: absent (no browser), listed, or the listener's own.
pub(super) fn is_origin_allowed(headers: &HeaderMap, peer: &Peer, settings: &settings::WebSocket) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let origin = match (origins.next(), origins.next()) {
        (None, _) => return true,
        (Some(origin), None) => origin.to_str().unwrap_or_default(),
        (Some(_), Some(_)) => return false,
    };
    settings.origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin)) || is_own(origin, peer)
}

fn is_own(origin: &str, peer: &Peer) -> bool {
    let (scheme, default) = if peer.tls { ("https://", 443) } else { ("http://", 80) };
    let Some(authority) = origin.strip_prefix(scheme) else { return false };
    // The last colon, unless it is within an IPv6 address.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()),
        _ => (authority, Some(default)),
    };
    if port != Some(peer.local.port()) {
        return false;
    }
    // The loopback of who sits behind a proxy is not ours.
    if peer.arrived_on_loopback() && !peer.is_loopback() {
        return false;
    }
    let own = peer.local.ip().to_canonical();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.parse() == Ok(own) || (peer.is_loopback() && host.eq_ignore_ascii_case("localhost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_vector_of_the_contract() {
        let one = headers(&[("sec-websocket-key", "AQIDBAUGBwgJCgsMDQ4PEA==")]);
        assert_eq!(accept(&one).unwrap(), "C/0nmHhBztSRGR1CwL6Tf4ZjwpY=");
        for bad in ["", "AQID", "AQIDBAUGBwgJCgsMDQ4PEA", "not base64 at all!!!", "AQIDBAUGBwgJCgsMDQ4PEBE="] {
            assert!(accept(&headers(&[("sec-websocket-key", bad)])).is_none(), "{bad}");
        }
        let two = headers(&[
            ("sec-websocket-key", "AQIDBAUGBwgJCgsMDQ4PEA=="),
            ("sec-websocket-key", "AQIDBAUGBwgJCgsMDQ4PEA=="),
        ]);
        assert!(accept(&two).is_none());
    }

    #[test]
    fn ours_is_found_among_others_in_any_header() {
        let found =
            protocols(&headers(&[("sec-websocket-protocol", "x"), ("sec-websocket-protocol", "y, sluicegate.v1")]));
        assert!(found.unwrap().ours);
        assert!(protocols(&headers(&[("sec-websocket-protocol", "x, y")])).is_err());
        assert!(protocols(&headers(&[("sec-websocket-protocol", "sluicegate.bearer.dA")])).is_err());
        let none = protocols(&HeaderMap::new()).unwrap();
        assert!(!none.ours && none.token.is_none());
    }

    #[test]
    fn a_token_is_base64url_without_padding() {
        let token = |value| protocols(&headers(&[("sec-websocket-protocol", value)])).unwrap().token;
        assert!(
            matches!(token("sluicegate.v1, sluicegate.bearer.c2dfYQ"), Some(Credentials::Bearer(token)) if &*token == "sg_a")
        );
        assert!(
            matches!(token("sluicegate.v1, sluicegate.bearer.c2dfYQ=="), Some(Credentials::Bearer(token)) if token.is_empty())
        );
    }

    #[test]
    fn only_version_13() {
        assert!(is_version_13(&headers(&[("sec-websocket-version", "13")])));
        assert!(!is_version_13(&headers(&[("sec-websocket-version", "8")])));
        assert!(!is_version_13(&headers(&[("sec-websocket-version", "13, 8")])));
        assert!(!is_version_13(&HeaderMap::new()));
    }

    #[test]
    fn origins_are_listed_or_the_listeners_own() {
        let settings = settings::WebSocket { origins: vec!["https://app.example".into()], ..Default::default() };
        let allowed = |origin: &'static str, local: &str, tls: bool| {
            let peer = Peer { tls, ..Peer::new(([10, 0, 0, 9], 1).into(), local.parse().unwrap()) };
            is_origin_allowed(&headers(&[("origin", origin)]), &peer, &settings)
        };
        assert!(allowed("https://app.example", "10.0.0.1:80", false));
        assert!(allowed("http://127.0.0.1:8080", "127.0.0.1:8080", false));
        assert!(allowed("http://localhost:8080", "127.0.0.1:8080", false));
        assert!(allowed("http://10.0.0.1", "10.0.0.1:80", false));
        assert!(allowed("https://[::1]:8443", "[::1]:8443", true));
        assert!(allowed("https://[::1]", "[::1]:443", true));
        for foreign in
            ["http://localhost:8081", "http://evil.example", "null", "", "https://localhost:8080", "http://localhost"]
        {
            assert!(!allowed(foreign, "127.0.0.1:8080", false), "{foreign}");
        }
        assert!(!allowed("http://localhost:80", "10.0.0.1:80", false));
        let peer = Peer::new(([10, 0, 0, 9], 1).into(), ([10, 0, 0, 1], 80).into());
        assert!(is_origin_allowed(&HeaderMap::new(), &peer, &settings));
    }
}
