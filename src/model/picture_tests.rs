//! Folders that change under the eyes of the watcher.

use super::*;
use crate::model::{Load, testing::directory};
use std::os::unix::fs::symlink;

const SECOND: Duration = Duration::from_secs(1);

fn settings(directory: &tempfile::TempDir) -> Settings {
    Settings { directories: vec![directory.path().to_owned()], ..Settings::default() }
}

fn picture(directory: &tempfile::TempDir) -> Picture {
    take(&settings(directory)).unwrap().remove("m").unwrap().unwrap()
}

fn unchanged(now: &Picture, before: &Picture) -> Vec<u64> {
    now.unchanged(before).collect()
}

#[test]
fn what_changes_is_told_apart() {
    let directory = directory(&[("m/1/model.onnx", "ok"), ("m/2/model.onnx", "ok"), ("m/model.yaml", "")]);
    let write = |path: &str, text: &str| fs::write(directory.path().join("m").join(path), text).unwrap();
    let first = picture(&directory);
    assert_eq!(first, picture(&directory), "nothing has changed");
    write("1/model.onnx", "other");
    let second = picture(&directory);
    assert_eq!(unchanged(&second, &first), [2]);
    write("model.yaml", "versions: all");
    let third = picture(&directory);
    assert!(third != second, "what it says of itself has changed");
    assert_eq!(unchanged(&third, &second), [1, 2], "and no version");
    write("labels.txt", "cat");
    let fourth = picture(&directory);
    assert_eq!(unchanged(&fourth, &third), Vec::<u64>::new(), "any version may use what lies beside them");
    write(".labels.txt.swp", "cat");
    assert_eq!(picture(&directory), fourth, "what is hidden is nobody's");
    fs::create_dir(directory.path().join("m/3")).unwrap();
    let fifth = picture(&directory);
    assert!(fifth.has("3") && !fifth.has("4") && !fifth.has("03"));
    assert_eq!(unchanged(&fifth, &fourth), [1, 2]);
}

#[test]
fn a_link_that_is_swapped_is_a_change() {
    // As Kubernetes mounts volumes: `..data` is a link to a folder, and what is seen are links through it.
    let directory = directory(&[("..1/model.onnx", "ok"), ("..2/model.onnx", "ok"), ("m/1/x", "")]);
    let (root, version) = (directory.path(), directory.path().join("m/1"));
    symlink("..1", root.join("..data")).unwrap();
    symlink(root.join("..data/model.onnx"), version.join("model.onnx")).unwrap();
    let first = picture(&directory);
    symlink("..2", root.join("..new")).unwrap();
    fs::rename(root.join("..new"), root.join("..data")).unwrap();
    let second = picture(&directory);
    assert_eq!(unchanged(&second, &first), Vec::<u64>::new());
    // A link that leads into itself has an end too.
    symlink("..", version.join("round")).unwrap();
    assert!(picture(&directory) != second);
}

#[test]
fn a_link_to_a_folder_is_looked_at_and_not_through() {
    let directory = directory(&[("away/x", ""), ("else/x", ""), ("real/model.onnx", "ok"), ("m/1/model.onnx", "ok")]);
    let (root, model) = (directory.path(), directory.path().join("m"));
    symlink(root.join("away"), model.join("1/sub")).unwrap();
    symlink(root.join("away"), model.join("beside")).unwrap();
    symlink("../real", model.join("2")).unwrap();
    let first = picture(&directory);
    fs::write(root.join("away/x"), "changed").unwrap();
    fs::write(root.join("away/y"), "").unwrap();
    assert_eq!(picture(&directory), first, "it is none of the model's files");
    fs::remove_file(model.join("1/sub")).unwrap();
    symlink(root.join("else"), model.join("1/sub")).unwrap();
    let second = picture(&directory);
    assert_eq!(unchanged(&second, &first), [2], "where it leads is looked at");
    fs::write(root.join("real/model.onnx"), "other").unwrap();
    assert_eq!(unchanged(&picture(&directory), &second), [1], "a version may be a link");
}

#[test]
fn only_models_that_may_be_loaded_are_looked_at() {
    let directory =
        directory(&[("a/1/x", ""), ("b/1/x", ""), ("notes/x", ""), ("bad name/1/x", ""), ("stats/1/x", "")]);
    let names = |load: Load| {
        let found = take(&Settings { load, ..settings(&directory) }).unwrap();
        found.keys().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(Load::All), ["a", "b"]);
    assert_eq!(names(Load::Names(["b".to_owned()].into())), ["b"]);
    assert!(names(Load::None).is_empty());
    let nowhere = Settings { directories: vec!["/nonexistent".into()], ..Settings::default() };
    assert!(take(&nowhere).is_err(), "what cannot be read is not empty");
}

fn pictures(versions: &[(u64, u64)]) -> Pictures {
    let picture = Picture { versions: versions.iter().copied().collect(), ..Picture::default() };
    Pictures::from([("m".into(), Ok(picture))])
}

fn change(before: Option<Pictures>, now: Option<Pictures>) -> Vec<Change> {
    let one = |pictures: Option<Pictures>| pictures.and_then(|mut pictures| pictures.remove("m")).map(Result::unwrap);
    vec![Change { name: "m".into(), before: one(before), now: one(now) }]
}

#[test]
fn a_folder_is_loaded_only_once_it_has_been_still() {
    let begun = Instant::now();
    let at = |seconds: u32| begun + SECOND * seconds;
    let mut settling = Settling::new(2 * SECOND, pictures(&[(1, 1)]), begun);
    assert_eq!((settling.see(pictures(&[(1, 1)]), at(1)), settling.due()), (vec![], None));
    // It is being written for ten seconds, and each look sees more of it.
    for second in 2..12 {
        let files = u64::from(second);
        assert_eq!(settling.see(pictures(&[(1, 1), (2, files)]), at(second)), []);
        assert_eq!(settling.due(), Some(at(second + 2)));
    }
    assert_eq!(settling.see(pictures(&[(1, 1), (2, 11)]), at(12)), [], "for one second only");
    let changes = settling.see(pictures(&[(1, 1), (2, 11)]), at(13));
    assert_eq!(changes, change(Some(pictures(&[(1, 1)])), Some(pictures(&[(1, 1), (2, 11)]))));
    assert_eq!(settling.due(), None);
    // Once, and not again before that is done.
    assert_eq!(settling.see(pictures(&[(2, 11)]), at(20)), []);
    assert_eq!(settling.see(pictures(&[(2, 11)]), at(30)), [], "somebody loads it");
    settling.done("m");
    let changes = settling.see(pictures(&[(2, 11)]), at(31));
    assert_eq!(changes, change(Some(pictures(&[(1, 1), (2, 11)])), Some(pictures(&[(2, 11)]))));
}

#[test]
fn models_come_and_go() {
    let begun = Instant::now();
    let mut settling = Settling::new(2 * SECOND, Pictures::new(), begun);
    assert_eq!(settling.see(pictures(&[(1, 1)]), begun), []);
    assert_eq!(settling.see(pictures(&[(1, 1)]), begun + 2 * SECOND), change(None, Some(pictures(&[(1, 1)]))));
    settling.done("m");
    // A folder that is away for a moment, as while it is swapped, was never away.
    assert_eq!(settling.see(Pictures::new(), begun + 3 * SECOND), []);
    assert_eq!(settling.see(pictures(&[(1, 1)]), begun + 4 * SECOND), []);
    assert_eq!(settling.see(pictures(&[(1, 1)]), begun + 9 * SECOND), []);
    assert_eq!(settling.see(Pictures::new(), begun + 10 * SECOND), []);
    assert_eq!(settling.see(Pictures::new(), begun + 12 * SECOND), change(Some(pictures(&[(1, 1)])), None));
    settling.done("m");
    assert!(settling.seen.is_empty(), "what is gone is forgotten");
}

#[test]
fn what_cannot_be_read_stays_what_it_was_until_it_can() {
    let directory = directory(&[("m/1/model.onnx", "ok"), ("m/2/model.onnx", "ok"), ("file", "")]);
    let first = picture(&directory);
    let (folder, away) = (directory.path().join("m"), directory.path().join(".away"));
    for what in [folder.clone(), folder.join("2")] {
        fs::rename(&what, &away).unwrap();
        // A link to itself cannot be followed: nothing is known of what it stands for.
        symlink(&what, &what).unwrap();
        assert!(take(&settings(&directory)).unwrap().remove("m").unwrap().is_err(), "{}", what.display());
        fs::remove_file(&what).unwrap();
        fs::rename(&away, &what).unwrap();
    }
    assert_eq!(picture(&directory), first);
    // Beside the versions it is a file like any other.
    symlink(folder.join("round"), folder.join("round")).unwrap();
    assert_eq!(unchanged(&picture(&directory), &first), Vec::<u64>::new());

    let begun = Instant::now();
    let at = |seconds: u32| begun + SECOND * seconds;
    let unknown = || Pictures::from([("m".into(), Err("away".to_owned())), ("new".into(), Err("away".to_owned()))]);
    let mut settling = Settling::new(2 * SECOND, pictures(&[(1, 1)]), begun);
    assert_eq!((settling.see(unknown(), at(10)), settling.see(unknown(), at(20))), (vec![], vec![]));
    // What was changing is not held for still because nobody could look.
    assert_eq!(settling.see(pictures(&[(1, 2)]), at(21)), []);
    assert_eq!((settling.see(unknown(), at(22)), settling.see(unknown(), at(30))), (vec![], vec![]));
    assert_eq!(settling.see(pictures(&[(1, 2)]), at(31)), []);
    assert_eq!(settling.see(pictures(&[(1, 2)]), at(32)).len(), 1);
}
