//! Listeners as they are configured, bound before anything else is started.

use super::StartError;
use crate::{
    config::{self, Listen},
    frontend::{
        accept::Listener,
        tls::{self, Speaks, Tls},
    },
};
use tokio::net::TcpListener;

/// The certificates of a listener, read and checked; `None` for clear text.
///
/// # Errors
///
/// [`StartError`] names the file and what is wrong with it.
pub fn tls(settings: Option<&tls::Settings>, speaks: Speaks) -> Result<Option<Tls>, StartError> {
    settings.map(|settings| Tls::new(settings.clone(), speaks)).transpose().map_err(StartError::new)
}

/// A listener, bound, that takes no connections yet.
pub(super) fn bind(listen: &Listen) -> Result<Listener, StartError> {
    let tls = tls(listen.tls.as_ref(), Speaks::Both)?;
    let listener = Listener::bind(listen.address, listen.surfaces, tls).map_err(StartError::new)?;
    Ok(listener.trusting(&listen.trusted_proxies))
}

/// The admin listener, bound, and its certificates.
pub(super) async fn bind_admin(admin: &config::Admin) -> Result<(TcpListener, Option<Tls>), StartError> {
    let (address, tls) = (admin.address, tls(admin.tls.as_ref(), Speaks::Http1)?);
    match TcpListener::bind(address).await {
        Ok(listener) => Ok((listener, tls)),
        Err(error) => Err(StartError(format!("cannot listen on `{address}` (`admin.address`): {error}"))),
    }
}
