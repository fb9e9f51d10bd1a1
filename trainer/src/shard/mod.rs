//! shard: which rank trains whom.
//!
//! Owns: the estimated cost of a user, the plan of users over ranks and its imbalance. Must never know: what is trained,
//! how ranks talk. Every rank makes the same plan from the same input. Start reading at [`plan`].

use crate::ids::UserKey;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Why no plan can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nobody to give users to.
    #[error("a plan needs at least one rank")]
    NoRanks,
}

/// Work of a training step by its tokens, in FLOP or any unit; whole numbers, so that all ranks add up the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CostModel {
    /// Per token: products with weights and adapters, forward and backward. About 4 · parameters of the base.
    pub per_token: u64,
    /// Per pair of a token and one it attends to: scores and values, forward and backward. About
    /// 12 · layers · heads · head size.
    pub per_pair: u64,
}

impl CostModel {
    /// Cost of a user: epochs · Σ over examples (per_token · n + per_pair · n (n + 1) / 2) for examples of n tokens,
    /// causal attention. Saturates.
    pub fn user(&self, example_tokens: impl IntoIterator<Item = usize>, epochs: u32) -> u64 {
        let one = |n: usize| {
            let n = n as u128;
            u128::from(self.per_token) * n + u128::from(self.per_pair) * (n * (n + 1) / 2)
        };
        let sum = example_tokens.into_iter().map(one).fold(0u128, u128::saturating_add);
        u64::try_from(sum.saturating_mul(u128::from(epochs))).unwrap_or(u64::MAX)
    }
}

/// Users by rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// For each rank its users, as indices into the list that was planned, dearest first.
    pub by_rank: Vec<Vec<usize>>,
    /// The cost of each rank's users together.
    pub load: Vec<u64>,
}

impl Plan {
    /// Largest load over mean load: 1 is perfect, `ranks` is everything on one; 1 if there is no work.
    pub fn imbalance(&self) -> f64 {
        let largest = self.load.iter().copied().max().unwrap_or(0);
        let sum: u128 = self.load.iter().map(|&l| u128::from(l)).sum();
        if sum == 0 {
            return 1.0;
        }
        largest as f64 * self.load.len() as f64 / sum as f64
    }
}

/// Longest processing time first: users from dear to cheap, each to the rank with the least load so far.
///
/// The largest load is at most 4/3 − 1/(3·ranks) of the best possible (Graham 1969). *Order*: users of equal cost by
/// key, then by index; ranks of equal load by number; so the plan depends on the set of users, not on their order.
///
/// # Errors
/// No ranks.
pub fn plan(users: &[(UserKey, u64)], ranks: usize) -> Result<Plan, Error> {
    if ranks == 0 {
        return Err(Error::NoRanks);
    }
    let mut order: Vec<usize> = (0..users.len()).collect();
    order.sort_by_key(|&i| (Reverse(users[i].1), users[i].0, i));
    let mut by_rank = vec![Vec::new(); ranks];
    let mut idle: BinaryHeap<Reverse<(u64, usize)>> = (0..ranks).map(|r| Reverse((0, r))).collect();
    for user in order {
        if let Some(Reverse((load, rank))) = idle.pop() {
            by_rank[rank].push(user);
            idle.push(Reverse((load.saturating_add(users[user].1), rank)));
        }
    }
    let mut load = vec![0; ranks];
    for Reverse((cost, rank)) in idle {
        load[rank] = cost;
    }
    Ok(Plan { by_rank, load })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UserId;
    use proptest::prelude::*;

    fn users(costs: &[u64]) -> Vec<(UserKey, u64)> {
        let key = |i: usize| UserId::new(&format!("user {i}")).key();
        costs.iter().enumerate().map(|(i, &cost)| (key(i), cost)).collect()
    }

    #[test]
    fn the_textbook_case() {
        // Graham's worst case for 2 machines: 3 3 2 2 2 gives 7 where 6 is best.
        let plan = plan(&users(&[3, 3, 2, 2, 2]), 2).unwrap();
        let mut load = plan.load.clone();
        load.sort_unstable();
        assert_eq!(load, [5, 7]);
        assert!((plan.imbalance() - 7.0 / 6.0).abs() < 1e-15);
    }

    #[test]
    fn edges() {
        assert_eq!(plan(&users(&[1]), 0), Err(Error::NoRanks));
        let empty = plan(&[], 3).unwrap();
        assert_eq!((empty.by_rank.len(), empty.imbalance()), (3, 1.0));
        let few = plan(&users(&[5]), 4).unwrap();
        assert_eq!((few.by_rank[0].clone(), few.imbalance()), (vec![0], 4.0));
        let huge = plan(&users(&[u64::MAX, u64::MAX, u64::MAX]), 2).unwrap();
        assert_eq!(huge.by_rank.concat().len(), 3);
    }

    #[test]
    fn cost_counts_tokens_and_causal_pairs() {
        let model = CostModel { per_token: 10, per_pair: 1 };
        assert_eq!(model.user([3, 1], 2), 2 * (10 * 4 + 6 + 1));
        assert_eq!(model.user([], 5), 0);
        assert_eq!(model.user([usize::MAX], u32::MAX), u64::MAX);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn everyone_once_within_grahams_bound_in_any_order(
            costs in proptest::collection::vec(0u64..1000, 0..60), ranks in 1usize..9, turn in 0usize..60,
        ) {
            let list = users(&costs);
            let made = plan(&list, ranks).unwrap();
            let mut all = made.by_rank.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..list.len()).collect::<Vec<_>>());
            for (rank, load) in made.by_rank.iter().zip(&made.load) {
                prop_assert_eq!(rank.iter().map(|&i| costs[i]).sum::<u64>(), *load);
                prop_assert!(rank.windows(2).all(|w| costs[w[0]] >= costs[w[1]]));
            }
            // No list scheduling leaves the largest load above mean + (1 − 1/ranks) · the dearest user.
            let (sum, dearest) = (costs.iter().sum::<u64>(), costs.iter().max().copied().unwrap_or(0));
            let ranks64 = ranks as u64;
            let largest = made.load.iter().max().unwrap();
            prop_assert!(largest * ranks64 <= sum + (ranks64 - 1) * dearest);
            let mut turned = list.clone();
            if !turned.is_empty() { turned.rotate_left(turn % list.len()); turned.reverse(); }
            let again = plan(&turned, ranks).unwrap();
            let keys = |list: &[(UserKey, u64)], plan: &Plan| -> Vec<Vec<UserKey>> {
                plan.by_rank.iter().map(|r| r.iter().map(|&i| list[i].0).collect()).collect()
            };
            prop_assert_eq!(keys(&list, &made), keys(&turned, &again));
        }
    }
}
