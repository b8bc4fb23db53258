//! The names of classes, from the files in a model's folder (contract 02 section 8).
//!
//! Which output a file is for is the model's own to say; how it is read is `builtin::files`'.

use super::{ModelSettings, classify::Labels};
use crate::{
    builtin::files::{self, name},
    tensor::Signature,
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The file that serves a model with one output, if nothing else is said.
const FILE: &str = "labels.txt";

/// What files of labels hold that may be for some output, read before it is known which outputs there are.
#[derive(Clone, Debug, Default)]
pub(super) struct Opened(HashMap<PathBuf, Result<Option<Labels>, String>>);

/// Reads the files that a model's labels may be in. `folder` is the model's. Blocks.
pub(super) fn open(settings: &ModelSettings, folder: &Path) -> Opened {
    let only = settings.labels.is_empty().then_some(Path::new(FILE));
    let paths = settings.labels.iter().map(|(_, path)| path.as_path()).chain(only);
    Opened(paths.map(|path| (path.to_owned(), file(folder, path))).collect())
}

/// The labels of each output of `signature`. `folder` is the model's. Blocks.
///
/// # Errors
///
/// For operators, in plain words: an output that the model has not, or a file that cannot be read or is no UTF-8.
pub(super) fn read(
    settings: &ModelSettings,
    folder: &Path,
    signature: &Signature,
) -> Result<Vec<Option<Labels>>, String> {
    assign(settings, signature, &|path| file(folder, path))
}

/// The same, of files that were read before.
pub(super) fn of(
    settings: &ModelSettings,
    opened: &Opened,
    signature: &Signature,
) -> Result<Vec<Option<Labels>>, String> {
    assign(settings, signature, &|path| opened.0.get(path).cloned().unwrap_or(Ok(None)))
}

/// Gives each output its labels, where `file` has what is in a file.
fn assign(
    settings: &ModelSettings,
    signature: &Signature,
    file: &dyn Fn(&Path) -> Result<Option<Labels>, String>,
) -> Result<Vec<Option<Labels>>, String> {
    let mut labels = vec![None; signature.outputs.len()];
    for (output, path) in &settings.labels {
        let place = signature.outputs.iter().position(|spec| spec.name == *output);
        let place = place.ok_or_else(|| format!("has labels for `{output}`, which is no output of the model"))?;
        let found = file(path)?.ok_or_else(|| format!("has labels in `{}`, which is not there", name(path)))?;
        labels[place] = Some(found);
    }
    if let ([only], true) = (labels.as_mut_slice(), settings.labels.is_empty()) {
        *only = file(Path::new(FILE))?;
    }
    Ok(labels)
}

/// The lines of a file; `None` if there is no such file.
fn file(folder: &Path, path: &Path) -> Result<Option<Labels>, String> {
    let text = files::text(folder, path)?;
    Ok(text.map(|text| text.lines().map(|line| Arc::from(line.trim_end())).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::TensorSpec;

    fn signature(outputs: &[&str]) -> Signature {
        let spec = |name: &&str| TensorSpec { name: (*name).into(), dtype: None, dims: Vec::new() };
        Signature { inputs: Vec::new(), outputs: outputs.iter().map(spec).collect() }
    }

    #[test]
    fn one_output_has_the_file_of_that_name_and_two_have_none() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "cat\r\ndog\n").unwrap();
        let settings = ModelSettings::default();
        let found = read(&settings, folder.path(), &signature(&["y"])).unwrap();
        assert_eq!(found[0].as_deref(), Some(&["cat".into(), "dog".into()][..]));
        assert_eq!(read(&settings, folder.path(), &signature(&["y", "z"])).unwrap(), [None, None]);
    }

    #[test]
    fn the_folder_may_be_relative() {
        let folder = Path::new("models/digits");
        let found = |labels| read(&ModelSettings { labels, ..ModelSettings::default() }, folder, &signature(&["y"]));
        for labels in [Vec::new(), vec![("y".into(), FILE.into())]] {
            assert_eq!(found(labels).unwrap()[0].as_ref().map(|labels| labels.len()), Some(10));
        }
    }

    #[test]
    fn what_is_named_must_be_there_and_readable() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("raw"), [0xFF]).unwrap();
        let named = |output: &str, file: &str| {
            let labels = vec![(output.into(), file.into())];
            let settings = ModelSettings { labels, ..ModelSettings::default() };
            read(&settings, folder.path(), &signature(&["y"])).unwrap_err()
        };
        assert_eq!(named("z", "raw"), "has labels for `z`, which is no output of the model");
        assert_eq!(named("y", "absent"), "has labels in `absent`, which is not there");
        assert!(named("y", "raw").contains("UTF-8"));
        let fifo = folder.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        assert_eq!(named("y", "fifo"), "`fifo` is not a regular file");
        assert!(named("y", "..").ends_with("leads outside the model's folder"));
        std::fs::create_dir(folder.path().join("within")).unwrap();
        assert!(named("y", "within").ends_with("is not a regular file"));
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("link")).unwrap();
        assert_eq!(named("y", "link"), "`link` is a link that leads outside the model's folder");
    }

    #[test]
    fn links_within_the_folder_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("..data")).unwrap();
        std::fs::write(folder.path().join("..data").join(FILE), "cat\n").unwrap();
        std::os::unix::fs::symlink(Path::new("..data").join(FILE), folder.path().join(FILE)).unwrap();
        let found = read(&ModelSettings::default(), folder.path(), &signature(&["y"])).unwrap();
        assert_eq!(found[0].as_deref(), Some(&["cat".into()][..]));
    }
}
