//! Class losses as they are written down.

use super::Naive;
use super::intent::all;
use super::real::{Real, wide};
use kernels::backend::Buffer;
use kernels::classify::{ClassLoss, Classify, Kind, Row, Softmax};
use kernels::error::Result;

/// `ln softmax(z / T)`.
pub fn log_softmax<F: Real>(z: &[F], temperature: F) -> Vec<F> {
    let warm: Vec<F> = z.iter().map(|z| *z / temperature).collect();
    let top = warm.iter().copied().fold(warm[0], |top, z| if z > top { z } else { top });
    let total = warm.iter().map(|z| (*z - top).exp()).sum::<F>().ln();
    warm.iter().map(|z| *z - top - total).collect()
}

/// Unweighted loss and weighted gradient of one row.
pub fn formula<F: Real>(row: &Row, z: &[F], teacher: &[F]) -> (F, Vec<F>) {
    let (zero, one) = (F::default(), F::from(1.0));
    let [w, gamma, alpha, t, beta, margin] =
        [row.weight, row.gamma, row.alpha, row.temperature, row.beta, row.margin].map(F::from);
    let label = |n: usize| if n == row.target as usize { one } else { zero };
    let soft: Vec<F> = if row.needs_teacher() {
        let at = if row.kind == Kind::Distill as u32 { t } else { one };
        log_softmax(teacher, at).into_iter().map(F::exp).collect()
    } else {
        (0..z.len()).map(label).collect()
    };
    let log_p = log_softmax(z, one);
    let entropy = |q: &[F]| -> F {
        q.iter().zip(&log_p).map(|(q, l)| if *q > zero { -(*q * *l) } else { zero }).sum()
    };
    let towards =
        |q: &[F], scale: F| q.iter().zip(&log_p).map(|(q, l)| scale * (l.exp() - *q)).collect();
    match Kind::from_code(row.kind) {
        Some(Kind::Focal) => {
            let ce = entropy(&soft);
            let u = one - (-ce).exp();
            let slope = u.powf(gamma) + gamma * u.powf(gamma - one) * (-ce).exp() * ce;
            (u.powf(gamma) * ce, towards(&soft, w * slope))
        }
        Some(Kind::Distill) => {
            let warm = log_softmax(z, t);
            let of_teacher = log_softmax(teacher, t);
            let terms = of_teacher.iter().zip(&warm).map(|(q, p)| q.exp() * (*q - *p));
            let ce = -log_p[row.target as usize];
            let loss = (one - alpha) * ce + alpha * t * t * terms.sum::<F>();
            let gradient = (0..z.len()).map(|n| {
                let hard = (one - alpha) * (log_p[n].exp() - label(n));
                w * (hard + alpha * t * (warm[n].exp() - soft[n]))
            });
            (loss, gradient.collect())
        }
        Some(Kind::Forget) => {
            let ce = entropy(&soft);
            if row.margin == f32::INFINITY {
                (-(beta * ce), towards(&soft, -(w * beta)))
            } else if ce < margin {
                (beta * (margin - ce), towards(&soft, -(w * beta)))
            } else {
                (zero, vec![zero; z.len()])
            }
        }
        _ => (entropy(&soft), towards(&soft, w)),
    }
}

impl Classify for Naive {
    fn class_loss(&self, a: ClassLoss<'_, Self>) -> Result<()> {
        a.check()?;
        let table: Vec<Row> = (0..a.rows).map(|i| a.table.get(i)).collect();
        Row::check_all(&table, a.classes, a.teacher.is_some())?;
        let logits = wide::<f64>(&all(a.logits));
        let teacher = a.teacher.map_or(vec![0.0; logits.len()], |t| wide::<f64>(&all(t)));
        let mut dlogits = a.dlogits;
        for (i, row) in table.iter().enumerate() {
            let at = i * a.classes..(i + 1) * a.classes;
            let (loss, gradient) = formula(row, &logits[at.clone()], &teacher[at.clone()]);
            a.losses.put(i, loss);
            if let Some(dlogits) = &mut dlogits {
                at.zip(gradient).for_each(|(i, g)| dlogits.put(i, g));
            }
        }
        Ok(())
    }

    fn softmax(&self, a: Softmax<'_, Self>) -> Result<()> {
        a.check()?;
        for row in 0..a.rows {
            let at = row * a.classes..(row + 1) * a.classes;
            let z: Vec<f64> = at.clone().map(|i| a.logits.at(i)).collect();
            at.zip(log_softmax(&z, 1.0)).for_each(|(i, l)| a.probabilities.put(i, l.exp()));
        }
        debug_assert!(a.probabilities.len() >= a.rows * a.classes);
        Ok(())
    }
}
