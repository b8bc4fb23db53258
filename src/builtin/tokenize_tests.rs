//! Tokens are those of the tokenizer's file, cut off and filled up as the step says.

use super::*;
use crate::builtin::testing::{self, integers};
use serde_json::json;

/// Words of a tiny vocabulary.
fn folder() -> tempfile::TempDir {
    normalised(&json!({ "type": "Lowercase" }))
}

/// The same under another normaliser.
fn normalised(normaliser: &serde_json::Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]")],
        "normalizer": normaliser,
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "[CLS]", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "[CLS]": { "id": "[CLS]", "ids": [2], "tokens": ["[CLS]"] } } },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": { "[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "gate": 3, "##s": 4, "open": 5 } },
    });
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

fn settings() -> Settings {
    Settings {
        file: "tokenizer.json".into(),
        max_length: 4,
        fill: false,
        special_tokens: true,
        max_bytes: 64,
        max_texts: 8,
    }
}

fn run(settings: &Settings, texts: &[&str]) -> Result<Tensors, Error> {
    let step = Tokenize::open(settings, folder().path()).unwrap();
    testing::run(step, &[Tensor::strings([texts.len()].into(), texts).unwrap()])
}

#[test]
fn rows_are_filled_up_to_the_longest_and_the_mask_says_what_counts() {
    let found = run(&settings(), &["Gates open", "gate"]).unwrap();
    assert_eq!(found[0].shape().dims(), [2, 4]);
    assert_eq!(integers(&found[0]), [2, 3, 4, 5, 2, 3, 0, 0]);
    assert_eq!(integers(&found[1]), [1, 1, 1, 1, 1, 1, 0, 0]);
    assert_eq!(integers(&found[2]), [0; 8]);
}

#[test]
fn what_is_too_long_is_cut_off_and_what_is_to_be_filled_is() {
    let long = run(&settings(), &["open open open open open"]).unwrap();
    assert_eq!(integers(&long[0]), [2, 5, 5, 5]);
    let filled = Settings { fill: true, special_tokens: false, ..settings() };
    assert_eq!(integers(&run(&filled, &["strange"]).unwrap()[0]), [1, 0, 0, 0]);
    let step = Tokenize::open(&filled, folder().path()).unwrap();
    assert_eq!(step.signature(&|_| None).unwrap().outputs[0].dims, [None, Some(4)]);
    assert_eq!(run(&settings(), &[]).unwrap()[0].shape().dims(), [0, 0]);
}

#[test]
fn what_is_no_text_or_too_much_of_it_is_refused_by_row() {
    let long = "x".repeat(65);
    let error = run(&settings(), &["gate", &long]).unwrap_err().to_string();
    assert!(error.contains("tensor `text` has 65 bytes in row 1, expected at most 64"), "{error}");
    let step = Tokenize::open(&settings(), folder().path()).unwrap();
    let input = Tensor::strings([1].into(), [[0xFF_u8]]).unwrap();
    let error = testing::run(step, &[input]).unwrap_err().to_string();
    assert!(error.contains("is not UTF-8 in row 0"), "{error}");
}

#[test]
fn a_file_that_is_no_tokenizer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Tokenize::open(&settings(), folder.path()).unwrap_err();
    assert_eq!(open(), "`tokenizer.json` is not there");
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(open().starts_with("`tokenizer.json` is no tokenizer: "), "{}", open());
}

#[test]
fn a_length_that_has_no_room_for_special_tokens_is_refused() {
    let open = |max_length, special_tokens| {
        Tokenize::open(&Settings { max_length, special_tokens, ..settings() }, folder().path()).map(drop)
    };
    assert_eq!(open(1, true), Ok(()));
    for special_tokens in [true, false] {
        let error = open(0, special_tokens).unwrap_err();
        assert_eq!(error, "`tokenizer.json` adds 1 special tokens, and `max_length` has room for 0");
    }
}

#[test]
fn a_tokenizer_whose_reader_panics_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let merges = json!({ "type": "BPE", "vocab": { "a": 0, "b": 1 }, "merges": ["a b"] });
    let tokenizer = json!({ "version": "1.0", "added_tokens": [], "model": merges });
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let error = crate::builtin::Settings::Tokenize(settings()).open(folder.path()).unwrap_err();
    assert!(error.contains("panicked") || error.contains("is no tokenizer"), "{error}");
}

fn replace(pattern: &str, content: &str) -> serde_json::Value {
    json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content })
}

#[test]
fn normalisers_that_make_texts_far_too_long_are_refused() {
    let open = |normaliser| Tokenize::open(&settings(), normalised(&normaliser).path()).map(drop);
    let error = open(replace("a", &"x".repeat(65))).unwrap_err();
    assert_eq!(error, "`tokenizer.json` puts 65 bytes in for others, expected at most 64");
    let chain = |times: usize| json!({ "type": "Sequence", "normalizers": vec![replace("a", "aaaa"); times] });
    let error = open(chain(7)).unwrap_err();
    assert!(error.contains("a normalizer that may make a text 16384 times as long, expected at most 4096"), "{error}");
    assert_eq!(open(chain(6)), Ok(()));
    assert!(open(chain(65)).unwrap_err().contains("a normalizer of 65 stages, expected at most 64"));
    let blanks = json!({ "type": "Sequence", "normalizers": [
        { "type": "NFKC" }, { "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": "\u{2581}" },
        { "type": "Prepend", "prepend": "\u{2581}" } ] });
    assert_eq!(open(blanks), Ok(()), "as tokenizers have that people use");
}

#[test]
fn what_a_text_becomes_is_bounded_and_looked_at_in_parts() {
    let chain = json!({ "type": "Sequence", "normalizers": vec![replace("a", "aaaa"); 3] });
    let step = |chain| Arc::new(Tokenize::open(&settings(), normalised(&chain).path()).unwrap());
    let texts = |text: &str| Tensors::from([Tensor::strings([1].into(), [text]).unwrap()]);
    let all = |step: Arc<Tokenize>, text: &str| step.begin(texts(text))(&|| true);
    // Of 64 bytes at most, which may become four times as many.
    assert!(all(step(chain.clone()), "aaaa").unwrap().is_some());
    let error = all(step(chain.clone()), "aaaaa").unwrap_err().to_string();
    assert!(error.contains("tensor `text` becomes more than 256 bytes when row 0 is normalised"), "{error}");
    assert!(all(step(chain.clone()), &"b".repeat(64)).unwrap().is_some(), "of which nothing becomes longer");
    let error = step(chain).begin(texts("aaaaa"))(&|| false).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
}

#[test]
fn texts_are_done_in_pieces_and_none_for_nobody() {
    let settings = Settings { max_bytes: PIECE, ..settings() };
    let step = Arc::new(Tokenize::open(&settings, folder().path()).unwrap());
    let long = "gate ".repeat(PIECE / 8);
    let input = Tensor::strings([3].into(), ["open", &long, &long]).unwrap();
    let mut pieces = Arc::clone(&step).begin([input.clone()].into());
    assert!(pieces(&|| true).unwrap().is_none());
    let found = pieces(&|| true).unwrap().unwrap();
    assert_eq!(integers(&found[0]), [2, 5, 0, 0, 2, 3, 3, 3, 2, 3, 3, 3]);
    assert!(matches!(step.begin([input].into())(&|| false).unwrap_err(), Error::Cancelled));
}
