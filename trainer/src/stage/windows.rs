//! The windows of a task as pieces of packs, and which of their events are hidden.
//!
//! Knows one window at a time; never packs, shards or ranks.

use super::whole::WholeTask;
use crate::model::event::{EventTable, MASKED};
use crate::pack::{ClassLoss, Piece};
use crate::prompt::Example;
use kernels::random::uniform_f32;
use std::ops::Range;

/// "MASK".
const MASK: u32 = 0x4d41_534b;

/// A window of a task.
#[derive(Clone, Copy)]
pub(super) struct Window<'a> {
    pub(super) example: &'a Example,
    pub(super) loss: Option<&'a ClassLoss>,
}

impl<'a> Window<'a> {
    pub(super) fn of(task: &WholeTask<'a>, index: u32) -> Self {
        let index = index as usize;
        Self { example: &task.windows[index], loss: task.losses.get(index) }
    }

    pub(super) fn piece(self, of_mean: bool) -> Piece<'a> {
        let piece = Piece::supervised(&self.example.tokens, self.example.prompt_len);
        let first_output = if of_mean { 0 } else { piece.first_output };
        Piece { first_output, loss: self.loss, ..piece }
    }
}

/// A window some of whose events are hidden.
pub(super) struct Hidden<'a> {
    rows: Vec<u32>,
    only: &'a [u32],
}

impl<'a> Hidden<'a> {
    pub(super) fn of(example: &Example, only: &'a [u32]) -> Self {
        let mut rows = example.tokens[..events(example).end].to_vec();
        for &row in only {
            rows[row as usize] |= MASKED;
        }
        Self { rows, only }
    }

    /// The hidden events.
    pub(super) fn events(&self, table: &EventTable) -> Vec<u32> {
        let event = |row: &u32| {
            let row = table.row(self.rows[*row as usize]).unwrap_or(&[]);
            row.get(crate::data::events::EVENT).copied().unwrap_or(0)
        };
        self.only.iter().map(event).collect()
    }

    /// The piece, if anything is hidden.
    pub(super) fn piece<'b>(&'b self, targets: &'b [u32]) -> Option<Piece<'b>> {
        let (rows, only) = (self.rows.as_slice(), Some(self.only));
        (!targets.is_empty()).then_some(Piece { rows, first_output: 0, targets, loss: None, only })
    }
}

fn events(example: &Example) -> Range<usize> {
    0..example.tokens.len().saturating_sub(1)
}

/// The events of a window that are hidden in an epoch: each by a number of its own, a function of (key, window, epoch,
/// place) alone.
pub(super) fn masked(
    key: [u32; 2],
    (example, index): (&Example, u32),
    epoch: u32,
    ratio: f64,
) -> Vec<u32> {
    let end = u32::try_from(events(example).end).unwrap_or(u32::MAX);
    (0..end)
        .filter(|&place| f64::from(uniform_f32(key, [index, epoch, place, MASK])) < ratio)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u32; 2] = [3, 4];

    fn window(first: u32, events: u32) -> Example {
        let tokens: Vec<u32> = (first..=first + events).collect();
        Example { prompt_len: events as usize, tokens }
    }

    #[test]
    fn a_mask_depends_on_key_window_epoch_and_place_alone() {
        let of = |example: &Example, index, epoch| masked(KEY, (example, index), epoch, 0.3);
        let long = of(&window(0, 200), 7, 2);
        assert_eq!(of(&window(900, 200), 7, 2), long, "what the events are");
        let short: Vec<u32> = long.iter().copied().filter(|&place| place < 50).collect();
        assert_eq!(of(&window(0, 50), 7, 2), short, "places do not know of later ones");
        assert_ne!(of(&window(0, 200), 8, 2), long, "the window");
        assert_ne!(of(&window(0, 200), 7, 3), long, "the epoch");
        assert_ne!(masked([3, 5], (&window(0, 200), 7), 2, 0.3), long, "the key");
        let more = masked(KEY, (&window(0, 200), 7), 2, 0.5);
        assert!(long.iter().all(|place| more.contains(place)) && more.len() > long.len());
    }

    #[test]
    fn so_many_are_hidden_and_all_or_none_at_the_ends() {
        for ratio in [0.15, 0.5] {
            let count = |index| masked(KEY, (&window(0, 100), index), 0, ratio).len();
            let hidden: usize = (0..200).map(count).sum();
            let sigma = (20_000.0 * ratio * (1.0 - ratio)).sqrt();
            let off = f64::from(u32::try_from(hidden).unwrap()) - 20_000.0 * ratio;
            assert!(off.abs() < 5.0 * sigma, "{hidden} at {ratio}");
        }
        assert_eq!(masked(KEY, (&window(0, 9), 1), 0, 0.0), [0u32; 0]);
        assert_eq!(masked(KEY, (&window(0, 9), 1), 0, 1.0), (0..9).collect::<Vec<u32>>());
        let none = Example { tokens: Vec::new(), prompt_len: 0 };
        assert_eq!(masked(KEY, (&none, 1), 0, 1.0), [0u32; 0]);
    }

    #[test]
    fn hidden_events_are_asked_for() {
        let mut table = EventTable::new(3);
        assert_eq!(table.add(&[0, 1, 2, 3, 4, 5, 6, 7, 8]), Some(0));
        let example = Example { tokens: vec![2, 0, 1, 99], prompt_len: 3 };
        let only = [0, 2];
        let hidden = Hidden::of(&example, &only);
        let targets = hidden.events(&table);
        assert_eq!(targets, [8, 5]);
        let piece = hidden.piece(&targets).unwrap();
        assert_eq!(piece.rows, [2 | MASKED, 0, 1 | MASKED]);
        assert_eq!((piece.only, piece.targets), (Some(&only[..]), &[8, 5][..]));
        assert!(Hidden::of(&example, &[]).piece(&[]).is_none());
    }
}
