//! Client certificates as a proof: which of their names is an identity.
//!
//! The listener has verified the certificate and read its names; this chooses one.

use super::named;
use crate::call::{Certificate, Identity, Scope};
use std::{sync::Arc, time::SystemTime};

/// Which of a certificate's names is an identity (`auth.mtls.identity`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// The URI among its alternative names, as SPIFFE has it.
    Uri,
    /// The host name among its alternative names.
    Host,
    /// Its subject, as RFC 4514 writes it.
    Subject,
}

impl Name {
    /// Whom `certificate` proves now. A connection may outlive its certificate: that proves nobody any more.
    ///
    /// Of several names of the kind none is taken: which of them its holder is to be would be anyone's guess (SPIFFE refuses
    /// such certificates too).
    pub(super) fn identity(self, certificate: &Certificate, now: SystemTime) -> Option<Arc<Identity>> {
        if certificate.until <= now {
            return None;
        }
        let name = match self {
            Self::Uri => only(&certificate.uris),
            Self::Host => only(&certificate.hosts),
            Self::Subject => certificate.subject.as_ref(),
        };
        let identity = Identity::proven(named(name?)?, Vec::new(), Scope::Granted);
        Some(Arc::new(identity.until_time(Some(certificate.until))))
    }
}

fn only(names: &[Arc<str>]) -> Option<&Arc<str>> {
    match names {
        [name] => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    const END: SystemTime = UNIX_EPOCH;

    fn certificate(uris: &[&str], hosts: &[&str], subject: Option<&str>) -> Certificate {
        let names = |list: &[&str]| list.iter().map(|name| Arc::from(*name)).collect();
        let until = END + Duration::from_secs(100);
        Certificate { uris: names(uris), hosts: names(hosts), subject: subject.map(Arc::from), until }
    }

    fn id(name: Name, certificate: &Certificate) -> Option<String> {
        name.identity(certificate, END).map(|identity| identity.id().to_string())
    }

    #[test]
    fn the_configured_name_is_the_identity() {
        let full = certificate(&["spiffe://a/web"], &["web.example"], Some("CN=web"));
        assert_eq!(id(Name::Uri, &full).as_deref(), Some("spiffe://a/web"));
        assert_eq!(id(Name::Host, &full).as_deref(), Some("web.example"));
        assert_eq!(id(Name::Subject, &full).as_deref(), Some("CN=web"));
    }

    #[test]
    fn no_name_or_several_prove_nobody() {
        let several = certificate(&["spiffe://a/web", "spiffe://a/admin"], &["a", "b"], None);
        for name in [Name::Uri, Name::Host, Name::Subject] {
            assert_eq!(id(name, &several), None, "{name:?}");
            assert_eq!(id(name, &certificate(&[], &[], None)), None, "{name:?}");
        }
        assert_eq!(id(Name::Host, &certificate(&[], &["anonymous"], None)), None);
    }

    #[test]
    fn a_certificate_that_has_ended_proves_nobody_on_the_connection_it_opened() {
        let one = certificate(&["spiffe://a/web"], &[], None);
        let proven = Name::Uri.identity(&one, one.until - Duration::from_nanos(1)).unwrap();
        assert_eq!(proven.until(), Some(one.until));
        assert!(Name::Uri.identity(&one, one.until).is_none());
    }
}
