//! The event model written down a second time, in candle: one window after another, no packs, gradients by autograd.
//!
//! In `f64` it is the truth; in `f32` it says how far from the truth that precision is.

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Result, Tensor, Var};
use kernels::classify::{Kind, Row};
use std::collections::BTreeMap;
use trainer::lora::{Half, SiteList, Target};
use trainer::model::event::{Combine, EventSpec, History, Place, Prediction, Product};

/// A window as the oracle reads it.
pub(crate) struct Window {
    /// The columns of each event, hidden events already replaced.
    pub(crate) events: Vec<Vec<u32>>,
    /// Rows whose event is asked for; empty where the intent is.
    pub(crate) hidden: Vec<u32>,
    /// Loss of the intent, or of each hidden event.
    pub(crate) losses: Vec<Row>,
    /// The teacher's logits, where the loss needs them.
    pub(crate) teacher: Vec<f32>,
    /// Number of its user among [`Oracle::users`].
    pub(crate) user: Option<usize>,
}

/// A user's own parameters.
pub(crate) struct User {
    sites: SiteList,
    lora_rank: usize,
    scale: f64,
    /// By site, then by half; then the whole tensors in order.
    vars: Vec<Var>,
    len: usize,
}

pub(crate) struct Oracle {
    spec: EventSpec,
    places: Vec<Place>,
    vars: BTreeMap<String, Var>,
    pub(crate) users: Vec<User>,
    dtype: DType,
}

fn var(values: &[f64], dims: &[usize], dtype: DType) -> Result<Var> {
    Var::from_tensor(&Tensor::from_slice(values, dims, &Device::Cpu)?.to_dtype(dtype)?)
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// The gradients of variables one after another; zeros where nothing depends on one.
fn gradients<'a>(store: &GradStore, vars: impl Iterator<Item = &'a Var>) -> Vec<f64> {
    let of = |v: &Var| store.get(v).map_or_else(|| vec![0.0; v.elem_count()], flat);
    vars.flat_map(of).collect()
}

impl Oracle {
    pub(crate) fn new(spec: &EventSpec, places: &[Place], params: &[f64], dtype: DType) -> Self {
        let one = |p: &Place| (p.name.clone(), var(&params[p.range()], &p.dims, dtype).unwrap());
        Self {
            spec: spec.clone(),
            places: places.to_vec(),
            vars: places.iter().map(one).collect(),
            users: Vec::new(),
            dtype,
        }
    }

    /// Adds a user with an adapter of this list.
    pub(crate) fn user(&mut self, sites: &SiteList, lora_rank: usize, scale: f32, own: &[f64]) {
        let matrices = sites
            .tensors(lora_rank)
            .map(|(spec, half, range)| (spec.shape(half, lora_rank).to_vec(), range));
        let whole = sites.whole_ranges(lora_rank).map(|(t, range)| (t.dims.clone(), range));
        let vars = matrices.chain(whole).map(|(dims, r)| var(&own[r], &dims, self.dtype).unwrap());
        let (vars, len) = (vars.collect(), own.len());
        let scale = f64::from(scale);
        self.users.push(User { sites: sites.clone(), lora_rank, scale, vars, len });
    }

    fn of(&self, name: &str) -> &Tensor {
        self.vars[name].as_tensor()
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let weight = self.of(&format!("{name}.weight"));
        x.matmul(&weight.t()?)?.broadcast_add(self.of(&format!("{name}.bias")))
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(variance + f64::from(self.spec.norm_eps))?.sqrt()?)?;
        let scaled = normed.broadcast_mul(self.of(&format!("{name}.weight")))?;
        scaled.broadcast_add(self.of(&format!("{name}.bias")))
    }

    /// `y + scale · B·A·x` where the user adapts the product.
    fn adapted(
        &self,
        user: Option<usize>,
        at: (u32, Target),
        x: &Tensor,
        y: Tensor,
    ) -> Result<Tensor> {
        let Some(user) = user.map(|u| &self.users[u]) else { return Ok(y) };
        let find = |half| {
            user.sites
                .tensors(user.lora_rank)
                .position(|(s, h, _)| ((s.layer, s.target), h) == (at, half))
        };
        let (Some(a), Some(b)) = (find(Half::A), find(Half::B)) else { return Ok(y) };
        let low = x.matmul(&user.vars[a].t()?)?.matmul(&user.vars[b].t()?)?;
        y + (low * user.scale)?
    }

    /// The first block's input `[L, d]`.
    fn embed(&self, events: &[Vec<u32>]) -> Result<Tensor> {
        let columns: Vec<Tensor> = (0..self.spec.columns.len())
            .map(|c| {
                let ids: Vec<u32> = events.iter().map(|e| e[c]).collect();
                let ids = Tensor::new(ids, &Device::Cpu)?;
                self.of(&format!("columns.{c}")).index_select(&ids, 0)
            })
            .collect::<Result<_>>()?;
        let x = match self.spec.combine {
            Combine::Concat => Tensor::cat(&columns, 1)?,
            Combine::Sum => {
                columns[1..].iter().try_fold(columns[0].clone(), |sum, column| sum + column)?
            }
        };
        x + self.of("positions").narrow(0, 0, events.len())?
    }

    fn attention(&self, qkv: &Tensor) -> Result<Tensor> {
        let (t, d) = (qkv.dim(0)?, self.spec.hidden);
        let (heads, e) = (self.spec.heads, d / self.spec.heads);
        let part = |i: usize| {
            qkv.narrow(1, i * d, d)?.reshape((t, heads, e))?.transpose(0, 1)?.contiguous()
        };
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let scores = (q.matmul(&k.t()?.contiguous()?)? / (e as f64).sqrt())?;
        let later = |i: usize| (0..t).map(move |j| if j > i { -1e30 } else { 0.0 });
        let mask: Vec<f64> = (0..t).flat_map(later).collect();
        let mask = Tensor::from_vec(mask, (1, t, t), &Device::Cpu)?.to_dtype(self.dtype)?;
        let scores = scores.broadcast_add(&mask)?;
        let weights = log_softmax(&scores)?.exp()?;
        weights.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((t, d))
    }

    fn block(&self, layer: usize, x: &Tensor, user: Option<usize>) -> Result<Tensor> {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let at = |target| (u32::try_from(layer).unwrap(), target);
        let normed = self.norm(x, &name("norm1"))?;
        let qkv = [
            self.linear(&normed, &name("q"))?,
            self.linear(&normed, &name("k"))?,
            self.linear(&normed, &name("v"))?,
        ];
        let qkv = self.adapted(user, at(Target::CAttn), &normed, Tensor::cat(&qkv, 1)?)?;
        let heads = self.attention(&qkv)?;
        let o = self.linear(&heads, &name("o"))?;
        let x = (x + self.adapted(user, at(Target::AttnCProj), &heads, o)?)?;
        let normed = self.norm(&x, &name("norm2"))?;
        let fc = self.linear(&normed, &name("fc"))?;
        let hidden = gelu_new(&self.adapted(user, at(Target::CFc), &normed, fc)?)?;
        let proj = self.linear(&hidden, &name("proj"))?;
        x + self.adapted(user, at(Target::MlpCProj), &hidden, proj)?
    }

    /// The hidden states `[L, d]` of a window, after the final norm.
    fn states(&self, window: &Window) -> Result<Tensor> {
        let mut x = self.embed(&window.events)?;
        for layer in 0..self.spec.layers {
            x = self.block(layer, &x, window.user)?;
        }
        self.norm(&x, "norm")
    }

    /// `name`, changed by what the user has of it.
    fn own(&self, user: Option<usize>, name: &str) -> Result<Tensor> {
        let shared = self.of(name).clone();
        let Some(user) = user.map(|u| &self.users[u]) else { return Ok(shared) };
        let first = 2 * user.sites.entries().len();
        match user.sites.whole().iter().position(|t| t.name == name) {
            Some(i) => shared + user.vars[first + i].as_tensor(),
            None => Ok(shared),
        }
    }

    /// The intention attention network: `[N]` of `h [d]`, intent after intent.
    fn intents(&self, h: &Tensor, user: Option<usize>) -> Result<Tensor> {
        let (n, d) = (self.spec.intents, self.spec.hidden);
        let table = self.own(user, "intent.table")?;
        let h = h.reshape((1, d))?;
        let every = h.broadcast_as((n, d))?;
        let product = match self.spec.product {
            Product::Elementwise => table.broadcast_mul(&h)?,
            Product::Outer => table
                .reshape((n, d, 1))?
                .broadcast_mul(&h.reshape((1, 1, d))?)?
                .reshape((n, d * d))?,
        };
        let input = Tensor::cat(&[table, product, every.contiguous()?], 1)?;
        let z = input.matmul(&self.of("intent.w1").t()?)?.broadcast_add(self.of("intent.b1"))?;
        let negative = z.neg()?.relu()?.broadcast_mul(self.of("intent.slope"))?;
        let z = (z.relu()? - negative)?;
        let a = z.broadcast_mul(self.of("intent.w2"))?.sum(1)?;
        let a = a.broadcast_add(self.of("intent.b2"))?;
        let a = (a + self.own(user, "intent.bias")?)?;
        match self.spec.prediction {
            Prediction::Scalar => Ok(a),
            Prediction::Linear => self.linear(&a.reshape((1, n))?, "prediction")?.reshape(n),
        }
    }

    /// Logits of the window's intent, or of its hidden events: one vector each.
    fn logits(&self, window: &Window) -> Result<Vec<Tensor>> {
        let states = self.states(window)?;
        let row = |i: usize| states.narrow(0, i, 1);
        if window.hidden.is_empty() {
            let h = match self.spec.history {
                History::Last => row(window.events.len() - 1)?,
                History::Mean => states.mean_keepdim(0)?,
            };
            return Ok(vec![self.intents(&h, window.user)?]);
        }
        let event = |&i: &u32| self.linear(&row(i as usize)?, "reconstruction")?.squeeze(0);
        window.hidden.iter().map(event).collect()
    }

    /// Logits of windows, one window after another.
    pub(crate) fn all_logits(&self, windows: &[Window]) -> Vec<f64> {
        let of = |w: &Window| self.logits(w).unwrap().iter().flat_map(flat).collect::<Vec<f64>>();
        windows.iter().flat_map(of).collect()
    }

    /// Losses of windows without their weights, and `Σ weight · loss`.
    fn losses(&self, windows: &[Window]) -> Result<(Vec<f64>, Tensor)> {
        let mut total = Tensor::zeros((), self.dtype, &Device::Cpu)?;
        let mut all = Vec::new();
        for window in windows {
            for (logits, row) in self.logits(window)?.iter().zip(&window.losses) {
                let loss = loss(logits, row, &window.teacher)?;
                all.extend(flat(&loss));
                total = (total + (loss * f64::from(row.weight))?)?;
            }
        }
        Ok((all, total))
    }

    /// `Σ weight · loss` alone.
    pub(crate) fn objective(&self, windows: &[Window]) -> f64 {
        flat(&self.losses(windows).unwrap().1)[0]
    }

    /// Losses, the gradient of every parameter in the order of the flat vector, and each user's gradient.
    pub(crate) fn gradient(&self, windows: &[Window]) -> (Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
        let (losses, total) = self.losses(windows).unwrap();
        let store = total.backward().unwrap();
        let shared = gradients(&store, self.places.iter().map(|p| &self.vars[&p.name]));
        let users = self.users.iter().map(|u| gradients(&store, u.vars.iter()));
        let users: Vec<Vec<f64>> = users.collect();
        assert!(users.iter().zip(&self.users).all(|(g, u)| g.len() == u.len));
        (losses, shared, users)
    }
}

fn log_softmax(z: &Tensor) -> Result<Tensor> {
    let z = z.broadcast_sub(&z.max_keepdim(D::Minus1)?.detach())?;
    z.broadcast_sub(&z.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// GPT-2's `gelu_new`: `x/2 · (1 + tanh(sqrt(2/π) · (x + 0.044715 x³)))`.
fn gelu_new(x: &Tensor) -> Result<Tensor> {
    let cube = (x * x.sqr()?)?;
    let inner = ((x + (cube * 0.044_715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
    (x * 0.5)? * (inner.tanh()? + 1.0)?
}

/// The loss of a row without its weight: methods.md 2.2.
fn loss(logits: &Tensor, row: &Row, teacher: &[f32]) -> Result<Tensor> {
    let n = logits.elem_count();
    let log_p = log_softmax(logits)?;
    let hard = || log_p.get(row.target as usize)?.neg();
    let teacher = || {
        let values: Vec<f64> = teacher.iter().map(|&t| f64::from(t)).collect();
        Tensor::from_vec(values, n, &Device::Cpu)?.to_dtype(logits.dtype())
    };
    let towards = || match row.soft {
        0 => hard(),
        _ => (log_softmax(&teacher()?)?.exp()? * &log_p)?.sum_all()?.neg(),
    };
    match Kind::from_code(row.kind).unwrap() {
        Kind::Hard => hard(),
        Kind::Focal => {
            let p = log_p.get(row.target as usize)?.exp()?;
            (1.0 - p)?.powf(f64::from(row.gamma))? * hard()?
        }
        Kind::Distill => {
            let (alpha, t) = (f64::from(row.alpha), f64::from(row.temperature));
            let (log_q, log_p) = (log_softmax(&(teacher()? / t)?)?, log_softmax(&(logits / t)?)?);
            let kl = (log_q.exp()? * (log_q - log_p)?)?.sum_all()?;
            (hard()? * (1.0 - alpha))? + (kl * (alpha * t * t))?
        }
        Kind::Retain => towards(),
        Kind::Forget if row.margin.is_infinite() => towards()? * -f64::from(row.beta),
        Kind::Forget => (f64::from(row.margin) - towards()?)?.relu()? * f64::from(row.beta),
    }
}
