//! Where each parameter of an event model lies in the flat vector.

use super::super::places::{self, Place, ProductPlace, STD, Start, TrunkPlaces};
use super::super::spec::{BaseSpec, Kind};
use super::super::weights::{WeightSource, read_finite};
use super::super::{Error, Result};
use super::{EventSpec, Prediction};
use kernels::intent;
use kernels::linear::{Layout, Shape};

/// The places of all parameters, in one fixed order: column tables, positions, blocks, final norm, reconstruction layer,
/// intent head, prediction layer. So what does not train (see [`Places::partly`]) is one part, the first.
#[derive(Debug, Clone, PartialEq)]
pub struct Places {
    layout: places::Layout,
    pub(super) columns: Vec<usize>,
    pub(super) positions: usize,
    pub(super) trunk: TrunkPlaces,
    pub(super) reconstruction: ProductPlace,
    pub(super) intent: intent::Offsets,
    pub(super) prediction: Option<ProductPlace>,
}

/// PReLU's slope at the start, as in torch.
const SLOPE: f32 = 0.25;

impl Places {
    /// The places of a model's parameters, all of which train.
    pub fn new(spec: &EventSpec) -> Self {
        Self::partly(spec, 0)
    }

    /// The places of a model whose lowest `frozen` blocks (of all, where it has not so many) do not train, nor what lies
    /// below them where there are any: the tables of the columns and the positions.
    pub fn partly(spec: &EventSpec, frozen: usize) -> Self {
        let mut list = places::Layout::default();
        let columns = (0..spec.columns.len())
            .map(|c| {
                let dims = [spec.table_rows(c), spec.column_span(c).1];
                list.add(&format!("columns.{c}"), &dims, Start::Normal(STD))
            })
            .collect();
        let positions = list.add("positions", &[spec.window, spec.hidden], Start::Normal(STD));
        let blocks = (spec.layers, frozen.min(spec.layers));
        let trunk = list.trunk(blocks, (spec.hidden, spec.intermediate));
        let events = Shape { in_dim: spec.hidden, out_dim: spec.events() };
        let reconstruction = list.product("reconstruction", events, STD);
        let intent = Self::intent(&mut list, spec);
        let square = Shape { in_dim: spec.intents, out_dim: spec.intents };
        let prediction = match spec.prediction {
            Prediction::Scalar => None,
            Prediction::Linear => Some(list.product("prediction", square, STD)),
        };
        Self { columns, positions, trunk, reconstruction, intent, prediction, layout: list }
    }

    fn intent(list: &mut places::Layout, spec: &EventSpec) -> intent::Offsets {
        let (n, d, k) = (spec.intents, spec.hidden, spec.head_hidden);
        let width = spec.intent_shape().columns();
        #[expect(clippy::cast_precision_loss, reason = "widths are far below 2^53")]
        let std = |fan: usize| Start::Normal(1.0 / (fan as f64).sqrt());
        intent::Offsets {
            // Wider than GPT-2's tables: a product of two small vectors would be nothing at first.
            table: list.add("intent.table", &[n, d], std(d)),
            w1: list.add("intent.w1", &[k, width], std(width)),
            b1: list.add("intent.b1", &[k], Start::Constant(0.0)),
            slope: list.add("intent.slope", &[k], Start::Constant(SLOPE)),
            w2: list.add("intent.w2", &[k], std(k)),
            b2: list.add("intent.b2", &[1], Start::Constant(0.0)),
            bias: Some(list.add("intent.bias", &[n], Start::Constant(0.0))),
        }
    }

    /// Parameters in all.
    pub fn len(&self) -> usize {
        self.layout.len
    }

    /// Parameters that do not train: so many first ones.
    pub fn frozen(&self) -> usize {
        self.layout.cut
    }

    /// Parameters that train, the others after them.
    pub fn trained(&self) -> usize {
        self.layout.len - self.layout.cut
    }

    /// The blocks that train: first elements among [`Places::trained`], which rise, and the blocks' numbers. A block ends
    /// where the next begins; after the last come the final norm and the heads.
    pub(crate) fn block_starts(&self) -> impl Iterator<Item = (usize, usize)> {
        let blocks = self.trunk.blocks.iter().enumerate().skip(self.trunk.frozen);
        blocks.map(|(i, block)| (block.norm1.weight, i))
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.layout.len == 0
    }

    /// Every tensor in order.
    pub fn tensors(&self) -> &[Place] {
        &self.layout.tensors
    }

    /// Whether [`Self::take_blocks`] can take a base's; no weight is read.
    ///
    /// # Errors
    /// [`Error::Setting`] for a base of another family, width or depth, or of fewer positions.
    pub fn check_blocks(spec: &EventSpec, source: &dyn WeightSource) -> Result<()> {
        let (own, theirs) = (spec.trunk(), source.spec());
        let form = |s: &BaseSpec| (s.family, s.hidden, s.layers, s.heads, s.intermediate);
        if form(&own) != form(theirs) || theirs.learned_positions < own.learned_positions {
            let expected = format!(
                "GPT-2 of width {}, {} blocks, {} heads, MLP width {} and {} positions at least",
                own.hidden, own.layers, own.heads, own.intermediate, spec.window
            );
            return Err(Error::setting(source.path(), "config.json", format!("not a {expected}")));
        }
        Ok(())
    }

    /// Takes the blocks and the final norm of a GPT-2 over those of `params`, and its positions as far as windows are
    /// long; tables of columns and heads stay.
    ///
    /// # Errors
    /// As [`Self::check_blocks`]; what reading the base finds wrong.
    pub fn take_blocks(
        &self,
        spec: &EventSpec,
        source: &dyn WeightSource,
        params: &mut [f32],
    ) -> Result<()> {
        Self::check_blocks(spec, source)?;
        let theirs = source.spec();
        for tensor in theirs.tensors() {
            let place = self.layout.tensors.iter().find(|p| p.name == tensor.name);
            let Some(place) = place else { continue };
            let values = read_finite(source, &tensor)?;
            let to = &mut params[place.range()];
            match tensor.kind {
                // Ours lie [out, in], GPT-2's [in, out].
                Kind::Matrix { shape, layout: Layout::InOut } => {
                    for (o, row) in to.chunks_exact_mut(shape.in_dim).enumerate() {
                        for (i, value) in row.iter_mut().enumerate() {
                            *value = values[i * shape.out_dim + o];
                        }
                    }
                }
                // Of positions the first ones.
                _ => to.copy_from_slice(&values[..to.len()]),
            }
        }
        Ok(())
    }

    /// Fills `params` as a new model begins: a function of the key alone.
    pub fn initialise(&self, key: [u32; 2], params: &mut [f32]) {
        self.layout.initialise(key, params);
    }
}
