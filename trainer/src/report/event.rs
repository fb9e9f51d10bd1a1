//! The events of a run and their JSON.

use super::Error;
use crate::ids::{Step, UserId};
use serde::{Deserialize, Serialize};

/// A part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the stages' own")]
pub enum Stage {
    Data,
    Population,
    Merge,
    Distill,
    Individual,
    Predict,
    Evaluate,
}

/// Something that happened on a rank.
///
/// Losses and norms that are no finite numbers are written as the texts "NaN", "inf", "-inf", since JSON has none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The rank began.
    RunStarted {
        /// The run's name.
        name: String,
        /// Hash of its config, hexadecimal.
        config_hash: String,
        /// Ranks of the world.
        ranks: usize,
        /// Threads of this rank.
        threads: usize,
    },
    /// A stage began.
    StageStarted {
        /// Which.
        stage: Stage,
        /// Users of this rank in it.
        users: usize,
        /// Tokens of this rank in it, all epochs together.
        tokens: u64,
    },
    /// A stage ended.
    StageFinished {
        /// Which.
        stage: Stage,
        /// Seconds it took.
        seconds: f64,
    },
    /// A user took a slot.
    UserJoined {
        /// Who.
        user: UserId,
        /// Examples.
        examples: usize,
        /// Steps there will be.
        steps: u32,
    },
    /// A user made a step.
    UserStep {
        /// Who.
        user: UserId,
        /// Steps done, this one included.
        step: Step,
        /// Mean loss over the step's supervised tokens, in nats.
        #[serde(with = "any_float")]
        loss: f64,
        /// L2 norm of the adapter's gradient before clipping.
        #[serde(with = "any_float")]
        grad_norm: f64,
        /// Learning rate of the step.
        #[serde(with = "any_float")]
        learning_rate: f64,
    },
    /// A user's adapter is in the store.
    UserDone {
        /// Who.
        user: UserId,
        /// Steps made.
        step: Step,
        /// Mean loss of the last epoch.
        #[serde(with = "any_float")]
        loss: f64,
    },
    /// A user was taken out; the others go on.
    UserQuarantined {
        /// Who.
        user: UserId,
        /// Steps made before.
        step: Step,
        /// Why.
        reason: String,
    },
    /// Where the rank stands.
    Progress(Progress),
    /// The rank is done.
    RunFinished {
        /// Users done.
        done: usize,
        /// Users quarantined.
        quarantined: usize,
        /// Seconds since the start.
        seconds: f64,
    },
}

/// Where a rank stands in a stage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// The stage.
    pub stage: Stage,
    /// Users finished, quarantined ones included.
    pub users_done: usize,
    /// Users there are.
    pub users: usize,
    /// Tokens trained.
    pub tokens_done: u64,
    /// Tokens there are.
    pub tokens: u64,
    /// Tokens per second over the last interval.
    pub tokens_per_s: f64,
    /// Seconds left at that pace; unknown until there is one.
    pub eta_s: Option<f64>,
}

impl Progress {
    /// The same moment for all ranks together: counts and paces add up, the time left is that of the slowest rank, and
    /// unknown if a rank with work left does not know its own. `None` for no ranks.
    pub fn of_ranks(ranks: &[Progress]) -> Option<Progress> {
        let first = *ranks.first()?;
        let left = |p: &&Progress| p.tokens_done < p.tokens;
        let known = ranks.iter().filter(left).all(|p| p.eta_s.is_some());
        let eta_s =
            known.then(|| ranks.iter().filter(left).filter_map(|p| p.eta_s).fold(0.0, f64::max));
        Some(ranks[1..].iter().fold(Progress { eta_s, ..first }, |sum, p| Progress {
            users_done: sum.users_done + p.users_done,
            users: sum.users + p.users,
            tokens_done: sum.tokens_done + p.tokens_done,
            tokens: sum.tokens + p.tokens,
            tokens_per_s: sum.tokens_per_s + p.tokens_per_s,
            ..sum
        }))
    }

    /// The time left for `tokens - tokens_done` at `tokens_per_s`; `None` without a pace.
    #[must_use]
    pub fn with_pace(self, tokens_per_s: f64) -> Progress {
        let left = self.tokens.saturating_sub(self.tokens_done) as f64;
        let eta_s = (tokens_per_s.is_finite() && tokens_per_s > 0.0).then(|| left / tokens_per_s);
        Progress { tokens_per_s, eta_s, ..self }
    }
}

/// One line of an event file: an event with its moment and rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Seconds since 1970.
    pub at_s: f64,
    /// The rank that says it.
    pub rank: usize,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl Record {
    /// The record as one line of JSON, its end included.
    ///
    /// # Errors
    /// A value JSON cannot say.
    pub fn to_line(&self) -> Result<String, Error> {
        Ok(serde_json::to_string(self)? + "\n")
    }

    /// A line read back.
    ///
    /// # Errors
    /// A line that is no record, e.g. one cut short by a crash.
    pub fn from_line(line: &str) -> Result<Self, Error> {
        Ok(serde_json::from_str(line)?)
    }
}

/// f64 as a JSON number if it is finite, else as a text.
mod any_float {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(x: &f64, to: S) -> Result<S::Ok, S::Error> {
        if x.is_finite() { to.serialize_f64(*x) } else { to.serialize_str(&x.to_string()) }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(f64),
            Text(String),
        }
        match Either::deserialize(from)? {
            Either::Number(x) => Ok(x),
            Either::Text(text) => match text.as_str() {
                "NaN" => Ok(f64::NAN),
                "inf" => Ok(f64::INFINITY),
                "-inf" => Ok(f64::NEG_INFINITY),
                _ => Err(serde::de::Error::custom("expected a number, NaN, inf or -inf")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(loss: f64) -> Record {
        let user = UserId::new("a\n\"b\"");
        let event =
            Event::UserStep { user, step: Step(3), loss, grad_norm: 0.5, learning_rate: 1e-3 };
        Record { at_s: 12.5, rank: 2, event }
    }

    #[test]
    fn the_line_is_fixed() {
        let line = step(1.25).to_line().unwrap();
        let expected = r#"{"at_s":12.5,"rank":2,"event":"user_step","user":"a\n\"b\"","step":3,"loss":1.25,"grad_norm":0.5,"learning_rate":0.001}"#;
        assert_eq!(line, format!("{expected}\n"));
        assert_eq!(Record::from_line(&line).unwrap(), step(1.25));
    }

    #[test]
    fn numbers_json_lacks_come_back() {
        for loss in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let back = Record::from_line(&step(loss).to_line().unwrap()).unwrap();
            let Event::UserStep { loss: got, .. } = back.event else { panic!("{back:?}") };
            assert_eq!(got.to_bits() & !(1 << 63), loss.to_bits() & !(1 << 63));
            assert!(got.is_nan() || got.is_sign_positive() == loss.is_sign_positive());
        }
        assert!(Record::from_line(r#"{"at_s":1,"rank":0,"event":"user_st"#).is_err());
        assert!(Record::from_line(r#"{"at_s":1,"rank":0,"event":"new"}"#).is_err());
    }

    #[test]
    fn ranks_add_up() {
        let one = Progress {
            stage: Stage::Individual,
            users_done: 1,
            users: 4,
            tokens_done: 100,
            tokens: 400,
            tokens_per_s: 0.0,
            eta_s: None,
        };
        let (fast, slow) = (one.with_pace(100.0), one.with_pace(10.0));
        assert_eq!(
            (fast.eta_s, slow.eta_s, one.with_pace(0.0).eta_s),
            (Some(3.0), Some(30.0), None)
        );
        let all = Progress::of_ranks(&[fast, slow]).unwrap();
        assert_eq!((all.users_done, all.users, all.tokens_done, all.tokens), (2, 8, 200, 800));
        assert_eq!((all.tokens_per_s, all.eta_s), (110.0, Some(30.0)));
        assert_eq!(Progress::of_ranks(&[fast, one]).unwrap().eta_s, None);
        let done = Progress { tokens_done: 400, ..one };
        assert_eq!(Progress::of_ranks(&[fast, done]).unwrap().eta_s, Some(3.0));
        assert_eq!(Progress::of_ranks(&[]), None);
    }
}
