//! Files in a model's folder that are read whole: bounded, regular, and nowhere else.
//!
//! A model from somewhere else must not make the server tell its callers what is in other files, so links are followed
//! only within the model's folder.

use std::{
    borrow::Cow,
    fs::File,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Largest such file, bytes: a million classes with long names, or the largest vocabulary.
const LARGEST: u64 = 64 << 20;

/// The text of the file at `path`, which lies in `folder`; `None` if there is no such file.
///
/// # Errors
///
/// For operators, in plain words: it leads out of the folder, is no regular file, no UTF-8, or larger than 64 MiB.
pub fn text(folder: &Path, path: &Path) -> Result<Option<String>, String> {
    let Some(real) = inside(folder, path)? else { return Ok(None) };
    let unreadable = |error: std::io::Error| format!("`{}` cannot be read: {error}", name(path));
    let file = File::open(real).map_err(unreadable)?;
    let mut text = String::new();
    file.take(LARGEST + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > LARGEST {
        return Err(format!("`{}` is larger than {} MiB", name(path), LARGEST >> 20));
    }
    Ok(Some(text))
}

/// Where the file at `path`, which lies in `folder`, really is; `None` if there is no such file.
///
/// # Errors
///
/// For operators, in plain words: it leads out of the folder, or is no regular file.
pub fn inside(folder: &Path, path: &Path) -> Result<Option<PathBuf>, String> {
    let unreadable = |error: std::io::Error| format!("`{}` cannot be read: {error}", name(path));
    let real = match folder.join(path).canonicalize() {
        Ok(real) => real,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    if !real.starts_with(folder.canonicalize().map_err(unreadable)?) {
        return Err(format!("`{}` is a link that leads outside the model's folder", name(path)));
    }
    // Before it is opened: opening what is no file may wait for ever.
    if !real.metadata().map_err(unreadable)?.is_file() {
        return Err(format!("`{}` is not a regular file", name(path)));
    }
    Ok(Some(real))
}

/// The lines of a file that must be there, without what is blank at their ends.
///
/// # Errors
///
/// As [`text`], and that it is not there.
pub fn lines(folder: &Path, path: &Path) -> Result<Vec<Arc<str>>, String> {
    let text = text(folder, path)?.ok_or_else(|| format!("`{}` is not there", name(path)))?;
    Ok(text.lines().map(|line| Arc::from(line.trim_end())).collect())
}

/// The last part of a path, for messages.
pub fn name(path: &Path) -> Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}
