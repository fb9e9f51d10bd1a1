//! Losses of rows of class logits, each row with a kind of its own, and probabilities.
//!
//! For a row with logits `z [N]`, `p = softmax(z)`, `CE(z, y) = -ln p_y`, teacher logits `t [N]`, and
//! `CE(q, z) = -Σ_n q_n ln p_n` with `q = softmax(t)`, or one-hot at the label: see [`Kind`]. Logits are
//! stored whole (classes are few), so this is apart from [`crate::loss`], whose vocabulary is large.
//! Row-invariant. The largest logit is subtracted first and the rest summed apart from it, so far-out
//! logits stay finite and a confident row's small loss keeps its digits.
//!
//! Source: methods.md 2.2 (distilling; adaptive unlearning with the bounded negative term); Lin et al.,
//! Focal Loss for Dense Object Detection, eq. 4 and 5.

use crate::backend::{Backend, Buffer};
use crate::error::{Error, Result, check_len};

pub mod cpu;
mod gpu;

/// What a row is trained for; `w` is [`Row::weight`], the losses written are those without `w`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// `w · CE(z, y)`.
    Hard = 0,
    /// `w · (1 - p_y)^gamma · CE(z, y)`.
    Focal = 1,
    /// `w · [(1 - alpha) · CE(z, y) + alpha · T² · KL(softmax(t/T) || softmax(z/T))]`.
    Distill = 2,
    /// `w · CE(q, z)`: stay with the teacher, or with the label.
    Retain = 3,
    /// `w · beta · max(0, margin - CE(q, z))`: leave the teacher's answer, or the label, until the margin
    /// is reached; there loss and gradient are exactly zero. With an infinite margin the constant is
    /// left out: `-w · beta · CE(q, z)`, which has no lower bound.
    ///
    /// At `softmax(t) = softmax(z)` the cross-entropy `CE(q, z)` is at its minimum and the gradient zero:
    /// a student that is an exact copy of its teacher does not move by this kind with soft targets alone.
    Forget = 4,
}

/// One row's loss; plain data, so that a table of them travels as a buffer. Numbers that a kind does not
/// name are not looked at. Made by [`Row::hard`] and its siblings.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Row {
    /// [`Kind`] as a number.
    pub kind: u32,
    /// `y`.
    pub target: u32,
    /// [`Kind::Retain`] and [`Kind::Forget`]: 1 for `q = softmax(t)`, 0 for one-hot at `y`.
    pub soft: u32,
    /// `w`.
    pub weight: f32,
    /// [`Kind::Focal`]: `gamma >= 0`.
    pub gamma: f32,
    /// [`Kind::Distill`]: `0 <= alpha <= 1`.
    pub alpha: f32,
    /// [`Kind::Distill`]: `T > 0`.
    pub temperature: f32,
    /// [`Kind::Forget`]: `beta >= 0`.
    pub beta: f32,
    /// [`Kind::Forget`]: `margin >= 0`, may be infinite.
    pub margin: f32,
}

/// Loss and gradient of rows of logits.
#[derive(Debug)]
pub struct ClassLoss<'a, B: Backend + ?Sized> {
    /// `z [t, N]`, row-major.
    pub logits: &'a B::Buf<f32>,
    /// Teacher logits `[t, N]`, row-major; only rows whose kind needs them are read. `None` where no row
    /// does.
    pub teacher: Option<&'a B::Buf<f32>>,
    /// One entry for each row.
    pub table: &'a B::Buf<Row>,
    /// Loss of each row without its weight, written `=`.
    pub losses: &'a mut B::Buf<f32>,
    /// `dz [t, N]`, gradient of the weighted loss, written `=`; `None` to get the losses alone.
    pub dlogits: Option<&'a mut B::Buf<f32>>,
    /// `t`; zero is legal.
    pub rows: usize,
    /// `N >= 1`.
    pub classes: usize,
}

/// `p = softmax(z)` of each row.
#[derive(Debug)]
pub struct Softmax<'a, B: Backend + ?Sized> {
    /// `z [t, N]`, row-major.
    pub logits: &'a B::Buf<f32>,
    /// `p [t, N]`, written `=`.
    pub probabilities: &'a mut B::Buf<f32>,
    /// `t`; zero is legal.
    pub rows: usize,
    /// `N >= 1`.
    pub classes: usize,
}

/// Losses on stored logits.
pub trait Classify: Backend {
    /// See [`ClassLoss`]; row-invariant.
    ///
    /// # Errors
    /// [`Error`] when lengths disagree, or naming the row whose entry is not a loss.
    fn class_loss(&self, args: ClassLoss<'_, Self>) -> Result<()>;

    /// See [`Softmax`]; row-invariant.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Shape`].
    fn softmax(&self, args: Softmax<'_, Self>) -> Result<()>;
}

impl Kind {
    /// The kind whose number this is.
    pub fn from_code(code: u32) -> Option<Self> {
        [Self::Hard, Self::Focal, Self::Distill, Self::Retain, Self::Forget]
            .into_iter()
            .find(|kind| *kind as u32 == code)
    }
}

impl Row {
    /// [`Kind::Hard`].
    pub fn hard(target: u32, weight: f32) -> Self {
        Self {
            kind: Kind::Hard as u32,
            target,
            soft: 0,
            weight,
            gamma: 0.0,
            alpha: 0.0,
            temperature: 1.0,
            beta: 1.0,
            margin: 0.0,
        }
    }

    /// [`Kind::Focal`].
    pub fn focal(target: u32, weight: f32, gamma: f32) -> Self {
        Self { kind: Kind::Focal as u32, gamma, ..Self::hard(target, weight) }
    }

    /// [`Kind::Distill`].
    pub fn distill(target: u32, weight: f32, alpha: f32, temperature: f32) -> Self {
        Self { kind: Kind::Distill as u32, alpha, temperature, ..Self::hard(target, weight) }
    }

    /// [`Kind::Retain`]; towards the teacher, or the label if there is one.
    pub fn retain(label: Option<u32>, weight: f32) -> Self {
        let soft = u32::from(label.is_none());
        Self { kind: Kind::Retain as u32, soft, ..Self::hard(label.unwrap_or(0), weight) }
    }

    /// [`Kind::Forget`]; away from the teacher, or from the label if there is one.
    pub fn forget(label: Option<u32>, weight: f32, beta: f32, margin: f32) -> Self {
        Self { kind: Kind::Forget as u32, beta, margin, ..Self::retain(label, weight) }
    }

    /// Whether the row's loss reads the teacher's logits.
    pub fn needs_teacher(&self) -> bool {
        match Kind::from_code(self.kind) {
            Some(Kind::Distill) => true,
            Some(Kind::Retain | Kind::Forget) => self.soft != 0,
            _ => false,
        }
    }

    /// Checks, on the host, that every entry is a loss over `classes` classes.
    ///
    /// # Errors
    /// [`Error::Routing`] naming the row.
    pub fn check_all(table: &[Self], classes: usize, teacher: bool) -> Result<()> {
        match table.iter().enumerate().find_map(|(i, row)| Some((i, row.wrong(classes, teacher)?)))
        {
            Some((row, wrong)) => {
                Err(Error::Routing { op: "class_loss", what: format!("row {row}: {wrong}") })
            }
            None => Ok(()),
        }
    }

    /// What is wrong with the entry, if anything is.
    fn wrong(&self, classes: usize, teacher: bool) -> Option<&'static str> {
        let Some(kind) = Kind::from_code(self.kind) else { return Some("no such kind") };
        let labelled = !matches!(kind, Kind::Retain | Kind::Forget) || self.soft == 0;
        if labelled && self.target as usize >= classes {
            Some("its target is not a class")
        } else if self.soft > 1 {
            Some("its flag is neither 0 nor 1")
        } else if self.needs_teacher() && !teacher {
            Some("it needs a teacher")
        } else if kind == Kind::Focal && !(self.gamma >= 0.0 && self.gamma.is_finite()) {
            Some("its gamma is not a number of at least 0")
        } else if kind == Kind::Distill && !(0.0..=1.0).contains(&self.alpha) {
            Some("its alpha is not in [0, 1]")
        } else if kind == Kind::Distill && !(self.temperature > 0.0 && self.temperature.is_finite())
        {
            Some("its temperature is not a positive number")
        } else if kind == Kind::Forget && !(self.beta >= 0.0 && self.beta.is_finite()) {
            Some("its beta is not a number of at least 0")
        } else if kind == Kind::Forget && (self.margin.is_nan() || self.margin < 0.0) {
            Some("its margin is not a number of at least 0")
        } else {
            None
        }
    }
}

fn check_classes(op: &'static str, classes: usize) -> Result<()> {
    if classes == 0 {
        return Err(Error::Shape { op, what: "classes", expected: 1, got: 0 });
    }
    Ok(())
}

impl<B: Classify> ClassLoss<'_, B> {
    /// Checks every length once; entries are the backend's to check.
    ///
    /// # Errors
    /// [`Error`] naming the argument.
    pub fn check(&self) -> Result<()> {
        let op = "class_loss";
        check_classes(op, self.classes)?;
        let elements = self.rows.saturating_mul(self.classes);
        check_len(op, "logits", elements, self.logits.len())?;
        check_len(op, "table", self.rows, self.table.len())?;
        check_len(op, "losses", self.rows, self.losses.len())?;
        if let Some(teacher) = self.teacher {
            check_len(op, "teacher", elements, teacher.len())?;
        }
        self.dlogits.as_ref().map_or(Ok(()), |d| check_len(op, "dlogits", elements, d.len()))
    }
}

impl<B: Classify> Softmax<'_, B> {
    /// Checks every length once.
    ///
    /// # Errors
    /// [`Error`] naming the argument.
    pub fn check(&self) -> Result<()> {
        let op = "softmax";
        check_classes(op, self.classes)?;
        let elements = self.rows.saturating_mul(self.classes);
        check_len(op, "logits", elements, self.logits.len())?;
        check_len(op, "probabilities", elements, self.probabilities.len())
    }
}
