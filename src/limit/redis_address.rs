//! Where the Redis of shared limits is, and how it is connected to.
//!
//! In clear text the crate `redis` connects. TLS is ours: the crate's would take whatever provider the process has, and the
//! system's authorities besides those of a file.

use super::redis::Settings;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, RedisError, aio::MultiplexedConnection};
use rustls::pki_types::ServerName;
use std::{borrow::Cow, fmt, io, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::trust::{Trust, TrustError};

/// The schemes of TLS; behind them an address is written as without.
const SECURE: [&str; 2] = ["rediss://", "valkeys://"];

/// An address that can be connected to. May hold a password.
pub(super) struct Address {
    client: Client,
    secure: Option<Secure>,
}

/// Whose certificate is expected where, and who has to vouch for it.
struct Secure {
    host: String,
    port: u16,
    name: ServerName<'static>,
    trust: Trust,
}

/// Why there is no connection (any more). Its text names no address: that may hold a password.
#[derive(Debug)]
pub(super) enum Loss {
    /// The crate says so: the server, the network, or what came over it.
    Redis(RedisError),
    /// Nobody listens there, or whoever does cannot be trusted.
    Tls(io::Error),
    /// Nobody can be trusted.
    Trust(TrustError),
}

// === impl Address ===

impl Address {
    /// # Errors
    ///
    /// What is wrong with the address or the authorities, without the address.
    pub(super) fn new(settings: &Settings) -> Result<Self, String> {
        let (url, trust) = (&*settings.url.0, &settings.trust);
        let open = |url: &str| Client::open(url).map_err(|error| error.category().to_owned());
        let Some(rest) = SECURE.iter().find_map(|scheme| url.strip_prefix(scheme)) else {
            return match trust {
                Trust::System => Ok(Self { client: open(url)?, secure: None }),
                Trust::Only(_) => Err("authorities are named and it is no `rediss://`".to_owned()),
            };
        };
        if rest.contains('#') {
            return Err("it has a `#`; certificates are always verified".to_owned());
        }
        trust.check().map_err(|error| error.to_string())?;
        let client = open(&format!("redis://{rest}"))?;
        let ConnectionAddr::Tcp(host, port) = client.get_connection_info().addr().clone() else {
            return Err("it has no host and port".to_owned());
        };
        let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
        let secure = Some(Secure { host, port, name, trust: trust.clone() });
        Ok(Self { client, secure })
    }

    /// A connection whose server knows us; it and each answer over it have `patience`.
    pub(super) async fn connect(&self, patience: Duration) -> Result<MultiplexedConnection, Loss> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(patience)).set_response_timeout(Some(patience));
        match &self.secure {
            None => Ok(self.client.get_multiplexed_async_connection_with_config(&config).await?),
            Some(secure) => match timeout(patience, self.connect_to(secure, config)).await {
                Ok(connected) => connected,
                Err(_) => Err(Loss::Tls(io::ErrorKind::TimedOut.into())),
            },
        }
    }

    async fn connect_to(&self, secure: &Secure, config: AsyncConnectionConfig) -> Result<MultiplexedConnection, Loss> {
        let stream = TcpStream::connect((&*secure.host, secure.port)).await.map_err(Loss::Tls)?;
        stream.set_nodelay(true).map_err(Loss::Tls)?;
        // Once somebody is there: the authorities of the system are many files, and this is tried every second.
        let connector = TlsConnector::from(secure.trust.client().map_err(Loss::Trust)?);
        let stream = connector.connect(secure.name.clone(), stream).await.map_err(Loss::Tls)?;
        let info = self.client.get_connection_info().redis_settings();
        let (connection, driver) = MultiplexedConnection::new_with_config(info, stream, config).await?;
        // Ends with the last clone of the connection.
        tokio::spawn(driver);
        Ok(connection)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Address(..)")
    }
}

// === impl Loss ===

impl Loss {
    /// In words for operators.
    pub(super) fn why(&self) -> Cow<'_, str> {
        match self {
            Self::Redis(error) => match error.category() {
                // The crate has no word for some.
                "" => error.code().unwrap_or("refused").into(),
                category => category.into(),
            },
            Self::Tls(error) => error.to_string().into(),
            Self::Trust(error) => error.to_string().into(),
        }
    }

    /// Whether somebody is there and says no, which waiting will not change.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::Redis(error) => {
                matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::AuthenticationFailed)
            }
            Self::Tls(error) => error.kind() == io::ErrorKind::InvalidData,
            Self::Trust(_) => true,
        }
    }
}

impl From<RedisError> for Loss {
    fn from(error: RedisError) -> Self {
        Self::Redis(error)
    }
}
