//! A model configuration out of protobuf's text, or its JSON.

use super::{SCHEMA, pb};
use prost::Message;
use prost_reflect::DynamicMessage;
use std::fmt;

/// Why a text is no model configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// Reads protobuf text: a `config.pbtxt`.
///
/// # Errors
///
/// [`ConfigError`] says where it is malformed, or which field is unknown.
pub fn parse_config_text(text: &str) -> Result<pb::ModelConfig, ConfigError> {
    // The parser recurses once per level, and no configuration is this deep.
    check_depth(text)?;
    let text = with_colons(text);
    let message = DynamicMessage::parse_text_format(SCHEMA.clone(), &text);
    typed(&message.map_err(|error| ConfigError(located(&text, &error.to_string())))?)
}

/// Reads JSON: the configuration that a load call brings. Names are taken in both spellings, as protobuf's JSON has it.
///
/// # Errors
///
/// [`ConfigError`] says where it is malformed, or which field is unknown.
pub fn parse_config_json(text: &str) -> Result<pb::ModelConfig, ConfigError> {
    // As with text.
    check_depth(text)?;
    let error = |error: serde_json::Error| ConfigError(error.to_string());
    let mut reader = serde_json::Deserializer::from_str(text);
    let message = DynamicMessage::deserialize(SCHEMA.clone(), &mut reader).map_err(error)?;
    reader.end().map_err(error)?;
    typed(&message)
}

/// The parser's words for a text that ends too early.
const ENDED: &str = "reached end of input";

/// The error of `text` with its line. The parser does not tell where it stopped, but a text that is cut off before that
/// place has no other fault than to end there.
fn located(text: &str, error: &str) -> String {
    if error.contains(ENDED) {
        return error.to_owned();
    }
    let ends: Vec<usize> = text
        .split_inclusive('\n')
        .scan(0, |end, line| {
            *end += line.len();
            Some(*end)
        })
        .collect();
    let line = ends.partition_point(|end| match DynamicMessage::parse_text_format(SCHEMA.clone(), &text[..*end]) {
        Ok(_) => true,
        Err(error) => error.to_string().contains(ENDED),
    });
    format!("line {}: {error}", line + 1)
}

/// Deepest nesting of messages in a text.
const DEPTH: usize = 64;

fn check_depth(text: &str) -> Result<(), ConfigError> {
    let mut depth = 0_usize;
    for byte in text.bytes() {
        // Brackets in strings and comments count too: they would have to be many to do harm.
        match byte {
            b'{' | b'<' | b'[' => depth += 1,
            b'}' | b'>' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH {
            return Err(ConfigError(format!("nested deeper than {DEPTH} levels")));
        }
    }
    Ok(())
}

/// The same text with a colon between each name and the list behind it: `input [ … ]` is how everybody writes lists of
/// messages, and the one form that the parser does not know.
fn with_colons(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    // The last character that is neither space nor comment, and the quote of the string that is open.
    let (mut last, mut quote, mut comment, mut escaped) = (' ', None, false, false);
    for c in text.chars() {
        match (quote, comment) {
            (Some(open), _) => {
                if c == open && !escaped {
                    quote = None;
                }
                escaped = c == '\\' && !escaped;
            }
            (None, true) => comment = c != '\n',
            (None, false) => match c {
                '"' | '\'' => quote = Some(c),
                '#' => comment = true,
                '[' if last.is_ascii_alphanumeric() || last == '_' => out.push(':'),
                _ => {}
            },
        }
        if !comment && !c.is_whitespace() {
            last = c;
        }
        out.push(c);
    }
    out
}

fn typed(message: &DynamicMessage) -> Result<pb::ModelConfig, ConfigError> {
    pb::ModelConfig::decode(message.encode_to_vec().as_slice()).map_err(|error| ConfigError(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_needs_no_colon_and_strings_and_comments_are_left_alone() {
        assert_eq!(
            with_colons("dims [1] a: [2] # b [\n c [\"d [\\\" [\"]"),
            "dims :[1] a: [2] # b [\n c :[\"d [\\\" [\"]"
        );
    }

    #[test]
    fn what_is_malformed_is_named() {
        let text = |text| parse_config_text(text).unwrap_err().to_string();
        let unknown = text("name: \"m\"\n# more\ninput [\n  { colour: 1 }\n]\n");
        assert!(unknown.starts_with("line 4: ") && unknown.contains("colour"), "{unknown}");
        assert!(text("max_batch_size: 1\nmax_batch_size: many\n").starts_with("line 2: "));
        assert!(text("name: ").contains(ENDED) && text("\ninput {\n").contains(ENDED));
        assert!(parse_config_text(&"a{".repeat(100_000)).unwrap_err().to_string().contains("deeper"));
        assert!(parse_config_json(r#"{"colour":1}"#).unwrap_err().to_string().contains("colour"));
        assert!(parse_config_json("{} {}").is_err());
        assert!(parse_config_json(&"[".repeat(100_000)).unwrap_err().to_string().contains("deeper"));
    }
}
