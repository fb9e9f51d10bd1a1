//! Choosing the next token: greedy, or temperature, top-k and top-p with counter-based randomness.

use kernels::random::philox;

/// Purpose of the random counter, apart from initialisation, shuffling and dropout.
const SAMPLE: u32 = 0x5341_4D50;

/// How answers are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Zero for greedy.
    pub temperature: f32,
    /// Keep the `k` likeliest tokens; zero for all.
    pub top_k: u32,
    /// Keep the likeliest tokens up to this probability; one for all.
    pub top_p: f32,
    /// Tokens of an answer at most.
    pub max_new_tokens: u32,
    /// The run's seed.
    pub seed: u64,
}

/// The next token. *Order*: ties go to the lower id. The random number is a function of the user's key,
/// the query's number and the position in the answer, `counter`.
pub fn next_token(logits: &[f32], sampling: &Sampling, key: [u32; 2], counter: (u32, u32)) -> u32 {
    let id = |i: usize| u32::try_from(i).unwrap_or(u32::MAX);
    let likelier = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    if sampling.temperature <= 0.0 || sampling.top_k == 1 {
        return (0..logits.len()).min_by(likelier).map_or(0, id);
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let keep =
        if sampling.top_k == 0 { order.len() } else { order.len().min(sampling.top_k as usize) };
    if keep < order.len() {
        order.select_nth_unstable_by(keep, likelier);
        order.truncate(keep);
    }
    order.sort_unstable_by(likelier);
    let scaled = |i: usize| f64::from(logits[i]) / f64::from(sampling.temperature);
    let top = order.first().map_or(0.0, |&i| scaled(i));
    let weights: Vec<f64> = order.iter().map(|&i| (scaled(i) - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut kept = 0.0;
    let nucleus = weights
        .iter()
        .take_while(|&&w| {
            let before = kept;
            kept += w;
            before < f64::from(sampling.top_p) * total
        })
        .count()
        .max(1);
    let mass: f64 = weights[..nucleus].iter().sum();
    let word = philox(key, [counter.0, counter.1, SAMPLE, 0])[0];
    let mut left = (f64::from(word) + 0.5) / 4_294_967_296.0 * mass;
    for (&token, w) in order[..nucleus].iter().zip(&weights) {
        left -= w;
        if left < 0.0 {
            return id(token);
        }
    }
    order[..nucleus].last().map_or(0, |&i| id(i))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_k: u32, top_p: f32) -> Sampling {
        Sampling { temperature, top_k, top_p, max_new_tokens: 1, seed: 0 }
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(next_token(&[0.0, 2.0, 2.0, -1.0], &sampling(0.0, 0, 1.0), [0; 2], (0, 0)), 1);
        assert_eq!(next_token(&[0.0, 2.0, 3.0], &sampling(1.0, 1, 1.0), [0; 2], (0, 0)), 2);
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = [0.0f32, 1.0, 2.0, -30.0].map(|x| x / 2.0);
        let mut counts = [0u32; 4];
        for i in 0..20_000 {
            counts[next_token(&logits, &sampling(0.5, 0, 1.0), [7, 9], (i, 3)) as usize] += 1;
        }
        let e = [1.0f64, 1f64.exp(), 2f64.exp()];
        for (count, e_i) in counts.iter().zip(e) {
            let p = e_i / e.iter().sum::<f64>();
            // Five standard deviations of a binomial share.
            assert!(
                (f64::from(*count) / 20_000.0 - p).abs() < 5.0 * (p * (1.0 - p) / 20_000.0).sqrt()
            );
        }
        assert_eq!(counts[3], 0);
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [1.0, 0.9, 0.8, 0.7];
        for i in 0..500 {
            assert!(next_token(&logits, &sampling(1.0, 2, 1.0), [1, 2], (i, 0)) < 2);
            assert!(next_token(&logits, &sampling(1.0, 0, 0.5), [1, 2], (i, 0)) < 2);
            assert_eq!(next_token(&logits, &sampling(1.0, 0, 0.1), [1, 2], (i, 0)), 0);
        }
    }
}
