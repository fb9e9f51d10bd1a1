//! A question's text and what it asks about: one is made from the other.
//!
//! The benchmark ships whole questions; templates of our own need the payload alone. It is what
//! stands behind a marker, and for citations the three quoted titles.

use super::LampTask;
use std::collections::BTreeMap;

/// A question's text does not have the form of its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the question's text has no {expected}")]
pub struct NoMarker {
    /// What was looked for.
    pub expected: &'static str,
}

/// Field name -> text.
pub type Payload = BTreeMap<String, String>;

/// What stands in front of the citation's options.
const OPTION_MARKERS: [&str; 2] = ["[1]:", "[2]:"];

/// What follows the title in the released citation questions.
const AFTER_TITLE: &str = "\", which reference";

impl LampTask {
    /// The text before the payload; LaMP's and OPPU's longer ones end in it.
    fn marker(self) -> &'static str {
        match self {
            Self::Citation => "\"",
            Self::MovieTag => "description:",
            Self::NewsCategory | Self::Headline => "article:",
            Self::Rating => "review:",
            Self::ScholarlyTitle => "paper:",
            Self::EmailSubject | Self::TweetParaphrase => ":",
        }
    }

    /// The payload of a question's text: all behind the first marker, without white space at its ends.
    ///
    /// # Errors
    /// [`NoMarker`].
    pub fn payload(self, input: &str) -> Result<Payload, NoMarker> {
        if self == Self::Citation {
            return citation(input);
        }
        let expected = match self {
            Self::MovieTag => "`description:`",
            Self::NewsCategory | Self::Headline => "`article:`",
            Self::Rating => "`review:`",
            Self::ScholarlyTitle => "`paper:`",
            _ => "`:`",
        };
        let (_, text) = input.split_once(self.marker()).ok_or(NoMarker { expected })?;
        Ok([(self.input_field().to_owned(), text.trim().to_owned())].into())
    }

    /// A question in words of our own, with the markers by which LaMP's and OPPU's programs read it.
    ///
    /// *Round trip*: [`LampTask::payload`] gives the payload back if its texts have no white space at
    /// their ends and (citations) do not hold the option markers.
    ///
    /// # Errors
    /// [`NoMarker`], naming the field the payload lacks.
    pub fn question(self, payload: &Payload) -> Result<String, NoMarker> {
        let get = |name: &'static str| {
            payload.get(name).map(String::as_str).ok_or(NoMarker { expected: name })
        };
        let text = get(self.input_field())?;
        let labels = || self.labels().join(", ");
        Ok(match self {
            Self::Citation => format!(
                "A researcher is at work on the paper with the title \"{text}\", which reference belongs \
                 in it? Reply with [1] or [2] and nothing else. [1]: \"{}\" [2]: \"{}\"",
                get("option_1")?,
                get("option_2")?
            ),
            Self::MovieTag => format!(
                "Choose the tag that this person would give the film. Reply with the tag alone. \
                 tags: [{}] description: {text}",
                labels()
            ),
            Self::NewsCategory => format!(
                "Choose the category in which this journalist filed the piece. Reply with the category \
                 alone. categories: [{}] article: {text}",
                labels()
            ),
            Self::Rating => format!(
                "Say how many stars from 1 to 5 go with these words, as one digit without further \
                 explanation. review: {text}"
            ),
            Self::Headline => format!("Write the headline for the following article: {text}"),
            Self::ScholarlyTitle => {
                format!("Write the title for the following abstract of a paper: {text}")
            }
            Self::EmailSubject => format!("Write the subject line of this e-mail: {text}"),
            Self::TweetParaphrase => format!(
                "Put into this person's words the following tweet without any explanation before or \
                 after it: {text}"
            ),
        })
    }
}

/// The three quoted titles; the options are taken by their numbers, in whichever order they stand.
fn citation(input: &str) -> Result<Payload, NoMarker> {
    let missing = |expected| NoMarker { expected };
    let (before, rest) = input.split_once('"').ok_or(missing("quoted title"))?;
    let rest_at = before.len() + 1;
    // Options are looked for behind the title, so that a title may hold their markers.
    let behind = rest.find(AFTER_TITLE).unwrap_or(0);
    let options = OPTION_MARKERS.map(|marker| opening(rest, behind, marker));
    let [Some(first), Some(second)] = options else {
        let expected =
            if options[0].is_none() { "option `[1]: \"…\"`" } else { "option `[2]: \"…\"`" };
        return Err(missing(expected));
    };
    let start = first.0.min(second.0);
    let head = rest.get(..start).unwrap_or_default();
    let end = head.find(AFTER_TITLE).or_else(|| head.rfind('"'));
    let title = &input[rest_at..rest_at + end.ok_or(missing("quoted title"))?];
    let option = |own: (usize, usize), other: (usize, usize)| {
        let until = if own.0 < other.0 { other.0 } else { rest.len() };
        let text = rest.get(own.1..until).unwrap_or_default();
        text.rfind('"').map(|quote| text[..quote].to_owned())
    };
    let unclosed = missing("closing quote of an option");
    let fields = [
        ("title", title.to_owned()),
        ("option_1", option(first, second).ok_or(unclosed)?),
        ("option_2", option(second, first).ok_or(unclosed)?),
    ];
    Ok(fields.map(|(name, text)| (name.to_owned(), text)).into())
}

/// The first `marker`, then white space, then a quote: where the marker starts and the quoted text starts.
fn opening(text: &str, from: usize, marker: &str) -> Option<(usize, usize)> {
    text[from..].match_indices(marker).find_map(|(at, found)| {
        let after = from + at + found.len();
        let trimmed = text[after..].trim_start();
        let quote = text.len() - trimmed.len();
        trimmed.starts_with('"').then_some((from + at, quote + 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(task: LampTask, input: &str) -> String {
        let payload = task.payload(input).unwrap();
        assert_eq!(payload.len(), 1);
        payload[task.input_field()].clone()
    }

    /// The published instructions up to the marker; the payloads are invented.
    #[test]
    fn published_forms() {
        use LampTask as T;
        let cases = [
            (
                T::MovieTag,
                "Which tag ...? tags: [sci-fi, true story] description:  A boat: lost. ",
                "A boat: lost.",
            ),
            (
                T::NewsCategory,
                "... categories: [travel, religion] article: Snow article: more",
                "Snow article: more",
            ),
            (
                T::Rating,
                "... 1, 2, 3, 4, or 5 without further explanation. review: Good\nreview",
                "Good\nreview",
            ),
            (T::Headline, "Generate a headline for the following article: A b", "A b"),
            (
                T::ScholarlyTitle,
                "Generate a title for the following abstract of a paper: We x.",
                "We x.",
            ),
            (T::EmailSubject, "Generate a subject for the following email: Hi: a", "Hi: a"),
            (T::TweetParaphrase, "Paraphrase ... before or after it: so: tired", "so: tired"),
            (T::Rating, "review:", ""),
        ];
        for (task, input, payload) in cases {
            assert_eq!(one(task, input), payload);
        }
        for task in LampTask::ALL {
            assert!(task.payload("nothing to be found here").is_err(), "{task}");
        }
    }

    #[test]
    fn citations() {
        let ask = |title: &str, options: &str| {
            let input = format!(
                "For an author who has written the paper with the title \"{title}\", which reference is \
                 related? Just answer with [1] or [2] without explanation. {options}"
            );
            let p = LampTask::Citation.payload(&input)?;
            Ok::<_, NoMarker>(["title", "option_1", "option_2"].map(|k| p[k].clone()))
        };
        let plain = ["T".to_owned(), "A".to_owned(), "B".to_owned()];
        assert_eq!(ask("T", "[1]: \"A\" [2]: \"B\""), Ok(plain.clone()));
        assert_eq!(ask("T", "[2]: \"B\" [1]: \"A\""), Ok(plain.clone()));
        assert_eq!(ask("T", "[1]:\"A\"\n[2]:  \"B\"\n"), Ok(plain));
        let quoted = ["On \"x\", \"y\"", "\"A\" and a", "b \"B\""].map(str::to_owned);
        assert_eq!(ask("On \"x\", \"y\"", "[1]: \"\"A\" and a\" [2]: \"b \"B\"\""), Ok(quoted));
        let tricky = ask("T [1]: \"no\"", "[1]: \"A\" [2]: \"B\"").unwrap();
        assert_eq!(tricky, ["T [1]: \"no\"", "A", "B"].map(str::to_owned));
        for (options, part) in [
            ("[1]: \"A\"", "[2]"),
            ("[2]: \"B\"", "[1]"),
            ("[1]: A [2]: B", "[1]"),
            ("[1]: \"A [2]: \"B", "closing"),
        ] {
            assert!(ask("T", options).unwrap_err().to_string().contains(part), "{options}");
        }
        let other = LampTask::Citation.payload("Paper \"T\" cites? [1]: \"A\" [2]: \"B\"").unwrap();
        assert_eq!(other["title"], "T");
        assert!(LampTask::Citation.payload("[1]: \"A\" [2]: \"B\"").is_err());
    }

    #[test]
    fn our_questions_have_oppus_markers() {
        let text = "TEXT".to_owned();
        for (task, marker) in [
            (LampTask::MovieTag, "] description: "),
            (LampTask::NewsCategory, "] article: "),
            (LampTask::Rating, "without further explanation. review: "),
            (LampTask::Headline, "headline for the following article: "),
            (LampTask::ScholarlyTitle, "title for the following abstract of a paper: "),
            (
                LampTask::TweetParaphrase,
                "following tweet without any explanation before or after it: ",
            ),
        ] {
            let question = task.question(&[(task.input_field().to_owned(), text.clone())].into());
            assert!(question.unwrap().ends_with(&format!("{marker}{text}")), "{task}");
            assert!(task.question(&Payload::new()).is_err());
        }
    }

    proptest! {
        #[test]
        fn questions_give_their_payload_back(a in "\\PC{0,30}", b in "[a-z\" ,]{0,9}", c in "\\PC{0,30}") {
            for task in LampTask::ALL {
                let texts = [&a, &b, &c].map(|t| t.trim().replace("]:", "").replace("which", ""));
                let fields = task.payload_fields().iter().map(|f| (*f).to_owned());
                let payload: Payload = fields.zip(texts).collect();
                let question = task.question(&payload).unwrap();
                prop_assert_eq!(task.payload(&question).unwrap(), payload, "{}", question);
            }
        }

        #[test]
        fn any_text_is_a_payload_or_an_error(input in "(\"|\\[1\\]:|\\[2\\]:| |é|, which reference|[a-z:])*") {
            for task in LampTask::ALL {
                if let Ok(payload) = task.payload(&input) {
                    prop_assert_eq!(payload.len(), task.payload_fields().len());
                }
            }
        }
    }
}
