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

#[cfg(test)]
mod tests {
    use crate::data::OnBad;
    use crate::data::events::{EVENT, Split, TIME, preset, read};
    use std::fs::File;
    use std::io::Write as _;

    /// Comedy and Animation have three films each, Drama two, Children's one.
    const ITEMS: &str = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n\
        1\tA\t1995\tAnimation Comedy\n\
        2\tB\t1995\tAnimation Children's Comedy\n\
        3\tC\t1995\tComedy\n\
        10\tD\t1995\tunknown\n\
        11\tE\t1995\tDrama\n\
        12\tF\t1995\tAnimation Drama\n";
    const RATINGS: &str = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n\
        u\t12\t3\t7200\n\
        u\t10\t1\t20\n\
        u\t11\t2\t3600.0\n\
        u\t3\t4\t3600\n\
        u\t2\t5\t3600\n\
        u\t1\t1\t10\n";

    #[test]
    fn the_rarest_genre_in_the_order_of_time_and_film() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("ml-100k.item", ITEMS), ("ml-100k.inter", RATINGS)] {
            let mut file = File::create(folder.path().join(name)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
        let mut format = preset("ml100k-genre").unwrap();
        format.min_events = 5;
        let split = Split { train: 1.0, validation: 0.0, ..Split::default() };
        let paths = [folder.path().to_owned()];
        let (data, tally) = read(&paths, &format, &split, OnBad::Stop).unwrap();
        assert_eq!((tally.rows, tally.not_kept), (6, 1));
        let user = &data.users[0];
        let (events, scores) = (&data.vocabulary.columns[EVENT], &data.vocabulary.columns[3]);
        let row = |at: usize| {
            let row = user.row(at);
            let named = |names: &[String], at: usize| names[row[at] as usize].clone();
            (row[TIME], named(&events.values, EVENT), named(&scores.values, 3))
        };
        let all: Vec<_> = (0..5).map(row).collect();
        // Of Animation (3 films) and Drama (2) film 12 has Drama; film 1 has Animation and Comedy (3 each).
        let expected = [
            (0, "Animation", "1"),
            (1, "Children's", "5"),
            (1, "Comedy", "4"),
            (1, "Drama", "2"),
            (2, "Drama", "3"),
        ];
        let expected: Vec<_> =
            expected.into_iter().map(|(t, e, s)| (t, e.to_owned(), s.to_owned())).collect();
        assert_eq!(all, expected);
    }
}
