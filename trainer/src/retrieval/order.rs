//! In which order the retrieved items stand in the prompt.

use super::draw::Draws;
use serde::{Deserialize, Serialize};

/// The order of items in the prompt, given them most relevant first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Most relevant first.
    #[default]
    Start,
    /// Most relevant last.
    End,
    /// Most relevant in the middle: relevance falls to both sides by turns, 4 -> `3 1 0 2`, 5 -> `3 1 0 2 4`.
    Middle,
    /// A shuffle by the request's own numbers.
    Random,
}

impl Order {
    /// The places `0..n` in their order in the prompt.
    ///
    /// Middle: the odd places downwards, then the even ones upwards.
    pub(super) fn places(self, n: usize, draws: impl FnOnce() -> Draws) -> Vec<usize> {
        match self {
            Self::Start => (0..n).collect(),
            Self::End => (0..n).rev().collect(),
            Self::Middle => {
                let odd = (0..n).rev().filter(|i| i % 2 == 1);
                odd.chain((0..n).step_by(2)).collect()
            }
            Self::Random => draws().distinct(n).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Request, draw::Purpose};
    use super::*;
    use crate::ids::UserKey;

    #[test]
    fn patterns() {
        let of = |order: Order, n| {
            let request = Request::new(UserKey([1; 32]), "q", "");
            order.places(n, || Draws::new(0, &request, Purpose::Order))
        };
        assert_eq!(of(Order::Start, 4), [0, 1, 2, 3]);
        assert_eq!(of(Order::End, 4), [3, 2, 1, 0]);
        assert_eq!(of(Order::Middle, 4), [3, 1, 0, 2]);
        assert_eq!(of(Order::Middle, 5), [3, 1, 0, 2, 4]);
        for n in 0..9_usize {
            // As the study writes it.
            let odds = if n % 2 == 1 { n.saturating_sub(2) } else { n.saturating_sub(1) };
            let (down, up) = ((1..=odds).rev().step_by(2), (0..n).step_by(2));
            assert_eq!(of(Order::Middle, n), down.chain(up).collect::<Vec<_>>());
            let mut random = of(Order::Random, n);
            random.sort_unstable();
            assert_eq!(random, of(Order::Start, n));
        }
        assert_ne!(of(Order::Random, 20), of(Order::Start, 20));
    }
}
