//! The chit-chat corpus as restyling users (the shape of LaMP-7).
//!
//! Owns: reading `dataset.json` of the PyPI package `chitchat-dataset` (MIT; 1,315 people, 258,145
//! messages of 2018), and what makes a message a question. The corpus has no paraphrases: a question is
//! the person's own message flattened by [`plain`], its answer the message as it was written. So the
//! task is to restore a person's style, not to paraphrase. Must never know: who is held out ([`Cut`]
//! knows). People are named by hashes; texts stay as written.
//! Start reading at [`read`]; the flattening is `chitchat_plain.rs`.
//!
//! [`Cut`]: super::timeline::Cut

use super::DataError;
use super::chitchat_plain::scored_words;
use super::timeline::{Corpus, Event, Timeline, hashed, item};
use crate::ids::UserId;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

pub use super::chitchat_plain::plain;

/// The question of LaMP-7 before its payload.
const QUESTION: &str =
    "Paraphrase the following tweet without any explanation before or after it: ";

/// A message makes a question with at least this many words, and this many left when flattened.
const MIN_WORDS: usize = 4;

/// Reads the corpus. `path` is `dataset.json` or a folder with it or with `chitchat_dataset/dataset.json`.
///
/// A person's messages are in time order, ties by conversation and place in it. An item has `text` (the
/// message, white space runs made one space) and `date`; a question has `text` (the flattened message),
/// `input` (LaMP-7's question with it), `gold` (the message) and `date`. A message makes a question if
/// it has four words or more before and after flattening and flattening changed a word as an overlap
/// score sees words: case and punctuation alone would make copying the question a perfect answer.
///
/// # Errors
/// The system's, no such file, a file that is not JSON. Conversations of another shape are in the result.
pub fn read(path: &Path) -> Result<Corpus, DataError> {
    let tried = ["", "dataset.json", "chitchat_dataset/dataset.json"]
        .map(|below| if below.is_empty() { path.to_owned() } else { path.join(below) });
    let found = tried.iter().find(|file| file.is_file()).cloned();
    let path = found.ok_or_else(|| DataError::NotThere {
        what: "dataset.json of chitchat-dataset",
        tried: tried.to_vec(),
    })?;
    let file = File::open(&path).map_err(DataError::io(&path))?;
    let mut gathered = Gathered { path, corpus: Corpus::default(), people: BTreeMap::new() };
    let mut parser = serde_json::Deserializer::from_reader(BufReader::with_capacity(1 << 18, file));
    let end = parser.deserialize_map(&mut gathered).and_then(|()| parser.end());
    end.map_err(|e| gathered.failed(e))?;
    Ok(gathered.corpus())
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Vec<Message>>,
}

#[derive(Deserialize)]
struct Message {
    text: String,
    timestamp: String,
    sender: String,
}

/// A message of a person. *Order*: by time, then conversation, then place: the derived one.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Said {
    date: String,
    conversation: String,
    place: usize,
    text: String,
}

struct Gathered {
    path: PathBuf,
    corpus: Corpus,
    people: BTreeMap<UserId, Vec<Said>>,
}

impl<'de> Visitor<'de> for &mut Gathered {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of conversations")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        // One conversation at a time; its own shape must not end the reading of the others.
        while let Some((id, value)) = map.next_entry::<String, serde_json::Value>()? {
            match serde_json::from_value::<Conversation>(value) {
                Ok(conversation) => self.take(&id, conversation),
                Err(e) => {
                    let place = self.place(&id);
                    self.corpus.unreadable(place, e.to_string());
                }
            }
        }
        Ok(())
    }
}

impl Gathered {
    fn place(&self, conversation: &str) -> String {
        format!("{}: conversation {conversation:?}", self.path.display())
    }

    fn take(&mut self, id: &str, conversation: Conversation) {
        for (place, message) in conversation.messages.into_iter().flatten().enumerate() {
            let Some(date) = universal(&message.timestamp) else {
                let what =
                    format!("the timestamp {:?} is not YYYY-MM-DDThh:mm:ss", message.timestamp);
                let at = format!("{} message {place}", self.place(id));
                self.corpus.unreadable(at, what);
                continue;
            };
            if message.sender.is_empty() {
                let at = format!("{} message {place}", self.place(id));
                self.corpus.unreadable(at, "the sender is empty".to_owned());
                continue;
            }
            let text = message.text.split_whitespace().collect::<Vec<_>>().join(" ");
            if text.is_empty() {
                self.corpus.leave_out("messages without text");
                continue;
            }
            let person = hashed("myriad 2026 chitchat person", &message.sender);
            let said = Said { date, conversation: id.to_owned(), place, text };
            self.people.entry(person).or_default().push(said);
        }
    }

    fn corpus(self) -> Corpus {
        let mut corpus = self.corpus;
        for (id, mut messages) in self.people {
            messages.sort_unstable();
            let event = |(number, said)| event(&id, number, &said);
            let events = messages.into_iter().enumerate().map(event).collect();
            corpus.timelines.push(Timeline { id: id.clone(), events });
        }
        corpus
    }

    fn failed(&self, error: serde_json::Error) -> DataError {
        let (path, line) = (self.path.clone(), error.line() as u64);
        match error.classify() {
            serde_json::error::Category::Io => DataError::Io { path, source: error.into() },
            _ => DataError::Table { path, line, what: format!("not the corpus: {error}") },
        }
    }
}

/// Items have ids of their own in the whole corpus: prediction files name queries by nothing else.
fn event(person: &UserId, number: usize, said: &Said) -> Event {
    let id = format!("{}-{number}", person.as_str());
    let flat = plain(&said.text);
    let words = |text: &str| text.split_whitespace().count();
    let asks = words(&said.text) >= MIN_WORDS
        && words(&flat) >= MIN_WORDS
        && scored_words(&said.text) != scored_words(&flat);
    let query = asks.then(|| {
        let input = format!("{QUESTION}{flat}");
        let fields =
            [("text", &flat), ("input", &input), ("gold", &said.text), ("date", &said.date)];
        item(id.clone(), fields.map(|(name, text)| (name, text.as_str())))
    });
    Event { item: item(id, [("text", &said.text), ("date", &said.date)]), query }
}

/// `2018-04-20T01:57:41`, with or without `Z`, as a text whose order is time.
fn universal(timestamp: &str) -> Option<String> {
    let local = timestamp.strip_suffix('Z').unwrap_or(timestamp);
    let shape = |(c, form): (u8, u8)| if form == b'9' { c.is_ascii_digit() } else { c == form };
    let form = b"9999-99-99T99:99:99";
    let fits = local.len() == form.len() && local.bytes().zip(form.iter().copied()).all(shape);
    fits.then(|| format!("{local}Z"))
}

#[cfg(test)]
#[path = "chitchat_tests.rs"]
mod tests;
