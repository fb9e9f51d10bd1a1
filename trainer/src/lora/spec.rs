//! Rank, alpha, dropout and targets of an adapter.

use super::{Error, Target};
use serde::{Deserialize, Serialize};

/// Largest LoRA rank; beyond it an adapter is larger than what it adapts.
const MAX_LORA_RANK: u32 = 4096;

/// The recipe of an adapter, as PEFT's `LoraConfig` states it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterSpec {
    /// `r`, at least 1.
    pub lora_rank: u32,
    /// `lora_alpha`.
    pub alpha: f64,
    /// Divide alpha by `sqrt(r)` and not by `r`.
    #[serde(default)]
    pub rslora: bool,
    /// Dropout probability on the LoRA input in training, `0 <= p < 1`.
    #[serde(default)]
    pub dropout: f64,
    /// The products adapted, in order, without repetition.
    pub targets: Vec<Target>,
}

impl AdapterSpec {
    /// The factor of `B·A·x`: `alpha / r`, or `alpha / sqrt(r)` with rank-stabilised LoRA; in f64, then rounded once.
    #[expect(clippy::cast_possible_truncation, reason = "rounded once to the kernels' f32")]
    pub fn scale(&self) -> f32 {
        let r = f64::from(self.lora_rank);
        (self.alpha / if self.rslora { r.sqrt() } else { r }) as f32
    }

    /// The dropout probability as the kernels take it.
    #[expect(clippy::cast_possible_truncation, reason = "rounded once to the kernels' f32")]
    pub fn dropout_f32(&self) -> f32 {
        self.dropout as f32
    }

    /// Checks every number's range and that the targets are in order, without repetition, of one family.
    ///
    /// # Errors
    /// [`Error::Range`] naming the field; [`Error::MixedFamilies`].
    pub fn check(&self) -> Result<(), Error> {
        let range = |field, got: String, expected| Err(Error::Range { field, got, expected });
        if !(1..=MAX_LORA_RANK).contains(&self.lora_rank) {
            return range("lora_rank", self.lora_rank.to_string(), "1 to 4096");
        }
        if !self.alpha.is_finite() || self.alpha < 0.0 || !self.scale().is_finite() {
            return range("alpha", self.alpha.to_string(), "a finite number, not negative");
        }
        // In f32 too: a probability that rounds to 1 there would divide by zero.
        if !(0.0..1.0).contains(&self.dropout) || self.dropout_f32() >= 1.0 {
            return range("dropout", self.dropout.to_string(), "0 <= p < 1");
        }
        // None: the adapter is whole tensors alone, which its list of sites knows.
        let Some(first) = self.targets.first() else { return Ok(()) };
        for (a, b) in self.targets.iter().zip(&self.targets[1..]) {
            if a >= b {
                return range("targets", format!("{a:?} before {b:?}"), "rising, none twice");
            }
        }
        match self.targets.iter().find(|t| t.family() != first.family()) {
            Some(t) => Err(Error::MixedFamilies { path: t.block_path().to_owned() }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> AdapterSpec {
        let targets = vec![Target::Q, Target::V];
        AdapterSpec { lora_rank: 8, alpha: 16.0, rslora: false, dropout: 0.05, targets }
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "rounded once, so exactly this")]
    fn scale() {
        assert_eq!(spec().scale(), 2.0);
        assert_eq!(AdapterSpec { lora_rank: 16, rslora: true, ..spec() }.scale(), 4.0);
        // np.float32(16 / np.sqrt(8))
        assert_eq!(AdapterSpec { rslora: true, ..spec() }.scale(), 5.656_854);
        assert_eq!(AdapterSpec { lora_rank: 3, alpha: 1.0, ..spec() }.scale(), 1.0f32 / 3.0);
    }

    #[test]
    fn check() {
        assert_eq!(spec().check(), Ok(()));
        let wrong = [
            AdapterSpec { lora_rank: 0, ..spec() },
            AdapterSpec { lora_rank: 4097, ..spec() },
            AdapterSpec { alpha: f64::NAN, ..spec() },
            AdapterSpec { alpha: 1e300, ..spec() },
            AdapterSpec { alpha: -1.0, ..spec() },
            AdapterSpec { dropout: 1.0, ..spec() },
            AdapterSpec { dropout: 1.0 - 1e-12, ..spec() },
            AdapterSpec { dropout: f64::NAN, ..spec() },
            AdapterSpec { targets: vec![Target::V, Target::Q], ..spec() },
            AdapterSpec { targets: vec![Target::Q, Target::Q], ..spec() },
            AdapterSpec { targets: vec![Target::Q, Target::CFc], ..spec() },
        ];
        for s in wrong {
            assert!(s.check().is_err(), "{s:?}");
        }
    }
}
