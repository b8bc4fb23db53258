//! Where a server is: `http://HOST:PORT`.

use std::{fmt, str::FromStr};

/// The address of a server that speaks in clear text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    authority: Box<str>,
}

impl Address {
    /// `HOST:PORT`, as a socket is opened with and as `host` says it.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = match text.split_once("://") {
            Some(("http" | "ws", rest)) => rest,
            None => text,
            Some(("https" | "wss", _)) => {
                return Err("TLS is not measured; ask a listener in clear text: `http://HOST:PORT`".into());
            }
            Some((scheme, _)) => return Err(format!("has scheme `{scheme}`, expected `http://HOST:PORT`")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let authority: http::uri::Authority = rest.parse().map_err(|_| "expected `http://HOST:PORT`".to_owned())?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err("expected `http://HOST:PORT`".into());
        }
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self { authority: format!("{}:{port}", authority.host()).into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hosts_with_ports() {
        let address = |text: &str| text.parse::<Address>().map(|address| address.authority().to_owned());
        assert_eq!(address("http://127.0.0.1:8080"), Ok("127.0.0.1:8080".into()));
        assert_eq!(address("http://[::1]:8080/"), Ok("[::1]:8080".into()));
        assert_eq!(address("localhost:9000"), Ok("localhost:9000".into()));
        assert_eq!(address("http://models.local"), Ok("models.local:80".into()));
        for (wrong, says) in [
            ("https://a:1", "TLS"),
            ("ftp://a", "scheme `ftp`"),
            ("http://", "HOST:PORT"),
            ("http://a:1/v2", "HOST:PORT"),
            ("http://me@a:1", "HOST:PORT"),
        ] {
            let error = address(wrong).unwrap_err();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }
}
