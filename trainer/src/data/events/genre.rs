//! MovieLens 100k as a stream of events: which genre a person rates next.
//!
//! An event is a rating, in the order of times, ties (frequent: a page of films is rated at once) by film number. Its
//! name, and so its intent, is the film's most specific genre: of the film's genres the one that the fewest films of
//! the catalogue have, ties by name. The catalogue lists genres by name, so the first one says nothing; the most
//! specific one leaves no genre out and gives a long tail. The context `score` is the rating, known once it is given.
//! Ratings of films without a genre are left out and counted as rows not kept. Times are seconds since 1970.

use super::clock::{Moment, TimeFormat};
use super::format::Format;
use super::raw::{RawLog, Row, Tally};
use crate::data::DataError;
use crate::data::ml100k::find;
use crate::data::ml100k_table::{Film, films, ratings};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Reads the folders; [`crate::data::ml100k::read`] says where the tables are looked for.
pub(super) fn read(
    folders: &[PathBuf],
    format: &Format,
    tally: &mut Tally,
) -> Result<RawLog, DataError> {
    let mut log = RawLog::new(vec!["score".to_owned()]);
    for folder in folders {
        let folder = find(folder)?;
        let films = films(&folder.join("ml-100k.item"))?;
        let counts = counts(&films);
        let by_user = ratings(&folder.join("ml-100k.inter"), &films)?;
        for (user, mut ratings) in by_user {
            ratings.sort_by(|a, b| a.order().cmp(&b.order()));
            for rating in &ratings {
                tally.rows += 1;
                let genre = films.get(&rating.item).and_then(|film| specific(film, &counts));
                let time = rating.timestamp.to_string();
                let moment = Moment::parse(&time, TimeFormat::UnixSeconds, format.time_zone);
                let (Some(event), Some(moment)) = (genre, moment) else {
                    tally.not_kept += 1;
                    continue;
                };
                let score = rating.score.to_string();
                let (intent, contexts) = (event, [score.as_str()]);
                let row = Row { user: &user, moment, event, intent, contexts: &contexts };
                log.push(&row, &format.intent);
            }
        }
    }
    Ok(log)
}

fn genres(film: &Film) -> impl Iterator<Item = &str> {
    film.genres.split_whitespace().filter(|genre| *genre != "unknown")
}

/// Genre -> films that have it.
fn counts(films: &BTreeMap<String, Film>) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    films.values().flat_map(genres).for_each(|genre| *counts.entry(genre).or_default() += 1);
    counts
}

fn specific<'a>(film: &'a Film, counts: &BTreeMap<&str, usize>) -> Option<&'a str> {
    genres(film).min_by_key(|genre| (counts.get(genre).copied(), *genre))
}
