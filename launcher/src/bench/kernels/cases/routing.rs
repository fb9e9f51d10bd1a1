//! Tables of packs: whose rows, which keys.

use super::{elements, number};
use kernels::attention::Sequence;
use kernels::random::uniform_f32;

/// Rows of each of `users` when each row is somebody's by popularity: user `u` has the weight `(u + 1)^-skew`. Ragged,
/// as people are; some may have none. A skew of zero gives everybody the same chance.
pub(super) fn drawn(rows: usize, users: usize, skew: f64) -> Vec<usize> {
    let mut ends = Vec::with_capacity(users);
    let mut total = 0.0;
    for user in 0..users {
        total += f64::from(number(user + 1)).powf(-skew);
        ends.push(total);
    }
    let mut counts = vec![0; users];
    for row in 0..rows {
        let at = f64::from(uniform_f32([17, 1], [number(row), 0, 0, 0])) * total;
        let user = ends.partition_point(|end| *end <= at);
        if let Some(count) = counts.get_mut(user.min(users.saturating_sub(1))) {
            *count += 1;
        }
    }
    counts
}

/// Groups of a prefix and some sequences of equal length, as attention takes them.
pub(super) struct Pack {
    pub(super) sequences: Vec<Sequence>,
    pub(super) groups: Vec<u32>,
    pub(super) limits: Vec<u32>,
    pub(super) rows: usize,
}

impl Pack {
    /// `groups` times a prefix of `prefix` rows, which may be none, and `sequences` of `length` rows that see it.
    pub(super) fn new([groups, prefix, sequences, length]: [usize; 4]) -> Self {
        let mut pack = Self { sequences: vec![], groups: vec![0], limits: vec![], rows: 0 };
        for _ in 0..groups {
            let start = pack.rows;
            if prefix > 0 {
                pack.push(prefix, (0, 0));
            }
            (0..sequences).for_each(|_| pack.push(length, (start, prefix)));
            pack.groups.push(number(pack.sequences.len()));
        }
        pack
    }

    /// `sequences` of one query each over `keys` keys of a cache.
    pub(super) fn decode(sequences: usize, keys: usize) -> Self {
        let each = (0..sequences).map(|i| Sequence {
            q_start: number(i),
            q_len: 1,
            k_start: number(elements([i, keys])),
            k_len: number(keys),
            p_start: 0,
            p_len: 0,
        });
        Self {
            sequences: each.collect(),
            groups: (0..=sequences).map(number).collect(),
            limits: vec![number(keys); sequences],
            rows: elements([sequences, keys]),
        }
    }

    fn push(&mut self, length: usize, (p_start, p_len): (usize, usize)) {
        let (start, len) = (number(self.rows), number(length));
        self.sequences.push(Sequence {
            q_start: start,
            q_len: len,
            k_start: start,
            k_len: len,
            p_start: number(p_start),
            p_len: number(p_len),
        });
        self.limits.extend(1..=len);
        self.rows += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_somebodys() {
        for (rows, users, skew) in [(4096, 64, 1.5), (300, 10, 0.0), (5, 1, 1.0), (3, 50, 2.0)] {
            let counts = drawn(rows, users, skew);
            assert_eq!((counts.len(), counts.iter().sum::<usize>()), (users, rows));
            assert_eq!(counts, drawn(rows, users, skew), "the same every time");
        }
        let popular = drawn(4096, 64, 1.5);
        // The first has 1 / Σ k^-1.5 = 1 / 2.363 of 4096 rows, 1733, give or take four deviations of 32.
        assert!(popular[0].abs_diff(1733) < 128, "{popular:?}");
        assert!(popular[0] > popular[3] && popular[3] > popular[40]);
        let even = drawn(64_000, 64, 0.0);
        assert!(even.iter().all(|n| n.abs_diff(1000) < 160), "{even:?}");
    }

    #[test]
    fn packs_are_what_attention_takes() {
        let pack = Pack::new([3, 5, 2, 4]);
        assert_eq!((pack.rows, pack.sequences.len()), (3 * (5 + 2 * 4), 9));
        let rows = (pack.rows, pack.rows);
        Sequence::check_all(&pack.sequences, &pack.groups, &pack.limits, rows).unwrap();
        assert_eq!((pack.sequences[5].p_start, pack.sequences[5].p_len), (13, 5));
        let pack = Pack::decode(4, 7);
        Sequence::check_all(&pack.sequences, &pack.groups, &pack.limits, (4, pack.rows)).unwrap();
    }
}
