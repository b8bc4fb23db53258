//! A pull reader of JSON text: one pass, no tree, no recursion.
//!
//! It knows the grammar of RFC 8259, counts how deep it is, and refuses a name that stands twice in one
//! object, also in objects that nobody reads. It does not know what any member means.

use super::plain::plain_length;
use crate::error::Error;
use smallvec::SmallVec;
use std::{borrow::Cow, fmt::Display};

/// Most members of one object whose names are not the protocol's own. Bounds the memory that the
/// search for duplicates takes; real requests have a handful.
pub(in crate::wire) const MEMBERS: usize = 1024;

/// Characters of a strange token that an error quotes.
const QUOTED: usize = 24;

/// Reads JSON text from front to back.
#[derive(Debug)]
pub(in crate::wire) struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    limit: usize,
    /// Names seen in the objects that are open, innermost last.
    names: SmallVec<[Cow<'a, str>; 8]>,
}

/// An open object.
#[derive(Debug)]
pub(in crate::wire) struct Members {
    /// Where its names begin in [`Reader::names`].
    names: usize,
    begun: bool,
}

/// An open array.
#[derive(Debug)]
pub(in crate::wire) struct Items {
    begun: bool,
}

enum Open {
    Object(Members),
    Array(Items),
}

impl<'a> Reader<'a> {
    /// A reader at the start of `json` that goes at most `limit` deep.
    ///
    /// # Errors
    ///
    /// If `json` is not UTF-8. Checked once and for all, so that every string is a slice.
    pub(in crate::wire) fn new(json: &'a [u8], limit: usize) -> Result<Self, Error> {
        let text = std::str::from_utf8(json).map_err(|error| {
            Error::invalid(format!("invalid JSON: no UTF-8 at byte {}, expected UTF-8", error.valid_up_to()))
        })?;
        Ok(Self { text, at: 0, depth: 0, limit, names: SmallVec::new() })
    }

    /// The byte where reading goes on.
    pub(in crate::wire) fn position(&self) -> usize {
        self.at
    }

    /// Goes back, or forth, to a place that was read or skipped already, at the present depth.
    pub(in crate::wire) fn seek(&mut self, position: usize) {
        self.at = position;
    }

    /// What is left of the text.
    #[inline]
    pub(in crate::wire) fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// The same as bytes, which cost no look for the border of a character.
    #[inline]
    pub(in crate::wire) fn bytes(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..]
    }

    /// Goes on by `bytes`, which [`Reader::rest`] was seen to hold.
    #[inline]
    pub(in crate::wire) fn advance(&mut self, bytes: usize) {
        self.at += bytes;
    }

    /// The next byte that is not white space.
    #[inline]
    pub(in crate::wire) fn peek(&mut self) -> Option<u8> {
        // Machines write no white space, and all of it lies at or below the blank.
        match self.text.as_bytes().get(self.at) {
            Some(byte) if *byte > b' ' => Some(*byte),
            _ => self.peek_behind_space(),
        }
    }

    fn peek_behind_space(&mut self) -> Option<u8> {
        self.at += self.bytes().iter().take_while(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t')).count();
        self.text.as_bytes().get(self.at).copied()
    }

    /// Only white space may follow.
    pub(in crate::wire) fn end(&mut self) -> Result<(), Error> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.unexpected("the end")),
        }
    }

    /// Goes one level deeper; pairs with [`Reader::leave`].
    pub(in crate::wire) fn enter(&mut self) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > self.limit {
            let limit = self.limit;
            return Err(Error::invalid(format!("JSON is deeper than {limit} levels at byte {}", self.at)));
        }
        self.at += 1;
        Ok(())
    }

    /// Comes up from the level that ends here.
    pub(in crate::wire) fn leave(&mut self) {
        self.at += 1;
        self.depth -= 1;
    }

    /// Enters an object.
    pub(in crate::wire) fn object(&mut self) -> Result<Members, Error> {
        if self.peek() != Some(b'{') {
            return Err(self.unexpected("an object"));
        }
        self.enter()?;
        Ok(Members { names: self.names.len(), begun: false })
    }

    /// The name of the next member, with the reader before its value; `None` once the object is over.
    pub(in crate::wire) fn member(&mut self, members: &mut Members) -> Result<Option<Cow<'a, str>>, Error> {
        match self.peek() {
            Some(b'}') => {
                self.leave();
                self.no_name_twice(members.names)?;
                return Ok(None);
            }
            Some(b',') if members.begun => {
                self.at += 1;
                if self.peek() != Some(b'"') {
                    return Err(self.unexpected("a name"));
                }
            }
            Some(b'"') if !members.begun => {}
            _ if members.begun => return Err(self.unexpected("`,` or `}`")),
            _ => return Err(self.unexpected("a name or `}`")),
        }
        members.begun = true;
        let name = self.string()?;
        if self.peek() != Some(b':') {
            return Err(self.unexpected("`:`"));
        }
        self.at += 1;
        Ok(Some(name))
    }

    /// Remembers a name, so that a second one like it is found at the end of its object.
    pub(in crate::wire) fn note(&mut self, members: &Members, name: Cow<'a, str>) -> Result<(), Error> {
        if self.names.len() - members.names >= MEMBERS {
            return Err(Error::invalid(format!("an object has more than {MEMBERS} members, at byte {}", self.at)));
        }
        self.names.push(name);
        Ok(())
    }

    fn no_name_twice(&mut self, from: usize) -> Result<(), Error> {
        let names = &mut self.names[from..];
        if names.len() > 1 {
            names.sort_unstable();
            if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(twice(&pair[0]));
            }
        }
        self.names.truncate(from);
        Ok(())
    }

    /// Enters an array.
    pub(in crate::wire) fn array(&mut self) -> Result<Items, Error> {
        if self.peek() != Some(b'[') {
            return Err(self.unexpected("an array"));
        }
        self.enter()?;
        Ok(Items { begun: false })
    }

    /// True with the reader before the next item; false once the array is over.
    pub(in crate::wire) fn item(&mut self, items: &mut Items) -> Result<bool, Error> {
        match self.peek() {
            Some(b']') => {
                self.leave();
                return Ok(false);
            }
            Some(b',') if items.begun => {
                self.at += 1;
                if self.peek() == Some(b']') {
                    return Err(self.unexpected("a value"));
                }
            }
            _ if items.begun => return Err(self.unexpected("`,` or `]`")),
            _ => {}
        }
        items.begun = true;
        Ok(true)
    }

    /// Takes `word` if it is what follows.
    pub(in crate::wire) fn take(&mut self, word: &'static str) -> bool {
        self.peek();
        let found = self.rest().starts_with(word);
        if found {
            self.at += word.len();
        }
        found
    }

    /// Reads `true` or `false`.
    pub(in crate::wire) fn boolean(&mut self) -> Result<bool, Error> {
        if self.take("true") {
            Ok(true)
        } else if self.take("false") {
            Ok(false)
        } else {
            Err(self.unexpected("`true` or `false`"))
        }
    }

    /// Reads the token of a number, without a look at its value.
    pub(in crate::wire) fn number(&mut self) -> Result<&'a str, Error> {
        self.peek();
        match super::numbers::scan(self.rest().as_bytes()) {
            Some((_, length)) => {
                let token = &self.rest()[..length];
                self.at += length;
                Ok(token)
            }
            None => Err(self.unexpected("a number")),
        }
    }

    /// Reads a string; borrowed unless it holds escapes. Inlined, above all into `member`, for a fifth of a small request.
    #[inline(always)]
    pub(in crate::wire) fn string(&mut self) -> Result<Cow<'a, str>, Error> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("a string"));
        }
        let start = self.at + 1;
        let end = start + plain_length(&self.text.as_bytes()[start..]);
        self.at = end;
        match self.text.as_bytes().get(end) {
            Some(b'"') => {
                self.at = end + 1;
                Ok(Cow::Borrowed(&self.text[start..end]))
            }
            _ => self.escaped(start).map(Cow::Owned),
        }
    }

    #[cold]
    fn escaped(&mut self, start: usize) -> Result<String, Error> {
        let mut string = String::from(&self.text[start..self.at]);
        loop {
            match self.text.as_bytes().get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(string);
                }
                Some(b'\\') => {
                    self.at += 1;
                    string.push(self.escape()?);
                }
                Some(_) => return Err(self.unexpected("an escape instead of a control character")),
                None => return Err(self.unexpected("the end of a string")),
            }
            let end = self.at + plain_length(self.bytes());
            string.push_str(&self.text[self.at..end]);
            self.at = end;
        }
    }

    fn escape(&mut self) -> Result<char, Error> {
        let character = match self.text.as_bytes().get(self.at) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            _ => return Err(self.unexpected("an escape")),
        };
        self.at += 1;
        Ok(character)
    }

    /// `uXXXX`, or a pair of them: half a pair is no character and cannot be kept as UTF-8.
    fn unicode(&mut self) -> Result<char, Error> {
        let first = self.four_digits()?;
        let mut second = None;
        if (0xD800..0xDC00).contains(&first) && self.bytes().starts_with(b"\\u") {
            self.at += 1;
            second = Some(self.four_digits()?);
        }
        let character = char::decode_utf16([first].into_iter().chain(second)).next();
        character.and_then(Result::ok).ok_or_else(|| self.unexpected("a whole surrogate pair before it"))
    }

    fn four_digits(&mut self) -> Result<u16, Error> {
        let digits = self.text.as_bytes().get(self.at + 1..self.at + 5);
        let code = digits.and_then(|digits| {
            digits.iter().try_fold(0, |code, digit| Some(code * 16 + char::from(*digit).to_digit(16)?))
        });
        let code = code.and_then(|code| u16::try_from(code).ok());
        let code = code.ok_or_else(|| self.unexpected("four hexadecimal digits"))?;
        self.at += 5;
        Ok(code)
    }

    /// Skips one value of any kind, however large, and checks its grammar.
    pub(in crate::wire) fn skip(&mut self) -> Result<(), Error> {
        self.skip_with(&[])
    }

    /// The same where `words` are values too.
    pub(in crate::wire) fn skip_with(&mut self, words: &[&'static str]) -> Result<(), Error> {
        let mut open: SmallVec<[Open; 4]> = SmallVec::new();
        loop {
            match self.peek() {
                Some(b'{') => open.push(Open::Object(self.object()?)),
                Some(b'[') => open.push(Open::Array(self.array()?)),
                Some(b'"') => drop(self.string()?),
                _ if words.iter().any(|word| self.take(word)) => {}
                Some(b'-' | b'0'..=b'9') => drop(self.number()?),
                _ if self.take("true") || self.take("false") || self.take("null") => {}
                _ => return Err(self.unexpected("a value")),
            }
            loop {
                let more = match open.last_mut() {
                    None => return Ok(()),
                    Some(Open::Array(items)) => self.item(items)?,
                    Some(Open::Object(members)) => match self.member(members)? {
                        Some(name) => {
                            self.note(members, name)?;
                            true
                        }
                        None => false,
                    },
                };
                if more {
                    break;
                }
                open.pop();
            }
        }
    }

    /// What stands here, shortened, for an error.
    pub(in crate::wire) fn found(&mut self) -> String {
        self.peek();
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return "the end".to_owned();
        };
        let end = match first {
            '"' => rest[1..].find('"').map_or(rest.len(), |n| n + 2),
            '-' | '+' | '.' | '_' | '0'..='9' | 'a'..='z' | 'A'..='Z' => {
                rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c))).unwrap_or(rest.len())
            }
            _ => first.len_utf8(),
        };
        let token = &rest[..end];
        match token.char_indices().nth(QUOTED) {
            Some((cut, _)) => format!("`{}…`", &token[..cut]),
            None => format!("`{token}`"),
        }
    }

    /// The error of something else than `expected` standing here.
    #[cold]
    pub(in crate::wire) fn unexpected(&mut self, expected: impl Display) -> Error {
        let found = self.found();
        Error::invalid(format!("invalid JSON at byte {}: found {found}, expected {expected}", self.at))
    }
}

/// The error of a name that stands twice in one object.
#[cold]
pub(in crate::wire) fn twice(name: &str) -> Error {
    let name: String = name.chars().take(QUOTED).collect();
    Error::invalid(format!("an object has `{name}` twice, expected once"))
}
