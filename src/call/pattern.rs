//! Patterns of model names and versions, with `*` for any characters. Nothing else is special.

/// Whether all of `text` fits `pattern`.
///
/// Takes at most `pattern.len() * text.len()` steps; patterns come from operators and names are short.
pub fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where the last star was, and how much text it has swallowed up to now.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((at, swallowed)) = star {
            star = Some((at, swallowed + 1));
            p = at + 1;
            t = swallowed + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_star_is_any_characters() {
        for (pattern, text) in
            [("*", ""), ("*", "digits"), ("digits", "digits"), ("text_*", "text_"), ("*a*b", "xaxbb"), ("a**", "a")]
        {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("", "a"), ("digits", "digit"), ("digit", "digits"), ("text_*", "text"), ("a*b", "abc"), ("?", "a")]
        {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn what_was_cut_out_is_what_the_star_stands_for(head in "[ab]{0,8}", cut in "[ab]{0,8}", tail in "[ab]{0,8}") {
            let (pattern, text) = (format!("{head}*{tail}"), format!("{head}{cut}{tail}"));
            prop_assert!(fits(&pattern, &text));
        }

        #[test]
        fn without_a_star_only_the_same_fits(pattern in "[abc]{0,4}", text in "[abc]{0,4}") {
            prop_assert_eq!(fits(&pattern, &text), pattern == text);
        }
    }
}
