//! Finds the ONNX Runtime to load (architecture, decision 6).
//!
//! In this order: the path that the operator names, `ORT_DYLIB_PATH`, beside the executable, the system's library
//! path. A path that was named and cannot be used is an error, and nothing else is tried in its place.

use super::values::load_version;
use std::{
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
};

/// The oldest ONNX Runtime that has the API we use, as `1.n` (ort's feature `api-24`).
const OLDEST: u32 = ort::MINOR_VERSION;
/// The variable that names a library, ort's own.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// What the system's library path is asked for.
const SYSTEM_NAMES: &[&str] =
    if cfg!(target_os = "macos") { &["libonnxruntime.dylib"] } else { &["libonnxruntime.so", "libonnxruntime.so.1"] };

/// Why there is no ONNX Runtime. Its text is for operators: what was tried, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError(pub(super) Vec<String>);

/// A library that has been loaded and is new enough.
#[derive(Debug)]
pub(super) struct Library {
    pub(super) path: PathBuf,
    pub(super) version: String,
}

/// Where to look.
#[derive(Debug)]
struct Places {
    explicit: Option<PathBuf>,
    variable: Option<OsString>,
    executable: Option<PathBuf>,
    system: &'static [&'static str],
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no usable ONNX Runtime (1.{OLDEST} or newer): run `make onnxruntime`, or name a library with \
             `--onnxruntime PATH`; tried"
        )?;
        self.0.iter().try_for_each(|tried| write!(f, "\n  {tried}"))
    }
}

impl std::error::Error for LoadError {}

/// Finds and loads a library.
///
/// # Errors
///
/// [`LoadError`] lists every place that was tried and why it would not do.
pub(super) fn find(explicit: Option<&Path>) -> Result<Library, LoadError> {
    let places = Places {
        explicit: explicit.map(Path::to_owned),
        variable: env::var_os(VARIABLE).filter(|value| !value.is_empty()),
        executable: env::current_exe().ok(),
        system: SYSTEM_NAMES,
    };
    places.find()
}

// === impl Places ===

impl Places {
    fn find(self) -> Result<Library, LoadError> {
        let mut tried = Vec::new();
        if let Some(path) = self.explicit {
            return accept_named(&path, "--onnxruntime", &mut tried).ok_or(LoadError(tried));
        }
        if let Some(path) = self.variable {
            return accept_named(Path::new(&path), VARIABLE, &mut tried).ok_or(LoadError(tried));
        }
        for folder in self.executable.as_deref().map(beside).unwrap_or_default() {
            if let Some(library) = accept_folder(&folder, &mut tried) {
                return Ok(library);
            }
        }
        for name in self.system {
            if let Some(library) = accept(Path::new(name), &mut tried) {
                return Ok(library);
            }
        }
        Err(LoadError(tried))
    }
}

/// The folders that belong to the executable: its own, `onnxruntime` in it, and where `make` puts the library while
/// the executable lies where cargo builds it.
fn beside(executable: &Path) -> Vec<PathBuf> {
    let Some(mut folder) = executable.parent() else { return Vec::new() };
    let mut folders = vec![folder.to_owned(), folder.join("onnxruntime")];
    let is_named = |folder: &Path, names: &[&str]| names.iter().any(|name| folder.ends_with(name));
    // target/PROFILE/deps/test: tests and benches.
    if is_named(folder, &["deps", "examples"]) {
        folder = folder.parent().unwrap_or(folder);
    }
    // target/PROFILE/sluicegate, or target/TRIPLE/PROFILE/sluicegate. No other executable may load from above its own
    // folder: who may write there is not known.
    if is_named(folder, &["release", "debug"]) {
        folders.extend(folder.ancestors().skip(1).take(2).map(|above| above.join("onnxruntime")));
    }
    folders
}

/// Accepts a file, a folder with a library in it, or a bare name that the system finds.
fn accept_named(path: &Path, origin: &str, tried: &mut Vec<String>) -> Option<Library> {
    let at = tried.len();
    let library = if path.is_dir() {
        accept_folder(path, tried)
    } else if path.exists() || path.components().count() > 1 {
        accept(path, tried)
    } else {
        accept(path, tried).or_else(|| accept(&Path::new(".").join(path), tried))
    };
    for reason in &mut tried[at..] {
        reason.push_str(&format!(" (named by `{origin}`)"));
    }
    library
}

fn accept_folder(folder: &Path, tried: &mut Vec<String>) -> Option<Library> {
    let names =
        fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| version_in_name(name).is_some()).collect();
    // The name without a version first: who made that link has chosen. Then the newest.
    names.sort_by_key(|name| version_in_name(name).map(|version| (!version.is_empty(), std::cmp::Reverse(version))));
    if names.is_empty() {
        tried.push(format!("`{}` holds no libonnxruntime", folder.display()));
    }
    names.iter().find_map(|name| accept(&folder.join(name), tried))
}

fn accept(path: &Path, tried: &mut Vec<String>) -> Option<Library> {
    let is_name = path.components().count() == 1 && !path.exists();
    // A path is made absolute, because a relative one means something else to each loader; a bare name must stay one.
    let path = if is_name { path.to_owned() } else { std::path::absolute(path).unwrap_or_else(|_| path.to_owned()) };
    if !is_name && !path.exists() {
        tried.push(format!("`{}` does not exist", path.display()));
        return None;
    }
    match load_version(&path) {
        Ok(version) if is_new_enough(&version) => Some(Library { path, version }),
        Ok(version) => {
            tried.push(format!("`{}` is ONNX Runtime {version}, expected 1.{OLDEST} or newer", path.display()));
            None
        }
        Err(reason) => {
            tried.push(format!("`{}` cannot be loaded: {reason}", path.display()));
            None
        }
    }
}

/// `1.32.0` and the like; a version that cannot be read is too old.
fn is_new_enough(version: &str) -> bool {
    let mut parts = version.split(['.', '-', '+']).map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    major > 1 || (major == 1 && minor >= OLDEST)
}

/// The numbers in the name of a library, none if it has none; `None` for any other file.
fn version_in_name(name: &str) -> Option<Vec<u32>> {
    let rest = name.strip_prefix("libonnxruntime.")?;
    // `so.1.32.0` on Linux, `1.32.0.dylib` on macOS.
    let version = match rest.strip_suffix("dylib") {
        Some(version) => version.strip_suffix('.').unwrap_or(version),
        None => rest
            .strip_prefix("so")
            .and_then(|version| version.strip_prefix('.').or(version.is_empty().then_some("")))?,
    };
    if version.is_empty() {
        return Some(Vec::new());
    }
    version.split('.').map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOWHERE: Places = Places { explicit: None, variable: None, executable: None, system: &[] };

    #[test]
    fn the_folder_that_make_fills_is_found_from_wherever_cargo_builds() {
        for executable in ["/p/target/release/sluicegate", "/p/target/debug/sluicegate", "/p/target/debug/deps/it-1f"] {
            assert!(beside(Path::new(executable)).contains(&"/p/target/onnxruntime".into()), "{executable}");
        }
        let cross = "/p/target/aarch64-unknown-linux-gnu/release/deps/bench-1f";
        assert!(beside(Path::new(cross)).contains(&"/p/target/onnxruntime".into()));
    }

    #[test]
    fn an_installed_executable_looks_no_higher_than_its_own_folder() {
        let folders = beside(Path::new("/opt/sluicegate/bin/sluicegate"));
        assert_eq!(folders, [PathBuf::from("/opt/sluicegate/bin"), "/opt/sluicegate/bin/onnxruntime".into()]);
    }

    #[test]
    fn libraries_are_told_by_their_names() {
        assert_eq!(version_in_name("libonnxruntime.so"), Some(vec![]));
        assert_eq!(version_in_name("libonnxruntime.so.1.32.0"), Some(vec![1, 32, 0]));
        assert_eq!(version_in_name("libonnxruntime.1.32.0.dylib"), Some(vec![1, 32, 0]));
        assert_eq!(version_in_name("libonnxruntime.dylib"), Some(vec![]));
        for other in
            ["libonnxruntime_providers_shared.so", "libonnxruntime.so.1.32.0.77.part", "libonnxruntime.sox", "x"]
        {
            assert_eq!(version_in_name(other), None, "{other}");
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for new in ["1.24.0", "1.32.0", "1.100.1", "2.0.0", "1.25.0-dev"] {
            assert!(is_new_enough(new), "{new}");
        }
        for old in ["1.23.9", "1.9.0", "0.99.0", "", "soon"] {
            assert!(!is_new_enough(old), "{old}");
        }
    }

    #[test]
    fn a_named_path_is_the_only_one_tried() {
        let places = Places { explicit: Some("/nowhere/lib.so".into()), system: &["libonnxruntime.so"], ..NOWHERE };
        let LoadError(tried) = places.find().unwrap_err();
        assert_eq!(tried, ["`/nowhere/lib.so` does not exist (named by `--onnxruntime`)"]);
        let places = Places { variable: Some("/nowhere/lib.so".into()), ..NOWHERE };
        let LoadError(tried) = places.find().unwrap_err();
        assert_eq!(tried, ["`/nowhere/lib.so` does not exist (named by `ORT_DYLIB_PATH`)"]);
    }

    #[test]
    fn the_error_says_what_was_tried_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let executable = folder.path().join("sluicegate");
        let places = Places { executable: Some(executable), system: &["libno-such-library.so"], ..NOWHERE };
        let text = places.find().unwrap_err().to_string();
        assert!(text.contains("make onnxruntime") && text.contains("--onnxruntime PATH"), "{text}");
        assert!(text.contains(&format!("`{}` holds no libonnxruntime", folder.path().display())), "{text}");
        assert!(text.contains("`libno-such-library.so` cannot be loaded"), "{text}");
    }

    #[test]
    fn a_library_that_is_too_old_is_named_with_its_version() {
        // An ONNX Runtime of which only the version is real; a C compiler is needed to build this crate anyway.
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("old.c");
        let text = "static const void *api(unsigned n) { return 0; }\n\
                    static const char *version(void) { return \"1.17.3\"; }\n\
                    struct { const void *(*a)(unsigned); const char *(*v)(void); } base = { api, version };\n\
                    void *OrtGetApiBase(void) { return &base; }\n";
        fs::write(&source, text).unwrap();
        let library = folder.path().join("libonnxruntime.so.1.17.3");
        let built =
            std::process::Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
        assert!(built.unwrap().success());
        // And it is passed over where nobody has named it.
        let executable = folder.path().join("sluicegate");
        for places in
            [Places { explicit: Some(library.clone()), ..NOWHERE }, Places { executable: Some(executable), ..NOWHERE }]
        {
            let text = places.find().unwrap_err().to_string();
            let expected = format!("`{}` is ONNX Runtime 1.17.3, expected 1.{OLDEST} or newer", library.display());
            assert!(text.contains(&expected), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_an_error_and_no_crash() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("libonnxruntime.so"), "not a library").unwrap();
        let places = Places { explicit: Some(folder.path().into()), ..NOWHERE };
        let text = places.find().unwrap_err().to_string();
        assert!(text.contains("libonnxruntime.so` cannot be loaded"), "{text}");
    }
}
