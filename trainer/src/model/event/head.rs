//! From the normed output rows to logits and back: the intention attention network, the reconstruction layer.

use super::super::batch::Batch;
use super::super::pass::product_gradient;
use super::super::{Error, Result};
use super::step::{Adapted, EventStepper};
use super::{EventNetwork, History};
use kernels::intent::{self, Head, Segment};
use kernels::linear::{Backward, wide};
use kernels::pool::{Mean, MeanBackward, Range};
use kernels::{Backend, Mat, MatMut, Ops};

/// Gradients of the whole model and of the users' own parts; what is not there is not computed.
type Grads<'a, B> =
    (Option<&'a mut <B as Backend>::Buf<f32>>, Option<&'a mut <B as Backend>::Buf<f32>>);

impl<B: Ops> EventStepper<B> {
    /// Windows and users of the output rows: ranges of the rows of each window, segments of the windows of each user.
    fn route(
        &mut self,
        net: &EventNetwork<B>,
        (batch, adapted): (&Batch, Adapted<'_, B>),
    ) -> Result<()> {
        let windows: Vec<Range> = (batch.outputs.sequences.iter())
            .filter(|s| s.q_len > 0)
            .map(|s| Range { start: s.q_start, len: s.q_len })
            .collect();
        if net.spec.history == History::Last && windows.iter().any(|w| w.len != 1) {
            return Err(Error::Batch { what: "a window with several outputs".into() });
        }
        let number = |row: u32| windows.partition_point(|w| w.start < row);
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut segments = Vec::new();
        for (layout, own) in batch.outputs.segments.iter().enumerate() {
            let Some(units) = adapted.head_after.get(layout).copied().flatten() else { continue };
            for s in own {
                let (first, end) = (number(s.row_start), number(s.row_start + s.rows));
                let after = units as u64 * u64::from(s.lora_rank);
                segments.push(Segment {
                    row_start: small(first),
                    rows: small(end - first),
                    delta_offset: s.param_offset + after,
                    delta_grad_offset: s.grad_offset + after,
                });
            }
        }
        segments.sort_by_key(|s| s.row_start);
        let backend = net.trunk.backend();
        (self.windows, self.num_segments) = (windows.len(), segments.len());
        backend.write(&mut self.ranges, 0, &windows)?;
        Ok(backend.write(&mut self.segments, 0, &segments)?)
    }

    /// Histories to logits of intents.
    pub(super) fn head(
        &mut self,
        net: &EventNetwork<B>,
        of: (&Batch, Adapted<'_, B>),
    ) -> Result<()> {
        self.route(net, of)?;
        let (spec, backend, d) = (&net.spec, net.trunk.backend(), net.spec.hidden);
        let normed = &self.stepper.acts.scratch.gathered;
        if spec.history == History::Mean {
            backend.pool_mean(Mean {
                x: Mat::new(normed, d),
                ranges: &self.ranges,
                y: MatMut::new(&mut self.history, d),
                num_ranges: self.windows,
                rows: self.stepper.batch.outputs.rows,
                dim: d,
            })?;
        }
        let h = if spec.history == History::Mean { &self.history } else { normed };
        let head = Head {
            shape: spec.intent_shape(),
            offsets: net.places.intent,
            params: &net.params,
            segments: &self.segments,
            num_segments: self.num_segments,
            deltas: of.1.adapters.params,
        };
        let scores = if net.prediction.is_some() { &mut self.scores } else { &mut self.logits };
        let (h, rows) = (Mat::new(h, d), self.windows);
        backend.intent_forward(intent::Forward {
            head,
            h,
            logits: scores,
            work: &mut self.work,
            rows,
        })?;
        let Some(prediction) = &net.prediction else { return Ok(()) };
        let scores = backend.as_act(&self.scores, &mut self.score_acts, rows * spec.intents)?;
        Ok(backend.wide_forward(wide::Forward {
            x: Mat::new(scores, spec.intents),
            weight: &prediction.weight,
            bias: prediction.bias.as_ref(),
            y: &mut self.logits,
            rows,
        })?)
    }

    /// From the gradient of the logits to that of the normed output rows; `whole +=` the head's parameters, `own +=`
    /// the users' changes.
    pub(super) fn head_back(
        &mut self,
        net: &EventNetwork<B>,
        adapted: Adapted<'_, B>,
        (mut whole, own): Grads<'_, B>,
    ) -> Result<()> {
        let (spec, backend, d) = (&net.spec, net.trunk.backend(), net.spec.hidden);
        let (n, rows) = (spec.intents, self.windows);
        if let (Some(prediction), Some(at)) = (&net.prediction, net.places.prediction) {
            let dy = backend.as_act(&self.logit_gradient, &mut self.logit_acts, rows * n)?;
            let dy = Mat::new(dy, n);
            if let Some(grads) = whole.as_deref_mut() {
                let x = backend.as_act(&self.scores, &mut self.score_acts, rows * n)?;
                product_gradient(backend, rows, at, (Mat::new(x, n), dy), grads)?;
            }
            let (weight, dx) = (&prediction.weight, &mut self.score_gradient);
            backend.wide_backward(wide::Backward { dy, weight, dx, rows })?;
        }
        let acts = &mut self.stepper.acts;
        let Some(gradients) = &mut acts.gradients else {
            return Err(Error::Batch { what: "a backward without buffers".into() });
        };
        let mean = spec.history == History::Mean;
        let (h, dh) = match mean {
            true => (&self.history, &mut self.history_gradient),
            false => (&acts.scratch.gathered, &mut gradients.normed_outputs),
        };
        let scores = &self.score_gradient;
        backend.intent_backward(intent::Backward {
            head: Head {
                shape: spec.intent_shape(),
                offsets: net.places.intent,
                params: &net.params,
                segments: &self.segments,
                num_segments: self.num_segments,
                deltas: adapted.adapters.params,
            },
            h: Mat::new(h, d),
            dlogits: if net.prediction.is_some() { scores } else { &self.logit_gradient },
            dh: Some(MatMut::new(dh, d)),
            grads: whole,
            delta_grads: own,
            work: &mut self.work,
            rows,
        })?;
        if mean {
            backend.pool_mean_backward(MeanBackward {
                dy: Mat::new(&self.history_gradient, d),
                ranges: &self.ranges,
                dx: MatMut::new(&mut gradients.normed_outputs, d),
                accumulate: false,
                num_ranges: rows,
                rows: self.stepper.batch.outputs.rows,
                dim: d,
            })?;
        }
        Ok(())
    }

    /// Output rows to logits of events.
    pub(super) fn reconstruct(&mut self, net: &EventNetwork<B>) -> Result<()> {
        let (spec, rows) = (&net.spec, self.stepper.batch.outputs.rows);
        self.windows = rows;
        Ok(net.trunk.backend().wide_forward(wide::Forward {
            x: Mat::new(&self.stepper.acts.scratch.gathered, spec.hidden),
            weight: &net.trunk.head,
            bias: Some(&net.reconstruction_bias),
            y: &mut self.logits,
            rows,
        })?)
    }

    pub(super) fn reconstruction_back(
        &mut self,
        net: &EventNetwork<B>,
        grads: &mut B::Buf<f32>,
    ) -> Result<()> {
        let (spec, backend, rows) = (&net.spec, net.trunk.backend(), self.windows);
        let acts = &mut self.stepper.acts;
        let Some(gradients) = &mut acts.gradients else {
            return Err(Error::Batch { what: "a backward without buffers".into() });
        };
        let events = spec.events();
        let dy = backend.as_act(&self.logit_gradient, &mut self.logit_acts, rows * events)?;
        let dy = Mat::new(dy, events);
        let x = Mat::new(&acts.scratch.gathered, spec.hidden);
        product_gradient(backend, rows, net.places.reconstruction, (x, dy), grads)?;
        let (weight, accumulate) = (&net.trunk.head, false);
        let dx = MatMut::new(&mut gradients.normed_outputs, spec.hidden);
        Ok(backend.linear_backward(Backward { dy, weight, dx, accumulate, rows })?)
    }
}
