//! Which targets a table looks at.

use super::tally::Averaged;
use crate::ids::UserId;
use std::collections::BTreeMap;

/// Targets of certain intents, under a name.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    /// Name in tables.
    pub name: String,
    /// The intents.
    pub classes: Classes,
}

/// The intents of a slice.
#[derive(Debug, Clone, PartialEq)]
pub enum Classes {
    /// All.
    All,
    /// The same for everybody: the population's long tail ([`long_tail`]), or a band of popularity.
    Listed(Vec<u32>),
    /// Each person's, such as his forget set by a rule of the unlearning stage; people without an entry have none.
    PerUser(BTreeMap<UserId, Vec<u32>>),
}

impl Classes {
    pub(super) fn averaged(&self) -> Averaged {
        if *self == Self::All { Averaged::GoldOrAnswered } else { Averaged::Gold }
    }

    /// Whether an intent is inside for one person, `[intents]`; intents that there are not stay outside.
    pub(super) fn inside(&self, user: &UserId, intents: usize) -> Vec<bool> {
        let listed = match self {
            Self::All => return vec![true; intents],
            Self::Listed(listed) => Some(listed),
            Self::PerUser(listed) => listed.get(user),
        };
        let mut inside = vec![false; intents];
        for &intent in listed.into_iter().flatten() {
            if let Some(place) = inside.get_mut(intent as usize) {
                *place = true;
            }
        }
        inside
    }
}

/// The population's long tail: the most of the rarest intents that together have at most the share `below` of `counts` (training
/// targets by intent), sorted; of equally rare ones the higher number is the rarer. Intents never counted are in it.
pub fn long_tail(counts: &[u64], below: f64) -> Vec<u32> {
    let total: f64 = counts.iter().map(|&c| c as f64).sum();
    let mut sum = 0.0;
    let inside = |intent: &u32| {
        sum += counts[*intent as usize] as f64;
        sum <= below * total
    };
    let mut tail: Vec<u32> = by_popularity(counts).into_iter().rev().take_while(inside).collect();
    tail.sort_unstable();
    tail
}

/// All intents in `bands` bands of equally many (the first ones have one more where it does not come out even), most popular
/// first, named by their places: `1-6`, `7-12`. Fewer bands where there are fewer intents.
pub fn popularity_slices(counts: &[u64], bands: usize) -> Vec<Slice> {
    let order = by_popularity(counts);
    let bands = bands.clamp(1, order.len().max(1));
    let (least, more) = (order.len() / bands, order.len() % bands);
    let mut start = 0;
    let band = |number: usize| {
        let end = start + least + usize::from(number < more);
        let mut intents = order[start..end].to_vec();
        intents.sort_unstable();
        let name = if end == start + 1 { end.to_string() } else { format!("{}-{end}", start + 1) };
        start = end;
        Slice { name, classes: Classes::Listed(intents) }
    };
    (0..bands).map(band).collect()
}

/// Intents by falling count, equal ones by number.
fn by_popularity(counts: &[u64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..).take(counts.len()).collect();
    order.sort_by_key(|&intent| std::cmp::Reverse(counts[intent as usize]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_what_is_rare_together() {
        let counts = [50, 10, 20, 10, 10, 0];
        assert_eq!(long_tail(&counts, 0.0), [5]);
        assert_eq!(long_tail(&counts, 0.1), [4, 5]);
        assert_eq!(long_tail(&counts, 0.29), [3, 4, 5]);
        assert_eq!(long_tail(&counts, 0.5), [1, 2, 3, 4, 5]);
        assert_eq!(long_tail(&counts, 1.0), [0, 1, 2, 3, 4, 5]);
        assert_eq!(long_tail(&[], 0.5), [0_u32; 0]);
        assert_eq!(long_tail(&counts, f64::NAN), [0_u32; 0]);
    }

    #[test]
    fn bands_hold_every_intent_once() {
        let counts = [5, 9, 1, 9, 0];
        let bands = popularity_slices(&counts, 2);
        let listed = |i: usize| match &bands[i].classes {
            Classes::Listed(intents) => intents.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!((listed(0), listed(1)), (vec![0, 1, 3], vec![2, 4]));
        assert_eq!(bands.iter().map(|b| b.name.as_str()).collect::<Vec<_>>(), ["1-3", "4-5"]);
        let single: Vec<String> =
            popularity_slices(&counts, 99).into_iter().map(|b| b.name).collect();
        assert_eq!(single, ["1", "2", "3", "4", "5"]);
        assert_eq!(popularity_slices(&[], 3).len(), 1);
    }

    #[test]
    fn people_have_their_own_intents() {
        let own = BTreeMap::from([(UserId::new("u"), vec![1, 9])]);
        let classes = Classes::PerUser(own);
        assert_eq!(classes.inside(&UserId::new("u"), 3), [false, true, false]);
        assert_eq!(classes.inside(&UserId::new("v"), 3), [false; 3]);
        assert_eq!(Classes::All.inside(&UserId::new("v"), 2), [true; 2]);
    }
}
