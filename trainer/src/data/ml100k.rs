//! MovieLens 100k ratings as LaMP-3-shaped users (a text, a score from 1 to 5).
//!
//! Owns: which users and ratings are taken ([`Ml100k`]), and how a film becomes a text. Reads the
//! folder `dataset_example/ml-100k` of the `recbole` package (the tables are `ml100k_table.rs`).
//! The data is under GroupLens' terms: it is read where it is installed and never copied.

use super::ml100k_table::{Film, Rating, films, ratings};
use super::{DataError, Item, UserRecord};
use crate::ids::UserId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Which users and ratings are taken. The same values give the same records in the same order.
///
/// A user's ratings are in time order, ties by film number. The last fifth (rounded down, at least
/// one) are the held-out part, the rest the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ml100k {
    /// Users who get adapters. Taken first, so they do not depend on `population_users`.
    pub personal_users: usize,
    /// Other users, for the population stage; all the others when unset.
    pub population_users: Option<usize>,
    /// A user qualifies with at least this many history ratings (before `max_history` cuts).
    pub min_history: usize,
    /// Of a personal user's history the most recent this many are kept.
    pub max_history: usize,
    /// Of a personal user's held-out ratings the first this many (those next to the history) are kept.
    pub max_queries: usize,
    /// Of a population user's ratings the most recent this many are kept; all are training queries.
    pub max_population_items: usize,
    /// Orders the qualifying users: by their random key under this seed, then by user key.
    pub seed: u64,
}

/// The selection's result: disjoint users, each list in the seed's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Users with history and queries.
    pub personal: Vec<UserRecord>,
    /// Users with an empty history and their ratings as queries.
    pub population: Vec<UserRecord>,
}

/// Reads and selects.
///
/// `path` is the folder with `ml-100k.inter` and `ml-100k.item`, or one above it: `ml-100k`,
/// `dataset_example/ml-100k` and `recbole/dataset_example/ml-100k` below it are tried.
///
/// # Errors
/// No such folder, a table that breaks its own header, too few qualifying users, a zero limit.
pub fn read(path: &Path, selection: &Ml100k) -> Result<Chosen, DataError> {
    selection.check()?;
    let folder = find(path)?;
    let films = films(&folder.join("ml-100k.item"))?;
    let by_user = ratings(&folder.join("ml-100k.inter"), &films)?;
    select(by_user, &films, selection)
}

/// The folder with both tables, here or below.
pub(super) fn find(path: &Path) -> Result<PathBuf, DataError> {
    let below = ["", "ml-100k", "dataset_example/ml-100k", "recbole/dataset_example/ml-100k"];
    let tried: Vec<PathBuf> = below.iter().map(|sub| path.join(sub)).collect();
    let whole = |folder: &&PathBuf| {
        folder.join("ml-100k.inter").is_file() && folder.join("ml-100k.item").is_file()
    };
    let found = tried.iter().find(whole).cloned();
    found.ok_or(DataError::NoMl100k { tried })
}

impl Ml100k {
    fn check(&self) -> Result<(), DataError> {
        let refuse =
            |condition, why| if condition { Err(DataError::Selection(why)) } else { Ok(()) };
        refuse(
            self.personal_users == 0 && self.population_users == Some(0),
            "no users are asked for",
        )?;
        refuse(self.max_history == 0, "max_history must be at least 1")?;
        refuse(self.min_history == 0, "min_history must be at least 1")?;
        refuse(self.max_population_items == 0, "max_population_items must be at least 1")
    }
}

/// Where the held-out part of `n` ratings begins: a fifth, at least one, is held out.
fn split(n: usize) -> usize {
    n - (n / 5).max(1).min(n)
}

fn select(
    by_user: BTreeMap<String, Vec<Rating>>,
    films: &BTreeMap<String, Film>,
    selection: &Ml100k,
) -> Result<Chosen, DataError> {
    let mut qualified: Vec<_> = by_user
        .into_iter()
        .filter(|(_, ratings)| split(ratings.len()) >= selection.min_history)
        .map(|(id, ratings)| {
            let key = UserId::new(&id).key();
            ((key.random_key(selection.seed), key), id, ratings)
        })
        .collect();
    qualified.sort_unstable_by_key(|user| user.0);
    let wanted = selection.personal_users.saturating_add(selection.population_users.unwrap_or(0));
    if wanted > qualified.len() {
        let (found, min_history) = (qualified.len(), selection.min_history);
        return Err(DataError::NotEnoughUsers { wanted, found, min_history });
    }
    let items = |ratings: &[Rating]| ratings.iter().map(|r| item(r, films)).collect::<Vec<_>>();
    let mut users = qualified.into_iter().map(|(_, id, mut ratings)| {
        ratings.sort_by(|a, b| a.order().cmp(&b.order()));
        (UserId::new(&id), ratings)
    });
    let personal = users.by_ref().take(selection.personal_users).map(|(id, ratings)| {
        let (past, held_out) = ratings.split_at(split(ratings.len()));
        let history = items(&past[past.len().saturating_sub(selection.max_history)..]);
        let queries = items(&held_out[..held_out.len().min(selection.max_queries)]);
        UserRecord { id, history, queries, profile: None }
    });
    let personal = personal.collect();
    let population =
        users.take(selection.population_users.unwrap_or(usize::MAX)).map(|(id, ratings)| {
            let kept = ratings.len().saturating_sub(selection.max_population_items);
            UserRecord { id, history: Vec::new(), queries: items(&ratings[kept..]), profile: None }
        });
    Ok(Chosen { personal, population: population.collect() })
}

/// `text` = `Title (year). Genres: a, b`, `score` = `1`..`5`, `date` = seconds since 1970.
fn item(rating: &Rating, films: &BTreeMap<String, Film>) -> Item {
    let text = films.get(&rating.item).map(text_of).unwrap_or_default();
    let fields = [
        ("text", text),
        ("score", rating.score.to_string()),
        ("date", rating.timestamp.to_string()),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    Item { id: rating.item.clone(), fields: fields.into() }
}

/// The film as a sentence; a year that is not four digits and the genre `unknown` are left out.
fn text_of(film: &Film) -> String {
    let mut text = clean_title(&film.title);
    if film.year.len() == 4 && film.year.bytes().all(|b| b.is_ascii_digit()) {
        text.push_str(&format!(" ({})", film.year));
    }
    text.push('.');
    let genres: Vec<&str> = film.genres.split_whitespace().filter(|g| *g != "unknown").collect();
    if !genres.is_empty() {
        text.push_str(" Genres: ");
        text.push_str(&genres.join(", "));
    }
    text
}

/// Articles the catalogue puts behind a comma, in the languages it has.
const ARTICLES: [&str; 22] = [
    "The", "A", "An", "Il", "Lo", "La", "L'", "I", "Gli", "Le", "Les", "Un", "Une", "Der", "Die",
    "Das", "Ein", "Eine", "El", "Los", "Las", "O",
];

/// `Postino, Il` -> `Il Postino`, outside and inside a trailing pair of brackets.
fn clean_title(title: &str) -> String {
    let title = title.trim();
    if let Some((outer, rest)) = title.split_once(" (")
        && let Some(inner) = rest.strip_suffix(')')
    {
        return format!("{} ({})", article_first(outer), article_first(inner));
    }
    article_first(title)
}

fn article_first(title: &str) -> String {
    match title.rsplit_once(", ") {
        Some((name, article)) if ARTICLES.contains(&article) => {
            let space = if article.ends_with('\'') { "" } else { " " };
            format!("{article}{space}{name}")
        }
        _ => title.to_owned(),
    }
}

#[cfg(test)]
#[path = "ml100k_tests.rs"]
mod tests;
