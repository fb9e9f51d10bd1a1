//! Sizes of a run on a GPU, and where its memory goes, from [`trainer::stage::forecast`].
//!
//! Why packs are larger than on CPUs: what follows is computed from shapes and counted on paper, nothing of it was
//! measured. In SmolLM2-135M a product of the attention has 576 or 192 columns; in tiles of 128 by 128 that is 80 or 32
//! of them for 2048 rows and 320 or 128 for 8192, on 108 (A100) or 132 (H100) multiprocessors. And 2048 rows are 1.1
//! TFLOP forward and backward, about 7 ms at half of an A100's rate, for which 1300 kernels and products are launched
//! (adapters of two products a block) or 2200 (of all seven): at 4 microseconds each as long or longer. 8192 rows are
//! four times the work for as many launches. Larger bases fill a device with fewer rows, and lose nothing by more. With
//! four times the rows go four times the users in flight.

use super::room::Room;
use super::{Bounds, Sizes, gigabytes};
use crate::exit::Fails;
use trainer::config::Recompute;
use trainer::lora::SiteLists;
use trainer::model::activations::StepSize;
use trainer::model::spec::BaseSpec;
use trainer::stage::forecast::{Forecast, prediction, training};

/// Rows of a pack where memory allows.
pub(crate) const AUTO_PACK_ROWS: usize = 8192;
/// Users in flight where memory allows.
pub(crate) const AUTO_USERS: usize = 256;
/// Users in flight below which smaller packs are tried first.
const ENOUGH_USERS: usize = 64;
/// Bytes that nobody counts: what the context, loaded modules, the library's own kernels and gaps between pieces take.
/// An estimate.
pub(crate) const RESERVE: usize = 1_000_000_000;

const TRAINING: &str = "lower engine.pack_tokens (it has no effect below prompt.max_length and 2048), engine.users_in_flight or lora_rank, or set engine.recompute = \"auto\"; launcher plan --gpu NAME|GB says what another GPU holds";
const PREDICTION: &str = "lower predict.batch_queries, predict.max_new_tokens or prompt.max_length; launcher plan --gpu NAME|GB says what another GPU holds";

/// Sizes, and the memory that they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) sizes: Sizes,
    pub(crate) forecast: Forecast,
}

/// Sizes of training within the bounds: users and rows first, then as many stored blocks as fit.
///
/// # Errors
/// When even the smallest does not fit, with the numbers.
pub(crate) fn choose(
    base: (&BaseSpec, usize),
    (lists, bounds): (&SiteLists, Bounds),
    room: Room,
) -> anyhow::Result<Choice> {
    let layers = base.0.layers;
    let automatic = (bounds.pack_rows == 0, bounds.slots == 0);
    let mut rows = if automatic.0 { AUTO_PACK_ROWS } else { bounds.pack_rows };
    rows = rows.max(bounds.chunk_rows);
    let mut slots = if automatic.1 { AUTO_USERS } else { bounds.slots }.min(bounds.users.max(1));
    let of = |rows, stored_blocks, slots| -> anyhow::Result<Choice> {
        let step = StepSize { rows, stored_blocks, backward: true };
        let slots = u32::try_from(slots)?;
        let counted = training(base, lists, step, (slots, bounds.adapter_params))?;
        let forecast = Forecast { sums: bounds.gathered, ..counted };
        Ok(Choice { sizes: Sizes { step, slots, bytes: forecast.total() }, forecast })
    };
    let least = if bounds.recompute == Recompute::Never { layers } else { 0 };
    let mut chosen = of(rows, least, slots)?;
    while !fits(&chosen.forecast, room) {
        let Some(less) = smaller((rows, slots), automatic, bounds.chunk_rows) else {
            let what = format!("packs of {rows} rows and {slots} users in flight");
            return Err(refusal(&what, &chosen.forecast, room)).input(TRAINING);
        };
        (rows, slots) = less;
        chosen = of(rows, least, slots)?;
    }
    if bounds.recompute == Recompute::Auto {
        // All up to `low` fit, none above `high` does.
        let (mut low, mut high) = (0, layers);
        while low < high {
            let middle = (low + high).div_ceil(2);
            let more = of(rows, middle, slots)?;
            if fits(&more.forecast, room) {
                (low, chosen) = (middle, more);
            } else {
                high = middle - 1;
            }
        }
    }
    Ok(chosen)
}

/// Memory of prediction, if it fits.
///
/// # Errors
/// When it does not, with the numbers.
pub(crate) fn predicting(
    base: (&BaseSpec, usize),
    lists: &SiteLists,
    (rows, adapters): ((usize, usize), (u32, usize)),
    room: Room,
) -> anyhow::Result<Forecast> {
    let forecast = prediction(base, lists, rows, adapters)?;
    if fits(&forecast, room) {
        return Ok(forecast);
    }
    let what = format!("packs of {} rows to predict and a cache of {} rows", rows.0, rows.1);
    Err(refusal(&what, &forecast, room)).input(PREDICTION)
}

/// The next smaller rows of a pack and users in flight, of what is `automatic`: users down to [`ENOUGH_USERS`], rows as
/// long as they are `least`, users down to one; none below.
pub(crate) fn smaller(
    (rows, users): (usize, usize),
    automatic: (bool, bool),
    least: usize,
) -> Option<(usize, usize)> {
    if automatic.1 && users > ENOUGH_USERS {
        Some((rows, users / 2))
    } else if automatic.0 && rows / 2 >= least {
        Some((rows / 2, users))
    } else if automatic.1 && users > 1 {
        Some((rows, users / 2))
    } else {
        None
    }
}

/// Whether there is room for it and for what nobody counts.
pub(crate) fn fits(forecast: &Forecast, room: Room) -> bool {
    forecast.total().saturating_add(RESERVE) <= room.bytes
}

/// What does not fit, part by part.
pub(crate) fn refusal(what: &str, forecast: &Forecast, room: Room) -> anyhow::Error {
    let gb = |bytes: usize| format!("{:.2}", gigabytes(bytes));
    let Forecast { base, activations, adapters, optimiser, workspace, tables, sums } = *forecast;
    let total = gb(forecast.total().saturating_add(RESERVE));
    let gathered = if sums > 0 { format!("gradient sums {}, ", gb(sums)) } else { String::new() };
    anyhow::anyhow!(
        "{what} need {total} GB: base {}, activations {}, adapters {}, optimiser {}, workspace {}, tables {}, \
         {gathered}reserve {}; {}",
        gb(base),
        gb(activations),
        gb(adapters),
        gb(optimiser),
        gb(workspace),
        gb(tables),
        gb(RESERVE),
        room.says()
    )
}

/// The lines of a plan: each part of the memory and what it is for.
pub(crate) fn lines(choice: &Choice, layers: usize, room: Room) -> String {
    let Forecast { base, activations, adapters, optimiser, workspace, tables, .. } =
        choice.forecast;
    let stored = choice.sizes.step.stored_blocks.min(layers);
    let (slots, again) = (choice.sizes.slots, layers - stored);
    let line = |name: &str, bytes: usize, what: &str| {
        format!("  {name:<16}{:>8.2} GB  {what}\n", gigabytes(bytes))
    };
    let head = format!(
        "GPU memory        {:.2} GB a rank, each with a GPU of its own; {}\n",
        gigabytes(choice.forecast.total().saturating_add(RESERVE)),
        room.says()
    );
    let library = kernels::gpu::Product::LIBRARY_BYTES;
    let parts = [
        line("base", base, "weights in bf16, norms and positions in f32"),
        line(
            "activations",
            activations,
            &format!("{stored} blocks stored, {again} computed again"),
        ),
        line("adapters", adapters, &format!("parameters and gradients of {slots} users")),
        line("optimiser", optimiser, "their two moments"),
        line(
            "workspace",
            workspace,
            &format!("scratch of the operations at most; {:.2} GB of cuBLASLt", gigabytes(library)),
        ),
        line("tables", tables, "tokens, positions, segments and sequences of a pack"),
        line("reserve", RESERVE, "an estimate: context, modules, the library's own kernels"),
    ];
    head + &parts.concat()
}
