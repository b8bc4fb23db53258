//! Finds models on disk: `NAME/VERSION/model.onnx`.
//!
//! Looks at names and sizes only; what is in the files is for the opener.

use super::{ModelSettings, Settings, VersionPolicy};
use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The file of a version.
const FILE: &str = "model.onnx";

/// A model's own settings.
const SPEC: &str = "model.yaml";

/// One version of a model that is to be served.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) name: Arc<str>,
    pub(super) version: Arc<str>,
    pub(super) path: PathBuf,
    /// Size of the file; weights kept outside it do not count.
    pub(super) bytes: u64,
    pub(super) settings: ModelSettings,
}

/// A folder or file that should have been a model, and why it is none.
pub(super) type Problem = (String, String);

/// All models in the directories of `settings` that are to be loaded, by name and ascending version.
pub(super) fn scan(settings: &Settings) -> (Vec<Found>, Vec<Problem>) {
    let mut found = Vec::new();
    let mut problems = Vec::new();
    let mut names = HashSet::new();
    for directory in &settings.directories {
        match children(directory) {
            Err(error) => problems.push((directory.display().to_string(), format!("cannot be read: {error}"))),
            Ok(children) => {
                for (name, path) in children.into_iter().filter(|(_, path)| path.is_dir()) {
                    if !settings.load.includes(&name) {
                        continue;
                    }
                    let result = model(&name, &path, settings, &mut problems);
                    match result {
                        Ok(versions) if versions.is_empty() => {}
                        Ok(_) if !names.insert(name.clone()) => {
                            problems.push((name, format!("`{}` has another model of this name", path.display())));
                        }
                        Ok(versions) => found.extend(versions),
                        Err(reason) => problems.push((name, reason)),
                    }
                }
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    (found, problems)
}

/// The versions of the model in the folder `path`; none if it is no model at all.
fn model(name: &str, path: &Path, settings: &Settings, problems: &mut Vec<Problem>) -> Result<Vec<Found>, String> {
    let children = children(path).map_err(|error| format!("cannot be read: {error}"))?;
    let misplaced = children.iter().any(|(_, path)| path.extension().is_some_and(|extension| extension == "onnx"));
    let folders = || children.iter().filter(|(_, path)| path.is_dir());
    let numbered: Vec<u64> = folders().filter_map(|(name, _)| number(name)).collect();
    for (version, path) in folders().filter(|(version, _)| number(version).is_none()) {
        if path.join(FILE).exists() {
            let reason = "is no version: expected a positive integer without leading zeros".to_owned();
            problems.push((format!("{name}/{version}"), reason));
        }
    }
    if numbered.is_empty() {
        let hint = format!("has no version: expected `{name}/1/{FILE}`");
        // Folders of scripts and data may lie among the models.
        return if misplaced { Err(hint) } else { Ok(Vec::new()) };
    }
    check_name(name)?;
    let spec = path.join(SPEC);
    let settings = match (&settings.reader, spec.exists()) {
        (_, false) => settings.defaults.clone(),
        (Some(reader), true) => reader.read(&spec, &settings.defaults)?,
        (None, true) => return Err(format!("has a `{SPEC}`, and nothing here reads it")),
    };
    if let VersionPolicy::Only(wanted) = &settings.versions {
        for version in wanted.iter().filter(|version| !numbered.contains(version)) {
            problems.push((format!("{name}/{version}"), "is configured and not there".to_owned()));
        }
    }
    let name: Arc<str> = name.into();
    let chosen = settings.versions.choose(numbered);
    Ok(chosen
        .into_iter()
        .map(|version| {
            let path = path.join(version.to_string()).join(FILE);
            let bytes = fs::metadata(&path).map_or(0, |data| data.len());
            Found {
                name: Arc::clone(&name),
                version: version.to_string().into(),
                path,
                bytes,
                settings: settings.clone(),
            }
        })
        .collect())
}

/// Children of a folder that are not hidden and whose names are UTF-8, sorted.
fn children(path: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut children = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
        {
            children.push((name, entry.path()));
        }
    }
    children.sort();
    Ok(children)
}

/// Triton's rule: decimal, and nothing that begins with a zero.
fn number(version: &str) -> Option<u64> {
    let decimal = version.bytes().all(|byte| byte.is_ascii_digit()) && !version.starts_with('0');
    version.parse().ok().filter(|_| decimal)
}

/// What may stand in a path, a label and a log line. `stats` is a route of its own (contract 02 section 6).
fn check_name(name: &str) -> Result<(), String> {
    if name == "stats" {
        return Err("the name `stats` is taken by a route".to_owned());
    }
    let sane = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.len() > 128 || !name.bytes().all(sane) {
        return Err("a model's name has 1 to 128 letters, digits, `.`, `_` or `-`".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Load, Reader, testing::directory};

    fn settings(directory: &tempfile::TempDir) -> Settings {
        Settings { directories: vec![directory.path().to_owned()], ..Settings::default() }
    }

    fn names(found: &[Found]) -> Vec<String> {
        found.iter().map(|found| format!("{}/{}", found.name, found.version)).collect()
    }

    #[test]
    fn the_latest_version_is_found_and_other_files_are_passed_over() {
        let directory = directory(&[
            ("digits/1/model.onnx", "ok"),
            ("digits/2/model.onnx", "ok"),
            ("digits/labels.txt", ""),
            ("digits/train.py", ""),
            ("scripts/make.py", ""),
            (".hidden/1/model.onnx", "ok"),
            ("README.md", ""),
        ]);
        let (found, problems) = scan(&settings(&directory));
        assert_eq!(names(&found), ["digits/2"]);
        assert_eq!(found[0].bytes, 2);
        assert_eq!(problems, []);
    }

    #[test]
    fn what_looks_like_a_model_and_is_none_is_reported() {
        let directory = directory(&[
            ("flat/model.onnx", "ok"),
            ("bad name/1/model.onnx", "ok"),
            ("stats/1/model.onnx", "ok"),
            ("mixed/1/model.onnx", "ok"),
            ("mixed/latest/model.onnx", "ok"),
            ("mixed/01/model.onnx", "ok"),
        ]);
        let (found, problems) = scan(&settings(&directory));
        assert_eq!(names(&found), ["mixed/1"]);
        let mut whats: Vec<_> = problems.iter().map(|(what, _)| &**what).collect();
        whats.sort_unstable();
        assert_eq!(whats, ["bad name", "flat", "mixed/01", "mixed/latest", "stats"]);
    }

    #[test]
    fn a_directory_that_is_not_there_is_reported() {
        let settings = Settings { directories: vec!["/nonexistent".into()], ..Settings::default() };
        let (found, problems) = scan(&settings);
        assert!(found.is_empty());
        assert_eq!(problems[0].0, "/nonexistent");
    }

    #[test]
    fn of_two_models_with_one_name_the_first_is_served() {
        let one = directory(&[("m/1/model.onnx", "ok")]);
        let two = directory(&[("m/2/model.onnx", "ok")]);
        let directories = vec![one.path().to_owned(), two.path().to_owned()];
        let (found, problems) = scan(&Settings { directories, ..Settings::default() });
        assert_eq!(names(&found), ["m/1"]);
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn only_what_is_asked_for_is_loaded() {
        let directory = directory(&[("a/1/model.onnx", "ok"), ("b/1/model.onnx", "ok")]);
        let load = Load::Names(["b".to_owned()].into());
        assert_eq!(names(&scan(&Settings { load, ..settings(&directory) }).0), ["b/1"]);
        assert!(scan(&Settings { load: Load::None, ..settings(&directory) }).0.is_empty());
    }

    #[test]
    fn a_models_own_settings_are_read_and_never_ignored() {
        let directory = directory(&[("m/1/model.onnx", "ok"), ("m/2/model.onnx", "ok"), ("m/model.yaml", "")]);
        let (found, problems) = scan(&settings(&directory));
        assert!(found.is_empty() && problems.len() == 1);
        let reader = Reader::new(|_, defaults| Ok(ModelSettings { versions: VersionPolicy::All, ..defaults.clone() }));
        let (found, _) = scan(&Settings { reader: Some(reader), ..settings(&directory) });
        assert_eq!(names(&found), ["m/1", "m/2"]);
    }

    #[test]
    fn a_version_that_is_configured_must_be_there() {
        let directory = directory(&[("m/1/model.onnx", "ok")]);
        let mut settings = settings(&directory);
        settings.defaults.versions = VersionPolicy::Only(vec![1, 7]);
        let (found, problems) = scan(&settings);
        assert_eq!(names(&found), ["m/1"]);
        assert_eq!(problems[0].0, "m/7");
    }
}
