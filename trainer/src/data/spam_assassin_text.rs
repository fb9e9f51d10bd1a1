//! What of a mail is its author's own text, and what of it names people.
//!
//! Owns: the rules for quotations, signatures, footers, feed entries, subjects; [`People`]. The rules
//! are line by line and simple on purpose: each is one a reader can check by eye. Must never know:
//! files, users.

use std::collections::BTreeSet;

/// Lines from which on nothing is the author's: a signature, a list's footer, an older mail.
fn ends_text(line: &str) -> bool {
    line == "-- "
        || line.trim_end() == "--"
        || line.starts_with("__________")
        || line.starts_with("-----BEGIN PGP SIGNATURE")
        || (line.starts_with("----") && line.contains("Original Message"))
        || (line.starts_with("----") && line.contains("Yahoo! Groups Sponsor"))
        || line.starts_with("----------------------------------------------------")
}

/// `> text`, `| text`, `AB> text`.
fn is_quoted(line: &str) -> bool {
    let line = line.trim_start();
    let initials = line.trim_start_matches(|c: char| c.is_ascii_uppercase());
    let initialled = initials.starts_with('>') && line.len() - initials.len() <= 4;
    initialled || line.starts_with('|')
}

/// `On Monday, Ann wrote:` and its like in three languages of the corpus.
fn announces_quote(line: &str) -> bool {
    let line = line.trim_end();
    ["wrote:", "writes:", "said:", "écrit:", "schrieb:"].iter().any(|end| line.ends_with(end))
}

/// The author's own words of a body, white space runs made one space.
///
/// Left out: quoted lines; the line that announces them, and the one before it if that begins with
/// `On `; PGP's armour; everything from a signature (`-- `), a list's footer (ten underscores, a long
/// rule, a Yahoo! Groups sponsor) or an `Original Message` rule on.
pub(super) fn own_words(body: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for line in body.lines() {
        if ends_text(line) {
            break;
        }
        let armour = line.starts_with("-----BEGIN PGP") || line.starts_with("Hash: ");
        if armour || is_quoted(line) {
            continue;
        }
        if announces_quote(line) {
            if kept.last().is_some_and(|before| before.starts_with("On ")) {
                kept.pop();
            }
            continue;
        }
        kept.push(line);
    }
    joined(&kept)
}

/// The text of a feed entry sent as mail.
///
/// Left out: the lines `URL: …` and `Date: …` at the top, foot notes (`[1] http://…`) and their marks
/// in the text, images. Character references are decoded, tags and emphasis marks (`_x_`, `*x*`) go.
pub(super) fn entry(body: &str) -> String {
    let is_note = |line: &&str| {
        let number = line.strip_prefix('[').and_then(|l| l.split_once(']'));
        number.is_some_and(|(n, rest)| is_number(n) && rest.trim_start().starts_with("http"))
    };
    let at_top = |line: &&str| line.starts_with("URL: ") || line.starts_with("Date: ");
    let kept: Vec<&str> = body
        .lines()
        .skip_while(at_top)
        .filter(|line| !is_note(line) && !line.starts_with("[IMG:"))
        .collect();
    let text = without_marks(&without_tags(&references_decoded(&joined(&kept))));
    joined(&[&unstressed(&text)])
}

/// A subject in one line without tags and references.
pub(super) fn headline(subject: &str) -> String {
    joined(&[&without_tags(&references_decoded(subject))])
}

/// A subject and whether it is the author's: not that of a reply or of something passed on.
///
/// Leading `[list]` marks go.
pub(super) fn subject(header: &str) -> (String, bool) {
    let mut rest = header.trim();
    while let Some((mark, after)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
        // A whole subject in brackets is no mark.
        if mark.contains('[') || after.trim().is_empty() {
            break;
        }
        rest = after.trim();
    }
    let lower = rest.to_lowercase();
    let own = !lower.ends_with("(fwd)")
        && !["re", "fw", "fwd", "aw", "sv"].iter().any(|mark| {
            // `Re:`, `RE :`, `Re[2]:`, `Re: [list] x`.
            let after = lower.strip_prefix(mark).unwrap_or("x");
            let count = after.trim_start().strip_prefix('[').and_then(|r| r.split_once(']'));
            let after = count.filter(|(n, _)| is_number(n)).map_or(after, |(_, rest)| rest);
            after.trim_start().starts_with(':')
        });
    (joined(&[rest]), own)
}

/// Whether a text begins with the words of its title: then copying would answer.
pub(super) fn begins_with(text: &str, title: &str) -> bool {
    let letters = |text: &str| -> String {
        text.chars().filter(|c| c.is_alphanumeric()).take(40).flat_map(char::to_lowercase).collect()
    };
    let title = letters(title);
    letters(text).starts_with(&title)
}

/// Names of people, to be taken out of texts.
#[derive(Debug, Default)]
pub(super) struct People {
    /// First and last name of everybody in an address header of the corpus.
    pairs: BTreeSet<(String, String)>,
}

/// The words of a display name that can stand for the person: capitalised, three letters or more.
fn name_words(display: &str) -> Vec<&str> {
    let words = display.split(|c: char| !c.is_alphabetic()).filter(|w| w.chars().count() >= 3);
    words.filter(|w| w.starts_with(char::is_uppercase)).collect()
}

impl People {
    /// Notes a display name of the corpus.
    pub(super) fn add(&mut self, display: &str) {
        if let [first, .., last] = name_words(display)[..] {
            self.pairs.insert((first.to_owned(), last.to_owned()));
        }
    }

    /// The text with `[link]`, `[address]`, `[number]` and `[name]` in place of links, mail addresses,
    /// numbers of seven digits and more, and names: every word of the `present` display names (those of
    /// the mail's own headers), and first and last name of anybody in the corpus where they stand
    /// together. Other people's first names alone stay: nothing tells them from words.
    pub(super) fn taken_out(&self, text: &str, present: &[&str]) -> String {
        let here: BTreeSet<&str> = present.iter().flat_map(|display| name_words(display)).collect();
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut out: Vec<String> = Vec::new();
        let mut at = 0;
        while let Some(word) = words.get(at) {
            let (before, bare, after) = shelled(word);
            let next = words.get(at + 1).map(|w| shelled(w));
            let pair = next.is_some_and(|(_, other, _)| {
                after.is_empty() && self.pairs.contains(&(bare.to_owned(), other.to_owned()))
            });
            if let (true, Some((_, _, end))) = (pair, next) {
                out.push(format!("{before}[name]{end}"));
                at += 2;
                continue;
            }
            let stand_in = stand_in(bare).or_else(|| here.contains(bare).then_some("[name]"));
            out.push(match stand_in {
                Some(mark) => format!("{before}{mark}{after}"),
                None => (*word).to_owned(),
            });
            at += 1;
        }
        out.join(" ")
    }
}

fn stand_in(bare: &str) -> Option<&'static str> {
    let is_link = bare.contains("://") || bare.starts_with("www.");
    let is_address = bare.split_once('@').is_some_and(|(a, b)| !a.is_empty() && b.contains('.'));
    let digits = bare.chars().filter(char::is_ascii_digit).count();
    let is_number = digits >= 7 && bare.chars().all(|c| c.is_ascii_digit() || "+-().".contains(c));
    if is_link {
        Some("[link]")
    } else if is_address {
        Some("[address]")
    } else {
        is_number.then_some("[number]")
    }
}

/// A word as what stands before it, itself, and what stands after (`'s` too).
fn shelled(word: &str) -> (&str, &str, &str) {
    let is_shell = |c: char| !c.is_alphanumeric() && c != '+';
    let from = word.find(|c| !is_shell(c)).unwrap_or(word.len());
    let bare = word[from..].trim_end_matches(is_shell);
    let bare = bare.strip_suffix("'s").unwrap_or(bare);
    (&word[..from], bare, &word[from + bare.len()..])
}

fn joined(lines: &[&str]) -> String {
    lines.iter().flat_map(|l| l.split_whitespace()).collect::<Vec<_>>().join(" ")
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.len() <= 3 && text.bytes().all(|b| b.is_ascii_digit())
}

/// Every `*`, and every `_` that does not stand inside a word, goes.
fn unstressed(text: &str) -> String {
    let mut before = ' ';
    let mut out = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let inside = before.is_alphanumeric() && rest.peek().is_some_and(|c| c.is_alphanumeric());
        if c != '*' && (c != '_' || inside) {
            out.push(c);
        }
        before = c;
    }
    out
}

/// `text[12]` -> `text`.
fn without_marks(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('[') {
        out.push_str(before);
        match after.split_once(']') {
            Some((number, behind)) if is_number(number) => rest = behind,
            _ => {
                out.push('[');
                rest = after;
            }
        }
    }
    out + rest
}

/// `<b>x</b>` -> `x`; a `<` that opens no tag stays.
fn without_tags(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('<') {
        out.push_str(before);
        let opens = after.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
        match after.split_once('>') {
            Some((_, behind)) if opens => rest = behind,
            _ => {
                out.push('<');
                rest = after;
            }
        }
    }
    out + rest
}

/// `&#8220;`, `&#x201c;`, `&amp;` and the other names that feeds use.
fn references_decoded(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        let found = after.split_once(';').and_then(|(name, behind)| Some((named(name)?, behind)));
        rest = match found {
            Some((c, behind)) => {
                out.push(c);
                behind
            }
            None => {
                out.push('&');
                after
            }
        };
    }
    out + rest
}

fn named(name: &str) -> Option<char> {
    let number = |digits: &str, radix| char::from_u32(u32::from_str_radix(digits, radix).ok()?);
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        "nbsp" => Some(' '),
        _ => match name.strip_prefix('#')? {
            hex if hex.starts_with(['x', 'X']) => number(&hex[1..], 16),
            decimal => number(decimal, 10),
        }
        .filter(|c| !c.is_control()),
    }
}

#[cfg(test)]
#[path = "spam_assassin_text_tests.rs"]
mod tests;
