//! The plan of a call: groups of outputs, tile heights, panels of rows, shared memory.
//!
//! Owns every number that the host chooses; knows no device. No choice changes a bit of a result. Start at
//! [`Group::split`], then [`Panels`].

use crate::error::Result;
use crate::gpu::{Arg, blocks, extent};
use crate::lora::SiteOutput;

/// Largest rank of an adapter.
pub(super) const MAX_RANK: usize = 64;
/// Outputs of one launch.
pub(super) const MAX_OUTPUTS: usize = 3;
/// Rows of a chunk of a segment, `CHUNK` of `lora.cuh`.
pub(super) const CHUNK: usize = 512;
/// Columns that a block of `lora_output` owns.
const OUT_STRIP: u32 = 256;
/// Blocks that keep every multiprocessor of an A100 or H100 busy: two for each.
const FILL: usize = 256;

/// Up to three outputs of different sites, as the kernels take them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Group {
    pub(super) len: u32,
    pub(super) site: [u32; MAX_OUTPUTS],
    pub(super) a_unit: [u32; MAX_OUTPUTS],
    pub(super) b_unit: [u32; MAX_OUTPUTS],
    pub(super) out_len: [u32; MAX_OUTPUTS],
    pub(super) y_start: [u32; MAX_OUTPUTS],
}

/// A `PER_OUTPUT` parameter.
pub(super) fn per_output(v: [u32; MAX_OUTPUTS]) -> [Arg; MAX_OUTPUTS] {
    v.map(Arg::U32)
}

impl Group {
    /// The outputs in order, cut where a group is full or a site comes back, so that its gradient has one
    /// owner at a time. Empty outputs are left out.
    pub(super) fn split(op: &'static str, outputs: &[SiteOutput]) -> Result<Vec<Self>> {
        let mut groups: Vec<Self> = Vec::new();
        for output in outputs.iter().filter(|o| o.out_len > 0) {
            let unit = extent(op, "unit offset", output.site.unit_offset)?;
            let open = |g: &Self| {
                let len = g.len as usize;
                len < MAX_OUTPUTS && !g.a_unit[..len].contains(&unit)
            };
            if !groups.last().is_some_and(open) {
                groups.push(Self::default());
            }
            let Some(group) = groups.last_mut() else { continue };
            let k = group.len as usize;
            let before = output.site.unit_offset + output.site.in_dim + output.out_begin;
            group.site[k] = output.site.id;
            group.a_unit[k] = unit;
            group.b_unit[k] = extent(op, "unit offset", before)?;
            group.out_len[k] = extent(op, "outputs", output.out_len)?;
            group.y_start[k] = extent(op, "y start", output.y_start)?;
            group.len += 1;
        }
        Ok(groups)
    }

    /// The longest range of outputs.
    pub(super) fn longest(&self) -> u32 {
        self.out_len.iter().copied().max().unwrap_or(0)
    }

    /// Strips of `lora_output`.
    pub(super) fn strips(&self) -> u32 {
        self.out_len.iter().map(|&n| blocks(n, OUT_STRIP)).sum()
    }

    /// Elements of one chunk's gradients at the largest rank, and where the `dA` begin.
    pub(super) fn partials(&self, d: u32) -> (usize, usize) {
        let outs: usize = self.out_len.iter().map(|&n| n as usize).sum();
        ((outs + self.len as usize * d as usize) * MAX_RANK, outs * MAX_RANK)
    }
}

/// Rows of a tile (16, 32 or 64, at most `most`): as many as a segment has on average, fewer where that
/// would leave multiprocessors idle. No choice changes a bit.
pub(super) fn tile_rows(rows: usize, num_segments: usize, most: usize) -> usize {
    let mean = rows.div_ceil(num_segments.max(1));
    let mut height = [16, 32].into_iter().find(|&h| mean <= h).unwrap_or(64).min(most);
    while height > 16 && rows / height + num_segments < FILL {
        height /= 2;
    }
    height
}

/// Shared memory of `lora_shrink`: four stages of `X` and two buffers of `A`; the larger of rank class 32
/// (rows of 72 elements) and 64 (rows of 40).
pub(super) fn shrink_shared(height: usize, outputs: u32) -> Result<u32> {
    let class = |rank: usize, row: usize| (4 * height + 2 * outputs as usize * rank) * row * 2;
    extent("lora", "shared memory", class(32, 72).max(class(64, 40)))
}

/// The kernel's name for a tile height.
pub(super) fn by_height(height: usize, names: [&'static str; 3]) -> &'static str {
    match height {
        16 => names[0],
        32 => names[1],
        _ => names[2],
    }
}

pub(super) const SHRINK: [&str; 3] = ["lora_shrink_m16", "lora_shrink_m32", "lora_shrink_m64"];
pub(super) const EXPAND: [&str; 3] = ["lora_expand_m16", "lora_expand_m32", "lora_expand_m64"];
pub(super) const INPUT: [&str; 3] = ["lora_input_m16", "lora_input_m32", "lora_input_m32"];

pub(super) const EXPAND_FIRST: [&str; 3] =
    ["lora_expand_first_m16", "lora_expand_first_m32", "lora_expand_first_m64"];
pub(super) const INPUT_FIRST: [&str; 3] =
    ["lora_input_first_m16", "lora_input_first_m32", "lora_input_first_m32"];

/// Rows of a backward that are worked on at a time, a multiple of [`CHUNK`], and the bytes of the partial
/// sums of `dS` and of the chunks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panels {
    pub(super) rows: usize,
    pub(super) ds_bytes: usize,
    pub(super) chunk_bytes: usize,
}

impl Panels {
    pub(super) fn new(rows: usize, group: &Group, d: u32, budget: usize) -> Self {
        let (strips, (width, _)) = (group.strips() as usize, group.partials(d));
        let chunk_width = if rows < 2 * CHUNK { 0 } else { width };
        let ds_row = strips * MAX_RANK * size_of::<f32>();
        let chunk = CHUNK * ds_row + chunk_width * size_of::<f32>();
        let fit = (budget / chunk.max(1)).clamp(1, rows.div_ceil(CHUNK).max(1));
        Self {
            rows: fit * CHUNK,
            // The last chunk of a panel ends up to two chunks after it.
            ds_bytes: (fit + 2) * CHUNK * ds_row,
            chunk_bytes: fit * chunk_width * size_of::<f32>(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::Site;

    fn output(unit_offset: usize, out_begin: usize, out_len: usize) -> SiteOutput {
        let site = Site { in_dim: 10, out_dim: 600, unit_offset, id: 3 };
        SiteOutput { site, out_begin, out_len, y_start: 4 }
    }

    #[test]
    fn a_group_has_at_most_three_outputs_of_different_sites() {
        let lens = |outputs: &[SiteOutput]| -> Vec<u32> {
            Group::split("lora", outputs).unwrap().iter().map(|g| g.len).collect()
        };
        assert_eq!(lens(&[]), [0; 0]);
        assert_eq!(lens(&[output(0, 0, 0)]), [0; 0]);
        assert_eq!(lens(&[output(0, 0, 9), output(610, 0, 9), output(1220, 0, 9)]), [3]);
        assert_eq!(lens(&[output(0, 0, 9), output(0, 9, 9), output(610, 0, 9)]), [1, 2]);
        let four: Vec<_> = (0..4).map(|k| output(610 * k, 0, 9)).collect();
        assert_eq!(lens(&four), [3, 1]);
        let group = Group::split("lora", &[output(7, 5, 300), output(617, 0, 1)]).unwrap()[0];
        assert_eq!((group.a_unit, group.b_unit), ([7, 617, 0], [22, 627, 0]));
        assert_eq!((group.longest(), group.strips()), (300, 3));
        assert_eq!(group.partials(10), ((301 + 20) * 64, 301 * 64));
    }

    #[test]
    fn tiles_follow_the_mean_length_and_fill_the_machine() {
        assert_eq!(tile_rows(64 * 600, 600, 64), 64);
        assert_eq!(tile_rows(20 * 600, 600, 64), 32);
        assert_eq!(tile_rows(16 * 600, 600, 64), 16);
        assert_eq!(tile_rows(64 * 600, 600, 32), 32);
        assert_eq!(tile_rows(1 << 15, 1, 64), 64);
        assert_eq!(tile_rows(1 << 13, 1, 64), 32);
        assert_eq!(tile_rows(100, 1, 64), 16);
    }

    #[test]
    fn shared_memory_leaves_room_for_two_blocks() {
        for height in [16, 32, 64] {
            for outputs in 1..=3 {
                assert!(shrink_shared(height, outputs).unwrap() <= 80 << 10);
            }
        }
    }

    #[test]
    fn panels_keep_to_the_budget() {
        let group = Group::split("lora", &[output(0, 0, 300)]).unwrap()[0];
        let row = 2 * 64 * 4;
        let short = Panels::new(1000, &group, 10, 96 << 20);
        assert_eq!((short.rows, short.ds_bytes, short.chunk_bytes), (1024, 2048 * row, 0));
        let width = 310 * 64 * 4;
        let tight = Panels::new(5000, &group, 10, 2 * (512 * row + width) + 1);
        assert_eq!((tight.rows, tight.ds_bytes, tight.chunk_bytes), (1024, 2048 * row, 2 * width));
        assert_eq!(Panels::new(5000, &group, 10, 0).rows, 512);
        assert_eq!(Panels::new(5000, &group, 10, 96 << 20).rows, 5120);
    }
}
