//! The sizes of one call: `rows=4096,d=576,n=960`.

use std::fmt;

/// Largest count: a row and a column of them are still numbers of 64 bits.
const MOST: f64 = 67_108_864.0;
/// Keys that take fractions.
const FRACTIONS: [&str; 2] = ["dropout", "skew"];
/// Keys that are 0 or 1.
const FLAGS: [&str; 5] = ["accumulate", "centred", "gated", "outer", "teacher"];
/// Keys that may be 0 for none.
const OPTIONAL: [&str; 4] = ["kv", "positions", "prefix", "users"];

/// Names and numbers, in the order of the operation's shape.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sizes(Vec<(String, f64)>);

impl Sizes {
    /// Reads `key=value,key=value`.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut sizes: Vec<(String, f64)> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| anyhow::anyhow!("`{part}` is not of the form KEY=VALUE"))?;
            let number: f64 =
                value.parse().map_err(|_| anyhow::anyhow!("{key}: `{value}` is not a number"))?;
            check(key, number)?;
            if sizes.iter().any(|(known, _)| known == key) {
                anyhow::bail!("{key} is given twice");
            }
            sizes.push((key.to_owned(), number));
        }
        Ok(Self(sizes))
    }

    /// Takes the numbers of `other` whose keys are here.
    pub(super) fn overridden(mut self, other: &Self) -> Self {
        for (key, number) in &mut self.0 {
            if let Some((_, wanted)) = other.0.iter().find(|(name, _)| name == key) {
                *number = *wanted;
            }
        }
        self
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_str())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(key, number)| (key.as_str(), *number))
    }

    /// The number of a key; zero for one that is not there.
    pub(super) fn real(&self, key: &str) -> f64 {
        self.iter().find(|(name, _)| *name == key).map_or(0.0, |(_, number)| number)
    }

    /// The count of a key; zero for one that is not there.
    pub(super) fn count(&self, key: &str) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked when read: whole, not negative, below 2^27"
        )]
        let count = self.real(key) as usize;
        count
    }

    /// The counts of several keys.
    pub(super) fn counts<const N: usize>(&self, keys: [&str; N]) -> [usize; N] {
        keys.map(|key| self.count(key))
    }

    /// Whether a flag is set.
    pub(super) fn flag(&self, key: &str) -> bool {
        self.count(key) > 0
    }
}

fn check(key: &str, number: f64) -> anyhow::Result<()> {
    let wrong = if !(0.0..=MOST).contains(&number) {
        Some("is not between 0 and 67108864")
    } else if key == "dropout" && number >= 1.0 {
        Some("must be below 1")
    } else if FRACTIONS.contains(&key) {
        None
    } else if number.fract() > 0.0 {
        Some("is not a whole number")
    } else if FLAGS.contains(&key) {
        (number > 1.0).then_some("is neither 0 nor 1")
    } else if OPTIONAL.contains(&key) {
        None
    } else {
        (number < 1.0).then_some("must be at least 1")
    };
    wrong.map_or(Ok(()), |wrong| Err(anyhow::anyhow!("{key}: {number} {wrong}")))
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (key, number)) in self.iter().enumerate() {
            write!(f, "{}{key}={number}", if i > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Sizes;

    #[test]
    fn what_is_written_is_read() {
        let text = "rows=4096,adapters=64,skew=1.5,dropout=0.05,kv=0,centred=1";
        let sizes = Sizes::parse(text).unwrap();
        assert_eq!(sizes.to_string(), text);
        assert_eq!((sizes.count("rows"), sizes.count("kv"), sizes.count("none")), (4096, 0, 0));
        assert!(sizes.flag("centred") && (sizes.real("skew") - 1.5).abs() < 1e-12);
        let other = Sizes::parse("rows=7, more=8").unwrap();
        let sizes = sizes.overridden(&other).to_string();
        assert_eq!(sizes, text.replace("4096", "7"));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for (text, says) in [
            ("rows", "KEY=VALUE"),
            ("rows=many", "not a number"),
            ("rows=0", "at least 1"),
            ("rows=1.5", "whole"),
            ("rows=-1", "between"),
            ("rows=1e12", "between"),
            ("rows=NaN", "between"),
            ("rows=1,rows=2", "twice"),
            ("dropout=1", "below 1"),
            ("centred=2", "neither"),
        ] {
            let error = Sizes::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
