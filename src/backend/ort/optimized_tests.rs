//! What is kept of models, with the real ONNX Runtime.

use super::super::{Runtime, probe};
use super::*;
use crate::{
    backend::{Backend, Open, SessionOptions},
    tensor::{DataType, Shape, Tensor},
};
use std::{collections::BTreeSet, slice::from_ref};

const READ: &str = "its graph was optimised before and is read from the cache";

/// A folder for what is kept beside one with a model, and what opens models there.
struct Bench {
    folder: TempDir,
    opener: Arc<dyn Open>,
}

impl Bench {
    fn new(model: &str) -> Self {
        Self::sized(model, 1 << 30)
    }

    fn sized(model: &str, size: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let this = Self { opener: opener(&folder.path().join("kept"), size), folder };
        this.put(model, "m");
        this
    }

    fn kept(&self) -> PathBuf {
        self.folder.path().join("kept")
    }

    fn put(&self, model: &str, name: &str) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/good").join(model).join("1");
        let to = self.folder.path().join(name);
        fs::create_dir_all(&to).unwrap();
        for file in fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }

    fn open(&self, name: &str, settings: &SessionSettings) -> Box<dyn Backend> {
        let path = self.folder.path().join(name).join("model.onnx");
        self.opener.open(&path, settings).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Whether it was read.
    fn is_read(&self, name: &str) -> bool {
        self.is_read_with(name, &SessionSettings::default())
    }

    fn is_read_with(&self, name: &str, settings: &SessionSettings) -> bool {
        self.open(name, settings).notes().iter().any(|note| note == READ)
    }

    fn entries(&self) -> BTreeSet<PathBuf> {
        fs::read_dir(self.kept()).map_or_else(|_| BTreeSet::new(), |all| all.map(|one| one.unwrap().path()).collect())
    }
}

fn runtime() -> Runtime {
    Runtime::load(None).unwrap_or_else(|error| panic!("{error}"))
}

fn opener(folder: &Path, size: u64) -> Arc<dyn Open> {
    probe::opener(runtime(), None, Some(Settings { folder: folder.to_owned(), size }))
}

fn answer(model: &mut dyn Backend) -> Tensor {
    let input = Tensor::of(DataType::Fp32, Shape::new([2, 4]), (0..8).map(|n| n as f32 - 3.5).collect::<Vec<_>>());
    model.run(from_ref(&input.unwrap())).unwrap().swap_remove(0)
}

fn optimized(optimization: Optimization) -> SessionSettings {
    SessionSettings {
        options: SessionOptions { optimization, ..SessionOptions::default() },
        ..SessionSettings::default()
    }
}

#[test]
fn a_model_that_was_opened_before_is_read_as_it_was_optimised_and_answers_the_same() {
    let bench = Bench::new("mlp_4_16_3");
    let mut first = bench.open("m", &SessionSettings::default());
    assert!(!first.notes().iter().any(|note| note == READ));
    let mut second = bench.open("m", &SessionSettings::default());
    assert!(second.notes().iter().any(|note| note == READ), "{:?}", second.notes());
    assert_eq!(answer(&mut *first), answer(&mut *second));
    assert_eq!((first.signature(), first.axis_names()), (second.signature(), second.axis_names()));
    assert_eq!(first.weight_bytes(), second.weight_bytes());
    // Another process finds it too, by another name of the same file.
    bench.put("mlp_4_16_3", "copy");
    let other = opener(&bench.kept(), 1 << 30);
    let model = other.open(&bench.folder.path().join("copy/model.onnx"), &SessionSettings::default()).unwrap();
    assert!(model.notes().iter().any(|note| note == READ));
    assert_eq!(bench.entries().len(), 1, "nothing is left of what was being written");
}

#[test]
fn weights_outside_a_model_are_outside_what_is_kept_and_part_of_its_name() {
    let bench = Bench::new("external_data");
    let run = |model: &mut dyn Backend| {
        let input = Tensor::of(DataType::Fp32, Shape::new([1, 4]), vec![1.0_f32, 2.0, 3.0, 4.0]).unwrap();
        model.run(&[input]).unwrap()
    };
    let expected = run(&mut *bench.open("m", &SessionSettings::default()));
    assert!(bench.is_read("m"));
    assert_eq!(run(&mut *bench.open("m", &SessionSettings::default())), expected);
    let weights = bench.folder.path().join("m/weights.bin");
    let mut changed = fs::read(&weights).unwrap();
    changed[3] ^= 0x40;
    fs::write(&weights, changed).unwrap();
    assert!(!bench.is_read("m"), "other weights are another model");
    assert_ne!(run(&mut *bench.open("m", &SessionSettings::default())), expected);
}

#[test]
fn another_model_or_another_level_is_not_the_same() {
    let bench = Bench::new("mlp_4_16_3");
    assert!(!bench.is_read("m") && bench.is_read("m"));
    assert!(!bench.is_read_with("m", &optimized(Optimization::Basic)));
    assert!(bench.is_read_with("m", &optimized(Optimization::Basic)));
    let mut other = SessionSettings::default();
    other.options.entries.push(("session.set_denormal_as_zero".to_owned(), "1".to_owned()));
    assert!(!bench.is_read_with("m", &other));
    // As many threads as may be: the graph is the same.
    assert!(bench.is_read_with("m", &SessionSettings { threads: 2, ..SessionSettings::default() }));
    bench.put("echo_fp32", "m");
    assert!(!bench.is_read("m"), "another file by the same name");
    let before = bench.entries();
    assert!(!bench.is_read_with("m", &optimized(Optimization::Disabled)));
    assert!(!bench.is_read_with("m", &optimized(Optimization::Disabled)), "nothing is optimised, nothing is kept");
    assert_eq!(bench.entries(), before);
    let files = files::find(&bench.folder.path().join("m/model.onnx")).unwrap();
    let name = |version: &str, is_tried| {
        let settings = Settings { folder: bench.kept(), size: 1 };
        let cache = Cache::new(settings, version, Arc::default());
        cache.entry(&files, &SessionSettings::default(), is_tried).unwrap().path
    };
    assert_eq!(name("1.2.3", true), name("1.2.3", true));
    assert_ne!(name("1.2.3", true), name("1.2.4", true), "another library");
    assert_ne!(name("1.2.3", true), name("1.2.3", false), "what nobody has tried");
}

#[test]
fn what_is_damaged_is_made_anew_and_never_a_failed_load() {
    let bench = Bench::new("mlp_4_16_3");
    assert!(!bench.is_read("m"));
    let entry = bench.entries().pop_first().unwrap();
    let (graph, list) = (entry.join(GRAPH), entry.join(LIST));
    let cut = |path: &Path| {
        let whole = fs::read(path).unwrap();
        fs::write(path, &whole[..whole.len() / 2]).unwrap();
    };
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let expected = answer(&mut *bench.open("m", &SessionSettings::default()));
    // What has right checksums and is no model ONNX Runtime takes is of no use either.
    let nonsense = |_: &Path| {
        let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/bad/unknown_operator/1/model.onnx");
        fs::copy(other, &graph).unwrap();
        let digest = sums::hex(&Digests::default().of(&graph).unwrap());
        fs::write(&list, format!("{digest}  {GRAPH}\n")).unwrap();
    };
    type Damage<'a> = (&'static str, &'a dyn Fn(&Path));
    let damages: [Damage<'_>; 8] = [
        ("truncated", &|_| cut(&graph)),
        ("another bit", &|_| flip(&graph)),
        ("empty", &|_| fs::write(&graph, "").unwrap()),
        ("gone", &|_| fs::remove_file(&graph).unwrap()),
        ("no list", &|_| fs::remove_file(&list).unwrap()),
        ("half a list", &|_| cut(&list)),
        ("an empty list", &|_| fs::write(&list, "").unwrap()),
        ("another model", &nonsense),
    ];
    for (what, damage) in damages {
        damage(&entry);
        let mut model = bench.open("m", &SessionSettings::default());
        assert!(!model.notes().iter().any(|note| note == READ), "{what}");
        assert_eq!(answer(&mut *model), expected, "{what}");
        assert!(bench.is_read("m"), "{what}: it was made anew");
    }
    // A file in the way of the folder.
    fs::remove_dir_all(&entry).unwrap();
    fs::write(&entry, "").unwrap();
    assert_eq!(answer(&mut *bench.open("m", &SessionSettings::default())), expected);
}

#[test]
fn a_folder_that_cannot_be_written_or_trusted_only_means_that_nothing_is_kept() {
    let bench = Bench::new("mlp_4_16_3");
    assert!(!bench.is_read("m") && bench.is_read("m"));
    let mode = |mode| fs::set_permissions(bench.kept(), fs::Permissions::from_mode(mode)).unwrap();
    // Others could have put it there.
    mode(0o777);
    assert!(!bench.is_read("m"));
    mode(0o770);
    assert!(!bench.is_read("m"));
    // What is there is read where nothing can be written. (Root writes all the same.)
    mode(0o500);
    assert!(bench.is_read("m"));
    bench.put("echo_fp32", "n");
    assert!(!bench.is_read("n"));
    mode(0o700);
    let entry = bench.entries().pop_first().unwrap();
    fs::set_permissions(&entry, fs::Permissions::from_mode(0o707)).unwrap();
    assert!(!bench.is_read("m") || !bench.is_read("n"), "an entry that others may write is made anew");
    // No folder can be made below a file.
    let model =
        opener(Path::new("/dev/null/kept"), 1).open(&bench.folder.path().join("m/model.onnx"), &Default::default());
    assert!(model.is_ok());
}

#[test]
fn what_was_used_longest_ago_goes_first_and_what_does_not_fit_is_not_kept() {
    let models = ["echo_fp32", "echo_fp64", "echo_int32", "echo_int64"];
    let bench = Bench::new(models[0]);
    let each = {
        bench.open("m", &SessionSettings::default());
        bytes(&bench.entries().pop_first().unwrap())
    };
    // Three fit: they are nearly the same.
    let bench = Bench { opener: opener(&bench.kept(), 3 * each + each / 2), ..bench };
    for model in models {
        bench.put(model, model);
    }
    let used = |name: &str| {
        assert!(bench.is_read(name), "{name}");
        // Seconds apart, without waiting for them.
        for entry in bench.entries() {
            let list = File::open(entry.join(LIST)).unwrap();
            let before = list.metadata().unwrap().modified().unwrap();
            list.set_modified(before - Duration::from_secs(10)).unwrap();
        }
    };
    bench.open(models[1], &SessionSettings::default());
    bench.open(models[2], &SessionSettings::default());
    [models[1], models[0], models[2]].into_iter().for_each(used);
    assert!(!bench.is_read(models[3]));
    assert_eq!(bench.entries().len(), 3);
    assert!(bench.is_read(models[0]) && bench.is_read(models[2]) && bench.is_read(models[3]));
    assert!(!bench.is_read(models[1]), "it was used longest ago");
    let small = Bench::sized(models[0], 10);
    assert!(!small.is_read("m") && !small.is_read("m"));
    assert!(small.entries().is_empty());
}

#[test]
fn what_was_begun_and_never_finished_is_removed_and_what_is_not_ours_is_left() {
    let bench = Bench::new("echo_fp32");
    fs::create_dir(bench.kept()).unwrap();
    fs::set_permissions(bench.kept(), fs::Permissions::from_mode(0o700)).unwrap();
    let [old, new, others] = [".new-old", ".new-new", "others"].map(|name| bench.kept().join(name));
    for path in [&old, &new, &others] {
        fs::create_dir(path).unwrap();
    }
    let before = SystemTime::now() - 2 * ABANDONED;
    [&old, &others].into_iter().for_each(|path| File::open(path).unwrap().set_modified(before).unwrap());
    bench.open("m", &SessionSettings::default());
    assert!(!old.exists() && new.exists() && others.exists());
}

#[test]
fn graphs_that_run_elsewhere_are_not_kept() {
    use crate::backend::{Provider, ProviderKind};
    let bench = Bench::new("mlp_4_16_3");
    let cuda = Provider { kind: ProviderKind::Cuda, options: Vec::new() };
    let settings = SessionSettings { providers: vec![cuda, Provider::CPU], ..SessionSettings::default() };
    assert!(!bench.is_read_with("m", &settings) && !bench.is_read_with("m", &settings));
    assert!(bench.entries().is_empty());
}
