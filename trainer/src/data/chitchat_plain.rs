//! The plain version of a chat message: what is left when personal style is taken off.
//!
//! Owns: the rule, step by step, as [`plain`] applies it, and its tables. The rule is deterministic and
//! knows no context, so it sometimes misses ("ill" is read as "I will"); it is the definition of the
//! task "restore the style", not a claim about English. Changing a table changes the task.

/// Slang, chat abbreviations, shortened words, contractions written without their apostrophe.
const EXPANDED: &[(&str, &str)] = &[
    ("arent", "are not"),
    ("b4", "before"),
    ("bc", "because"),
    ("bout", "about"),
    ("btw", "by the way"),
    ("cant", "can not"),
    ("can't", "can not"),
    ("coulda", "could have"),
    ("couldnt", "could not"),
    ("coz", "because"),
    ("cus", "because"),
    ("cuz", "because"),
    ("didnt", "did not"),
    ("doesnt", "does not"),
    ("dont", "do not"),
    ("dunno", "do not know"),
    ("em", "them"),
    ("fav", "favorite"),
    ("fave", "favorite"),
    ("gimme", "give me"),
    ("gonna", "going to"),
    ("gotcha", "got you"),
    ("gotta", "have to"),
    ("hadnt", "had not"),
    ("hasnt", "has not"),
    ("havent", "have not"),
    ("hbu", "how about you"),
    ("here's", "here is"),
    ("heya", "hello"),
    ("hey", "hello"),
    ("heyo", "hello"),
    ("hi", "hello"),
    ("hiya", "hello"),
    ("he's", "he is"),
    ("how's", "how is"),
    ("hows", "how is"),
    ("idk", "i do not know"),
    ("ikr", "i know right"),
    ("ill", "i will"),
    ("im", "i am"),
    ("imma", "i am going to"),
    ("isnt", "is not"),
    ("it's", "it is"),
    ("itll", "it will"),
    ("ive", "i have"),
    ("jk", "just kidding"),
    ("k", "ok"),
    ("kinda", "kind of"),
    ("kk", "ok"),
    ("lemme", "let me"),
    ("let's", "let us"),
    ("lets", "let us"),
    ("lotta", "lot of"),
    ("mustve", "must have"),
    ("n", "and"),
    ("nah", "no"),
    ("nope", "no"),
    ("nvm", "never mind"),
    ("okay", "ok"),
    ("okey", "ok"),
    ("omw", "on my way"),
    ("outta", "out of"),
    ("pls", "please"),
    ("plz", "please"),
    ("r", "are"),
    ("rn", "right now"),
    ("shan't", "shall not"),
    ("she's", "she is"),
    ("shoulda", "should have"),
    ("shouldnt", "should not"),
    ("sorta", "sort of"),
    ("sup", "what is up"),
    ("tbh", "to be honest"),
    ("thanx", "thanks"),
    ("that's", "that is"),
    ("thatll", "that will"),
    ("thats", "that is"),
    ("there's", "there is"),
    ("theres", "there is"),
    ("theyre", "they are"),
    ("theyve", "they have"),
    ("tho", "though"),
    ("thru", "through"),
    ("thx", "thanks"),
    ("til", "until"),
    ("till", "until"),
    ("tmrw", "tomorrow"),
    ("tomoro", "tomorrow"),
    ("tryna", "trying to"),
    ("u", "you"),
    ("ur", "your"),
    ("wanna", "want to"),
    ("wasnt", "was not"),
    ("wbu", "what about you"),
    ("werent", "were not"),
    ("weve", "we have"),
    ("what's", "what is"),
    ("whats", "what is"),
    ("when's", "when is"),
    ("where's", "where is"),
    ("who's", "who is"),
    ("why's", "why is"),
    ("won't", "will not"),
    ("wont", "will not"),
    ("woulda", "would have"),
    ("wouldnt", "would not"),
    ("y", "why"),
    ("y'all", "you all"),
    ("ya", "you"),
    ("yall", "you all"),
    ("yea", "yes"),
    ("yeah", "yes"),
    ("yep", "yes"),
    ("youd", "you would"),
    ("youll", "you will"),
    ("youre", "you are"),
    ("youve", "you have"),
    ("yup", "yes"),
];

/// Endings after an apostrophe.
const ENDINGS: &[(&str, &str)] = &[
    ("n't", " not"),
    ("'re", " are"),
    ("'ve", " have"),
    ("'ll", " will"),
    ("'m", " am"),
    ("'d", " would"),
];

/// Words that colour a message without carrying it.
const FILLERS: &[&str] = &[
    "actually",
    "ah",
    "ahh",
    "aw",
    "aww",
    "basically",
    "dude",
    "eh",
    "er",
    "gosh",
    "heh",
    "hm",
    "hmm",
    "honestly",
    "huh",
    "jeez",
    "just",
    "literally",
    "lmao",
    "lmfao",
    "lol",
    "lolol",
    "man",
    "meh",
    "oh",
    "omg",
    "ooh",
    "oof",
    "rofl",
    "seriously",
    "super",
    "totally",
    "ugh",
    "uh",
    "um",
    "umm",
    "very",
    "well",
    "whoa",
    "woah",
    "woo",
    "wow",
    "xd",
    "really",
];

/// The plain version: one line of lower-case words, digits and single spaces; may be empty.
///
/// In this order: typographic apostrophes become `'`; links are dropped; hyphens, slashes and
/// underscores part words; of every word only letters, digits and inner apostrophes are kept, so
/// punctuation, emoji and emoticons go; lower case; a letter standing three times or more in a row
/// stands once; laughter (`haha`, `hehe`) and fillers are dropped; abbreviations and contractions are
/// written out; other apostrophes go.
pub fn plain(text: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for written in text.split_whitespace() {
        if written.contains("://") || written.starts_with("www.") {
            continue;
        }
        for part in emoticon_free(written).split(['-', '/', '_', '–', '—']) {
            let Some(word) = bare(part) else { continue };
            let word = squeezed(&word);
            if !is_laughter(&word) && !FILLERS.contains(&word.as_str()) {
                words.push(expanded(&word));
            }
        }
    }
    words.join(" ")
}

/// `:D`, `;P`, `xD`, `<3`, `:o)` have letters or digits that are no words.
fn emoticon_free(written: &str) -> &str {
    let eyes = written.starts_with([':', ';', '=']) && written.chars().count() <= 4;
    if eyes || written == "<3" { "" } else { written }
}

/// Letters, digits and inner apostrophes in lower case.
fn bare(part: &str) -> Option<String> {
    let straight = part.replace(['’', '‘', '`', '´'], "'");
    let kept: String = straight.chars().filter(|c| c.is_alphanumeric() || *c == '\'').collect();
    let word = kept.trim_matches('\'').to_lowercase();
    (!word.is_empty()).then_some(word)
}

/// `soooo` -> `so`; digits stay.
fn squeezed(word: &str) -> String {
    let mut out = String::new();
    let mut letters = word.chars().peekable();
    while let Some(letter) = letters.next() {
        let mut times = 1;
        while letters.next_if_eq(&letter).is_some() {
            times += 1;
        }
        let kept = if times >= 3 && letter.is_alphabetic() { 1 } else { times };
        out.extend(std::iter::repeat_n(letter, kept));
    }
    out
}

/// `haha`, `hahahah`, `ahaha`, `hehe`, `hahaa`: two syllables or more of `h` and one vowel.
fn is_laughter(word: &str) -> bool {
    let made_of = |vowel: char| word.chars().all(|c| c == 'h' || c == vowel);
    let syllables = |s: &str| word.matches(s).count() >= 2;
    (made_of('a') && syllables("ha")) || (made_of('e') && syllables("he")) || word == "ha"
}

fn expanded(word: &str) -> String {
    if let Some((_, long)) = EXPANDED.iter().find(|(short, _)| *short == word) {
        return (*long).to_owned();
    }
    for (ending, long) in ENDINGS {
        if let Some(stem) = word.strip_suffix(ending) {
            return format!("{stem}{long}").replace('\'', "");
        }
    }
    word.replace('\'', "")
}

/// The words that an overlap score sees: runs of ASCII letters and digits, in lower case.
///
/// *Source*: `rouge_score`'s tokenizer without stemming.
pub(super) fn scored_words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    lower
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|w| !w.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn style_goes_content_stays() {
        for (styled, expected) in [
            ("Soooo I'm REALLY tired... haha :D", "so i am tired"),
            ("u gonna watch it??  idk lol", "you going to watch it i do not know"),
            ("I don’t think they'd've cared 😂😂", "i do not think theyd have cared"),
            ("All-nighters/exams, ugh!! john's 1,000 pages", "all nighters exams johns 1000 pages"),
            ("see https://example.org/x or www.example.org <3 ;)", "see or"),
            ("Can't. Won't. Isn't it? LET'S GO", "can not will not is not it let us go"),
            ("2000000 yessss", "2000000 yes"),
            ("xD :P =) '' '", ""),
            ("Ça va très BIEN", "ça va très bien"),
            ("", ""),
        ] {
            assert_eq!(plain(styled), expected, "{styled:?}");
        }
    }

    #[test]
    fn plain_text_stays_as_it_is() {
        for text in ["i like the movie", "you going to watch it i do not know", "she hates hats"] {
            assert_eq!(plain(text), text);
        }
    }

    #[test]
    fn tables_have_no_word_twice() {
        let mut short: Vec<_> =
            EXPANDED.iter().map(|e| e.0).chain(FILLERS.iter().copied()).collect();
        let all = short.len();
        short.sort_unstable();
        short.dedup();
        assert_eq!(short.len(), all);
        // Otherwise the rule would not be one step.
        for (_, long) in EXPANDED {
            assert_eq!(plain(long), long.replace("just ", ""), "{long}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_bare_words(text in "\\PC{0,60}") {
            let plain = plain(&text);
            proptest::prop_assert!(plain.chars().all(|c| c.is_alphanumeric() || c == ' ' || !c.is_ascii()));
            proptest::prop_assert!(!plain.contains("  ") && plain.trim() == plain);
        }
    }
}
