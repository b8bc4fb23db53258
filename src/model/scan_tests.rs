//! Finding models on disk.

use super::*;
use crate::model::{Load, Reader, testing::directory};

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
    for part in ["..", "../m", "../../etc/passwd", "/m", "/", "m/", "m/..", "m/../n", "./m", ".", ".m", "..m", "stats"]
    {
        names.push(part.to_owned());
        names.push(part.replace('/', "\\"));
        names.push(part.replace('/', "%2f"));
    }
    // Letters of other scripts that look like ours, signs that are not seen, and slashes that are none.
    let confusing =
        ["\u{430}", "\u{2215}", "\u{ff0f}", "\u{2024}", "\u{ff0e}", "\u{200b}", "\u{202e}", "\u{feff}", "\u{ad}", "é"];
    names.extend(confusing.iter().flat_map(|sign| [format!("m{sign}"), format!("{sign}{sign}m"), (*sign).to_owned()]));
    names.extend([String::new(), "m".repeat(129), "C:m".to_owned(), "~".to_owned(), "$HOME".to_owned()]);
    let bad = names.iter().filter(|name| *name != "stats" && check_name(name).is_ok()).collect::<Vec<_>>();
    assert!(names.len() >= 200, "{}", names.len());
    assert!(bad.is_empty(), "{bad:?}");
    let directory = directory(&[("in/m/1/model.onnx", "ok"), ("out/1/model.onnx", "ok")]);
    let settings = Settings { directories: vec![directory.path().join("in")], ..Settings::default() };
    for name in names.iter().map(String::as_str).chain(["stats"]) {
        let model = crate::call::ModelRef { name: name.into(), version: None };
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
    let mut whats: Vec<_> = problems.iter().map(|problem| problem.about.to_string()).collect();
    whats.sort_unstable();
    assert_eq!(whats, ["bad name", "flat", "mixed/01", "mixed/latest", "stats"]);
}

#[test]
fn what_is_no_regular_file_is_not_opened() {
    let directory = directory(&[("a/1/x", ""), ("b/1/x", ""), ("c/1/model.onnx", "ok"), ("d/1/model.onnx/x", "")]);
    let fifo = directory.path().join("a/1/model.onnx");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("b/1/model.onnx")).unwrap();
    let beside = directory.path().join("c/pipe");
    assert!(std::process::Command::new("mkfifo").arg(&beside).status().unwrap().success());
    std::os::unix::fs::symlink("pipe", directory.path().join("c/model.yaml")).unwrap();
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
    assert_eq!(problems[0].about.to_string(), "/nonexistent");
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
    assert_eq!(problems[0].reason, "version 7 is configured (`versions`) and not there");
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
    assert_eq!(problems, [Problem::model("m", reason)]);
}

#[test]
fn what_a_model_says_of_itself_is_read_from_its_folder_alone() {
    let directory = directory(&[
        ("secret", "token"),
        ("m/1/model.onnx", "ok"),
        ("n/1/model.onnx", "ok"),
        ("k/1/model.onnx", "ok"),
        ("k/..2026/model.yaml", ""),
    ]);
    let root = directory.path();
    std::os::unix::fs::symlink(root.join("secret"), root.join("m/model.yaml")).unwrap();
    std::os::unix::fs::symlink("../secret", root.join("n/config.pbtxt")).unwrap();
    // As Kubernetes mounts a folder of files.
    std::os::unix::fs::symlink("..2026", root.join("k/..data")).unwrap();
    std::os::unix::fs::symlink("..data/model.yaml", root.join("k/model.yaml")).unwrap();
    let reader = Reader::new(|source, defaults| {
        assert_eq!(source.name, "k", "others are not read");
        Ok(defaults.clone())
    });
    let (found, _) = scan(&Settings { reader: Some(reader), ..settings(&directory) });
    let faults: Vec<_> = found.iter().map(|found| found.fault.as_deref()).collect();
    let outside = |file: &str| format!("`{file}` is a link that leads outside the model's folder");
    assert_eq!(faults, [None, Some(&*outside("model.yaml")), Some(&*outside("config.pbtxt"))]);
}

#[test]
fn a_model_that_is_to_be_loaded_and_is_not_there_is_told() {
    let directory = directory(&[("a/1/model.onnx", "ok")]);
    let load = Load::Names(["a".to_owned(), "nope".to_owned()].into());
    let (found, problems) = scan(&Settings { load, ..settings(&directory) });
    assert_eq!(names(&found), ["a/1"]);
    assert_eq!(problems, [Problem::model("nope", "is listed in `models.load` and not there")]);
}

#[test]
fn headers_beyond_those_that_are_kept_refuse_the_model_that_looks_at_them() {
    let files = |number| [format!("m{number}/1/model.onnx"), format!("m{number}/model.yaml")];
    let files: Vec<_> = (10..28).flat_map(files).collect();
    let directory = directory(&files.iter().map(|path| (&**path, "ok")).collect::<Vec<_>>());
    let reader = Reader::new(|source, defaults| {
        // The last one looks at what the first looks at, too.
        let header = if source.name == "m27" { "x-m10".to_owned() } else { format!("x-{}", source.name) };
        let traffic = crate::model::Traffic { header: Some(header.into()), ..Default::default() };
        let routing = Arc::new(crate::model::Routing { traffic, ..Default::default() });
        Ok(ModelSettings { routing, ..defaults.clone() })
    });
    let (found, _) = scan(&Settings { reader: Some(reader), ..settings(&directory) });
    let refused: Vec<_> = found.iter().filter_map(|found| Some((&*found.name, found.fault.as_deref()?))).collect();
    let reason = "its rules of traffic look at `x-m26`, and models may look at 16 headers or parameters together, which \
                  others do";
    assert_eq!(refused, [("m26", reason)]);
}

#[test]
fn which_folder_is_a_model_of_two_with_one_name_is_the_same_to_all_who_look() {
    let first = directory(&[("m/notes.txt", ""), ("n/1/model.onnx", "ok"), ("both/1/model.onnx", "ok")]);
    let second = directory(&[("m/1/model.onnx", "ok"), ("n/2/model.onnx", "ok"), ("both/7/x", "")]);
    let folders = [first.path().to_owned(), second.path().to_owned()];
    let settings = Settings { directories: folders.to_vec(), ..Settings::default() };
    let (found, problems) = scan(&settings);
    assert_eq!(names(&found), ["both/1", "m/1", "n/1"]);
    let told: Vec<_> = problems.iter().map(|problem| problem.about.to_string()).collect();
    assert_eq!(told, ["both", "n"], "{problems:?}");
    let expected = [("both", 0), ("m", 1), ("n", 0)];
    for (name, place) in expected {
        let model = crate::call::ModelRef { name: name.into(), version: None };
        let (loaded, _) = one(&settings, &LoadRequest { model, config: None, files: Vec::new() });
        assert_eq!(loaded.iter().map(|found| &found.folder).collect::<Vec<_>>(), [&folders[place].join(name)]);
    }
    // And to who looks whether it has changed.
    let pictures = crate::model::picture::take(&settings).unwrap();
    std::fs::write(second.path().join("n/2/model.onnx"), "other").unwrap();
    assert_eq!(crate::model::picture::take(&settings).unwrap(), pictures);
    std::fs::write(second.path().join("m/1/model.onnx"), "other").unwrap();
    assert_ne!(crate::model::picture::take(&settings).unwrap(), pictures);
}

#[test]
fn a_folder_that_says_that_it_is_a_model_is_the_one_though_what_it_says_is_bad() {
    let first = directory(&[("m/model.yaml", "bad")]);
    let second = directory(&[("m/1/model.onnx", "ok")]);
    let settings = Settings {
        directories: vec![first.path().to_owned(), second.path().to_owned()],
        reader: Some(Reader::new(|_, _| Err("is bad".to_owned()))),
        ..Settings::default()
    };
    let (found, problems) = scan(&settings);
    let told: Vec<_> = problems.iter().map(|problem| &*problem.reason).collect();
    assert!(found.is_empty() && told.len() == 2 && told[0] == "is bad", "{told:?}");
    assert!(told[1].ends_with("has another model of this name"), "{told:?}");
}
