//! Models that are bytes: what is found in them, and what is refused.

use super::*;
use proptest::prelude::*;
use std::io::Cursor;

fn scan(bytes: &[u8]) -> Result<Vec<String>, String> {
    look_through(Cursor::new(bytes), bytes.len() as u64)
        .map(|found| found.external.into_keys().map(|text| String::from_utf8(text).unwrap()).collect())
        .map_err(|error| error.to_string())
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A field that holds bytes.
fn field(number: usize, content: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(content.len()), content.to_vec()].concat()
}

fn entry(key: &str, value: &str) -> Vec<u8> {
    field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
}

fn within(numbers: &[usize], content: Vec<u8>) -> Vec<u8> {
    numbers.iter().rev().fold(content, |inner, number| field(*number, &inner))
}

#[test]
fn a_location_is_found_wherever_a_tensor_can_be() {
    let tensor = entry("location", "w.bin");
    for path in [
        &[7, 5][..],       // graph, initializer
        &[7, 15, 1],       // graph, sparse initializer, values
        &[7, 15, 2],       // graph, sparse initializer, indices
        &[7, 1, 5, 5],     // graph, node, attribute, tensor
        &[7, 1, 5, 10],    // ..., tensors
        &[7, 1, 5, 22, 1], // ..., sparse tensor
        &[7, 1, 5, 23, 2], // ..., sparse tensors
        &[7, 1, 5, 6, 5],  // ..., graph, initializer
        &[7, 1, 5, 11, 5], // ..., graphs, initializer
        &[25, 7, 5, 5],    // function, node, attribute, tensor
        &[25, 11, 5],      // function, attribute, tensor
        &[20, 1, 5],       // training, initialization, initializer
        &[20, 2, 5],       // training, algorithm, initializer
    ] {
        let model = [field(7, b""), within(path, tensor.clone())].concat();
        assert_eq!(scan(&model).unwrap(), ["w.bin"], "{path:?}");
    }
}

#[test]
fn a_node_of_more_names_than_are_kept_takes_no_more_memory_for_them() {
    let model = within(&[7, 1], field(1, b"").repeat(5 * NAMES));
    let mut found = None;
    let made = allocation_counter::measure(|| found = Some(scan(&model)));
    assert_eq!(found.unwrap().unwrap(), [""; 0]);
    // A name takes three words, and a growing list is there twice for a moment.
    assert!(made.bytes_max < (4 * 24 * NAMES) as u64, "{} bytes", made.bytes_max);
}

#[test]
fn only_the_location_counts_and_each_once() {
    let weight = [entry("offset", "0"), entry("location", "a"), entry("length", "16")].concat();
    let model = within(&[7], [field(5, &weight), field(5, &weight), field(5, &entry("location", "b"))].concat());
    assert_eq!(scan(&model).unwrap(), ["a", "b"]);
}

#[test]
fn the_last_key_and_value_of_an_entry_win_as_in_protobuf() {
    let twice = [field(1, b"offset"), field(2, b"x"), field(1, b"location"), field(2, b"../y")].concat();
    assert_eq!(scan(&within(&[7, 5, 13], twice)).unwrap(), ["../y"]);
}

#[test]
fn what_is_no_model_is_refused() {
    for (bytes, reason) in [
        (&b""[..], "it holds no graph"),
        (b"version https://", "unknown kind"),
        (b"\x3a\x05ab", "longer than what it is in"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "longer than what it is in"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "longer than ten bytes"),
        (b"\x02\x00", "without a number"),
        (b"\x08", "runs past"),
        (b"\x09\x00", "longer than what it is in"),
    ] {
        let error = scan(bytes).unwrap_err();
        assert!(error.contains(reason), "{bytes:?}: {error}");
    }
}

/// A graph with one weight: its dimensions, and the rest of it.
fn weight(dims: &[u64], rest: Vec<u8>) -> Vec<u8> {
    let dim = |dim: &u64| {
        let (mut value, mut bytes) = (*dim, vec![1 << 3]);
        while value > 0x7f {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    };
    within(&[7, 5], [dims.iter().flat_map(dim).collect(), field(8, b"w"), rest].concat())
}

#[test]
fn a_weight_larger_than_its_data_is_refused() {
    let raw = |length: usize| field(9, &vec![0; length]);
    for (dims, rest, reason) in [
        (&[1 << 31][..], raw(4), "weight `w` of 2147483648 elements, and 5 bytes of data"),
        (&[1 << 31, 1 << 31, 4], raw(4), "more elements than 64 bits"),
        (&[u64::MAX], raw(4), "a negative dimension"),
        (&[5], Vec::new(), "of 5 elements, and 0 bytes"),
        (&[1 << 31], [entry("location", "a"), entry("length", "16")].concat(), "and 16 bytes of data"),
    ] {
        let error = scan(&weight(dims, rest)).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    for (dims, rest) in [
        (&[0, 1 << 40, 1 << 40][..], Vec::new()),
        (&[], raw(4)),
        (&[4], raw(1)),
        (&[2], field(6, b"").repeat(2)),
        (&[2], [varint(4 << 3 | 5), vec![0; 4], varint(4 << 3 | 5), vec![0; 4]].concat()),
        (&[2], field(7, &[1, 2])),
    ] {
        assert!(scan(&weight(dims, rest)).is_ok(), "{dims:?}");
    }
    let packed = within(&[7, 5], field(1, &[200, 1, 2]));
    assert!(scan(&packed).unwrap_err().contains("of 400 elements"));
}

#[test]
fn what_is_read_of_a_file_is_known_by_its_end() {
    let at = |offset: &str, length: &str| {
        weight(&[2], [entry("location", "a"), entry("offset", offset), entry("length", length)].concat())
    };
    let model = [at("8", "4"), at("100", "8"), at("4", "8")].concat();
    let found = look_through(Cursor::new(&model), model.len() as u64).unwrap().external;
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [(b"a".to_vec(), 108)]);
    assert!(scan(&at("many", "4")).unwrap_err().contains("expected a number of bytes"));
}

#[test]
fn nesting_ends_at_a_hundred() {
    let mut path = vec![7];
    (0..20).for_each(|_| path.extend([1, 5, 6]));
    assert!(scan(&within(&path, Vec::new())).is_ok());
    (0..20).for_each(|_| path.extend([1, 5, 6]));
    assert!(scan(&within(&path, Vec::new())).unwrap_err().contains("too deeply"));
}

#[test]
fn a_file_that_shrinks_meanwhile_is_cut_off() {
    let model = within(&[7, 5], entry("location", "w.bin"));
    let error = look_through(Cursor::new(&model[..model.len() - 2]), model.len() as u64).unwrap_err();
    assert!(error.to_string().contains("cut off"), "{error}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = scan_lossy(&bytes);
    }

    #[test]
    fn a_model_with_one_byte_changed_never_panics(at in 0_usize..200, byte in any::<u8>()) {
        let mut model = within(&[7, 1, 5, 6, 5], entry("location", "weights.bin"));
        let at = at % model.len();
        model[at] = byte;
        let _ = scan_lossy(&model);
    }
}

/// Every model file of the tests, good, bad and hostile: what a mutation starts from.
fn seeds() -> &'static [Vec<u8>] {
    static SEEDS: std::sync::LazyLock<Vec<Vec<u8>>> = std::sync::LazyLock::new(|| {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models");
        let mut seeds = Vec::new();
        for kind in ["good", "bad", "hostile"] {
            for model in std::fs::read_dir(root.join(kind)).unwrap() {
                seeds.push(std::fs::read(model.unwrap().path().join("1/model.onnx")).unwrap());
            }
        }
        seeds.sort();
        assert!(seeds.len() > 30, "{} seeds", seeds.len());
        seeds
    });
    &SEEDS
}

/// What is done to a seed, all at places that are taken modulo its length.
#[derive(Clone, Debug)]
enum Mutation {
    Set(usize, u8),
    Cut(usize),
    Remove(usize, usize),
    Insert(usize, Vec<u8>),
    /// The tail of another one.
    Splice(usize, usize, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let place = any::<usize>;
    prop_oneof![
        6 => (place(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        1 => place().prop_map(Mutation::Cut),
        2 => (place(), 1_usize..16).prop_map(|(at, count)| Mutation::Remove(at, count)),
        2 => (place(), prop::collection::vec(prop_oneof![Just(0xFF_u8), any::<u8>()], 1..12))
            .prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        1 => (place(), place(), place()).prop_map(|(at, other, from)| Mutation::Splice(at, other, from)),
    ]
}

fn mutated(seed: usize, mutations: &[Mutation]) -> Vec<u8> {
    let seeds = seeds();
    let mut bytes = seeds[seed % seeds.len()].clone();
    for mutation in mutations {
        let length = bytes.len();
        match mutation {
            Mutation::Set(at, byte) if length > 0 => bytes[at % length] = *byte,
            Mutation::Cut(at) => bytes.truncate(at % (length + 1)),
            Mutation::Remove(at, count) if length > 0 => {
                let at = at % length;
                bytes.drain(at..(at + count).min(length));
            }
            Mutation::Insert(at, more) => {
                let at = at % (length + 1);
                bytes.splice(at..at, more.iter().copied());
            }
            Mutation::Splice(at, other, from) => {
                let other = &seeds[other % seeds.len()];
                bytes.truncate(at % (length + 1));
                bytes.extend(&other[from % (other.len() + 1)..]);
            }
            Mutation::Set(..) | Mutation::Remove(..) => {}
        }
    }
    bytes
}

proptest! {
    /// Attack M3's thousand files and more, each time others (`PROPTEST_CASES` makes it as many as one has time for).
    #[test]
    fn models_that_are_damaged_anywhere_are_read_or_refused_within_their_bounds(
        seed: usize,
        mutations in prop::collection::vec(mutation(), 1..6),
    ) {
        let bytes = mutated(seed, &mutations);
        // Whatever it claims: no more locations than it has bytes.
        if let Ok(found) = scan_lossy(&bytes) {
            prop_assert!(found.keys().map(Vec::len).sum::<usize>() <= bytes.len());
        }
    }
}

#[test]
fn every_seed_is_read_or_refused_as_the_folder_it_lies_in_says() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/good");
    for model in std::fs::read_dir(root).unwrap() {
        let path = model.unwrap().path().join("1/model.onnx");
        assert!(scan_lossy(&std::fs::read(&path).unwrap()).is_ok(), "{}", path.display());
    }
}

fn scan_lossy(bytes: &[u8]) -> Result<BTreeMap<Vec<u8>, u64>, ScanError> {
    look_through(Cursor::new(bytes), bytes.len() as u64).map(|found| found.external)
}
