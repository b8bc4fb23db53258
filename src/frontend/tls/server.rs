//! Which of a listener's certificates a client is shown (RFC 6066 section 3).

use rustls::{
    client::verify_server_name,
    pki_types::ServerName,
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::sync::Arc;

/// All of them. The first is for clients that name no server, or one that none is for.
#[derive(Debug)]
pub(super) struct Certificates(Vec<Arc<CertifiedKey>>);

impl Certificates {
    pub(super) const fn new(certificates: Vec<Arc<CertifiedKey>>) -> Self {
        Self(certificates)
    }

    /// The first that is for `name` and that `can_use` accepts; without one, the first that it accepts.
    ///
    /// Who can use none is given one all the same, and so told by the handshake what is the matter (`handshake_failure`):
    /// without a certificate it would hear that it has no access, which is another matter.
    fn choose(&self, name: Option<&str>, can_use: impl Fn(&CertifiedKey) -> bool) -> Option<&Arc<CertifiedKey>> {
        let name = name.and_then(|name| ServerName::try_from(name).ok());
        let mut usable = self.0.iter().filter(|certified| can_use(certified));
        let named = name.and_then(|name| usable.clone().find(|certified| is_for(certified, &name)));
        named.or_else(|| usable.next()).or_else(|| self.0.first())
    }
}

/// Parsed anew each time: a microsecond of a handshake that takes hundreds.
fn is_for(certified: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let parsed = certified.end_entity_cert().and_then(ParsedCertificate::try_from);
    parsed.is_ok_and(|parsed| verify_server_name(&parsed, name).is_ok())
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // A name may have several, with keys of different kinds: an old client cannot use each of them.
        let schemes = hello.signature_schemes();
        self.choose(hello.server_name(), |certified| certified.key.choose_scheme(schemes).is_some()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{crypto::ring, pki_types::PrivateKeyDer};

    fn certified(names: &[&str]) -> Arc<CertifiedKey> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        Arc::new(CertifiedKey::from_der(vec![made.cert.der().clone()], key, &ring::default_provider()).unwrap())
    }

    #[test]
    fn a_name_chooses_and_the_first_is_for_everyone_else() {
        let list = [certified(&["a.example"]), certified(&["b.example", "*.c.example"]), certified(&["b.example"])];
        let certificates = Certificates::new(list.to_vec());
        let chosen = |name: Option<&str>| {
            let chosen = certificates.choose(name, |_| true).unwrap();
            list.iter().position(|certified| Arc::ptr_eq(certified, chosen))
        };
        assert_eq!(chosen(Some("a.example")), Some(0));
        assert_eq!(chosen(Some("B.example")), Some(1));
        assert_eq!(chosen(Some("x.c.example")), Some(1));
        for nobody in [None, Some("d.example"), Some("c.example"), Some("x.y.c.example"), Some("")] {
            assert_eq!(chosen(nobody), Some(0), "{nobody:?}");
        }
    }

    #[test]
    fn a_certificate_that_a_client_cannot_use_is_not_chosen() {
        let list = [certified(&["a.example"]), certified(&["a.example"])];
        let certificates = Certificates::new(list.to_vec());
        let not_first = |certified: &CertifiedKey| !std::ptr::eq(certified, &*list[0]);
        let chosen = certificates.choose(Some("a.example"), not_first).unwrap();
        assert!(Arc::ptr_eq(chosen, &list[1]));
        let hopeless = certificates.choose(Some("a.example"), |_| false).unwrap();
        assert!(Arc::ptr_eq(hopeless, &list[0]));
    }
}
