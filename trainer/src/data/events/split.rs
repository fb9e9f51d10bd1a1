//! Which part of a person's time is for what, and which people are cold.

use super::clock;
use super::error::EventsError;
use crate::ids::UserId;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How every person's time is parted, and who is kept out of the population stage.
///
/// By fractions: of `n` events the first `floor(train * n)`, at least one, are the training part, those up to
/// `floor((train + validation) * n)` the validation part, the rest the test part. By dates, where both are given: the
/// parts end before the first event at or after `validation_from` and `test_from` on the person's clock; parts may be
/// empty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Split {
    /// Share of the events for training, above 0.
    pub train: f64,
    /// Share of the events for validation; what is left is for the test.
    pub validation: f64,
    /// Start of the validation part, `YYYY-MM-DD` or `YYYY-MM-DD HH:MM:SS`.
    pub validation_from: Option<String>,
    /// Start of the test part.
    pub test_from: Option<String>,
    /// Share of the users who are cold: below 1. A user is cold if a hash of the seed and the user's key is below it,
    /// so that nobody's place depends on who else is there.
    pub cold_share: f64,
    /// Users who are cold besides.
    pub cold_users: Vec<String>,
    /// Of the choice of cold users.
    pub seed: u64,
}

impl Default for Split {
    fn default() -> Self {
        Self {
            train: 0.7,
            validation: 0.1,
            validation_from: None,
            test_from: None,
            cold_share: 0.0,
            cold_users: Vec::new(),
            seed: 0,
        }
    }
}

/// Where the parts end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cuts {
    Shares(f64, f64),
    /// Seconds since 1970 on the local clock.
    Dates(i64, i64),
}

impl Split {
    /// Refuses values without sense.
    ///
    /// # Errors
    /// The key and the reason.
    pub fn check(&self) -> Result<(), EventsError> {
        self.cuts().map(drop)
    }

    pub(super) fn cuts(&self) -> Result<Cuts, EventsError> {
        let refuse = |right: bool, key, reason| {
            if right { Ok(()) } else { Err(EventsError::Option { key, reason }) }
        };
        refuse(
            (0.0..1.0).contains(&self.cold_share),
            "split.cold_share",
            "it must be in 0 to 1, 1 excluded",
        )?;
        match (&self.validation_from, &self.test_from) {
            (None, None) => {
                refuse(
                    self.train > 0.0 && self.train <= 1.0,
                    "split.train",
                    "it must be above 0, at most 1",
                )?;
                let both = self.train + self.validation;
                let fits = self.validation >= 0.0 && both <= 1.0 + ROUNDING;
                refuse(
                    fits,
                    "split.validation",
                    "it must not be negative, nor above 1 with `train`",
                )?;
                Ok(Cuts::Shares(self.train, both))
            }
            (Some(validation), Some(test)) => {
                let date = |text: &str, key| {
                    let reason = "it must be YYYY-MM-DD or YYYY-MM-DD HH:MM:SS, without an offset";
                    clock::local(text).ok_or(EventsError::Option { key, reason })
                };
                let from = date(validation, "split.validation_from")?;
                let to = date(test, "split.test_from")?;
                refuse(from <= to, "split.test_from", "it must not be before `validation_from`")?;
                Ok(Cuts::Dates(from, to))
            }
            _ => {
                let reason = "`validation_from` and `test_from` go together";
                Err(EventsError::Option { key: "split.test_from", reason })
            }
        }
    }

    /// Whether a user is cold.
    pub(super) fn is_cold(&self, user: &UserId) -> bool {
        let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 cold users");
        hasher.update(&self.seed.to_le_bytes()).update(&user.key().0);
        let hash = hasher.finalize();
        let draw = u32::from_le_bytes([0, 1, 2, 3].map(|i| hash.as_bytes()[i]));
        f64::from(draw) / 4_294_967_296.0 < self.cold_share
            || self.cold_users.iter().any(|listed| listed == user.as_str())
    }
}

/// A share times a number of events may miss a whole number by this: (0.7 + 0.1) * 10 is below 8.
const ROUNDING: f64 = 1e-9;

impl Cuts {
    /// The parts of a person's events.
    pub(super) fn parts(self, times: &[i64]) -> [Range<usize>; 3] {
        let n = times.len();
        let (train, validation) = match self {
            Self::Shares(train, both) => (share(train, n).max(1), share(both, n)),
            Self::Dates(from, to) => {
                // A clock set back may pass a date twice: the first time counts.
                let reached = |date: i64| times.iter().position(|t| *t >= date).unwrap_or(n);
                (reached(from), reached(to))
            }
        };
        let train = train.min(n);
        let validation = validation.clamp(train, n);
        [0..train, train..validation, validation..n]
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of at most 1 of a number of events that fits in memory"
)]
fn share(share: f64, n: usize) -> usize {
    (share * n as f64 + ROUNDING) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_round_down_and_meet() {
        let parts = |split: &Split, n: i64| {
            let times: Vec<i64> = (0..n).collect();
            split.cuts().unwrap().parts(&times)
        };
        let usual = Split::default();
        assert_eq!(parts(&usual, 10), [0..7, 7..8, 8..10]);
        assert_eq!(parts(&usual, 2), [0..1, 1..1, 1..2]);
        assert_eq!(parts(&usual, 1), [0..1, 1..1, 1..1]);
        let all = Split { train: 1.0, validation: 0.0, ..usual.clone() };
        assert_eq!(parts(&all, 5), [0..5, 5..5, 5..5]);
        let small = Split { train: 0.01, validation: 0.5, ..usual };
        assert_eq!(parts(&small, 5), [0..1, 1..2, 2..5]);
    }

    #[test]
    fn dates() {
        let split = Split {
            validation_from: Some("1970-01-01 00:00:05".to_owned()),
            test_from: Some("1970-01-02".to_owned()),
            ..Split::default()
        };
        let cuts = split.cuts().unwrap();
        assert_eq!(cuts.parts(&[1, 4, 5, 6, 86_399, 86_400]), [0..2, 2..5, 5..6]);
        assert_eq!(cuts.parts(&[90_000]), [0..0, 0..0, 0..1]);
        assert_eq!(cuts.parts(&[1, 2]), [0..2, 2..2, 2..2]);
        // The clock goes back an hour after the date was passed.
        assert_eq!(cuts.parts(&[1, 6, 2, 3]), [0..1, 1..4, 4..4]);
    }

    #[test]
    fn senseless_values() {
        let usual = Split::default();
        let date = |text: &str| Some(text.to_owned());
        let wrong = [
            Split { train: 0.0, ..usual.clone() },
            Split { train: f64::NAN, ..usual.clone() },
            Split { train: 1.5, ..usual.clone() },
            Split { validation: -0.1, ..usual.clone() },
            Split { validation: 0.4, ..usual.clone() },
            Split { cold_share: 1.0, ..usual.clone() },
            Split { cold_share: f64::NAN, ..usual.clone() },
            Split { test_from: date("2013-05-01"), ..usual.clone() },
            Split {
                test_from: date("2013-05-01"),
                validation_from: date("2013-05-02"),
                ..usual.clone()
            },
            Split { test_from: date("2013-05-01"), validation_from: date("May"), ..usual.clone() },
        ];
        for split in wrong {
            assert!(split.check().is_err(), "{split:?}");
        }
    }

    #[test]
    fn cold_by_hash_or_by_name() {
        let cold = |split: &Split| -> Vec<bool> {
            (0..2000).map(|i| split.is_cold(&UserId::new(&i.to_string()))).collect()
        };
        let tenth = Split { cold_share: 0.1, ..Split::default() };
        let number = cold(&tenth).iter().filter(|cold| **cold).count();
        assert!((150..250).contains(&number), "{number}");
        assert_ne!(cold(&tenth), cold(&Split { seed: 1, ..tenth.clone() }));
        // A larger share keeps everybody who is cold already.
        let fifth = cold(&Split { cold_share: 0.2, ..tenth.clone() });
        assert!(cold(&tenth).iter().zip(&fifth).all(|(small, large)| *large || !small));
        let named = Split { cold_users: vec!["7".to_owned()], ..Split::default() };
        assert_eq!(cold(&named).iter().position(|cold| *cold), Some(7));
        assert_eq!(cold(&named).iter().filter(|cold| **cold).count(), 1);
    }
}
