//! Who may call: `auth`, `grants`, and TLS, which is one of the ways to prove it.

use super::{Problems, file, raw};
use crate::{
    auth::{
        self,
        api_key::KeyFile,
        certificate,
        grants::{Grantee, INTENTS, Rule},
        jwt::{Algorithm, Issuer, Keys},
    },
    call::Intent,
    frontend::tls,
    trust::Trust,
};
use std::{path::Path, sync::Arc, time::Duration};

/// The longest a ticket may live (contract 06 C1).
const TICKET: Duration = Duration::from_secs(30);
/// The least time between two looks at a set of keys (attack I2).
const REFRESH: Duration = Duration::from_secs(30);

/// `auth`. Whether files that it names are what they should be is found out by reading them: the authenticator reads them
/// again, and keeps them.
pub(super) fn authentication(raw: &raw::Auth, folder: &Path, problems: &mut Problems) -> auth::Settings {
    let anonymous = match raw.anonymous {
        raw::Anonymous::Loopback => auth::Anonymous::Loopback,
        raw::Anonymous::Always => auth::Anonymous::Always,
        raw::Anonymous::Never => auth::Anonymous::Never,
    };
    let keys = raw.api_keys.as_ref().map(|keys| {
        let before = problems.found();
        let path = file("auth.api_keys.file", &keys.file, folder, problems);
        if problems.found() == before
            && let Err(error) = KeyFile::open(&path)
        {
            for problem in error.problems {
                problems.push("auth.api_keys.file", format!("{}: {problem}", path.display()));
            }
        }
        path
    });
    let mut jwt: Vec<Issuer> = Vec::new();
    for (at, issuer) in raw.jwt.iter().enumerate() {
        let path = format!("auth.jwt[{at}]");
        if let Some(other) = jwt.iter().position(|other| *other.issuer == *issuer.issuer) {
            problems
                .push(format!("{path}.issuer"), format!("`{}` is that of auth.jwt[{other}] already", issuer.issuer));
        }
        jwt.extend(self::issuer(&path, issuer, folder, problems));
    }
    let mtls = raw.mtls.map(|mtls| match mtls.identity {
        raw::CertificateName::SanUri => certificate::Name::Uri,
        raw::CertificateName::SanDns => certificate::Name::Host,
        raw::CertificateName::Subject => certificate::Name::Subject,
    });
    if raw.websocket.tickets.0 > TICKET {
        problems.push(
            "auth.websocket.tickets",
            format!("{} is above 30s, the most that a ticket may live", raw.websocket.tickets),
        );
    }
    auth::Settings { anonymous, keys, jwt, mtls }
}

/// Whether some listener asks for what `auth.mtls` reads.
pub(super) fn check_mtls(raw: &raw::Config, problems: &mut Problems) {
    let asks = |tls: &Option<raw::Tls>| tls.as_ref().is_some_and(|tls| tls.clients.is_some());
    let any =
        raw.listen.iter().any(|listen| asks(&listen.tls)) || raw.admin.as_ref().is_some_and(|admin| asks(&admin.tls));
    if raw.auth.mtls.is_some() && !any {
        problems.push("auth.mtls", "no listener asks for certificates; say whose are taken in `listen[].tls.clients`");
    }
}

fn issuer(path: &str, raw: &raw::Jwt, folder: &Path, problems: &mut Problems) -> Option<Issuer> {
    let before = problems.found();
    if raw.issuer.is_empty() {
        problems.missing(format!("{path}.issuer"), "is missing or empty, expected the `iss` of its tokens");
    }
    if raw.audience.0.is_empty() || raw.audience.0.iter().any(String::is_empty) {
        // Without one, a token made for another service would do.
        problems.missing(
            format!("{path}.audience"),
            "is missing or empty, expected the `aud` of tokens that are for this server",
        );
    }
    if raw.identity.is_empty() {
        problems.push(format!("{path}.identity"), "is empty, expected the name of a claim");
    }
    let mut algorithms = Vec::new();
    for (at, name) in raw.algorithms.iter().enumerate() {
        match Algorithm::parse(name) {
            Some(algorithm) => algorithms.push(algorithm),
            None => problems.push(
                format!("{path}.algorithms[{at}]"),
                format!("`{name}` is not taken here, expected some of {}", Algorithm::NAMES),
            ),
        }
    }
    if raw.algorithms.is_empty() {
        problems.missing(
            format!("{path}.algorithms"),
            format!("is missing or empty, expected some of {}", Algorithm::NAMES),
        );
    }
    let keys = match (&raw.jwks, &raw.key) {
        (Some(_), Some(_)) | (None, None) => {
            if !problems.knows(&format!("{path}.jwks")) && !problems.knows(&format!("{path}.key")) {
                problems.push(path, "needs one of `jwks` and `key`");
            }
            None
        }
        (None, Some(key)) => Some(Keys::File(file(&format!("{path}.key"), key, folder, problems))),
        (Some(place), None) if place.contains("://") => url(path, place, raw, folder, problems),
        (Some(place), None) => Some(Keys::Set(file(&format!("{path}.jwks"), Path::new(place), folder, problems))),
    };
    if raw.ca.is_some() && !matches!(keys, Some(Keys::Url { .. })) && problems.found() == before {
        problems.push(format!("{path}.ca"), "is of use only where `jwks` is a URL");
    }
    let issuer = Issuer {
        issuer: raw.issuer.as_str().into(),
        audience: raw.audience.0.iter().map(|name| Arc::from(name.as_str())).collect(),
        algorithms,
        keys: keys?,
        identity: raw.identity.as_str().into(),
        prefix: raw.prefix.as_str().into(),
        groups: raw.groups.as_deref().map(Arc::from),
        require: raw.require.iter().map(|name| Arc::from(name.as_str())).collect(),
    };
    if problems.found() == before
        && let Err(error) = issuer.check()
    {
        problems.push(path, error.to_string());
    }
    Some(issuer)
}

fn url(path: &str, place: &str, raw: &raw::Jwt, folder: &Path, problems: &mut Problems) -> Option<Keys> {
    let path = format!("{path}.jwks");
    if raw.refresh.0 < REFRESH {
        let text = format!("{} is below 30s, the least between two fetches", raw.refresh);
        problems.push(path.replace(".jwks", ".refresh"), text);
    }
    let trust = match &raw.ca {
        Some(ca) => Trust::Only(file(&path.replace(".jwks", ".ca"), ca, folder, problems)),
        None => Trust::System,
    };
    let url: http::Uri = match place.parse() {
        Ok(url) => url,
        Err(error) => {
            problems.push(path, format!("`{place}` is not a URL: {error}"));
            return None;
        }
    };
    let has_user = url.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) || has_user {
        problems.push(path, format!("`{place}` is not a URL that can be fetched; write https://id.example/jwks"));
        return None;
    }
    Some(Keys::Url { url, trust, refresh: raw.refresh.0 })
}

/// TLS of a listener.
pub(super) fn tls(path: &str, raw: &raw::Tls, folder: &Path, problems: &mut Problems) -> tls::Settings {
    let path = format!("{path}.tls");
    if raw.certificates.is_empty() {
        problems.missing(format!("{path}.certificates"), "the list is empty, expected one certificate at least");
    }
    let mut named = |path: String, name: &Path| file(&path, name, folder, problems);
    let pair = |(at, pair): (usize, &raw::Certificate)| tls::Pair {
        certificate: named(format!("{path}.certificates[{at}].certificate"), &pair.certificate),
        key: named(format!("{path}.certificates[{at}].key"), &pair.key),
    };
    let certificates = raw.certificates.iter().enumerate().map(pair).collect();
    let clients = raw.clients.as_ref().map(|clients| tls::Clients {
        ca: named(format!("{path}.clients.ca"), &clients.ca),
        required: clients.certificate == raw::Demand::Required,
    });
    tls::Settings { certificates, clients }
}

/// One of `grants`.
pub(super) fn rule(at: usize, raw: &raw::Grant, problems: &mut Problems) -> Rule {
    let path = format!("grants[{at}]");
    for (key, list) in [("to", &raw.to), ("models", &raw.models), ("versions", &raw.versions)] {
        if list.is_empty() {
            problems.missing(format!("{path}.{key}"), "is missing or empty, so this grants nothing");
        }
    }
    let mut to = Vec::new();
    for (index, text) in raw.to.iter().enumerate() {
        match Grantee::parse(text) {
            Ok(grantee) => to.push(grantee),
            Err(problem) => problems.push(format!("{path}.to[{index}]"), problem),
        }
    }
    let shared = |list: &[String]| list.iter().map(|text| Arc::from(text.as_str())).collect();
    Rule {
        to,
        intents: intents(&format!("{path}.intents"), &raw.intents, problems),
        models: shared(&raw.models),
        versions: shared(&raw.versions),
    }
}

/// Intents by their names.
pub(super) fn intents(path: &str, names: &[String], problems: &mut Problems) -> Vec<Intent> {
    if names.is_empty() {
        problems.missing(path, format!("is missing or empty, expected some of {INTENTS}"));
    }
    let mut intents = Vec::new();
    for (at, name) in names.iter().enumerate() {
        match Intent::parse(name) {
            Some(intent) => intents.push(intent),
            None => problems.push(format!("{path}[{at}]"), format!("`{name}` is not an intent, expected {INTENTS}")),
        }
    }
    intents
}
