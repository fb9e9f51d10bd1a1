//! What makes losses: the vocabulary's head, class losses, the intention attention head.

use super::super::model::{Unit, Work};
use super::super::sizes::Sizes;
use super::{Op, Run, Subject, acts, elements, no_rivals, number, real, scattered, table};
use super::{values, weight};
use kernels::Result;
use kernels::backend::{Mat, MatMut};
use kernels::classify::{ClassLoss, Row, Softmax};
use kernels::intent::{Backward, Forward, Head, Offsets, Product, Segment, Shape};
use kernels::loss::HeadLoss;

const VOCABULARIES: &[(&str, &str)] = &[
    ("smollm2", "rows=1024,d=576,v=49152"),
    ("gpt2", "rows=1024,d=768,v=50257"),
    ("llama7b", "rows=1024,d=4096,v=32000"),
];
/// With a teacher the loss is a distillation's.
const CLASSES: &[(&str, &str)] =
    &[("hard", "rows=1024,classes=30,teacher=0"), ("distill", "rows=1024,classes=30,teacher=1")];
const PROBABILITIES: &[(&str, &str)] =
    &[("classes", "rows=1024,classes=30"), ("vocabulary", "rows=64,classes=32000")];
/// Without users the head trains; with them it is frozen and rows have personal deltas.
const INTENTS: &[(&str, &str)] = &[
    ("population", "rows=1024,intents=30,d=128,hidden=64,outer=0,users=0"),
    ("people", "rows=1024,intents=30,d=128,hidden=64,outer=0,users=16"),
    ("people", "rows=1024,intents=30,d=128,hidden=64,outer=0,users=64"),
    ("outer", "rows=1024,intents=30,d=64,hidden=64,outer=1,users=16"),
];

pub(super) fn ops<B: Subject>() -> Vec<Op<B>> {
    let op = |family, name, presets, work, build| Op {
        name,
        family,
        presets,
        work,
        build,
        rivals: no_rivals,
    };
    vec![
        op("loss", "head_loss", VOCABULARIES, head_loss_work, head_loss),
        op("classify", "class_loss", CLASSES, class_loss_work, class_loss),
        op("classify", "softmax", PROBABILITIES, softmax_work, softmax),
        op("intent", "intent_forward", INTENTS, intent_work, intent_forward),
        op("intent", "intent_backward", INTENTS, intent_backward_work, intent_backward),
    ]
}

/// Two products with the head; `X` and the head read, `dX` written; target, weight and loss of a row.
fn head_loss_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, d, v] = sizes.counts(["rows", "d", "v"]).map(real);
    let bytes = act * (2.0 * rows * d + d * v) + 12.0 * rows;
    Work { bytes, flop: 4.0 * rows * d * v, unit: Unit::Bf16 }
}

fn head_loss<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [rows, d, v] = sizes.counts(["rows", "d", "v"]);
    let (b, head) = (b.clone(), weight(b, d, v)?);
    let (x, weights) = (acts(&b, elements([rows, d]))?, values(&b, rows)?);
    let targets = table(&b, &scattered(rows, v))?;
    let (mut losses, mut dx) = (b.alloc(rows)?, b.alloc(elements([rows, d]))?);
    let mut work = b.alloc(b.head_loss_workspace(rows, d, v))?;
    Ok(Box::new(move || {
        b.head_loss(HeadLoss {
            x: Mat::new(&x, d),
            head: &head,
            targets: &targets,
            weights: &weights,
            losses: &mut losses,
            dx: Some(MatMut::new(&mut dx, d)),
            work: &mut work,
            rows,
        })
    }))
}

/// Of a class: maximum, difference, exponential, sum, quotient and weight; a teacher's as many.
fn class_loss_work(sizes: &Sizes, _: f64) -> Work {
    let [rows, classes, teacher] = sizes.counts(["rows", "classes", "teacher"]).map(real);
    let table = rows * (real(size_of::<Row>()) + 4.0);
    let all = rows * classes;
    let (bytes, flop) = (4.0 * all * (2.0 + teacher) + table, 6.0 * all * (1.0 + teacher));
    Work { bytes, flop, unit: Unit::F32 }
}

fn class_loss<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let ([rows, classes], taught) = (sizes.counts(["rows", "classes"]), sizes.flag("teacher"));
    let (b, all) = (b.clone(), elements([rows, classes]));
    let (logits, teacher) = (values(&b, all)?, if taught { Some(values(&b, all)?) } else { None });
    let target = number(classes / 2);
    let row = if taught { Row::distill(target, 1.0, 0.5, 2.0) } else { Row::hard(target, 1.0) };
    let kinds = table(&b, &vec![row; rows])?;
    let (mut losses, mut dlogits) = (b.alloc(rows)?, b.alloc(all)?);
    Ok(Box::new(move || {
        b.class_loss(ClassLoss {
            logits: &logits,
            teacher: teacher.as_ref(),
            table: &kinds,
            losses: &mut losses,
            dlogits: Some(&mut dlogits),
            rows,
            classes,
        })
    }))
}

/// Maximum, difference, exponential, sum, quotient.
fn softmax_work(sizes: &Sizes, _: f64) -> Work {
    let [rows, classes] = sizes.counts(["rows", "classes"]).map(real);
    Work { bytes: 8.0 * rows * classes, flop: 5.0 * rows * classes, unit: Unit::F32 }
}

fn softmax<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let [rows, classes] = sizes.counts(["rows", "classes"]);
    let (b, all) = (b.clone(), elements([rows, classes]));
    let (logits, mut probabilities) = (values(&b, all)?, b.alloc(all)?);
    Ok(Box::new(move || {
        b.softmax(Softmax { logits: &logits, probabilities: &mut probabilities, rows, classes })
    }))
}

fn shape(sizes: &Sizes) -> Shape {
    let [intents, dim, hidden] = sizes.counts(["intents", "d", "hidden"]);
    let product = if sizes.flag("outer") { Product::Outer } else { Product::Elementwise };
    Shape { intents, dim, hidden, product }
}

/// `(rows, N k d, k d or k d² of the mix, elements of the head, elements of all deltas)`.
fn intent_terms(sizes: &Sizes) -> [f64; 5] {
    let shape = shape(sizes);
    let [rows, intents, d, k] = sizes.counts(["rows", "intents", "d", "hidden"]).map(real);
    let users = real(sizes.count("users").min(sizes.count("rows")));
    let deltas = users * real(shape.delta_len());
    [rows, intents * k * d, k * real(shape.product_dim()), real(shape.param_len(true)), deltas]
}

/// For a row: the table times a matrix that the row makes (`W_v + W_p (.) h`, or with the outer product), and `W_h h`.
fn intent_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, product, mix, params, deltas] = intent_terms(sizes);
    let [intents, d, k] = sizes.counts(["intents", "d", "hidden"]).map(real);
    let bytes = act * rows * d + 4.0 * (rows * intents + params + deltas);
    let flop = 2.0 * rows * (product + mix + k * d);
    Work { bytes, flop, unit: Unit::Tf32 }
}

/// Three such products, the mix twice; `H` and `dA` read, `dH` written, head and deltas read, gradients of what trains
/// read and written.
fn intent_backward_work(sizes: &Sizes, act: f64) -> Work {
    let [rows, product, mix, params, deltas] = intent_terms(sizes);
    let [intents, d, k] = sizes.counts(["intents", "d", "hidden"]).map(real);
    let trained = if deltas > 0.0 { deltas } else { params };
    let bytes = 2.0 * act * rows * d + 4.0 * (rows * intents + params + deltas + 2.0 * trained);
    let flop = 2.0 * rows * (3.0 * product + 2.0 * (mix + k * d));
    Work { bytes, flop, unit: Unit::Tf32 }
}

/// A head with people's deltas and a pack of rows.
#[derive(Debug)]
struct Intents<B: Subject> {
    b: B,
    shape: Shape,
    rows: usize,
    params: B::Buf<f32>,
    segments: B::Buf<Segment>,
    num_segments: usize,
    deltas: B::Buf<f32>,
    h: B::Buf<B::Act>,
    logits: B::Buf<f32>,
    work: B::Buf<f32>,
}

impl<B: Subject> Intents<B> {
    fn new(b: &B, sizes: &Sizes) -> Result<Self> {
        let ([rows, users], shape) = (sizes.counts(["rows", "users"]), shape(sizes));
        let users = users.min(rows);
        let segments: Vec<Segment> = (0..users)
            .map(|user| {
                let (start, end) = (user * rows / users, (user + 1) * rows / users);
                let at = elements([user, shape.delta_len()]) as u64;
                Segment {
                    row_start: number(start),
                    rows: number(end - start),
                    delta_offset: at,
                    delta_grad_offset: at,
                }
            })
            .collect();
        Ok(Self {
            shape,
            rows,
            params: values(b, shape.param_len(true))?,
            num_segments: users,
            segments: table(b, &segments)?,
            deltas: values(b, elements([users, shape.delta_len()]))?,
            h: acts(b, elements([rows, shape.dim]))?,
            logits: values(b, elements([rows, shape.intents]))?,
            work: b.alloc(b.intent_workspace(rows, users, shape))?,
            b: b.clone(),
        })
    }

    fn forward(&mut self) -> Result<()> {
        self.b.intent_forward(Forward {
            head: Head {
                shape: self.shape,
                offsets: Offsets::dense(self.shape, true, 0),
                params: &self.params,
                segments: &self.segments,
                num_segments: self.num_segments,
                deltas: &self.deltas,
            },
            h: Mat::new(&self.h, self.shape.dim),
            logits: &mut self.logits,
            work: &mut self.work,
            rows: self.rows,
        })
    }

    /// Gradients grow with every call, in proportion to their number: they stay finite.
    fn backward(
        &mut self,
        dh: &mut B::Buf<B::Act>,
        grads: Option<&mut B::Buf<f32>>,
        delta_grads: Option<&mut B::Buf<f32>>,
    ) -> Result<()> {
        self.b.intent_backward(Backward {
            head: Head {
                shape: self.shape,
                offsets: Offsets::dense(self.shape, true, 0),
                params: &self.params,
                segments: &self.segments,
                num_segments: self.num_segments,
                deltas: &self.deltas,
            },
            h: Mat::new(&self.h, self.shape.dim),
            dlogits: &self.logits,
            dh: Some(MatMut::new(dh, self.shape.dim)),
            grads,
            delta_grads,
            work: &mut self.work,
            rows: self.rows,
        })
    }
}

fn intent_forward<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let mut head = Intents::new(b, sizes)?;
    Ok(Box::new(move || head.forward()))
}

fn intent_backward<B: Subject>(b: &B, sizes: &Sizes) -> Result<Run> {
    let mut head = Intents::new(b, sizes)?;
    let (rows, shape, users) = (head.rows, head.shape, head.num_segments);
    let mut dh = b.alloc(elements([rows, shape.dim]))?;
    let (mut grads, mut delta_grads) = (None, None);
    if users == 0 {
        grads = Some(b.alloc(shape.param_len(true))?);
    } else {
        delta_grads = Some(b.alloc(elements([users, shape.delta_len()]))?);
    }
    Ok(Box::new(move || head.backward(&mut dh, grads.as_mut(), delta_grads.as_mut())))
}
