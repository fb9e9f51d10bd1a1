//! An event model as an engine's [`Model`]: what a pack of people's windows runs through.

use super::Result;
use super::engine::Model;
use crate::lora::SiteLists;
use crate::model::Adapters;
use crate::model::activations::StepSize;
use crate::model::batch::Batch;
use crate::model::event::{Adapted, EventNetwork, EventStepper, EventTable};
use crate::model::network::Network;
use crate::pack::ClassLoss;
use crate::prompt::Example;
use kernels::classify::Row;
use kernels::{Backend, Ops};

/// An event model; packs hold the numbers of a table's rows.
#[derive(Debug)]
pub struct Events<'a, B: Ops> {
    net: &'a EventNetwork<B>,
    table: &'a EventTable,
    stepper: EventStepper<B>,
    head_after: Vec<Option<usize>>,
}

impl<'a, B: Ops + Backend<Act = f32>> Events<'a, B> {
    /// Buffers for packs of `size`, for adapters of `lists`.
    ///
    /// # Errors
    /// When the backend has no memory.
    pub fn new(
        (net, table): (&'a EventNetwork<B>, &'a EventTable),
        lists: &SiteLists,
        size: StepSize,
    ) -> Result<Self> {
        let head_after = lists.lists().iter().map(|l| (!l.whole().is_empty()).then(|| l.units()));
        Ok(Self {
            head_after: head_after.collect(),
            stepper: EventStepper::new(net, size)?,
            net,
            table,
        })
    }

    /// Intents there are.
    pub fn intents(&self) -> usize {
        self.net.spec().intents
    }

    /// Logits `[windows, intents]` of a checked pack.
    pub(super) fn logits(
        &mut self,
        batch: &Batch,
        (lists, params): (&SiteLists, &B::Buf<f32>),
    ) -> Result<&[f32]> {
        let adapters = Adapters { layouts: lists.layouts(), params };
        let Self { net, table, stepper, head_after } = self;
        let adapted = Adapted { adapters, head_after };
        Ok(stepper.logits(net, (batch, table), adapted)?)
    }

    /// Probabilities `[windows, intents]` of a checked pack.
    pub(super) fn probabilities(
        &mut self,
        batch: &Batch,
        (lists, params): (&SiteLists, &B::Buf<f32>),
    ) -> Result<&[f32]> {
        let adapters = Adapters { layouts: lists.layouts(), params };
        let Self { net, table, stepper, head_after } = self;
        let adapted = Adapted { adapters, head_after };
        Ok(stepper.probabilities(net, (batch, table), adapted)?)
    }
}

impl<B: Ops + Backend<Act = f32>> Model<B> for Events<'_, B> {
    fn trunk(&self) -> &Network<B> {
        self.net.trunk()
    }

    fn rows(&self) -> usize {
        self.stepper.rows()
    }

    fn vocab(&self) -> usize {
        self.table.len().max(self.net.spec().intents)
    }

    fn refuses(&self, example: &Example, loss: Option<&ClassLoss>) -> Option<String> {
        let (intents, known) = (self.net.spec().intents, self.table.len());
        let Some((&target, rows @ [_, ..])) = example.tokens.split_last() else {
            return Some("a window without an event".into());
        };
        if example.prompt_len != rows.len() {
            return Some(format!(
                "{} intents after a window",
                example.tokens.len().saturating_sub(example.prompt_len)
            ));
        }
        if let Some(row) = rows.iter().find(|&&row| row as usize >= known) {
            return Some(format!("event {row} of {known}"));
        }
        if target as usize >= intents {
            return Some(format!("intent {target} of {intents}"));
        }
        let ClassLoss { row, teacher } = loss?;
        let row = Row { target, ..*row };
        if teacher.len() != intents && (row.needs_teacher() || !teacher.is_empty()) {
            return Some(format!("a teacher of {} intents, not {intents}", teacher.len()));
        }
        Row::check_all(&[row], intents, true).err().map(|e| e.to_string())
    }

    fn train(
        &mut self,
        batch: &Batch,
        (lists, params): (&SiteLists, &B::Buf<f32>),
        grads: &mut B::Buf<f32>,
    ) -> Result<&[f32]> {
        let adapters = Adapters { layouts: lists.layouts(), params };
        let Self { net, table, stepper, head_after } = self;
        let adapted = Adapted { adapters, head_after };
        Ok(stepper.train(net, (batch, table), adapted, grads)?)
    }

    fn losses(
        &mut self,
        batch: &Batch,
        (lists, params): (&SiteLists, &B::Buf<f32>),
    ) -> Result<&[f32]> {
        let adapters = Adapters { layouts: lists.layouts(), params };
        let Self { net, table, stepper, head_after } = self;
        let adapted = Adapted { adapters, head_after };
        Ok(stepper.losses(net, (batch, table), adapted)?)
    }
}
