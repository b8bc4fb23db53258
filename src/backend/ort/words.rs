//! What a process that tries a model file is told of the session, as words of a command line.
//!
//! Threads and arenas are not told: a file is tried with one thread, and its memory ends with the process.

use crate::backend::{Optimization, Provider, ProviderKind, SessionOptions, SessionSettings};

/// The words for what `settings` say of optimisation and entries; and of providers, where the CPU is not among them. A model
/// that it may run is tried on it alone: a device has memory of its own, which the model itself will want.
pub(super) fn words(settings: &SessionSettings) -> Vec<String> {
    let SessionOptions { optimization, parallel, entries } = &settings.options;
    let mut words = vec![format!("optimization={}", optimization.name())];
    words.extend(parallel.map(|threads| format!("parallel={threads}")));
    words.extend(entries.iter().map(|(key, value)| format!("entry:{key}={value}")));
    if settings.providers.iter().all(|provider| provider.kind != ProviderKind::Cpu) {
        for Provider { kind, options } in &settings.providers {
            words.push(format!("provider={kind}"));
            words.extend(options.iter().map(|(key, value)| format!("option:{key}={value}")));
        }
    }
    words
}

/// What these [`words`] say.
///
/// # Errors
///
/// In plain words: the first that says nothing.
pub fn settings(words: &[String]) -> Result<SessionSettings, String> {
    let mut options = SessionOptions::default();
    let mut providers: Vec<Provider> = Vec::new();
    for word in words {
        let wrong = || format!("`{word}` says nothing of a session");
        let (what, value) = word.split_once('=').ok_or_else(wrong)?;
        let pair = |key: &str| (key.to_owned(), value.to_owned());
        match what.split_once(':').unwrap_or((what, "")) {
            ("optimization", "") => options.optimization = Optimization::named(value).ok_or_else(wrong)?,
            ("parallel", "") => options.parallel = Some(value.parse().map_err(|_| wrong())?),
            ("entry", key) => options.entries.push(pair(key)),
            ("provider", "") => {
                providers.push(Provider { kind: ProviderKind::named(value).ok_or_else(wrong)?, options: Vec::new() });
            }
            ("option", key) => providers.last_mut().ok_or_else(wrong)?.options.push(pair(key)),
            _ => return Err(wrong()),
        }
    }
    let mut settings = SessionSettings { options, ..SessionSettings::default() };
    if !providers.is_empty() {
        settings.providers = providers;
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_what_is_heard() {
        let provider = |kind, options: &[(&str, &str)]| Provider {
            kind,
            options: options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        let cuda = provider(ProviderKind::Cuda, &[("device_id", "1"), ("a:b", "c=d")]);
        let tensor_rt = provider(ProviderKind::TensorRt, &[]);
        for optimization in Optimization::ALL {
            let entries = vec![("session.a".to_owned(), "x=1:2".to_owned()), ("b".to_owned(), String::new())];
            let options = SessionOptions { optimization, parallel: Some(3), entries };
            let sent =
                SessionSettings { providers: vec![tensor_rt.clone(), cuda.clone()], options, ..Default::default() };
            assert_eq!(settings(&words(&sent)), Ok(sent.clone()));
            // Where the CPU may run it, that is what tries it.
            let both = SessionSettings { providers: vec![cuda.clone(), Provider::CPU], ..sent.clone() };
            assert_eq!(settings(&words(&both)), Ok(SessionSettings { providers: vec![Provider::CPU], ..sent }));
        }
        let none = SessionSettings::default();
        assert_eq!(settings(&words(&none)), Ok(none));
    }

    #[test]
    fn a_word_that_says_nothing_is_named() {
        for word in ["", "x", "optimization=most", "parallel=-1", "provider=gpu", "option:a=b", "threads=2"] {
            let refused = settings(&[word.to_owned()]).unwrap_err();
            assert_eq!(refused, format!("`{word}` says nothing of a session"));
        }
    }
}
