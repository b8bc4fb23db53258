//! Finds models on disk: `NAME/VERSION/model.onnx`.
//!
//! Looks at names and sizes only; what is in the files is for the opener.

use super::{ModelSettings, Settings, Source, VersionPolicy};
use crate::call::LoadRequest;
use bytes::Bytes;
use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;

/// The file of a version, unless the model says otherwise.
const FILE: &str = "model.onnx";

/// What a model says of itself: ours, and Triton's.
pub(super) const SPECS: [&str; 2] = ["model.yaml", "config.pbtxt"];

/// Most files that a load call may bring, and the longest name of one.
const FILES: usize = 256;
const NAME: usize = 128;

/// One version of a model that is to be served.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) name: Arc<str>,
    pub(super) version: Arc<str>,
    pub(super) path: PathBuf,
    /// Size of the file; weights kept outside it do not count.
    pub(super) bytes: u64,
    pub(super) settings: ModelSettings,
    /// What is wrong with its file or with what the model says of itself, if something is: it is not served then.
    pub(super) fault: Option<String>,
    /// The model's folder.
    pub(super) folder: PathBuf,
    /// The folder itself, if a load call brought it.
    pub(super) files: Option<Arc<TempDir>>,
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
                    let result = model(&name, Place::folder(&path), settings, &mut problems);
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

/// The file of the model `name` and how it is to run, for those who run it without loading it: its version `version`, or
/// the highest that would be served.
///
/// # Errors
///
/// In plain words: there is none, or what is wrong with it.
pub fn path_of(settings: &Settings, name: &str, version: Option<&str>) -> Result<(PathBuf, ModelSettings), String> {
    let only = Settings { load: super::Load::Names(HashSet::from([name.to_owned()])), ..settings.clone() };
    let (found, problems) = scan(&only);
    let fits = |found: &Found| version.is_none_or(|version| *found.version == *version);
    let Some(found) = found.into_iter().rfind(fits) else {
        let problem = problems.into_iter().next().map(|(what, reason)| format!("{what}: {reason}"));
        return Err(problem.unwrap_or_else(|| format!("there is no model `{name}` of that version")));
    };
    match found.fault {
        Some(fault) => Err(fault),
        None if found.settings.ensemble.is_some() => Err(format!("`{name}` is an ensemble, which has no file to run")),
        None => Ok((found.path, found.settings)),
    }
}

/// Names of everything in the directories of `settings` that looks like a model, whether it is to be loaded or not.
pub(super) fn names(settings: &Settings) -> Vec<Arc<str>> {
    let folders = settings.directories.iter().flat_map(|directory| children(directory).unwrap_or_default());
    let is_model = |(name, path): &(String, PathBuf)| {
        let versions = children(path).unwrap_or_default();
        let has_version = versions.iter().any(|(name, path)| number(name).is_some() && path.is_dir());
        check_name(name).is_ok() && (has_version || says_something(path))
    };
    let mut names: Vec<Arc<str>> = folders.filter(is_model).map(|(name, _)| name.into()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The versions that a load call means: those of its model's folder, or of the files that it brought.
///
/// None if there is no such model or version.
pub(super) fn one(settings: &Settings, request: &LoadRequest) -> (Vec<Found>, Vec<Problem>) {
    let (name, mut problems) = (&request.model.name, Vec::new());
    let found = check_name(name).and_then(|()| {
        let files = match request.files.as_slice() {
            [] => None,
            _ if request.config.is_none() => return Err("files without a `config` to go with them".to_owned()),
            files => Some(Arc::new(write(files)?)),
        };
        let brought = files.as_ref().map(|files| files.path().to_owned());
        let folders = settings.directories.iter().map(|directory| directory.join(&**name));
        let Some(path) = brought.or_else(|| folders.into_iter().find(|path| path.is_dir())) else {
            return Ok(Vec::new());
        };
        // One version alone is loaded whatever the policy says of the others.
        let only = request.model.version.as_deref().and_then(number);
        if request.model.version.is_some() && only.is_none() {
            return Ok(Vec::new());
        }
        let place = Place { path: &path, config: request.config.as_deref(), only, files };
        model(name, place, settings, &mut problems)
    });
    match found {
        Ok(found) => (found, problems),
        Err(reason) => {
            problems.push((name.as_ref().into(), reason));
            (Vec::new(), problems)
        }
    }
}

/// Puts the files of a load call, `VERSION/NAME` each, where they can be opened.
fn write(files: &[(Arc<str>, Bytes)]) -> Result<TempDir, String> {
    if files.len() > FILES {
        return Err(format!("{} files, expected at most {FILES}", files.len()));
    }
    let failed = |error: io::Error| format!("its files cannot be written: {error}");
    let folder = tempfile::tempdir().map_err(failed)?;
    for (path, data) in files {
        let parts = path.split_once('/').filter(|(version, name)| number(version).is_some() && is_file_name(name));
        let Some((version, name)) = parts else {
            let path: String = path.chars().take(NAME).collect();
            return Err(format!("file `{path}` has no place, expected `file:VERSION/NAME`"));
        };
        let version = folder.path().join(version);
        fs::create_dir_all(&version).map_err(failed)?;
        fs::write(version.join(name), data).map_err(failed)?;
    }
    Ok(folder)
}

/// A plain name: no path, nothing hidden, nothing that a shell or a log would read otherwise (attack M1).
fn is_file_name(name: &str) -> bool {
    let sane = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=NAME).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(sane)
}

/// Where a model is, and what is asked of it.
struct Place<'a> {
    path: &'a Path,
    config: Option<&'a str>,
    /// The only version that is wanted.
    only: Option<u64>,
    files: Option<Arc<TempDir>>,
}

impl<'a> Place<'a> {
    fn folder(path: &'a Path) -> Self {
        Self { path, config: None, only: None, files: None }
    }
}

/// The versions of the model in a folder; none if it is no model at all.
fn model(name: &str, place: Place<'_>, settings: &Settings, problems: &mut Vec<Problem>) -> Result<Vec<Found>, String> {
    let Place { path, config, only, files } = place;
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
    // Folders of scripts and data may lie among the models; what has a file of its own here may be an ensemble.
    let may_be_model = !numbered.is_empty() || says_something(path);
    let unversioned = || match misplaced {
        true => Err(format!("has no version: expected `{name}/1/{FILE}`")),
        false => Ok(Vec::new()),
    };
    if !may_be_model {
        return unversioned();
    }
    check_name(name)?;
    let specs = SPECS.iter().try_fold(config.is_some(), |found, spec| Ok(size(&path.join(spec))?.is_some() || found));
    let read = specs.and_then(|says_something| match (&settings.reader, says_something) {
        (_, false) => Ok(settings.defaults.clone()),
        (Some(reader), true) => reader.read(Source { name, folder: path, config }, &settings.defaults),
        (None, true) => Err("has settings of its own, and nothing here reads them".to_owned()),
    });
    let (settings, fault) = match read {
        Ok(settings) => (settings, None),
        Err(reason) if numbered.is_empty() => return Err(reason),
        Err(reason) => (settings.defaults.clone(), Some(reason)),
    };
    let numbered = match (&settings.ensemble, numbered.is_empty()) {
        (None, true) => return unversioned(),
        // There is no file of it, and no need of a folder for the file.
        (Some(_), true) => vec![1],
        (_, false) => numbered,
    };
    let chosen = match only {
        Some(version) => numbered.into_iter().filter(|found| *found == version).collect(),
        // Which versions are wanted is not known; one of them tells callers and operators that it is not served.
        None if fault.is_some() => VersionPolicy::Latest(1).choose(numbered),
        None => {
            if let VersionPolicy::Only(wanted) = &settings.versions {
                for version in wanted.iter().filter(|version| !numbered.contains(version)) {
                    problems.push((format!("{name}/{version}"), "is configured and not there".to_owned()));
                }
            }
            let chosen = settings.versions.choose(numbered);
            for (what, version) in settings.routing.strays(&chosen) {
                let hint = "it is not there, or not among `versions`";
                problems.push((name.to_owned(), format!("{what} is version {version}, which is not served: {hint}")));
            }
            chosen
        }
    };
    let name: Arc<str> = name.into();
    let found = chosen.into_iter().map(|version| {
        let file = path.join(version.to_string()).join(&*settings.file);
        // What is not there is for the opener to say.
        let (bytes, irregular) = match &settings.ensemble {
            Some(_) => (0, None),
            None => size(&file).map_or_else(|reason| (0, Some(reason)), |bytes| (bytes.unwrap_or(0), None)),
        };
        Found {
            name: Arc::clone(&name),
            version: version.to_string().into(),
            path: file,
            bytes,
            settings: settings.clone(),
            fault: fault.clone().or(irregular),
            folder: path.to_owned(),
            files: files.clone(),
        }
    });
    Ok(found.collect())
}

/// Whether the folder of a model has something to say of it.
pub(super) fn says_something(path: &Path) -> bool {
    SPECS.iter().any(|spec| path.join(spec).exists())
}

/// The size of a file; `None` if it is not there. Anything else of that name must not even be opened: opening a FIFO
/// waits until somebody writes.
fn size(path: &Path) -> Result<Option<u64>, String> {
    match fs::metadata(path) {
        Ok(data) if data.is_file() => Ok(Some(data.len())),
        Ok(_) => Err(format!("`{}` is not a regular file", path.file_name().unwrap_or_default().display())),
        Err(_) => Ok(None),
    }
}

/// Children of a folder that are not hidden and whose names are UTF-8, sorted.
pub(super) fn children(path: &Path) -> io::Result<Vec<(String, PathBuf)>> {
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
pub(super) fn number(version: &str) -> Option<u64> {
    let decimal = version.bytes().all(|byte| byte.is_ascii_digit()) && !version.starts_with('0');
    version.parse().ok().filter(|_| decimal)
}

/// What may stand in a path, a label and a log line. `stats` is a route of its own (contract 02 section 6).
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if name == "stats" {
        return Err("the name `stats` is taken by a route".to_owned());
    }
    let sane = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !(1..=NAME).contains(&name.len()) || name.starts_with('.') || !name.bytes().all(sane) {
        return Err("a model's name has 1 to 128 letters, digits, `.`, `_` or `-`, and no `.` at first".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::ModelRef,
        model::{Load, Reader, testing::directory},
    };

    fn settings(directory: &tempfile::TempDir) -> Settings {
        Settings { directories: vec![directory.path().to_owned()], ..Settings::default() }
    }

    fn names(found: &[Found]) -> Vec<String> {
        found.iter().map(|found| format!("{}/{}", found.name, found.version)).collect()
    }

    /// Attack M1: names that lead elsewhere, hide, or read as others do.
    #[test]
    fn of_two_hundred_hostile_names_none_is_a_models() {
        let mut names: Vec<String> = (0_u8..=127)
            .filter(|byte| !byte.is_ascii_alphanumeric() && !b"._-".contains(byte))
            .flat_map(|byte| [format!("m{}", byte as char), format!("{}m", byte as char)])
            .collect();
        for part in
            ["..", "../m", "../../etc/passwd", "/m", "/", "m/", "m/..", "m/../n", "./m", ".", ".m", "..m", "stats"]
        {
            names.push(part.to_owned());
            names.push(part.replace('/', "\\"));
            names.push(part.replace('/', "%2f"));
        }
        // Letters of other scripts that look like ours, signs that are not seen, and slashes that are none.
        let confusing = [
            "\u{430}", "\u{2215}", "\u{ff0f}", "\u{2024}", "\u{ff0e}", "\u{200b}", "\u{202e}", "\u{feff}", "\u{ad}",
            "é",
        ];
        names.extend(
            confusing.iter().flat_map(|sign| [format!("m{sign}"), format!("{sign}{sign}m"), (*sign).to_owned()]),
        );
        names.extend([String::new(), "m".repeat(129), "C:m".to_owned(), "~".to_owned(), "$HOME".to_owned()]);
        let bad = names.iter().filter(|name| *name != "stats" && check_name(name).is_ok()).collect::<Vec<_>>();
        assert!(names.len() >= 200, "{}", names.len());
        assert!(bad.is_empty(), "{bad:?}");
        let directory = directory(&[("in/m/1/model.onnx", "ok"), ("out/1/model.onnx", "ok")]);
        let settings = Settings { directories: vec![directory.path().join("in")], ..Settings::default() };
        for name in names.iter().map(String::as_str).chain(["stats"]) {
            let model = ModelRef { name: name.into(), version: None };
            let (found, _) = one(&settings, &LoadRequest { model, config: None, files: Vec::new() });
            assert!(found.is_empty(), "{name:?}: {found:?}");
        }
        for name in ["m", "M-1_a.b", "0", &"m".repeat(128)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
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
    fn what_is_no_regular_file_is_not_opened() {
        let directory = directory(&[("a/1/x", ""), ("b/1/x", ""), ("c/1/model.onnx", "ok"), ("d/1/model.onnx/x", "")]);
        let fifo = directory.path().join("a/1/model.onnx");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("b/1/model.onnx")).unwrap();
        std::os::unix::fs::symlink(&fifo, directory.path().join("c/model.yaml")).unwrap();
        let reader = Reader::new(|_, _| panic!("it would wait for ever"));
        let (found, problems) = scan(&Settings { reader: Some(reader), ..settings(&directory) });
        assert_eq!((names(&found), problems), (["a/1", "b/1", "c/1", "d/1"].map(str::to_owned).to_vec(), Vec::new()));
        let files = ["model.onnx", "model.onnx", "model.yaml", "model.onnx"];
        for (found, file) in found.iter().zip(files) {
            assert_eq!(found.fault.as_deref(), Some(&*format!("`{file}` is not a regular file")), "{}", found.name);
        }
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
        assert_eq!((names(&found), problems), (vec!["m/2".to_owned()], Vec::new()));
        assert!(found[0].fault.is_some(), "served with other settings than its own it would be wrong");
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

    #[test]
    fn what_names_a_version_that_is_not_served_is_told() {
        let directory = directory(&[("m/3/model.onnx", "ok"), ("m/4/model.onnx", "ok"), ("m/model.yaml", "")]);
        let labels = [("stable".into(), "3".into()), ("canary".into(), "4".into())].into();
        let routing = Arc::new(crate::model::Routing { labels, ..Default::default() });
        let reader = Reader::new(move |_, defaults| {
            Ok(ModelSettings { routing: Arc::clone(&routing), versions: VersionPolicy::Latest(1), ..defaults.clone() })
        });
        let (found, problems) = scan(&Settings { reader: Some(reader), ..settings(&directory) });
        assert_eq!(names(&found), ["m/4"]);
        let reason = "label `stable` is version 3, which is not served: it is not there, or not among `versions`";
        assert_eq!(problems, [("m".to_owned(), reason.to_owned())]);
    }
}
