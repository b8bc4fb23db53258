//! Finds models on disk: `NAME/VERSION/model.onnx`.
//!
//! Looks at names and sizes only; what is in the files is for the opener.

use super::{Load, ModelSettings, Settings, Source, VersionPolicy};
use crate::{builtin::files, call::LoadRequest};
use bytes::Bytes;
use std::{
    collections::{BTreeSet, HashSet},
    fmt, fs, io,
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

/// Something that should have been a model, or that a model says and that is not so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) about: About,
    /// For operators, in plain words.
    pub(super) reason: String,
}

/// What a [`Problem`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// A directory of models.
    Directory(String),
    /// A model, or a folder that should have been one, by its name.
    Model(Arc<str>),
    /// A folder in a model's that should have been a version. The model's other versions are served all the same.
    Version(Arc<str>, Arc<str>),
}

// === impl Problem ===

impl Problem {
    /// Whether it concerns the model as a whole, and not only a folder that is none of its versions.
    pub(super) const fn is_about_all(&self) -> bool {
        !matches!(self.about, About::Version(..))
    }

    fn model(name: impl Into<Arc<str>>, reason: impl Into<String>) -> Self {
        Self { about: About::Model(name.into()), reason: reason.into() }
    }
}

// === impl About ===

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => f.write_str(path),
            Self::Model(name) => f.write_str(name),
            Self::Version(name, version) => write!(f, "{name}/{version}"),
        }
    }
}

/// All models in the directories of `settings` that are to be loaded, by name and ascending version.
pub(super) fn scan(settings: &Settings) -> (Vec<Found>, Vec<Problem>) {
    let (mut found, mut problems) = all(settings);
    if let Load::Names(wanted) = &settings.load {
        let is_there = |name: &str| {
            found.iter().any(|found| *found.name == *name)
                || problems.iter().any(|problem| matches!(&problem.about, About::Model(about) if **about == *name))
        };
        let mut missing: Vec<_> = wanted.iter().filter(|name| !is_there(name)).cloned().collect();
        missing.sort_unstable();
        let reason = "is listed in `models.load` and not there";
        problems.extend(missing.into_iter().map(|name| Problem::model(name, reason)));
    }
    refuse_headers(&mut found);
    (found, problems)
}

/// Refuses models whose rules of traffic look at more headers than front-ends keep for all models together: of two that
/// are found the first by name has its own.
fn refuse_headers(found: &mut [Found]) {
    let mut kept = BTreeSet::new();
    for found in found.iter_mut().filter(|found| found.fault.is_none()) {
        match found.settings.routing.beyond(&kept) {
            None => kept.extend(found.settings.routing.headers().cloned()),
            Some(reason) => found.fault = Some(reason),
        }
    }
}

/// The folder that is the model `name`: of several directories that have one the first in which it looks like a model's.
///
/// # Errors
///
/// A folder that cannot be read. It may be the one, so none is found.
pub(super) fn folder_of(settings: &Settings, name: &str) -> io::Result<Option<PathBuf>> {
    for directory in &settings.directories {
        let path = directory.join(name);
        if is_folder(&path)? && is_model(&path)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Whether a folder looks like a model's: it has a version, or says something of itself.
pub(super) fn is_model(path: &Path) -> io::Result<bool> {
    for (name, path) in children(path)? {
        if number(&name).is_some() && is_folder(&path)? {
            return Ok(true);
        }
    }
    says_something(path)
}

/// Whether there is a folder, or a link to one.
///
/// # Errors
///
/// Whatever it is that keeps that from being known: what cannot be looked at for a moment is not gone.
pub(super) fn is_folder(path: &Path) -> io::Result<bool> {
    Ok(metadata(path)?.is_some_and(|data| data.is_dir()))
}

/// What is at `path`, links followed; `None` if nothing is.
fn metadata(path: &Path) -> io::Result<Option<fs::Metadata>> {
    match fs::metadata(path) {
        Ok(data) => Ok(Some(data)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

fn all(settings: &Settings) -> (Vec<Found>, Vec<Problem>) {
    let mut found = Vec::new();
    let mut problems = Vec::new();
    let mut names = HashSet::new();
    for directory in &settings.directories {
        match children(directory) {
            Err(error) => problems.push(Problem {
                about: About::Directory(directory.display().to_string()),
                reason: format!("cannot be read: {error}"),
            }),
            Ok(children) => {
                for (name, path) in children.into_iter().filter(|(name, _)| settings.load.includes(name)) {
                    // As [`folder_of`]: the first one that looks like a model's.
                    let looks = is_folder(&path).and_then(|is_folder| match is_folder {
                        true => is_model(&path).map(Some),
                        false => Ok(None),
                    });
                    let is_model = match looks {
                        Ok(Some(is_model)) => is_model,
                        Ok(None) => continue,
                        // It may be the one, so none of the others is.
                        Err(error) => {
                            names.insert(name.clone());
                            problems.push(Problem::model(name, unreadable(&error)));
                            continue;
                        }
                    };
                    if is_model && !names.insert(name.clone()) {
                        let reason = format!("`{}` has another model of this name", path.display());
                        problems.push(Problem::model(name, reason));
                        continue;
                    }
                    match model(&name, Place::folder(&path), settings, &mut problems) {
                        Ok(versions) => found.extend(versions),
                        Err(reason) => problems.push(Problem::model(name, reason)),
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
    let only = Settings { load: Load::Names(HashSet::from([name.to_owned()])), ..settings.clone() };
    let (found, problems) = all(&only);
    let fits = |found: &Found| version.is_none_or(|version| *found.version == *version);
    let Some(found) = found.into_iter().rfind(fits) else {
        let problem = problems.into_iter().next().map(|problem| format!("{}: {}", problem.about, problem.reason));
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
    let is_one = |(name, path): &(String, PathBuf)| {
        check_name(name).is_ok() && is_folder(path).is_ok_and(|is_folder| is_folder) && is_model(path).unwrap_or(false)
    };
    let mut names: Vec<Arc<str>> = folders.filter(is_one).map(|(name, _)| name.into()).collect();
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
        let path = match brought {
            Some(path) => Some(path),
            None => folder_of(settings, name).map_err(|error| unreadable(&error))?,
        };
        // What only lies where a model should be has a reason to be told.
        let other = || settings.directories.iter().map(|directory| directory.join(&**name)).find(|path| path.is_dir());
        let Some(path) = path.or_else(other) else {
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
            problems.push(Problem::model(Arc::clone(name), reason));
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
    let children = children(path).map_err(|error| unreadable(&error))?;
    let misplaced = children.iter().any(|(_, path)| path.extension().is_some_and(|extension| extension == "onnx"));
    let mut numbered = Vec::new();
    for (version, path) in &children {
        // A version that cannot be looked at for a moment is there all the same, so that what is served would not be all.
        match number(version) {
            Some(number) if is_folder(path).map_err(|error| unreadable(&error))? => numbered.push(number),
            _ => {}
        }
    }
    for (version, path) in children.iter().filter(|(version, path)| number(version).is_none() && path.is_dir()) {
        if path.join(FILE).exists() {
            let reason = "is no version: expected a positive integer below 2^64, without leading zeros".to_owned();
            problems.push(Problem { about: About::Version(name.into(), (&**version).into()), reason });
        }
    }
    // Folders of scripts and data may lie among the models; what has a file of its own here may be an ensemble.
    let may_be_model = !numbered.is_empty() || says_something(path).map_err(|error| unreadable(&error))?;
    let unversioned = || match misplaced {
        true => Err(format!("has no version: expected `{name}/1/{FILE}`")),
        false => Ok(Vec::new()),
    };
    if !may_be_model {
        return unversioned();
    }
    check_name(name)?;
    // As every file that is read whole, only from within the folder: its problems are shown to callers.
    let is_there = |spec: &str| files::inside(path, Path::new(spec)).map(|found| found.is_some());
    let specs = SPECS.iter().try_fold(config.is_some(), |found, spec| Ok(is_there(spec)? || found));
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
    let strays = |served: &[u64], problems: &mut Vec<Problem>| {
        for (what, version) in settings.routing.strays(served) {
            let hint = "it is not there, or not among `versions`";
            let reason = format!("{what} is version {version}, which is not served: {hint}");
            problems.push(Problem::model(name, reason));
        }
    };
    let chosen = match only {
        Some(version) => {
            // Others may be served already, or be loaded next.
            strays(&numbered, problems);
            numbered.into_iter().filter(|found| *found == version).collect()
        }
        // Which versions are wanted is not known; one of them tells callers and operators that it is not served.
        None if fault.is_some() => VersionPolicy::Latest(1).choose(numbered),
        None => {
            if let VersionPolicy::Only(wanted) = &settings.versions {
                for version in wanted.iter().filter(|version| !numbered.contains(version)) {
                    let reason = format!("version {version} is configured (`versions`) and not there");
                    problems.push(Problem::model(name, reason));
                }
            }
            let chosen = settings.versions.choose(numbered);
            strays(&chosen, problems);
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
pub(super) fn says_something(path: &Path) -> io::Result<bool> {
    SPECS.iter().try_fold(false, |says, spec| Ok(says || metadata(&path.join(spec))?.is_some()))
}

fn unreadable(error: &io::Error) -> String {
    format!("cannot be read: {error}")
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
#[path = "scan_tests.rs"]
mod tests;
