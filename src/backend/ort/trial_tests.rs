//! Messages over pipes: what arrives, and what is refused.

use super::*;
use crate::backend::fake::Fake;

#[test]
fn what_is_sent_arrives_as_it_was() {
    let floats = Tensor::of(DataType::Fp32, [2, 2].into(), vec![0_f32, 1.0, -2.0, f32::MAX]).unwrap();
    let texts = Tensor::strings([3].into(), ["", "a", "ä"]).unwrap();
    let sent = [floats, texts];
    let Some(Heard::Message(Message::Tensors(heads), data)) = read(&mut &*encode(&sent), 1 << 20).unwrap() else {
        panic!("no message");
    };
    assert_eq!(&decode(heads, &data).unwrap()[..], sent);
}

#[test]
fn messages_that_claim_too_much_or_end_early_are_errors_and_anything_else_is_words() {
    let whole = encode(&[Tensor::of(DataType::Int64, [1].into(), vec![7_i64]).unwrap()]);
    assert!(read(&mut &*whole, 7).is_err());
    for end in MARK.len()..whole.len() {
        assert!(read(&mut &whole[..end], 1 << 20).is_err(), "{end}");
    }
    assert!(read(&mut &b""[..], 1).unwrap().is_none());
    let Some(Heard::Words(words)) = read(&mut &b"no\nlibrary"[..], 1).unwrap() else { panic!("no words") };
    assert_eq!(words, "no library");
    for heads in [
        vec![Head { dtype: "INT64".to_owned(), dims: vec![usize::MAX, 2], bytes: 8 }],
        vec![Head { dtype: "INT64".to_owned(), dims: vec![1], bytes: u64::MAX }],
        vec![Head { dtype: "none".to_owned(), dims: vec![1], bytes: 8 }],
    ] {
        assert!(decode(heads, &[0; 8]).is_err());
    }
}

/// Yields so many numbers for whatever it is given.
struct Large(Arc<Signature>, usize);

impl Backend for Large {
    fn signature(&self) -> &Arc<Signature> {
        &self.0
    }

    fn run(&mut self, _: &[Tensor]) -> Result<Tensors, Error> {
        let data = view::bytes_of(vec![0_u64; self.1]);
        Ok([Tensor::new(DataType::Int64, [self.1].into(), data).unwrap()].into_iter().collect())
    }
}

#[test]
fn of_outputs_that_are_too_large_to_be_sent_only_the_shapes_are_told() {
    let request = encode(&[Tensor::of(DataType::Int64, [1].into(), vec![7_i64]).unwrap()]);
    let signature: Arc<Signature> = Arc::new(Signature { inputs: Vec::new(), outputs: Vec::new() });
    for (numbers, is_sent) in [(4, true), (DATA as usize / 8 + 1, false)] {
        let mut replies = Vec::new();
        serve(&mut Large(Arc::clone(&signature), numbers), &*request, &mut replies).unwrap();
        assert!(replies.len() < 1 << 20, "{} bytes", replies.len());
        let mut replies = &*replies;
        read(&mut replies, DATA).unwrap();
        let outputs = match read(&mut replies, DATA).unwrap() {
            Some(Heard::Message(Message::Tensors(heads), data)) if is_sent => decode(heads, &data).unwrap(),
            Some(Heard::Message(Message::Shapes(heads), _)) if !is_sent => zeros(heads, 1 << 30).unwrap(),
            _ => panic!("{numbers}"),
        };
        assert_eq!(outputs[0].shape().dims(), [numbers]);
    }
    for dims in [vec![1 << 20], vec![usize::MAX, 2]] {
        assert!(zeros(vec![Head { dtype: "INT64".to_owned(), dims, bytes: 8 }], 1 << 20).is_err());
    }
    let texts = zeros(vec![Head { dtype: "BYTES".to_owned(), dims: vec![2], bytes: 99 }], 8).unwrap();
    assert_eq!(texts[0], Tensor::strings([2].into(), ["", ""]).unwrap());
}

#[test]
fn a_file_is_run_on_whatever_comes_until_no_more_does() {
    let one = Tensor::of(DataType::Fp32, [1, 4].into(), vec![1_f32; 4]).unwrap();
    let two = Tensor::of(DataType::Fp32, [2, 4].into(), vec![2_f32; 8]).unwrap();
    let requests = [encode(std::slice::from_ref(&one)), encode(std::slice::from_ref(&two))].concat();
    let mut replies = Vec::new();
    serve(&mut Fake::new(), &*requests, &mut replies).unwrap();
    let mut replies = &*replies;
    assert!(matches!(read(&mut replies, 1 << 20).unwrap(), Some(Heard::Message(Message::Opened { .. }, _))));
    for _ in [one, two] {
        let reply = read(&mut replies, 1 << 20).unwrap();
        assert!(matches!(reply, Some(Heard::Message(Message::Tensors(_) | Message::Failed(_), _))));
    }
    assert!(read(&mut replies, 1 << 20).unwrap().is_none());
}
