//! `traffic`, in `models.defaults` and in `model.yaml`.

use super::models::is_plain;
use crate::{
    config::{
        ModelConfig, Problems,
        raw::{self, Version},
    },
    model::{Routing, Shadow, Sticky, Traffic},
};
use http::HeaderName;
use serde::de::{Deserialize, IntoDeserializer, value::Error};
use std::{num::NonZeroU32, sync::Arc};

/// The largest weight: shares of a millionth can be written, and sums fit.
const HEAVIEST: usize = 1_000_000;
/// Most versions of a split: each call of a caller who sticks is held against all of them.
const VERSIONS: usize = 16;
/// How a header is named by which callers stick to a version.
const HEADER: &str = "header:";

/// Checks what is said of traffic at `path`.
pub(super) fn traffic(path: &str, raw: &raw::Traffic, problems: &mut Problems) {
    if raw.split.len() > VERSIONS {
        problems.push(format!("{path}.split"), format!("{} versions, expected at most {VERSIONS}", raw.split.len()));
    }
    for (version, weight) in &raw.split {
        if self::version(version).is_none() {
            let expected = "expected a version: a positive integer without leading zeros";
            problems.push(format!("{path}.split.{version}"), format!("`{version}` is not valid, {expected}"));
        }
        if weight.0 > HEAVIEST {
            problems.push(format!("{path}.split.{version}"), format!("{} is above {HEAVIEST}", weight.0));
        }
    }
    if let Some(name) = &raw.header
        && header(name).is_none()
    {
        problems.push(format!("{path}.header"), format!("`{name}` {NO_HEADER}"));
    }
    if let Some(text) = &raw.sticky {
        match (&**text, sticky(text)) {
            (_, None) => {
                let text = format!("`{text}` is not valid, expected `identity` or `{HEADER}NAME`");
                problems.push(format!("{path}.sticky"), text);
            }
            (_, Some(_)) if raw.split.is_empty() => {
                problems.push(format!("{path}.sticky"), "there is no `split` between whose versions to choose");
            }
            _ => {}
        }
    }
    let Some(shadow) = &raw.shadow else { return };
    match shadow.to {
        None => problems.missing(format!("{path}.shadow.to"), "is missing, expected a version"),
        Some(to) if raw.split.keys().any(|version| self::version(version) == Some(to.0)) => {
            let text = format!("{} is in the split too; a shadow's answers reach nobody", to.0);
            problems.push(format!("{path}.shadow.to"), text);
        }
        Some(_) => {}
    }
    if millionths(shadow.share).is_none() {
        let text = format!("{} is not a share, expected at least 0.000001 and at most 1", shadow.share);
        problems.push(format!("{path}.shadow.share"), text);
    }
}

/// The same as the program sees it, of a model of which no problem was found.
pub(crate) fn routing(model: &ModelConfig) -> Routing {
    let text = |version: u64| Arc::from(version.to_string());
    let labels = model.version_labels.iter().map(|(label, version)| (Arc::clone(label), text(*version))).collect();
    let traffic = model.defaults.traffic.as_ref().map(|raw| {
        let split = raw.split.iter().filter_map(|(version, weight)| {
            let weight = NonZeroU32::new(u32::try_from(weight.0).ok()?)?;
            Some((self::version(version)?, weight))
        });
        let mut split: Vec<(u64, NonZeroU32)> = split.collect();
        split.sort_unstable();
        let shadow = raw.shadow.as_ref().and_then(|shadow| {
            Some(Shadow {
                to: text(shadow.to?.0),
                share: millionths(shadow.share)?,
                queue: shadow.queue.0,
                memory: shadow.memory.0,
                in_flight: shadow.in_flight.0,
                timeout: shadow.timeout.0,
            })
        });
        Traffic {
            split: split.into_iter().map(|(version, weight)| (text(version), weight)).collect(),
            header: raw.header.as_deref().and_then(header),
            sticky: raw.sticky.as_deref().and_then(sticky),
            shadow,
        }
    });
    Routing { labels, traffic: traffic.unwrap_or_default() }
}

/// Completes what is said of a text that is not a header's name.
const NO_HEADER: &str = "is not the name of a header, or of one that says who calls";

/// The name of a header that may be looked at, in lower case. Credentials are nobody's to look at.
fn header(name: &str) -> Option<Arc<str>> {
    let name = HeaderName::try_from(name).ok()?;
    let secret = ["authorization", "x-api-key", "cookie", "proxy-authorization"].contains(&name.as_str());
    // What may be the name of a parameter of a request too.
    (!secret && is_plain(name.as_str())).then(|| name.as_str().into())
}

fn sticky(text: &str) -> Option<Sticky> {
    match text.strip_prefix(HEADER) {
        Some(name) => header(name).map(Sticky::Header),
        None => (text == "identity").then_some(Sticky::Identity),
    }
}

fn version(text: &str) -> Option<u64> {
    let version: Result<Version, Error> = Version::deserialize(text.into_deserializer());
    version.ok().map(|version| version.0)
}

/// A share as millionths, 1 to 1,000,000.
fn millionths(share: f64) -> Option<u32> {
    let millionths = (share * 1e6).round();
    // In range, so nothing is cut off.
    (1.0..=1e6).contains(&millionths).then_some(millionths as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{load_model, raw};
    use std::fs;

    fn load(yaml: &str) -> Result<ModelConfig, Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.yaml"), yaml).unwrap();
        load_model("m", folder.path(), None, &raw::ModelDefaults::default()).map_err(|problems| {
            problems.list.iter().map(|problem| format!("{}: {}", problem.path, problem.text)).collect()
        })
    }

    #[test]
    fn traffic_is_read_with_its_defaults() {
        let yaml = "version_labels: { stable: 3, canary: \"10\" }\n\
            traffic: { split: { \"10\": 10, \"3\": 90 }, header: X-Model-Version, sticky: header:X-User,\n\
            shadow: { to: 5, share: 0.05 } }\n";
        let routing = routing(&load(yaml).unwrap());
        assert_eq!((&*routing.labels["stable"], &*routing.labels["canary"]), ("3", "10"));
        let traffic = routing.traffic;
        let split: Vec<_> = traffic.split.iter().map(|(version, weight)| (&**version, weight.get())).collect();
        assert_eq!(split, [("3", 90), ("10", 10)]);
        assert_eq!(traffic.header.as_deref(), Some("x-model-version"));
        assert_eq!(traffic.sticky, Some(Sticky::Header("x-user".into())));
        assert_eq!(traffic.shadow, Some(Shadow { to: "5".into(), share: 50_000, ..Shadow::default() }));
    }

    #[test]
    fn what_is_wrong_with_traffic_is_all_named() {
        let yaml = "version_labels: { \"3\": 3, \"a b\": 1 }\nwarmup: [../x.json]\n\
            traffic: { split: { \"03\": 1, \"5\": 2000000 }, header: authorization, sticky: sometimes,\n\
            shadow: { to: 5, share: 0 } }\n";
        let problems = load(yaml).unwrap_err();
        for path in [
            "version_labels.3",
            "version_labels.a b",
            "warmup[0]",
            "traffic.split.03",
            "traffic.split.5",
            "traffic.header",
            "traffic.sticky",
            "traffic.shadow.to",
            "traffic.shadow.share",
        ] {
            assert!(problems.iter().any(|problem| problem.contains(&format!("{path}:"))), "{path}: {problems:#?}");
        }
        assert_eq!(problems.len(), 9, "{problems:#?}");
        assert!(load("traffic: { sticky: identity }").unwrap_err()[0].contains("no `split`"));
        assert!(load("traffic: { shadow: { share: 1 } }").unwrap_err()[0].contains("is missing"));
    }
}
