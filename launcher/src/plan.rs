//! Sizes of a run: rows of a pack, users in flight, stored blocks, from the memory budget; and the
//! forecast people see before anything starts.

use crate::session::Session;
use kernels::Cpu;
use trainer::model::activations::StepSize;
use trainer::model::network::Network;
use trainer::config::Recompute;
use trainer::stage::engine::Engine;

/// Packs need not be larger than this to keep the products at full speed on CPUs.
const AUTO_PACK_ROWS: usize = 2048;
/// Users in flight beyond this gain nothing: a pack takes only so many.
const AUTO_USERS: usize = 64;

/// The sizes chosen for one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) step: StepSize,
    pub(crate) slots: u32,
    /// Bytes of buffers and slabs.
    pub(crate) bytes: usize,
}

/// What bounds a plan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes for buffers and slabs.
    pub(crate) budget: usize,
    /// Rows asked for; zero for automatic.
    pub(crate) pack_rows: usize,
    /// The smallest pack the rules allow.
    pub(crate) chunk_rows: usize,
    /// Slots asked for; zero for automatic.
    pub(crate) slots: usize,
    /// More users than this never exist.
    pub(crate) users: usize,
    /// Parameters of the largest adapter.
    pub(crate) adapter_params: usize,
    pub(crate) recompute: Recompute,
}

/// Chooses sizes within the bounds: first rows and slots, then as many stored blocks as fit.
///
/// # Errors
/// When even the smallest plan does not fit, with the numbers.
pub(crate) fn choose(net: &Network<Cpu>, bounds: Bounds) -> anyhow::Result<Sizes> {
    let rows = if bounds.pack_rows == 0 { AUTO_PACK_ROWS } else { bounds.pack_rows }.max(bounds.chunk_rows);
    let layers = net.spec().layers;
    let bytes = |stored_blocks, slots| {
        Engine::bytes(net, StepSize { rows, stored_blocks, backward: true }, slots, bounds.adapter_params)
    };
    let wanted = if bounds.slots == 0 { AUTO_USERS } else { bounds.slots }.min(bounds.users.max(1));
    let mut slots = wanted;
    while slots > 1 && bounds.slots == 0 && bytes(0, slots) > bounds.budget {
        slots /= 2;
    }
    let stored = match bounds.recompute {
        Recompute::Always => 0,
        Recompute::Never => layers,
        Recompute::Auto => (0..=layers).rev().find(|&s| bytes(s, slots) <= bounds.budget).unwrap_or(0),
    };
    let total = bytes(stored, slots);
    anyhow::ensure!(
        total <= bounds.budget,
        "{slots} users in flight and packs of {rows} rows need {:.2} GB, the budget is {:.2} GB",
        gigabytes(total),
        gigabytes(bounds.budget)
    );
    let step = StepSize { rows, stored_blocks: stored, backward: true };
    Ok(Sizes { step, slots: u32::try_from(slots)?, bytes: total })
}

impl Bounds {
    /// The bounds of a session's individual stage for `users` users of this rank.
    pub(crate) fn of(session: &Session, users: usize) -> Self {
        let engine = &session.config.engine;
        Self {
            budget: budget(session),
            pack_rows: engine.pack_tokens,
            chunk_rows: session.rules.chunk_rows,
            slots: engine.users_in_flight,
            users,
            adapter_params: session.sites.params(session.max_lora_rank()),
            recompute: engine.recompute,
        }
    }
}

/// Bytes left of the budget once the base is mapped.
pub(crate) fn budget(session: &Session) -> usize {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked positive by the config")]
    let whole = (session.config.engine.memory_gb * 1e9) as usize;
    whole.saturating_sub(session.base.mapped_bytes())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn gigabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e9
}
