//! Items of other users: drawn by user, in proportion to how many items each has.

use super::draw::Draws;
use super::{History, RetrievalError};
use crate::data::{DataError, Item};
use crate::ids::UserKey;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The users whose items may be drawn for anybody.
///
/// As in the study, the user who asks is usually among them; [`Retrieval::exclude_self`] leaves it
/// out. The numbering must not change during a run: draws are by number.
///
/// [`Retrieval::exclude_self`]: super::Retrieval::exclude_self
pub trait Others: Sync {
    /// Number of users.
    fn users(&self) -> usize;

    /// Number of history items of a user, `user < users()`.
    fn items_of(&self, user: usize) -> usize;

    /// The history of a user, oldest first: lent where it is held, made where it is read from a file.
    ///
    /// # Errors
    /// The reader's.
    fn history(&self, user: usize) -> Result<Cow<'_, [Item]>, DataError>;

    /// The number of the user with this key, if it is among them. What it may see of its own history
    /// is then all that is drawn of it, so a wrong `None` would show an item its own answer.
    fn number_of(&self, user: UserKey) -> Option<usize>;
}

/// The text BM25 compares of an item; none for one that cannot be shown, which is in no pool.
pub type Document<'a> = dyn Fn(&Item) -> Option<String> + Sync + 'a;

/// [`Others`] with their weights, made once for a run: a draw is a binary search.
#[derive(Clone)]
pub struct Pool<'a> {
    others: &'a dyn Others,
    document: &'a Document<'a>,
    /// Items of the users `0..=user`.
    ends: Vec<usize>,
}

impl fmt::Debug for Pool<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items = self.ends.last().copied().unwrap_or(0);
        f.debug_struct("Pool").field("users", &self.ends.len()).field("items", &items).finish()
    }
}

/// Who draws, and what it may see of itself.
#[derive(Clone, Copy)]
pub(super) struct Own<'a> {
    pub(super) user: UserKey,
    pub(super) history: &'a History<'a>,
    /// Items of the own history in the pool: 0 to leave the user out.
    pub(super) visible: usize,
}

/// A pooled item with its document.
pub(super) struct Pooled {
    pub(super) item: Item,
    pub(super) document: String,
}

impl<'a> Pool<'a> {
    /// The pool of these users' items that have a `document`. Users weigh by all of their items: how many
    /// can be shown is known of those only that are read.
    pub fn new(others: &'a dyn Others, document: &'a Document<'a>) -> Self {
        let mut total = 0;
        let ends = (0..others.users()).map(|user| {
            total += others.items_of(user);
            total
        });
        Self { others, document, ends: ends.collect() }
    }

    /// Draws `users` users with replacement, each with the probability of its share of all items, puts
    /// their items into one list, and draws from it without replacement, at most `most(length of the list)`.
    ///
    /// The own user counts and shows its visible items only. An item that stands in the list twice,
    /// its user having been drawn twice, is taken once; one that cannot be shown is passed over, and
    /// the draw goes on. *Order*: as drawn.
    ///
    /// # Errors
    /// A user's history that cannot be read or is not as long as [`Others::items_of`] said.
    pub(super) fn draw(
        &self,
        own: Own<'_>,
        users: usize,
        most: impl FnOnce(usize) -> Result<usize, RetrievalError>,
        mut draws: Draws,
    ) -> Result<Vec<Pooled>, RetrievalError> {
        let place = self.others.number_of(own.user).filter(|&user| user < self.ends.len());
        let drawn: Vec<usize> =
            (0..users).map_while(|_| self.user(place, own.visible, &mut draws)).collect();
        let mut end = 0;
        let ends: Vec<usize> = drawn
            .iter()
            .map(|&user| {
                end += if place == Some(user) { own.visible } else { self.items(user) };
                end
            })
            .collect();
        let most = most(end)?;
        let mut known = BTreeSet::new();
        let places = draws.distinct(end).map(|at| {
            let of = ends.partition_point(|&end| end <= at);
            (drawn[of], at - of.checked_sub(1).map_or(0, |before| ends[before]))
        });
        let mut places = places.filter(|&place| known.insert(place));
        let (mut pooled, mut asked) = (Vec::new(), 0);
        while pooled.len() < most {
            // Users are read a second time only for items that turned out unusable; asking for twice as
            // many each time bounds how often, where hardly one is usable.
            let round = (most - pooled.len()).max(asked);
            let chosen: Vec<_> = places.by_ref().take(round).collect();
            if chosen.is_empty() {
                break;
            }
            asked += chosen.len();
            pooled.extend(self.fetch(own, place, &chosen)?);
        }
        pooled.truncate(most);
        Ok(pooled)
    }

    /// Items of a user.
    fn items(&self, user: usize) -> usize {
        self.ends[user] - self.start(user)
    }

    fn start(&self, user: usize) -> usize {
        user.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// One user, none if there are no items; the own user, number `place`, weighs `visible`.
    fn user(&self, place: Option<usize>, visible: usize, draws: &mut Draws) -> Option<usize> {
        let (start, weight) = place.map_or((0, 0), |own| (self.start(own), self.items(own)));
        let visible = if place.is_some() { visible } else { 0 };
        let total = self.ends.last()? - weight + visible;
        if total == 0 {
            return None;
        }
        let at = draws.below(total);
        if (start..start + visible).contains(&at) {
            return place;
        }
        // The own user's items count as `visible` here and as `weight` in `ends`.
        let at = if at < start { at } else { at - visible + weight };
        Some(self.ends.partition_point(|&end| end <= at))
    }

    /// The usable ones of the chosen items (user, number) in their order; every user is read once.
    fn fetch(
        &self,
        own: Own<'_>,
        place: Option<usize>,
        chosen: &[(usize, usize)],
    ) -> Result<Vec<Pooled>, RetrievalError> {
        let mut of_user = BTreeMap::<usize, Vec<(usize, usize)>>::new();
        for (to, &(user, number)) in chosen.iter().enumerate() {
            of_user.entry(user).or_default().push((to, number));
        }
        let mut pooled: BTreeMap<usize, Pooled> = BTreeMap::new();
        for (user, wanted) in of_user {
            if place == Some(user) {
                pooled.extend(wanted.into_iter().map(|(to, number)| {
                    let item = own.history.item(number).clone();
                    (to, Pooled { item, document: own.history.document(number).to_owned() })
                }));
                continue;
            }
            let history = self.others.history(user)?;
            let (expected, got) = (self.items(user), history.len());
            if got != expected {
                return Err(RetrievalError::PoolChanged { user, expected, got });
            }
            pooled.extend(wanted.into_iter().filter_map(|(to, number)| {
                let item = &history[number];
                let document = (self.document)(item)?;
                Some((to, Pooled { item: item.clone(), document }))
            }));
        }
        Ok(pooled.into_values().collect())
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
