//! Texts with placeholders: taken apart once, filled for each item.

/// A text with placeholders, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pattern(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field { name: String, optional: bool },
}

impl Pattern {
    /// Takes `text {field} {field?} {{brace}}` apart.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut fixed = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            fixed.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                fixed.push_str(brace);
                rest = after;
                continue;
            }
            let closed = if brace == "{" { rest.split_once('}') } else { None };
            let (inside, after) =
                closed.ok_or_else(|| format!("a lone `{brace}`; write it twice for a brace"))?;
            let name = inside.strip_suffix('?').unwrap_or(inside);
            if name.is_empty() || name.contains(['{', '?']) || name.trim() != name {
                return Err(format!("`{{{inside}}}` is not a field name"));
            }
            if !fixed.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut fixed)));
            }
            pieces.push(Piece::Field { name: name.to_owned(), optional: name != inside });
            rest = after;
        }
        fixed.push_str(rest);
        if !fixed.is_empty() {
            pieces.push(Piece::Text(fixed));
        }
        Ok(Self(pieces))
    }

    /// Names of the fields, as often as they stand there.
    pub(super) fn fields(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Field { name, .. } => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }

    pub(super) fn has(&self, field: &str) -> bool {
        self.fields().any(|f| f == field)
    }

    /// The text filled, each value cut to `max_words`; the name of a field that is needed and missing.
    pub(super) fn fill<'v>(
        &self,
        value: impl Fn(&str) -> Option<&'v str>,
        max_words: Option<usize>,
    ) -> Result<String, String> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(fixed) => text.push_str(fixed),
                Piece::Field { name, optional } => match value(name) {
                    Some(value) => text.push_str(first_words(value, max_words)),
                    None if *optional => {}
                    None => return Err(name.clone()),
                },
            }
        }
        Ok(text)
    }

    /// The text before and after the only place of a field; `None` without it.
    pub(super) fn around(&self, field: &str) -> Option<(Self, Self)> {
        let here = |p: &Piece| matches!(p, Piece::Field { name, .. } if name == field);
        let at = self.0.iter().position(here)?;
        Some((Self(self.0[..at].to_vec()), Self(self.0[at + 1..].to_vec())))
    }
}

/// The text up to the end of its `max`-th word, spacing kept; all of it if it has no more.
pub(super) fn first_words(text: &str, max: Option<usize>) -> &str {
    let Some(max) = max else { return text };
    let (mut words, mut inside, mut end) = (0, false, 0);
    for (at, c) in text.char_indices() {
        let in_word = !c.is_whitespace();
        if in_word && !inside {
            if words == max {
                return &text[..end];
            }
            words += 1;
        }
        if in_word {
            end = at + c.len_utf8();
        }
        inside = in_word;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_are_cut_and_spacing_kept() {
        let cases = [
            ("a  b c", 2, "a  b"),
            (" a b ", 2, " a b "),
            (" a b \n c", 2, " a b"),
            ("a b", 3, "a b"),
            ("a b", 0, ""),
            (" é ü", 1, " é"),
            ("", 1, ""),
        ];
        for (text, max, expected) in cases {
            assert_eq!(first_words(text, Some(max)), expected, "{text:?} {max}");
        }
        assert_eq!(first_words("a b", None), "a b");
    }

    #[test]
    fn optional_fields_may_be_missing_and_others_are_named() {
        let pattern = Pattern::parse("{a} {b?}.").unwrap();
        let only_a = |name: &str| (name == "a").then_some("x");
        assert_eq!(pattern.fill(only_a, None), Ok("x .".to_owned()));
        assert_eq!(pattern.fill(|_| None, None), Err("a".to_owned()));
        assert_eq!(pattern.fields().collect::<Vec<_>>(), ["a", "b"]);
        let (before, after) = Pattern::parse("<{a}|{b}>").unwrap().around("b").unwrap();
        assert_eq!(before.fill(only_a, None).unwrap(), "<x|");
        assert_eq!(after.fill(only_a, None).unwrap(), ">");
        assert_eq!(before.around("b"), None);
        for bad in ["{", "}", "{}", "{?}", "{ a }", "{a??}", "{a{b}"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        /// Doubling the braces of any text makes it a literal; a value's own braces are never read.
        #[test]
        fn braces_and_values_are_literal(before in any::<String>(), value in any::<String>()) {
            let escaped = before.replace('{', "{{").replace('}', "}}");
            let pattern = Pattern::parse(&format!("{escaped}{{text}}:")).unwrap();
            let text = pattern.fill(|_| Some(&value), None).unwrap();
            prop_assert_eq!(text, format!("{before}{value}:"));
        }

        #[test]
        fn parsing_never_panics_and_cut_texts_are_prefixes(text in any::<String>(), max in 0usize..6) {
            let _ = Pattern::parse(&text);
            let cut = first_words(&text, Some(max));
            prop_assert!(text.starts_with(cut));
            prop_assert_eq!(cut.split_whitespace().count(), text.split_whitespace().count().min(max));
        }
    }
}
