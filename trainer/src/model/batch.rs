//! The tables of one packed batch, on the host ([`Batch`]) and on the device ([`DeviceBatch`]).
//!
//! Knows rows, segments and sequences; never users or files. `pack` fills it, [`super::step`] reads it.

use super::{Error, Result};
use kernels::attention::Sequence;
use kernels::attention::flash::Tables;
use kernels::backend::Element;
use kernels::classify::Row;
use kernels::lora::Segment;
use kernels::{Backend, Ops, attention};

/// Rows that pass through products together: all rows of the pack, or its output rows alone.
#[derive(Debug, Clone, Default)]
pub struct Lane {
    /// Position of each row in its own example.
    pub positions: Vec<u32>,
    /// Number of each row within its segment of the full pack: the dropout counter.
    pub row_token: Vec<u32>,
    /// Adapter-major segments over these rows, by the number of their layout; empty when no adapter is applied.
    pub segments: Vec<Vec<Segment>>,
    /// Attention of these rows over the keys of the full pack.
    pub sequences: Vec<Sequence>,
    /// Keys each row sees, see [`attention::Routing::limits`].
    pub limits: Vec<u32>,
}

impl Lane {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.positions.len()
    }

    /// The segments of a layout, to append to.
    pub fn segments_of(&mut self, layout: usize) -> &mut Vec<Segment> {
        if self.segments.len() <= layout {
            self.segments.resize_with(layout + 1, Vec::new);
        }
        &mut self.segments[layout]
    }

    fn clear(&mut self) {
        self.positions.clear();
        self.row_token.clear();
        self.segments.iter_mut().for_each(Vec::clear);
        self.sequences.clear();
        self.limits.clear();
    }
}

/// One packed batch.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Token id of each row.
    pub ids: Vec<u32>,
    /// All rows.
    pub full: Lane,
    /// The rows whose last hidden state is wanted (supervised, or asked for a prediction): only these
    /// pass the last block's query, output and MLP products, and the head.
    pub outputs: Lane,
    /// Row of the full lane of each output row, increasing.
    pub output_rows: Vec<u32>,
    /// Target of each output row; empty for predictions.
    pub targets: Vec<u32>,
    /// Weight of each output row in its user's loss; empty for predictions.
    pub weights: Vec<f32>,
    /// Loss of each target where it is not plain cross-entropy; otherwise empty. Event models alone have such losses.
    pub losses: Vec<Row>,
    /// A teacher's logits `[targets, intents]` where a loss needs them; otherwise empty.
    pub teacher: Vec<f32>,
    /// Attention groups over the sequences of both lanes.
    pub groups: Vec<u32>,
}

impl Batch {
    /// Empties every table, keeping the memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.full.clear();
        self.outputs.clear();
        self.output_rows.clear();
        self.targets.clear();
        self.weights.clear();
        self.losses.clear();
        self.teacher.clear();
        self.groups.clear();
    }

    /// Checks every table against the others and against a vocabulary and a position limit.
    ///
    /// # Errors
    /// [`Error::Batch`] naming what is wrong, or the kernel's own routing error.
    pub fn check(&self, vocab: usize, max_positions: usize) -> Result<()> {
        let (t, s) = (self.full.rows(), self.outputs.rows());
        let wrong = |what: &str| Err(Error::Batch { what: what.to_owned() });
        if self.ids.len() != t
            || self.full.row_token.len() != t
            || self.outputs.row_token.len() != s
        {
            return wrong("tables of different lengths");
        }
        if self.output_rows.len() != s || self.output_rows.iter().any(|&r| r as usize >= t) {
            return wrong("an output row leaves the pack");
        }
        if self.output_rows.windows(2).any(|w| w[0] >= w[1]) {
            return wrong("output rows do not increase");
        }
        if let Some(id) = self.ids.iter().chain(&self.targets).find(|&&id| id as usize >= vocab) {
            return Err(Error::Batch {
                what: format!("token id {id} is outside the vocabulary of {vocab}"),
            });
        }
        if let Some(p) = self.full.positions.iter().find(|&&p| p as usize >= max_positions) {
            return Err(Error::Batch {
                what: format!("position {p} is beyond the base's {max_positions}"),
            });
        }
        Sequence::check_all(&self.full.sequences, &self.groups, &self.full.limits, (t, t))?;
        Sequence::check_all(&self.outputs.sequences, &self.groups, &self.outputs.limits, (s, t))?;
        Ok(())
    }
}

/// The segments of one layout.
#[derive(Debug)]
pub(super) struct Segments<B: Backend> {
    pub(super) buf: B::Buf<Segment>,
    pub(super) num: usize,
}

/// A lane's tables on the device, with room for a fixed number of rows.
#[derive(Debug)]
pub struct DeviceLane<B: Backend> {
    pub(super) rows: usize,
    pub(super) num_sequences: usize,
    pub(super) positions: B::Buf<u32>,
    pub(super) row_token: B::Buf<u32>,
    /// By layout; grows when a batch has one more than any before.
    pub(super) segments: Vec<Segments<B>>,
    capacity: usize,
    pub(super) sequences: B::Buf<Sequence>,
    pub(super) limits: B::Buf<u32>,
    /// Which sequences the device's own attention kernels take; for passes without backward alone.
    pub(super) flash: Option<Tables<B>>,
}

/// A batch's tables on the device.
#[derive(Debug)]
pub struct DeviceBatch<B: Backend> {
    pub(super) ids: B::Buf<u32>,
    pub(super) full: DeviceLane<B>,
    pub(super) outputs: DeviceLane<B>,
    pub(super) output_rows: B::Buf<u32>,
    pub(super) targets: B::Buf<u32>,
    pub(super) weights: B::Buf<f32>,
    pub(super) groups: B::Buf<u32>,
    pub(super) num_groups: usize,
}

impl<B: Backend> DeviceLane<B> {
    fn alloc(backend: &B, rows: usize) -> Result<Self> {
        Ok(Self {
            rows: 0,
            num_sequences: 0,
            positions: backend.alloc(rows)?,
            row_token: backend.alloc(rows)?,
            segments: Vec::new(),
            capacity: rows,
            sequences: backend.alloc(2 * rows)?,
            limits: backend.alloc(rows)?,
            flash: None,
        })
    }

    fn upload(&mut self, backend: &B, lane: &Lane) -> Result<()> {
        self.rows = lane.rows();
        self.num_sequences = lane.sequences.len();
        backend.write(&mut self.positions, 0, &lane.positions)?;
        backend.write(&mut self.row_token, 0, &lane.row_token)?;
        while self.segments.len() < lane.segments.len() {
            self.segments.push(Segments { buf: backend.alloc(self.capacity)?, num: 0 });
        }
        self.segments.iter_mut().for_each(|s| s.num = 0);
        for (own, segments) in self.segments.iter_mut().zip(&lane.segments) {
            own.num = segments.len();
            backend.write(&mut own.buf, 0, segments)?;
        }
        backend.write(&mut self.sequences, 0, &lane.sequences)?;
        backend.write(&mut self.limits, 0, &lane.limits)?;
        if let Some(flash) = &mut self.flash {
            flash.clear();
        }
        Ok(())
    }

    pub(super) fn routing<'a>(
        &'a self,
        groups: &'a B::Buf<u32>,
        num_groups: usize,
    ) -> attention::Routing<'a, B> {
        attention::Routing {
            sequences: &self.sequences,
            num_sequences: self.num_sequences,
            groups,
            num_groups,
            limits: &self.limits,
        }
    }
}

impl<B: Ops> DeviceBatch<B> {
    /// Room for what [`DeviceBatch::cut`] makes of batches of up to `rows` rows, where the backend takes it.
    ///
    /// # Errors
    /// When the backend has no memory.
    pub(super) fn alloc_flash(&mut self, backend: &B, rows: usize) -> Result<()> {
        if backend.takes_flash() {
            for lane in [&mut self.full, &mut self.outputs] {
                lane.flash = Some(Tables::alloc(backend, 2 * rows)?);
            }
        }
        Ok(())
    }

    /// Bytes of [`DeviceBatch::alloc_flash`].
    pub(super) fn flash_bytes(backend: &B, rows: usize) -> usize {
        if backend.takes_flash() { 2 * Tables::<B>::bytes(2 * rows) } else { 0 }
    }

    /// Leaves the attention of the batch just uploaded, until the next one, to the device's own kernels where they take
    /// it. The pass has no backward, and its keys are the batch's rows.
    ///
    /// # Errors
    /// As [`DeviceBatch::upload`].
    pub(super) fn cut(&mut self, backend: &B, batch: &Batch) -> Result<()> {
        for (own, lane) in [(&mut self.full, &batch.full), (&mut self.outputs, &batch.outputs)] {
            if let Some(flash) = &mut own.flash {
                flash.write(backend, &lane.sequences, &batch.groups, &lane.limits)?;
            }
        }
        Ok(())
    }
}

impl<B: Backend> DeviceBatch<B> {
    /// Tables with room for `rows` rows.
    ///
    /// # Errors
    /// When the backend has no memory.
    pub fn alloc(backend: &B, rows: usize) -> Result<Self> {
        Ok(Self {
            ids: backend.alloc(rows)?,
            full: DeviceLane::alloc(backend, rows)?,
            outputs: DeviceLane::alloc(backend, rows)?,
            output_rows: backend.alloc(rows)?,
            targets: backend.alloc(rows)?,
            weights: backend.alloc(rows)?,
            groups: backend.alloc(2 * rows + 1)?,
            num_groups: 0,
        })
    }

    /// Bytes of [`DeviceBatch::alloc`] for `rows` rows, and of the segments of `num_layouts` layouts.
    pub fn bytes(rows: usize, num_layouts: usize) -> usize {
        fn of<T: Element>(n: usize) -> usize {
            n * size_of::<T>()
        }
        let lane =
            of::<u32>(3 * rows) + of::<Segment>(num_layouts * rows) + of::<Sequence>(2 * rows);
        2 * lane + of::<u32>(3 * rows) + of::<f32>(rows) + of::<u32>(2 * rows + 1)
    }

    /// Writes a checked batch.
    ///
    /// # Errors
    /// When it has more rows than there is room for.
    pub fn upload(&mut self, backend: &B, batch: &Batch) -> Result<()> {
        self.full.upload(backend, &batch.full)?;
        self.outputs.upload(backend, &batch.outputs)?;
        self.num_groups = batch.groups.len().saturating_sub(1);
        backend.write(&mut self.ids, 0, &batch.ids)?;
        backend.write(&mut self.output_rows, 0, &batch.output_rows)?;
        backend.write(&mut self.targets, 0, &batch.targets)?;
        backend.write(&mut self.weights, 0, &batch.weights)?;
        backend.write(&mut self.groups, 0, &batch.groups)?;
        Ok(())
    }
}
