//! Tokens are those of the tokenizer's file, cut off and filled up as the step says.

use super::*;
use crate::builtin::testing::integers;
use serde_json::json;

/// Words of a tiny vocabulary.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]")],
        "normalizer": { "type": "Lowercase" },
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
    step.run(&[Tensor::strings([texts.len()].into(), texts).unwrap()])
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
    let error = step.run(&[Tensor::strings([1].into(), [[0xFF_u8]]).unwrap()]).unwrap_err().to_string();
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
