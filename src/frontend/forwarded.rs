//! Calls that a proxy passes on: whose they are.
//!
//! A proxy that is trusted (`listen.*.trusted_proxies`) says so in `x-forwarded-for`, to whose end it appends the address that
//! it was connected from; what stands before may be anybody's words (attack I7). `forwarded` (RFC 7239) is not read for this: a
//! proxy that writes the one passes the other on as its client sent it, and nobody could tell which of the two is its own.

use super::{Connection, head::Fields};
use crate::{call::Peer, limit::address::Network};
use http::{HeaderMap, HeaderName};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// The addresses that a request has passed, the client's first.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Trusted proxies in a row, of which the last that is looked at is taken for the client. More are a loop.
const HOPS: usize = 16;

impl Connection {
    /// What the client of a request has of this connection; `None` if that is all of it: nobody is in between, or it makes
    /// no difference.
    pub fn of_client(&self, fields: &Fields<'_>, headers: &HeaderMap) -> Option<Self> {
        if !fields.forwarded {
            return None;
        }
        let from = self.peer.address;
        let is_trusted = is_within(&self.proxies, from.ip());
        if !is_trusted && !self.peer.is_loopback() {
            return None;
        }
        let address = if is_trusted { client(headers, &self.proxies).unwrap_or(from) } else { from };
        Some(Self {
            frontend: Arc::clone(&self.frontend),
            peer: Arc::new(Peer { address, forwarded: true, ..Peer::clone(&self.peer) }),
            surfaces: self.surfaces,
            proxies: Arc::clone(&self.proxies),
            watches: Arc::clone(&self.watches),
        })
    }
}

/// The last address that is none of `proxies`, or the first of a row of them; `None` if there is none. What stands before
/// something that is no address is nobody's word.
fn client(headers: &HeaderMap, proxies: &[Network]) -> Option<SocketAddr> {
    let fields = headers.get_all(FORWARDED_FOR).iter().rev();
    let hops = fields.flat_map(|field| field.as_bytes().rsplit(|byte| *byte == b','));
    let mut last = None;
    for hop in hops.take(HOPS) {
        let Some(address) = address(hop) else { break };
        last = Some(address);
        if !is_within(proxies, address.ip()) {
            break;
        }
    }
    last
}

/// `203.0.113.7`, `2001:db8::7`, and either with a port, as some proxies write them.
fn address(hop: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim_ascii();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    match bare.parse::<IpAddr>() {
        Ok(ip) => Some(SocketAddr::new(ip.to_canonical(), 0)),
        Err(_) => text.parse().ok(),
    }
}

fn is_within(networks: &[Network], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn proxies() -> Arc<[Network]> {
        ["10.0.0.0/8", "2001:db8:1::/48"].map(|text| text.parse().unwrap()).into()
    }

    fn headers(fields: &[&str]) -> HeaderMap {
        fields.iter().map(|field| (FORWARDED_FOR, HeaderValue::from_str(field).unwrap())).collect()
    }

    fn found(fields: &[&str]) -> Option<String> {
        client(&headers(fields), &proxies()).map(|address| address.to_string())
    }

    #[test]
    fn the_last_address_that_is_no_proxy_is_the_client() {
        for (fields, expected) in [
            (&["203.0.113.7"][..], "203.0.113.7:0"),
            (&["198.51.100.1, 203.0.113.7"], "203.0.113.7:0"),
            (&["203.0.113.7, 10.0.0.3,10.9.9.9"], "203.0.113.7:0"),
            (&["198.51.100.1", "203.0.113.7", "10.0.0.3"], "203.0.113.7:0"),
            (&["203.0.113.7:4711"], "203.0.113.7:4711"),
            (&["2001:db8::7"], "[2001:db8::7]:0"),
            (&["[2001:db8::7]"], "[2001:db8::7]:0"),
            (&["[2001:db8::7]:443, 2001:db8:1::1"], "[2001:db8::7]:443"),
            (&["::ffff:203.0.113.7"], "203.0.113.7:0"),
            // A client within the network of the proxies.
            (&["10.0.0.3"], "10.0.0.3:0"),
            (&["10.0.0.4, 10.0.0.3"], "10.0.0.4:0"),
        ] {
            assert_eq!(found(fields).as_deref(), Some(expected), "{fields:?}");
        }
    }

    #[test]
    fn what_is_no_address_is_nobody() {
        for fields in [&[][..], &[""], &["unknown"], &["203.0.113.7, unknown"], &["203.0.113.7,"], &["1.2.3"], &["a b"]]
        {
            assert_eq!(found(fields), None, "{fields:?}");
        }
        // The proxy before it is all that is known.
        assert_eq!(found(&["203.0.113.7, _hidden, 10.0.0.3"]).as_deref(), Some("10.0.0.3:0"));
        let endless = vec!["10.0.0.3"; 5_000].join(",");
        assert_eq!(found(&["203.0.113.7", &endless]).as_deref(), Some("10.0.0.3:0"));
    }

    fn connection(peer: Peer, proxies: Arc<[Network]>) -> Connection {
        let Connection { frontend, surfaces, .. } = crate::frontend::testing::connection();
        Connection::new(frontend, Arc::new(peer), surfaces).behind(proxies)
    }

    #[test]
    fn only_a_trusted_peer_is_believed_and_a_loopback_caller_is_not_forwarded() {
        let peer = |address: &str, local: &str| Peer::new(address.parse().unwrap(), local.parse().unwrap());
        let (proxy, stranger) = ("10.0.0.3:9", "198.51.100.1:9");
        let (open, loopback) = ("192.0.2.1:80", "127.0.0.1:80");
        let seen = |peer: Peer, name: &'static str| {
            let connection = connection(peer, proxies());
            let headers =
                HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static("203.0.113.7"))]);
            let client = connection.of_client(&Fields::of(&headers), &headers);
            client.map(|client| (client.peer.address.to_string(), client.peer.is_loopback()))
        };
        let is = |address: &str| Some((address.to_owned(), false));
        assert_eq!(seen(peer(proxy, open), "x-forwarded-for"), is("203.0.113.7:0"));
        assert_eq!(seen(peer(stranger, open), "x-forwarded-for"), None);
        assert_eq!(seen(peer(stranger, loopback), "x-forwarded-for"), is(stranger));
        // They say that it was forwarded, and nothing else that is believed.
        for name in ["forwarded", "via", "x-real-ip", "x-forwarded-host", "x-forwarded-proto"] {
            assert_eq!(seen(peer(proxy, open), name), is(proxy), "{name}");
            assert_eq!(seen(peer("127.0.0.1:9", loopback), name), is("127.0.0.1:9"), "{name}");
        }
        assert_eq!(seen(peer("127.0.0.1:9", loopback), "x-request-id"), None);
    }

    proptest! {
        /// Whatever a client sends: the address that the first trusted proxy saw is the client's.
        #[test]
        fn nobody_can_choose_who_he_is(
            sent in proptest::collection::vec("[ -~]{0,40}", 0..4),
            client in any::<u32>(),
            more in proptest::collection::vec(0_u32..1 << 24, 0..4),
        ) {
            let client = IpAddr::from(client.to_be_bytes());
            prop_assume!(!is_within(&proxies(), client));
            let proxies: String =
                more.iter().map(|host| format!(", {}", IpAddr::from((10_u32 << 24 | host).to_be_bytes()))).collect();
            let mut fields: Vec<&str> = sent.iter().map(String::as_str).collect();
            // Appended to the last field, or as one of its own.
            let appended = format!("{}, {client}{proxies}", fields.last().copied().unwrap_or_default());
            let own = format!("{client}{proxies}");
            fields.push(&own);
            prop_assert_eq!(found(&fields), Some(SocketAddr::new(client, 0).to_string()));
            fields.pop();
            fields.pop();
            fields.push(&appended);
            prop_assert_eq!(found(&fields), Some(SocketAddr::new(client, 0).to_string()));
        }
    }
}
