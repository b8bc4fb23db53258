//! Finds members of a JSON object without parsing what is in them.
//!
//! Every byte is looked at once, and no number is read: whoever needs the values checks the grammar. Nothing recurses.

/// The values of an object, by name, as slices of its text.
#[derive(Debug)]
pub(super) struct Members<'a> {
    text: &'a [u8],
    at: usize,
    begun: bool,
}

/// The values of an array, as slices of its text.
#[derive(Debug)]
pub(super) struct Items<'a>(Members<'a>);

/// The text has no such structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A member: its name as it is written between its quotes, and its value's text.
pub(super) type Member<'a> = (&'a [u8], &'a [u8]);

// === impl Members ===

impl<'a> Members<'a> {
    /// The members of the object that `text` is; white space may surround it, nothing else.
    pub(super) fn of(text: &'a [u8]) -> Result<Self, Malformed> {
        Self::within(text, b'{', b'}')
    }

    fn within(text: &'a [u8], open: u8, close: u8) -> Result<Self, Malformed> {
        match text.trim_ascii() {
            [first, inner @ .., last] if *first == open && *last == close => {
                Ok(Self { text: inner, at: 0, begun: false })
            }
            _ => Err(Malformed),
        }
    }

    /// The next member.
    pub(super) fn next(&mut self) -> Result<Option<Member<'a>>, Malformed> {
        if !self.separator()? {
            return Ok(None);
        }
        let name = self.value()?;
        let [b'"', name @ .., b'"'] = name else { return Err(Malformed) };
        if self.peek() != Some(b':') {
            return Err(Malformed);
        }
        self.at += 1;
        Ok(Some((name, self.value()?)))
    }

    /// Goes to the next element; false at the end.
    fn separator(&mut self) -> Result<bool, Malformed> {
        match (self.peek(), self.begun) {
            (None, _) => return Ok(false),
            (Some(b','), true) => self.at += 1,
            (Some(_), false) => self.begun = true,
            (Some(_), true) => return Err(Malformed),
        }
        Ok(true)
    }

    fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.text.get(self.at) {
            if !byte.is_ascii_whitespace() {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    /// The text of one value.
    fn value(&mut self) -> Result<&'a [u8], Malformed> {
        let first = self.peek().ok_or(Malformed)?;
        let start = self.at;
        match first {
            b'"' => self.string()?,
            b'{' | b'[' => self.composite()?,
            b',' | b':' | b'}' | b']' => return Err(Malformed),
            _ => {
                let rest = &self.text[self.at..];
                let ends = |byte: &u8| byte.is_ascii_whitespace() || b",:]}[{\"".contains(byte);
                self.at += rest.iter().position(ends).unwrap_or(rest.len());
            }
        }
        Ok(&self.text[start..self.at])
    }

    fn string(&mut self) -> Result<(), Malformed> {
        self.at += 1;
        loop {
            let rest = self.text.get(self.at..).ok_or(Malformed)?;
            let stop = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')).ok_or(Malformed)?;
            let quote = rest[stop] == b'"';
            self.at += stop + if quote { 1 } else { 2 };
            if quote {
                return Ok(());
            }
        }
    }

    fn composite(&mut self) -> Result<(), Malformed> {
        let mut depth = 0_usize;
        while let Some(byte) = self.text.get(self.at) {
            match byte {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        return Ok(());
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
        Err(Malformed)
    }
}

// === impl Items ===

impl<'a> Items<'a> {
    /// The elements of the array that `text` is.
    pub(super) fn of(text: &'a [u8]) -> Result<Self, Malformed> {
        Members::within(text, b'[', b']').map(Self)
    }

    /// The next element.
    pub(super) fn next(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        if self.0.separator()? { self.0.value().map(Some) } else { Ok(None) }
    }
}

/// How deep `text` is nested, brackets in strings aside.
pub(super) fn depth(text: &[u8]) -> usize {
    let mut walk = Members { text, at: 0, begun: false };
    let (mut depth, mut deepest) = (0_usize, 0);
    while let Some(byte) = text.get(walk.at) {
        match byte {
            b'"' => match walk.string() {
                Ok(()) => continue,
                // Nobody reads on from here.
                Err(Malformed) => break,
            },
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        walk.at += 1;
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(text: &str) -> Result<Vec<(String, String)>, Malformed> {
        let mut members = Members::of(text.as_bytes())?;
        let mut all = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        while let Some((name, value)) = members.next()? {
            all.push((text(name), text(value)));
        }
        Ok(all)
    }

    #[test]
    fn values_are_slices_of_the_text() {
        let found = members(r#" {"a":1 , "b\"}":"x,\"}]", "c":[[1,{"}":2}],"]"],"d":{"a":null},"e":-1.5e3} "#).unwrap();
        let expected = [
            ("a", "1"),
            ("b\\\"}", r#""x,\"}]""#),
            ("c", r#"[[1,{"}":2}],"]"]"#),
            ("d", r#"{"a":null}"#),
            ("e", "-1.5e3"),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(members("{}"), Ok(vec![]));
    }

    #[test]
    fn what_has_no_structure_is_malformed() {
        for text in [
            "",
            "x",
            "[]",
            "{",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1 "b":2}"#,
            r#"{"a":[1}"#,
            r#"{"a":"x}"#,
            r#"{"a":"\"#,
            "{a:1}",
            r#"{"a":1,}"#,
        ] {
            assert_eq!(members(text), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn brackets_of_strings_are_no_levels() {
        for (text, levels) in
            [("7", 0), ("[]", 1), (r#"{"a":[{}],"b":[]}"#, 3), (r#"["[[\"[[",[]]"#, 2), (r#"["[["#, 1)]
        {
            assert_eq!(depth(text.as_bytes()), levels, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_members_or_malformed(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            depth(&text);
            if let Ok(mut members) = Members::of(&text) {
                while let Ok(Some(_)) = members.next() {}
            }
        }

        #[test]
        fn what_looks_like_json_never_panics(text in r#"[\[\]{}",:\\a1 ]{0,40}"#) {
            if let Ok(mut members) = Members::of(text.as_bytes()) {
                while let Ok(Some((_, value))) = members.next() {
                    if let Ok(mut items) = Items::of(value) {
                        while let Ok(Some(_)) = items.next() {}
                    }
                }
            }
        }
    }
}
