//! RecBole's atomic files: tab-separated, each header cell `name:type`.

use super::DataError;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A film as its table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Film {
    pub(super) title: String,
    pub(super) year: String,
    pub(super) genres: String,
}

/// One rating of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rating {
    pub(super) item: String,
    pub(super) score: u8,
    pub(super) timestamp: i64,
}

impl Rating {
    /// Time, then film: shorter ids first, which for numbers is their order.
    pub(super) fn order(&self) -> (i64, usize, &str) {
        (self.timestamp, self.item.len(), &self.item)
    }
}

/// A table and the columns asked for.
struct Table<'a, const N: usize> {
    path: &'a Path,
    text: String,
    columns: [usize; N],
    width: usize,
}

impl<'a, const N: usize> Table<'a, N> {
    /// Reads a file and finds the columns by their header cells.
    fn open(path: &'a Path, wanted: [&str; N]) -> Result<Self, DataError> {
        let bytes = std::fs::read(path).map_err(DataError::io(path))?;
        let at = |line, what: String| DataError::Table { path: path.to_owned(), line, what };
        let text = String::from_utf8(bytes).map_err(|e| {
            let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
            at(1 + valid.iter().filter(|b| **b == b'\n').count() as u64, "not UTF-8".to_owned())
        })?;
        let header = text.lines().next().unwrap_or_default();
        let cells: Vec<&str> = header.split('\t').collect();
        let mut columns = [0; N];
        for (column, name) in columns.iter_mut().zip(wanted) {
            let found = cells.iter().position(|cell| *cell == name);
            *column = found.ok_or_else(|| at(1, format!("the header has no column {name}")))?;
        }
        let width = cells.len();
        Ok(Self { path, text, columns, width })
    }

    /// The error at a line.
    fn error(&self, line: u64, what: String) -> DataError {
        DataError::Table { path: self.path.to_owned(), line, what }
    }

    /// Rows as (line number, cells asked for); empty lines are skipped.
    fn rows(&self) -> impl Iterator<Item = Result<(u64, [&str; N]), DataError>> {
        let numbered = (1u64..).zip(self.text.lines()).skip(1);
        numbered.filter(|(_, line)| !line.is_empty()).map(|(number, line)| {
            let cells: Vec<&str> = line.split('\t').collect();
            if cells.len() != self.width {
                let what = format!("{} cells, the header has {}", cells.len(), self.width);
                return Err(self.error(number, what));
            }
            Ok((number, self.columns.map(|column| cells[column])))
        })
    }
}

/// Film id -> film.
pub(super) fn films(path: &Path) -> Result<BTreeMap<String, Film>, DataError> {
    let wanted =
        ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"];
    let table = Table::open(path, wanted)?;
    let mut films = BTreeMap::new();
    for row in table.rows() {
        let (line, [id, title, year, genres]) = row?;
        if id.is_empty() || title.trim().is_empty() {
            return Err(table.error(line, "a film without id or title".to_owned()));
        }
        let [title, year, genres] = [title, year, genres].map(str::to_owned);
        if films.insert(id.to_owned(), Film { title, year, genres }).is_some() {
            return Err(table.error(line, format!("film {id:?} is listed twice")));
        }
    }
    Ok(films)
}

/// User id -> ratings in file order; every film is known and rated once by a user.
pub(super) fn ratings(
    path: &Path,
    films: &BTreeMap<String, Film>,
) -> Result<BTreeMap<String, Vec<Rating>>, DataError> {
    let wanted = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"];
    let table = Table::open(path, wanted)?;
    let mut by_user: BTreeMap<String, Vec<Rating>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for row in table.rows() {
        let (line, [user, item, rating, timestamp]) = row?;
        if user.is_empty() {
            return Err(table.error(line, "a rating without user".to_owned()));
        }
        if !films.contains_key(item) {
            return Err(table.error(line, format!("film {item:?} is not in the film table")));
        }
        let score = (1..=5u8).find(|s| rating.parse() == Ok(f64::from(*s)));
        let Some(score) = score else {
            return Err(table.error(line, format!("the rating {rating:?} is not one of 1 to 5")));
        };
        let Some(timestamp) = whole_number(timestamp) else {
            return Err(table.error(line, format!("the time {timestamp:?} is not a whole number")));
        };
        if !seen.insert((user, item)) {
            return Err(table.error(line, format!("user {user:?} rates film {item:?} twice")));
        }
        let rating = Rating { item: item.to_owned(), score, timestamp };
        by_user.entry(user.to_owned()).or_default().push(rating);
    }
    Ok(by_user)
}

/// `881250949` or `881250949.0`.
fn whole_number(text: &str) -> Option<i64> {
    text.strip_suffix(".0").unwrap_or(text).parse().ok()
}
