//! What is weighed, against what prost makes of it.

use super::*;
use crate::wire::{
    proto::{DESCRIPTOR, inference as pb},
    tfserving::pb::serving,
};
use proptest::prelude::*;
use prost::Message;
use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};

fn weighed<M: Weighed>(message: &[u8]) -> Result<Weight, String> {
    let weight = weigh::<M>(message, &Settings::default(), |_| true).map_err(|error| error.to_string())?;
    Ok(weight.expect("any work is little"))
}

/// `piece`, `count` times.
fn repeated(piece: &[u8], count: usize) -> Vec<u8> {
    piece.repeat(count)
}

/// `inner` as the field `number`, of fewer than 16.
fn within(number: u8, inner: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encoding::encode_varint(inner.len() as u64, &mut bytes);
    bytes.extend(inner);
    bytes
}

#[test]
fn more_entries_than_a_list_may_have_are_refused_as_the_decoder_would() {
    let infer = weighed::<pb::ModelInferRequest>;
    let predict = weighed::<serving::PredictRequest>;
    let both = "the request has more than 256 inputs or outputs, expected at most 256";
    let raw = "the request has more than 256 entries in `raw_input_contents`, expected at most 256";
    for (piece, text) in [(b"\x2a\0", both), (b"\x32\0", both), (b"\x3a\0", raw)] {
        assert_eq!(infer(&repeated(piece, 257)).unwrap_err(), text);
        assert!(infer(&repeated(piece, 256)).is_ok());
    }
    assert_eq!(infer(&repeated(b"\x22\0", 1025)).unwrap_err(), "more than 1024 parameters");
    assert!(infer(&repeated(b"\x22\0", 1024)).is_ok());
    assert_eq!(infer(&within(5, &repeated(b"\x22\0", 1025))).unwrap_err(), "more than 1024 parameters");
    let inputs = "the request has more than 256 inputs, expected at most 256";
    let outputs = "the request has more than 256 outputs, expected at most 256";
    for (piece, text) in [(b"\x12\0", inputs), (b"\x1a\0", outputs)] {
        assert_eq!(predict(&repeated(piece, 257)).unwrap_err(), text);
        assert!(predict(&repeated(piece, 256)).is_ok());
    }
    let load = weighed::<pb::RepositoryModelLoadRequest>;
    assert_eq!(load(&repeated(b"\x1a\0", 1025)).unwrap_err(), "more than 1024 parameters");
}

#[test]
fn a_tensor_of_too_many_dimensions_is_refused_by_its_name() {
    let text = "tensor `x` has 18 dimensions, expected at most 16";
    let name = within(1, b"x");
    for shape in [within(3, &[1; 18]), repeated(&[3 << 3, 1], 18), [within(3, &[1; 9]), within(3, &[1; 9])].concat()] {
        let input = [name.clone(), shape].concat();
        assert_eq!(weighed::<pb::ModelInferRequest>(&within(5, &input)).unwrap_err(), text);
    }
    let tensor = within(2, &repeated(b"\x12\0", 18));
    let input = [name, within(2, &tensor)].concat();
    assert_eq!(weighed::<serving::PredictRequest>(&within(2, &input)).unwrap_err(), text);
}

#[test]
fn a_raw_tensor_weighs_nothing_and_one_of_empty_strings_sixteen_times_its_message() {
    let raw = pb::ModelInferRequest { raw_input_contents: vec![vec![7; 1 << 20].into()], ..Default::default() };
    let weight = weighed::<pb::ModelInferRequest>(&raw.encode_to_vec()).unwrap();
    assert!(weight.bytes < 100 && weight.work < 100, "{weight:?}");
    let strings = within(5, &within(5, &repeated(b"\x42\0", 1000)));
    let weight = weighed::<pb::ModelInferRequest>(&strings).unwrap();
    assert!((32_000..70_000).contains(&weight.bytes) && weight.work >= 16_000, "{weight:?}");
}

#[test]
fn a_walk_ends_where_it_is_no_longer_little_work() {
    let strings = within(5, &within(5, &repeated(b"\x42\0", 1000)));
    let little = |work: usize| work < 10_000;
    let weight = weigh::<pb::ModelInferRequest>(&strings, &Settings::default(), little);
    assert_eq!(weight.unwrap(), None);
    // Of a kind that nobody writes, and that is skipped field by field.
    let group = [&[0x7b][..], &repeated(&[0x08, 1], 10_000), &[0x7c]].concat();
    assert_eq!(weigh::<pb::ModelReadyRequest>(&group, &Settings::default(), little).unwrap(), None);
}

#[test]
fn a_text_is_found_among_the_first_fields() {
    let message = pb::ModelInferRequest { model_name: "m".into(), id: "r1".into(), ..Default::default() };
    let bytes = message.encode_to_vec();
    assert_eq!((text_of(&bytes, 1), text_of(&bytes, 3), text_of(&bytes, 5)), ("m", "r1", ""));
    assert_eq!((text_of(b"\x1a\x02\xff\xff", 3), text_of(b"\x1a\x09a", 3), text_of(b"\xff", 3)), ("", "", ""));
}

/// Checks the table of a message against its schema.
fn compare(message: &MessageDescriptor, fields: &[Field]) {
    let path = message.full_name();
    for field in message.fields() {
        let name = field.full_name().to_owned();
        let known = fields.iter().find(|known| known.number == field.number());
        let repeats = field.is_list() || field.is_map();
        let inner = match field.kind() {
            Kind::Message(inner) => Some(inner),
            _ => None,
        };
        let Some(known) = known else {
            let repeats_within =
                inner.is_some_and(|inner| inner.fields().any(|field| field.is_list() || field.is_map()));
            assert!(!repeats && !repeats_within && field.kind() != Kind::Bytes, "{name} is in no table");
            continue;
        };
        assert_eq!(known.takes > 0, repeats, "{name}");
        match (&known.holds, field.kind()) {
            (Holds::Message(fields), Kind::Message(inner)) => compare(&inner, fields),
            // Whatever is in it is text.
            (Holds::Text, Kind::Message(inner)) => assert!(inner.fields().all(|field| !field.is_list()), "{name}"),
            (Holds::Text, kind) => assert_eq!(kind, Kind::String, "{name}"),
            (Holds::Bytes, kind) => assert_eq!(kind, Kind::Bytes, "{name}"),
            (Holds::Fixed(size), kind) => {
                assert_eq!(*size, if kind == Kind::Float { 4 } else { 8 }, "{name}");
                assert!(matches!(kind, Kind::Float | Kind::Double), "{name}");
            }
            (Holds::Varint, kind) => {
                assert!(matches!(kind, Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64), "{name}")
            }
            (Holds::Message(_), kind) => panic!("{name} is {kind:?}"),
        }
    }
    assert!(fields.iter().all(|known| message.get_field(known.number).is_some()), "{path}");
}

#[test]
fn groups_within_groups_are_read_as_deep_as_prost_reads_them() {
    // Opened and closed as number 1, which is text, and as one that nobody knows.
    for number in [1_u8, 15] {
        let groups = |depth: usize| [[number << 3 | 3].repeat(depth), [number << 3 | 4].repeat(depth)].concat();
        let refused = weighed::<pb::ModelInferRequest>(&groups(DEPTH + 1)).unwrap_err();
        assert_eq!(refused, "the message is nested too deeply, expected at most 100 levels");
        assert!(weighed::<pb::ModelInferRequest>(&groups(DEPTH)).is_ok());
        // In a tensor, whose table is walked; the decoder is one level further in there.
        let tensor = within(5, &groups(DEPTH + 1));
        assert!(weighed::<pb::ModelInferRequest>(&tensor).is_err());
    }
    let groups = |depth: usize| [[0x7b].repeat(depth), [0x7c].repeat(depth)].concat();
    assert!(pb::ModelInferRequest::decode(&*groups(DEPTH)).is_ok());
    // A parameter, whose table is empty.
    for deep in [groups(DEPTH + 1), within(4, &within(2, &groups(DEPTH)))] {
        let error = pb::ModelInferRequest::decode(&*deep).unwrap_err();
        assert!(too_deep(&error).is_some(), "prost has a new name for it: {error}");
    }
    assert!(too_deep(&pb::ModelInferRequest::decode(&b"\xff"[..]).unwrap_err()).is_none());
}

#[test]
fn the_tables_are_those_of_the_schema() {
    let pool = DescriptorPool::decode(DESCRIPTOR).unwrap();
    let message = |name: &str| pool.get_message_by_name(name).unwrap();
    macro_rules! compare {
        ($($message:ident),* $(,)?) => {
            $(compare(&message(concat!("inference.", stringify!($message))), pb::$message::FIELDS);)*
        };
    }
    compare!(
        ModelInferRequest,
        RepositoryModelLoadRequest,
        RepositoryModelUnloadRequest,
        TraceSettingRequest,
        LogSettingsRequest,
        CudaSharedMemoryRegisterRequest,
        ServerLiveRequest,
        ServerReadyRequest,
        ModelReadyRequest,
        ServerMetadataRequest,
        ModelMetadataRequest,
        ModelConfigRequest,
        ModelStatisticsRequest,
        RepositoryIndexRequest,
        SystemSharedMemoryStatusRequest,
        SystemSharedMemoryRegisterRequest,
        SystemSharedMemoryUnregisterRequest,
        CudaSharedMemoryStatusRequest,
        CudaSharedMemoryUnregisterRequest,
    );
    compare(&message("tensorflow.serving.PredictRequest"), serving::PredictRequest::FIELDS);
    compare(&message("tensorflow.serving.GetModelMetadataRequest"), serving::GetModelMetadataRequest::FIELDS);
    compare(&message("tensorflow.serving.GetModelStatusRequest"), serving::GetModelStatusRequest::FIELDS);
}

/// Pieces that are much once decoded, and others.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        (1..12_u8).prop_map(|number| vec![number << 3 | 2, 0]),
        (1..12_u8, proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(number, inner)| within(number, &inner)),
        (1..12_u8, any::<u8>()).prop_map(|(number, value)| vec![number << 3, value & 0x7f]),
        proptest::collection::vec(any::<u8>(), 0..6),
    ];
    let flat = (proptest::collection::vec(piece, 0..6), 0..200_usize)
        .prop_map(|(pieces, times)| pieces.concat().repeat(times));
    flat.prop_recursive(4, 64, 3, |inner| {
        (1..9_u8, proptest::collection::vec(inner, 1..4)).prop_map(|(number, inner)| within(number, &inner.concat()))
    })
}

/// What decoding `bytes` allocates is within what it was said to weigh, give or take what a few fields may.
fn check<M: Weighed + Message + Default>(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(weight) = weighed::<M>(bytes) else { return Ok(()) };
    let shared = bytes::Bytes::copy_from_slice(bytes);
    let mut decoded = None;
    let made = allocation_counter::measure(|| decoded = Some(M::decode(shared)));
    // A list grows by doubling, and for a moment both of its places are there; the smallest has room for four.
    let most = 2 * weight.bytes as u64 + 4096 + 4 * bytes.len() as u64;
    prop_assert!(made.bytes_max <= most, "{} bytes for {} that weigh {weight:?}", made.bytes_max, bytes.len());
    Ok(())
}

proptest! {
    #[test]
    fn nothing_takes_more_than_it_weighs(bytes in pieces()) {
        check::<pb::ModelInferRequest>(&bytes)?;
        check::<serving::PredictRequest>(&bytes)?;
        check::<pb::RepositoryModelLoadRequest>(&bytes)?;
        check::<pb::TraceSettingRequest>(&bytes)?;
    }
}
