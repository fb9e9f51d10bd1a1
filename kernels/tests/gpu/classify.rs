//! Class losses and softmax against the `f64` formulas, no worse than the same formulas in `f32`; exact where exactness
//! is the contract's.

use crate::harness::{Emulated, Subject, caught, checked, fast, own};
use crate::naive::classify::{formula, log_softmax};
use crate::naive::real::wide;
use crate::naive::{download, numbers, upload};
use crate::tolerance::{EPS, same_bits};
use emulator::Mode;
use kernels::Error;
use kernels::backend::Backend;
use kernels::classify::{ClassLoss, Classify, Kind, Row, Softmax};

#[derive(Clone)]
struct Case {
    classes: usize,
    z: Vec<f32>,
    teacher: Vec<f32>,
    table: Vec<Row>,
}

/// One of every kind, by number.
fn entry(i: usize, classes: usize) -> Row {
    let y = u32::try_from((i * 7919 + 3) % classes).unwrap();
    let w = 0.25 + (i % 5) as f32 * 0.5;
    match i % 11 {
        0 => Row::hard(y, w),
        1 => Row::focal(y, w, 2.0),
        2 => Row::focal(y, w, 0.0),
        3 => Row::distill(y, w, 0.5, 2.0),
        4 => Row::distill(y, w, 1.0, 0.75),
        5 => Row::retain(None, w),
        6 => Row::retain(Some(y), w),
        7 => Row::forget(None, w, 0.5, 6.0),
        8 => Row::forget(Some(y), w, 2.0, f32::INFINITY),
        9 => Row::forget(Some(y), w, 1.5, 1.0),
        _ => Row::distill(y, w, 0.0, 3.0),
    }
}

impl Case {
    fn new(rows: usize, classes: usize) -> Self {
        let scaled = |seed| numbers(seed, rows * classes).iter().map(|z| 4.0 * z).collect();
        Self {
            classes,
            z: scaled(1),
            teacher: scaled(2),
            table: (0..rows).map(|i| entry(i, classes)).collect(),
        }
    }

    fn one(entry: Row, z: &[f32], teacher: &[f32]) -> Self {
        let (z, teacher) = (z.to_vec(), teacher.to_vec());
        Self { classes: z.len(), z, teacher, table: vec![entry] }
    }

    fn row(&self, i: usize) -> Self {
        let at = i * self.classes..(i + 1) * self.classes;
        Self::one(self.table[i], &self.z[at.clone()], &self.teacher[at])
    }
}

/// `(losses, dz)`.
fn try_run(
    b: &Emulated,
    case: &Case,
    (teacher, gradient): (bool, bool),
) -> Result<(Vec<f32>, Vec<f32>), Error> {
    let rows = case.table.len();
    let (mut losses, mut dz) = (b.alloc(rows).unwrap(), b.alloc(case.z.len()).unwrap());
    b.poison(&mut losses, 0, rows);
    b.poison(&mut dz, 0, case.z.len());
    let of_teacher = upload(b, &case.teacher);
    b.class_loss(ClassLoss {
        logits: &upload(b, &case.z),
        teacher: teacher.then_some(&of_teacher),
        table: &upload(b, &case.table),
        losses: &mut losses,
        dlogits: gradient.then_some(&mut dz),
        rows,
        classes: case.classes,
    })?;
    if let Err(refused) = b.check_refusal() {
        let losses = download(b, &losses);
        assert!(losses[rows - 1].is_nan(), "the wrong row, the last one, was written");
        return Err(refused);
    }
    Ok((download(b, &losses), if gradient { download(b, &dz) } else { vec![] }))
}

fn run(b: &Emulated, case: &Case) -> (Vec<f32>, Vec<f32>) {
    try_run(b, case, (true, true)).unwrap()
}

/// Roundings of a row: sums of four classes of every 128 and a tree, exponentials of arguments that are themselves
/// rounded (`spread` of them, in units of their size), and the formula on top.
fn roundings(classes: usize, spread: f64) -> f64 {
    4.0 * classes.div_ceil(128) as f64 + 2.0 * spread + 24.0
}

fn compare(b: &Emulated, case: &Case) {
    let (losses, dz) = run(b, case);
    for (i, row) in case.table.iter().enumerate() {
        let at = i * case.classes..(i + 1) * case.classes;
        let (z, teacher) = (wide::<f64>(&case.z[at.clone()]), wide(&case.teacher[at.clone()]));
        let (loss, gradient) = formula(row, &z, &teacher);
        let widest = |x: &[f64]| {
            let fold = |(a, b): (f64, f64), x: &f64| (a.min(*x), b.max(*x));
            let (low, high) = x.iter().fold((f64::INFINITY, f64::NEG_INFINITY), fold);
            high - low
        };
        let t = f64::from(row.temperature);
        let kind = Kind::from_code(row.kind).unwrap();
        let spread = widest(&z).max(widest(&teacher)) * if t < 1.0 { 1.0 / t } else { 1.0 };
        let k = roundings(case.classes, spread) * EPS;
        // What is subtracted, or multiplied by the cross-entropy.
        let entropy = spread + (case.classes as f64).ln() + 1.0;
        let size = match kind {
            Kind::Forget if row.margin.is_finite() => {
                f64::from(row.beta) * (f64::from(row.margin) + entropy)
            }
            Kind::Forget => f64::from(row.beta) * entropy,
            Kind::Distill => entropy * (1.0 + t * t),
            _ => entropy,
        };
        let off = (f64::from(losses[i]) - loss).abs();
        assert!(off <= k * size, "row {i} {row:?}: loss {} for {loss}", losses[i]);
        let steep = f64::from(row.weight * row.beta.max(1.0))
            * (1.0 + t)
            * match kind {
                // The derivative of focal's factor, itself a few roundings off.
                Kind::Focal => (1.0 + f64::from(row.gamma)) * (1.0 + entropy),
                _ => 1.0,
            };
        for (n, (got, want)) in dz[at].iter().zip(&gradient).enumerate() {
            // The formula of focal has no value at a loss of zero; there the loss is flat.
            let want = if want.is_nan() && loss == 0.0 { 0.0 } else { *want };
            let off = (f64::from(*got) - want).abs();
            assert!(off <= k * steep, "row {i} {row:?}: dz[{n}] {got} for {want}");
        }
    }
}

fn softmax(b: &Emulated, z: &[f32], classes: usize) -> Vec<f32> {
    let mut p = b.alloc(z.len()).unwrap();
    b.poison(&mut p, 0, z.len());
    let (rows, logits) = (z.len() / classes, &upload(b, z));
    b.softmax(Softmax { logits, probabilities: &mut p, rows, classes }).unwrap();
    download(b, &p)
}

fn compare_softmax(b: &Emulated, rows: usize, classes: usize) {
    let z: Vec<f32> = numbers(3, rows * classes).iter().map(|z| 9.0 * z).collect();
    let p = softmax(b, &z, classes);
    for (got, z) in p.chunks(classes).zip(z.chunks(classes)) {
        let want = log_softmax(&wide::<f64>(z), 1.0).into_iter().map(f64::exp);
        let k = roundings(classes, 18.0) * EPS;
        for (got, want) in got.iter().zip(want) {
            assert!((f64::from(*got) - want).abs() <= k * want, "{got} for {want}");
        }
    }
}

#[test]
fn every_kind_is_within_the_derived_bound() {
    for classes in [1, 2, 3, 4, 18, 31, 127, 128, 132, 517] {
        compare(fast(), &Case::new(22, classes));
        compare_softmax(fast(), 5, classes);
    }
    compare(fast(), &Case::new(0, 5));
}

#[test]
fn rows_do_not_see_each_other_nor_their_alignment() {
    for classes in [18, 31, 132] {
        let case = Case::new(23, classes);
        let (losses, dz) = run(fast(), &case);
        for i in 0..case.table.len() {
            let (loss, own) = run(fast(), &case.row(i));
            same_bits("loss", &loss, &losses[i..=i]);
            same_bits("dz", &own, &dz[i * classes..(i + 1) * classes]);
        }
        let (alone, _) = try_run(fast(), &case, (true, false)).unwrap();
        same_bits("losses without a gradient", &alone, &losses);
    }
}

#[test]
fn what_is_exact_is_exact() {
    let (z, far) = ([0.5f32, -1.0, 2.0, 0.25], [0.5f32, -1e4, 2.0, 1e4]);
    // Beyond the margin there is nothing.
    let (loss, dz) = run(fast(), &Case::one(Row::forget(Some(1), 2.0, 1.0, 0.5), &z, &z));
    assert_eq!((loss, dz), (vec![0.0], vec![0.0; 4]));
    // A copy of the teacher has no divergence and does not move, at any temperature.
    for t in [0.5, 1.0, 3.0] {
        let (loss, dz) = run(fast(), &Case::one(Row::distill(0, 1.0, 1.0, t), &z, &z));
        assert_eq!((loss, dz), (vec![0.0], vec![0.0; 4]));
    }
    let (_, dz) = run(fast(), &Case::one(Row::retain(None, 1.0), &z, &z));
    assert_eq!(dz, vec![0.0; 4]);
    // Far-out logits stay finite; a class that nobody believes in costs nothing.
    for row in [Row::hard(0, 1.0), Row::focal(3, 1.0, 0.5), Row::retain(None, 1.0)] {
        let (loss, dz) = run(fast(), &Case::one(row, &far, &far));
        assert!(
            loss[0].is_finite() && dz.iter().all(|d| d.is_finite()),
            "{row:?}: {loss:?} {dz:?}"
        );
    }
    let masked = [f32::NEG_INFINITY, 1.0, 2.0];
    let (loss, _) = run(fast(), &Case::one(Row::retain(None, 1.0), &masked, &masked));
    assert!(loss[0].is_finite(), "{loss:?}");
    // A confident row's small loss keeps its digits: ln(1 + e^-40).
    let (loss, _) = run(fast(), &Case::one(Row::hard(0, 1.0), &[40.0, 0.0], &z));
    assert!((f64::from(loss[0]) / (-40.0f64).exp() - 1.0).abs() < 1e-6, "{loss:?}");
    // Two largest logits: one of them stays in the sum.
    let (loss, _) = run(fast(), &Case::one(Row::hard(1, 1.0), &[3.0, 3.0], &z));
    assert!((f64::from(loss[0]) - 2.0f64.ln()).abs() < EPS, "{loss:?}");
    // What is no number stays none.
    for z in [[f32::NAN, 1.0], [f32::NEG_INFINITY; 2], [f32::NAN; 2]] {
        let (loss, dz) = run(fast(), &Case::one(Row::hard(1, 1.0), &z, &z));
        assert!(loss[0].is_nan() && dz.iter().any(|d| d.is_nan()), "{z:?}: {loss:?} {dz:?}");
        assert!(softmax(fast(), &z, 2).iter().any(|p| p.is_nan()), "{z:?}");
    }
}

#[test]
fn wrong_entries_are_refused_by_the_next_read_and_left_unwritten() {
    let device = own();
    let told = |wrong: Row, teacher: bool| {
        let mut case = Case::new(2, 3);
        case.table = vec![Row::hard(0, 1.0), wrong];
        try_run(&device, &case, (teacher, true)).unwrap_err().to_string()
    };
    let hard = Row::hard(1, 1.0);
    for (wrong, text) in [
        (Row { kind: 5, ..hard }, "kind 5"),
        (Row::hard(3, 1.0), "target 3"),
        (Row::retain(Some(9), 1.0), "target 9"),
        (Row { soft: 2, ..hard }, "soft flag 2"),
        (Row::focal(0, 1.0, -1.0), "the number 4"),
        (Row::focal(0, 1.0, f32::INFINITY), "the number 4"),
        (Row::distill(0, 1.0, 1.5, 1.0), "the number 5"),
        (Row::distill(0, 1.0, 0.5, 0.0), "the number 6"),
        (Row::distill(0, 1.0, 0.5, f32::NAN), "the number 6"),
        (Row::forget(None, 1.0, f32::NAN, 1.0), "the number 7"),
        (Row::forget(None, 1.0, 1.0, -1.0), "the number 8"),
    ] {
        let told = told(wrong, true);
        assert!(
            told.starts_with("class_loss: row 1: ") && told.contains(text),
            "{told} for {text}"
        );
        assert!(Row::check_all(&[wrong], 3, true).is_err(), "the host takes {wrong:?}");
    }
    assert!(told(Row::retain(None, 1.0), false).contains("without a teacher, kind 3"));
    assert!(try_run(fast(), &Case::one(hard, &[1.0, 2.0], &[]), (false, true)).is_ok());
}

#[test]
fn every_access_is_checked() {
    for (rows, classes) in [(0, 3), (11, 5), (12, 18), (11, 132), (11, 260)] {
        compare(checked(), &Case::new(rows, classes));
        compare_softmax(checked(), rows.min(3), classes);
    }
}

#[test]
fn seeded_faults_are_caught() {
    let case = Case::new(22, 18);
    for fault in ["CLASSIFY_MARGIN", "CLASSIFY_TEMPERATURE"] {
        caught(Mode::Fast, fault, |b| compare(b, &case));
    }
    let ties = Case::one(Row::hard(1, 1.0), &[3.0, 3.0], &[0.0; 2]);
    caught(Mode::Fast, "CLASSIFY_TIES", |b| compare(b, &ties));
}
