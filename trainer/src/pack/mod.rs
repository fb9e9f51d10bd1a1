//! Examples of many users to one packed batch: adapter-major, no padding, shared prefixes once.
//!
//! Owns how rows are laid out; knows nothing of texts, files or optimisers. What one user's rows look
//! like depends on that user's pieces alone (solo equivalence); the packer only places users one
//! after another. Start reading at [`Packer::add`].

use crate::model::batch::Batch;
use kernels::attention::Sequence;
use kernels::classify::Row;
use kernels::lora::Segment;

/// A prefix shorter than this is not worth sharing.
pub const MIN_PREFIX: usize = 8;

/// One sequence to run: an example without its last token, or a whole prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Piece<'a> {
    /// Token ids of the rows.
    pub rows: &'a [u32],
    /// First row whose last hidden state is wanted.
    pub first_output: usize,
    /// Targets of the rows from `first_output` on (one of their mean, for an event model that asks for it); empty for a
    /// prediction.
    pub targets: &'a [u32],
    /// Loss of its one target where that is not plain cross-entropy (event models alone).
    pub loss: Option<&'a ClassLoss>,
    /// The rows whose last hidden states are wanted, rising from `first_output` on, where they are not all from there
    /// on; `targets` are theirs then.
    pub only: Option<&'a [u32]>,
}

/// Loss of a target over a few classes.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassLoss {
    /// The loss, with a target of its own; its weight is the share's.
    pub row: Row,
    /// The teacher's logits of all classes; empty where the loss needs none.
    pub teacher: Vec<f32>,
}

impl ClassLoss {
    /// A loss with the teacher's logits, which are kept if it needs them.
    pub fn new(row: Row, teacher: &[f32]) -> Self {
        let teacher = if row.needs_teacher() { teacher.to_vec() } else { Vec::new() };
        Self { row, teacher }
    }
}

impl<'a> Piece<'a> {
    /// A training piece of `tokens` whose first `prompt_len >= 1` tokens are not supervised: row `i`
    /// predicts token `i + 1`, and the last token needs no row.
    pub fn supervised(tokens: &'a [u32], prompt_len: usize) -> Self {
        let last = tokens.len().saturating_sub(1);
        let prompt_len = prompt_len.clamp(1, tokens.len().max(1));
        Self {
            rows: &tokens[..last],
            first_output: prompt_len - 1,
            targets: tokens.get(prompt_len..).unwrap_or(&[]),
            loss: None,
            only: None,
        }
    }

    /// A prompt whose next token is wanted.
    pub fn prompt(tokens: &'a [u32]) -> Self {
        Self {
            rows: tokens,
            first_output: tokens.len().saturating_sub(1),
            targets: &[],
            loss: None,
            only: None,
        }
    }

    fn num_outputs(&self) -> usize {
        self.only.map_or(self.rows.len() - self.first_output, <[u32]>::len)
    }

    fn outputs(&self) -> impl Iterator<Item = usize> + 'a {
        let all = if self.only.is_some() { 0..0 } else { self.first_output..self.rows.len() };
        all.chain(self.only.unwrap_or(&[]).iter().map(|&row| row as usize))
    }
}

/// One user's pieces in a pack.
#[derive(Debug, Clone, Copy)]
pub struct Share<'a> {
    /// The adapter, `row_start` and `rows` left open; `None` for the bare base.
    pub adapter: Option<Segment>,
    /// Number of the adapter's layout.
    pub layout: usize,
    /// The pieces, in the user's own order.
    pub pieces: &'a [Piece<'a>],
    /// Weight of each supervised row: one over the supervised rows of the whole micro-batch.
    pub weight: f32,
    /// Number of its first token in the micro-batch: rows of the chunks before, so that no two tokens
    /// of a step share a dropout mask.
    pub first_token: u32,
}

/// Where a piece lies in the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceSpan {
    /// First row of the shared prefix.
    pub prefix_start: usize,
    /// Rows of the shared prefix, zero for none.
    pub prefix_len: usize,
    /// First row of its own.
    pub start: usize,
    /// Rows of its own.
    pub len: usize,
    /// First output row, numbered among outputs.
    pub output_start: usize,
    /// Output rows.
    pub num_outputs: usize,
    /// First target, numbered among targets.
    pub target_start: usize,
    /// Targets.
    pub num_targets: usize,
}

/// Builds packs, reusing its memory.
#[derive(Debug, Default)]
pub struct Packer {
    batch: Batch,
    spans: Vec<PieceSpan>,
    /// `shares[i]..shares[i + 1]` are the spans of share `i`.
    shares: Vec<usize>,
    unshared_rows: usize,
    share_prefixes: bool,
}

/// Length of the prefix that all pieces share and that no output row lies in; zero when not worth it.
pub fn shared_prefix(pieces: &[Piece<'_>]) -> usize {
    let Some((first, others)) = pieces.split_first() else { return 0 };
    if others.is_empty() {
        return 0;
    }
    let limit = pieces.iter().map(|p| p.first_output).min().unwrap_or(0);
    let common = others.iter().fold(limit, |len, p| {
        first.rows[..len].iter().zip(p.rows).take_while(|(a, b)| a == b).count()
    });
    if common < MIN_PREFIX { 0 } else { common }
}

/// Rows that pieces take in a pack.
pub fn rows_of(pieces: &[Piece<'_>], share_prefixes: bool) -> usize {
    let prefix = if share_prefixes { shared_prefix(pieces) } else { 0 };
    pieces.iter().map(|p| p.rows.len() - prefix).sum::<usize>() + prefix
}

/// Splits a micro-batch that takes more than `limit` rows into runs of pieces that do not, in order and
/// as long as possible. A piece longer than the limit stands alone. Depends on the pieces and the limit
/// only, never on what else is in flight.
pub fn chunks(
    pieces: &[Piece<'_>],
    limit: usize,
    share_prefixes: bool,
) -> Vec<std::ops::Range<usize>> {
    let mut out = Vec::new();
    let mut start = 0;
    for end in 1..=pieces.len() {
        let too_long = end > start + 1 && rows_of(&pieces[start..end], share_prefixes) > limit;
        if too_long {
            out.push(start..end - 1);
            start = end - 1;
        }
    }
    if start < pieces.len() {
        out.push(start..pieces.len());
    }
    out
}

fn small(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Packer {
    /// A packer that shares prefixes or does not.
    pub fn new(share_prefixes: bool) -> Self {
        let mut packer = Self { share_prefixes, ..Self::default() };
        packer.clear();
        packer
    }

    /// Starts a new pack.
    pub fn clear(&mut self) {
        self.batch.clear();
        self.batch.groups.push(0);
        self.spans.clear();
        self.shares.clear();
        self.shares.push(0);
        self.unshared_rows = 0;
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.batch.full.rows()
    }

    /// Rows there would be without shared prefixes.
    pub fn unshared_rows(&self) -> usize {
        self.unshared_rows
    }

    /// The pack.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Shares added.
    pub fn num_shares(&self) -> usize {
        self.shares.len() - 1
    }

    /// Where the pieces of a share lie.
    pub fn spans(&self, share: usize) -> &[PieceSpan] {
        &self.spans[self.shares[share]..self.shares[share + 1]]
    }

    /// Output rows of a share.
    pub fn outputs(&self, share: usize) -> std::ops::Range<usize> {
        let spans = self.spans(share);
        match (spans.first(), spans.last()) {
            (Some(first), Some(last)) => first.output_start..last.output_start + last.num_outputs,
            _ => 0..0,
        }
    }

    /// Targets of a share, whose losses a step gives.
    pub fn targets(&self, share: usize) -> std::ops::Range<usize> {
        let spans = self.spans(share);
        match (spans.first(), spans.last()) {
            (Some(first), Some(last)) => first.target_start..last.target_start + last.num_targets,
            _ => 0..0,
        }
    }

    /// Appends one user's pieces: the shared prefix first, then each piece's own rows.
    pub fn add(&mut self, share: &Share<'_>) {
        let prefix = if self.share_prefixes { shared_prefix(share.pieces) } else { 0 };
        let (row_start, output_start) = (self.rows(), self.batch.outputs.rows());
        let number = |row: usize| share.first_token + small(row - row_start);
        if prefix > 0 {
            self.own_rows(&share.pieces[0].rows[..prefix], 0, number(row_start));
            self.sequences((row_start, prefix), (0, 0), (output_start, 0));
        }
        for piece in share.pieces {
            let (start, own) = (self.rows(), &piece.rows[prefix..]);
            self.own_rows(own, prefix, number(start));
            let first_output = self.batch.outputs.rows();
            self.output_rows(piece, (start, prefix, number(start)), share.weight);
            self.sequences(
                (start, own.len()),
                (row_start, prefix),
                (first_output, piece.num_outputs()),
            );
            if prefix == 0 {
                self.close_group();
            }
            self.spans.push(PieceSpan {
                prefix_start: row_start,
                prefix_len: prefix,
                start,
                len: own.len(),
                output_start: first_output,
                num_outputs: piece.num_outputs(),
                target_start: self.batch.targets.len() - piece.targets.len(),
                num_targets: piece.targets.len(),
            });
            self.unshared_rows += piece.rows.len();
        }
        if prefix > 0 {
            self.close_group();
        }
        if let Some(adapter) = share.adapter {
            let segment = |start: usize, end: usize| Segment {
                row_start: small(start),
                rows: small(end - start),
                ..adapter
            };
            for (lane, start) in
                [(&mut self.batch.full, row_start), (&mut self.batch.outputs, output_start)]
            {
                let end = lane.rows();
                lane.segments_of(share.layout).push(segment(start, end));
            }
        }
        self.shares.push(self.spans.len());
    }

    fn own_rows(&mut self, tokens: &[u32], first_position: usize, first_token: u32) {
        let lane = &mut self.batch.full;
        self.batch.ids.extend_from_slice(tokens);
        lane.positions.extend((0..tokens.len()).map(|i| small(first_position + i)));
        lane.row_token.extend((0..tokens.len()).map(|i| first_token + small(i)));
        lane.limits.extend((0..tokens.len()).map(|i| small(i + 1)));
    }

    fn output_rows(
        &mut self,
        piece: &Piece<'_>,
        (start, prefix, first_token): (usize, usize, u32),
        weight: f32,
    ) {
        let lane = &mut self.batch.outputs;
        for position in piece.outputs() {
            let own = position - prefix;
            self.batch.output_rows.push(small(start + own));
            lane.positions.push(small(position));
            lane.row_token.push(first_token + small(own));
            lane.limits.push(small(own + 1));
        }
        self.batch.targets.extend_from_slice(piece.targets);
        self.batch.weights.extend(std::iter::repeat_n(weight, piece.targets.len()));
        if let Some(loss) = piece.loss.filter(|_| piece.targets.len() == 1) {
            self.class_loss(loss, weight);
        } else if !self.batch.losses.is_empty() {
            self.plain_losses(self.batch.targets.len());
        }
    }

    /// Plain losses for the targets before `end` that have none.
    fn plain_losses(&mut self, end: usize) {
        let Batch { losses, targets, weights, .. } = &mut self.batch;
        while losses.len() < end {
            losses.push(Row::hard(targets[losses.len()], weights[losses.len()]));
        }
    }

    /// The loss of the last target, which may be about another class than what came; targets before it that had none get
    /// the plain one, and zeros for a teacher.
    fn class_loss(&mut self, loss: &ClassLoss, weight: f32) {
        self.plain_losses(self.batch.targets.len() - 1);
        let Batch { losses, teacher, .. } = &mut self.batch;
        losses.push(Row { weight, ..loss.row });
        if !loss.teacher.is_empty() {
            teacher.resize((losses.len() - 1) * loss.teacher.len(), 0.0);
            teacher.extend_from_slice(&loss.teacher);
        }
    }

    /// One sequence in both lanes: all its rows, and its output rows.
    fn sequences(
        &mut self,
        (k_start, k_len): (usize, usize),
        (p_start, p_len): (usize, usize),
        (q_start, q_len): (usize, usize),
    ) {
        let keys = |q_start, q_len| Sequence {
            q_start: small(q_start),
            q_len: small(q_len),
            k_start: small(k_start),
            k_len: small(k_len),
            p_start: small(p_start),
            p_len: small(p_len),
        };
        self.batch.full.sequences.push(keys(k_start, k_len));
        self.batch.outputs.sequences.push(keys(q_start, q_len));
    }

    fn close_group(&mut self) {
        self.batch.groups.push(small(self.batch.full.sequences.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter() -> Segment {
        Segment {
            row_start: 0,
            rows: 0,
            param_offset: 0,
            grad_offset: 0,
            lora_rank: 1,
            scale: 1.0,
            dropout: 0.0,
            step: 0,
            key: [0; 2],
        }
    }

    #[test]
    fn a_training_piece_has_no_row_for_its_last_token() {
        let piece = Piece::supervised(&[5, 6, 7, 8], 2);
        assert_eq!(
            (piece.rows, piece.first_output, piece.targets),
            (&[5, 6, 7][..], 1, &[7, 8][..])
        );
    }

    #[test]
    fn a_prefix_never_covers_an_output_row() {
        let tokens: Vec<u32> = (0..20).collect();
        let pieces = [Piece::supervised(&tokens, 12), Piece::supervised(&tokens, 15)];
        assert_eq!(shared_prefix(&pieces), 11);
        assert_eq!(shared_prefix(&pieces[..1]), 0);
        let short = [Piece::supervised(&tokens, 8), Piece::supervised(&tokens, 9)];
        assert_eq!(shared_prefix(&short), 0, "seven rows are not worth sharing");
    }

    #[test]
    fn a_shared_prefix_is_stored_once_and_every_suffix_attends_to_it() {
        let one: Vec<u32> = (0..10).chain([50, 51, 52]).collect();
        let two: Vec<u32> = (0..10).chain([60, 61]).collect();
        let pieces = [Piece::supervised(&one, 12), Piece::supervised(&two, 11)];
        let mut packer = Packer::new(true);
        packer.add(&Share {
            adapter: Some(adapter()),
            layout: 0,
            pieces: &pieces,
            weight: 0.5,
            first_token: 0,
        });
        let batch = packer.batch();
        batch.check(100, 100).unwrap();
        assert_eq!(batch.ids, (0..10).chain([50, 51, 60]).collect::<Vec<_>>());
        assert_eq!(batch.full.positions, (0..10).chain([10, 11, 10]).collect::<Vec<_>>());
        assert_eq!(batch.output_rows, [11, 12]);
        assert_eq!(batch.targets, [52, 61]);
        assert_eq!(batch.groups, [0, 3]);
        let prefixes: Vec<_> = batch.full.sequences.iter().map(|s| (s.p_start, s.p_len)).collect();
        assert_eq!(prefixes, [(0, 0), (0, 10), (0, 10)]);
        assert_eq!((packer.rows(), packer.unshared_rows()), (13, 23));
        assert_eq!(packer.outputs(0), 0..2);
    }

    #[test]
    fn a_user_looks_the_same_alone_and_behind_another() {
        let tokens: Vec<u32> = (0..30).collect();
        let pieces = [Piece::supervised(&tokens, 20), Piece::supervised(&tokens[..25], 20)];
        let share = Share {
            adapter: Some(adapter()),
            layout: 1,
            pieces: &pieces,
            weight: 1.0,
            first_token: 0,
        };
        let (mut alone, mut behind) = (Packer::new(true), Packer::new(true));
        alone.add(&share);
        behind.add(&Share { pieces: &pieces[..1], ..share });
        behind.add(&share);
        behind.batch().check(100, 100).unwrap();
        let rows = alone.rows();
        assert_eq!(alone.batch().ids, behind.batch().ids[29..]);
        assert_eq!(alone.batch().full.row_token, behind.batch().full.row_token[29..]);
        assert_eq!(alone.batch().outputs.row_token, behind.batch().outputs.row_token[10..]);
        assert_eq!(behind.batch().full.segments[1][1].rows as usize, rows);
        assert!(behind.batch().full.segments[0].is_empty());
    }

    #[test]
    fn a_loss_of_its_own_keeps_its_target_and_takes_the_shares_weight() {
        let tokens = [4, 5, 6];
        let plain = Piece::supervised(&tokens, 2);
        let away = ClassLoss::new(Row::forget(Some(2), 9.0, 1.0, 4.0), &[]);
        let held = ClassLoss::new(Row::retain(None, 9.0), &[0.5, 1.5, 2.5]);
        let pieces = [
            plain,
            Piece { loss: Some(&away), ..plain },
            Piece { loss: Some(&held), ..plain },
            plain,
        ];
        let mut packer = Packer::new(false);
        let (adapter, layout, weight, first_token) = (None, 0, 0.25, 0);
        packer.add(&Share { adapter, layout, pieces: &pieces, weight, first_token });
        let batch = packer.batch();
        let hard = Row::hard(6, 0.25);
        let (away, held) = (Row { weight, ..away.row }, Row { weight, ..held.row });
        assert_eq!(batch.losses, [hard, away, held, hard]);
        assert_eq!(batch.losses[1].target, 2, "not the 6 that came");
        assert_eq!(batch.teacher, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.5, 2.5]);
    }

    #[test]
    fn chunks_depend_on_the_limit_alone_and_keep_the_order() {
        let tokens: Vec<u32> = (0..10).collect();
        let pieces = vec![Piece::supervised(&tokens, 9); 5];
        assert_eq!(chunks(&pieces, 18, false), [0..2, 2..4, 4..5]);
        assert_eq!(chunks(&pieces, 4, false), [0..1, 1..2, 2..3, 3..4, 4..5]);
        assert_eq!(chunks(&pieces, 100, true), vec![0..5; 1]);
    }
}
