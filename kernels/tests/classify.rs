//! Class losses on every backend, against naive, finite differences and candle; what is exact; and that
//! forgetting has an end.
#![expect(clippy::unwrap_used, reason = "a test panics when wrong; its data is small and exact")]

mod naive;
mod tolerance;

use candle_core::{D, DType, Device, Tensor, Var};
use kernels::classify::{ClassLoss, Classify, Row, Softmax};
use kernels::{Cpu, Error};
use naive::classify::formula;
use naive::real::{Real, wide};
use naive::{Naive, download, numbers, upload};
use tolerance::{differences, no_worse, on_threads, same_bits};

#[derive(Clone)]
struct Case {
    classes: usize,
    z: Vec<f32>,
    teacher: Vec<f32>,
    table: Vec<Row>,
}

/// One of every kind, by number.
fn row(i: usize, classes: usize) -> Row {
    let y = u32::try_from((i * 7919 + 3) % classes).unwrap();
    let w = 0.25 + (i % 5) as f32 * 0.5;
    match i % 9 {
        0 => Row::hard(y, w),
        1 => Row::focal(y, w, 2.0),
        2 => Row::focal(y, w, 0.5),
        3 => Row::distill(y, w, 0.5, 2.0),
        4 => Row::distill(y, w, 1.0, 0.75),
        5 => Row::retain(None, w),
        6 => Row::forget(None, w, 0.5, 6.0),
        7 => Row::forget(Some(y), w, 2.0, f32::INFINITY),
        _ => Row::forget(Some(y), w, 1.5, 1.0),
    }
}

impl Case {
    fn new(rows: usize, classes: usize) -> Self {
        let scaled = |seed| numbers(seed, rows * classes).iter().map(|z| 4.0 * z).collect();
        Self {
            classes,
            z: scaled(1),
            teacher: scaled(2),
            table: (0..rows).map(|i| row(i, classes)).collect(),
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

/// `(losses, dz)`; outputs begin as NaN.
fn try_run<B: Classify>(
    b: &B,
    case: &Case,
    (teacher, gradient): (bool, bool),
) -> Result<(Vec<f32>, Vec<f32>), Error> {
    let rows = case.table.len();
    let mut losses = upload(b, &vec![f32::NAN; rows]);
    let mut dlogits = upload(b, &vec![f32::NAN; case.z.len()]);
    b.class_loss(ClassLoss {
        logits: &upload(b, &case.z),
        teacher: teacher.then_some(&upload(b, &case.teacher)),
        table: &upload(b, &case.table),
        losses: &mut losses,
        dlogits: gradient.then_some(&mut dlogits),
        rows,
        classes: case.classes,
    })?;
    Ok((download(b, &losses), download(b, &dlogits)))
}

fn run<B: Classify>(b: &B, case: &Case) -> (Vec<f32>, Vec<f32>) {
    try_run(b, case, (true, true)).unwrap()
}

fn softmax<B: Classify>(b: &B, z: &[f32], classes: usize) -> Vec<f32> {
    let mut probabilities = upload(b, &vec![f32::NAN; z.len()]);
    let rows = z.len() / classes;
    let (logits, p) = (&upload(b, z), &mut probabilities);
    b.softmax(Softmax { logits, probabilities: p, rows, classes }).unwrap();
    download(b, &probabilities)
}

/// The formulas in one kind of number.
fn formulas<F: Real>(case: &Case) -> (Vec<F>, Vec<F>) {
    let (z, teacher) = (wide::<F>(&case.z), wide::<F>(&case.teacher));
    let rows = z.chunks(case.classes).zip(teacher.chunks(case.classes)).zip(&case.table);
    let results: Vec<_> = rows.map(|((z, teacher), row)| formula(row, z, teacher)).collect();
    (results.iter().map(|r| r.0).collect(), results.into_iter().flat_map(|r| r.1).collect())
}

#[test]
fn cpu_is_as_exact_as_plain_loops() {
    for (rows, classes) in [(0, 4), (9, 2), (45, 15), (37, 16), (90, 17), (18, 33), (27, 300)] {
        let case = Case::new(rows, classes);
        let (ours, plain) = (run(&Cpu, &case), formulas::<f32>(&case));
        let truth = formulas::<f64>(&case);
        let label = format!("{rows} {classes}");
        no_worse(&format!("{label} losses"), 2.0, &ours.0, &plain.0, &truth.0);
        no_worse(&format!("{label} dz"), 3.0, &ours.1, &plain.1, &truth.1);
        let (losses, untouched) = try_run(&Cpu, &case, (true, false)).unwrap();
        same_bits("losses alone", &losses, &ours.0);
        assert!(untouched.iter().all(|x| x.is_nan()));
        let p = softmax(&Cpu, &case.z, classes);
        no_worse("softmax", 2.0, &p, &softmax(&Naive, &case.z, classes), &{
            let rows = case.z.chunks(classes).map(wide::<f64>);
            let logs = rows.flat_map(|z| naive::classify::log_softmax(&z, 1.0));
            logs.map(f64::exp).collect::<Vec<_>>()
        });
        for p in p.chunks(classes) {
            let total: f64 = p.iter().map(|p| f64::from(*p)).sum();
            assert!((total - 1.0).abs() < classes as f64 * tolerance::EPS, "{total}");
        }
    }
}

#[test]
fn rows_do_not_see_each_other_nor_the_threads() {
    let mut case = Case::new(207, 19);
    let all = on_threads(|| run(&Cpu, &case));
    for other in &all[1..] {
        same_bits("losses", &all[0].0, &other.0);
        same_bits("dz", &all[0].1, &other.1);
    }
    // A hard row, a divergence, and a bounded forgetting beyond its margin: NaN goes through each.
    for i in [99, 102, 107] {
        case.z[i * 19 + 3] = f32::NAN;
    }
    case.teacher[104 * 19] = f32::NAN;
    let poisoned = run(&Cpu, &case);
    for i in 0..207 {
        let at = i * 19..(i + 1) * 19;
        if [99, 102, 107, 104].contains(&i) && case.table[i].kind != 3 {
            assert!(poisoned.0[i].is_nan() && poisoned.1[at].iter().any(|d| d.is_nan()), "{i}");
        } else if ![99, 102, 107, 104].contains(&i) {
            let alone = run(&Cpu, &case.row(i));
            assert_eq!(poisoned.0[i].to_bits(), alone.0[0].to_bits());
            assert_eq!(poisoned.0[i].to_bits(), all[0].0[i].to_bits());
            same_bits("alone", &poisoned.1[at], &alone.1);
        }
    }
}

#[test]
fn every_backend_agrees_with_differences() {
    fn agrees<B: Classify>(b: &B) {
        let case = Case::new(36, 7);
        let (_, dz) = run(b, &case);
        differences("dz", &dz, &case.z, |z| {
            let teacher = wide::<f64>(&case.teacher);
            let rows = z.chunks(7).zip(teacher.chunks(7)).zip(&case.table);
            rows.map(|((z, t), row)| f64::from(row.weight) * formula(row, z, t).0).sum()
        });
    }
    agrees(&Cpu);
    agrees(&Naive);
}

/// The losses as candle's users write them, differentiated by candle.
fn by_candle(entry: &Row, z: &Var, teacher: &Tensor) -> Tensor {
    let log_softmax = |x: &Tensor| candle_nn::ops::log_softmax(x, D::Minus1).unwrap();
    let log_p = log_softmax(z);
    let label = |log_p: &Tensor| log_p.narrow(0, entry.target as usize, 1).unwrap();
    let ce = label(&log_p).neg().unwrap().sum_all().unwrap();
    let soft = || (log_softmax(teacher).exp().unwrap() * &log_p).unwrap().sum_all().unwrap();
    let against = || if entry.soft == 1 { soft().neg().unwrap() } else { ce.clone() };
    match entry.kind {
        1 => {
            let u = (1.0 - label(&log_p).exp().unwrap()).unwrap().sum_all().unwrap();
            (u.powf(f64::from(entry.gamma)).unwrap() * ce).unwrap()
        }
        2 => {
            let (alpha, t) = (f64::from(entry.alpha), f64::from(entry.temperature));
            let of_teacher = log_softmax(&(teacher / t).unwrap());
            let warm = log_softmax(&(z.as_tensor() / t).unwrap());
            let ratio = (&of_teacher - warm).unwrap();
            let kl = (of_teacher.exp().unwrap() * ratio).unwrap().sum_all().unwrap();
            ((ce * (1.0 - alpha)).unwrap() + (kl * (alpha * t * t)).unwrap()).unwrap()
        }
        4 if entry.margin == f32::INFINITY => (against() * -f64::from(entry.beta)).unwrap(),
        4 => {
            let slack = (f64::from(entry.margin) - against()).unwrap().relu().unwrap();
            (slack * f64::from(entry.beta)).unwrap()
        }
        _ => against(),
    }
}

#[test]
fn candle_agrees() {
    let case = Case::new(90, 11);
    let (mut losses, mut gradient) = (vec![], vec![]);
    for (i, entry) in case.table.iter().enumerate() {
        let of = |x: &[f32]| {
            let x = Tensor::new(&x[i * 11..(i + 1) * 11], &Device::Cpu).unwrap();
            x.to_dtype(DType::F64).unwrap()
        };
        let z = Var::from_tensor(&of(&case.z)).unwrap();
        let loss = by_candle(entry, &z, &of(&case.teacher));
        let grads = (&loss * f64::from(entry.weight)).unwrap().backward().unwrap();
        losses.push(loss.to_scalar::<f64>().unwrap());
        gradient.extend(grads.get(&z).unwrap().to_vec1::<f64>().unwrap());
    }
    let (plain, ours) = (formulas::<f32>(&case), run(&Cpu, &case));
    no_worse("losses", 2.0, &ours.0, &plain.0, &losses);
    no_worse("dz", 3.0, &ours.1, &plain.1, &gradient);
}

#[test]
fn equal_rows_diverge_by_exactly_nothing() {
    for classes in [1, 5, 16, 40] {
        let z: Vec<f32> = numbers(9, classes).iter().map(|z| 30.0 * z).collect();
        for t in [0.3, 1.0, 2.0, 7.0] {
            let (losses, dz) = run(&Cpu, &Case::one(Row::distill(0, 1.0, 1.0, t), &z, &z));
            assert!(losses[0] == 0.0 && dz.iter().all(|d| *d == 0.0), "{losses:?} {dz:?}");
        }
        // Staying with the teacher and leaving it are both at rest there.
        for entry in [Row::retain(None, 1.0), Row::forget(None, 1.0, 1.0, 1e3)] {
            let (_, dz) = run(&Cpu, &Case::one(entry, &z, &z));
            assert!(dz.iter().all(|d| *d == 0.0), "{dz:?}");
        }
    }
}

#[test]
fn far_out_logits_stay_finite_and_small_losses_keep_their_digits() {
    let kinds = |y| {
        (0..9).map(move |i| {
            let mut entry = row(i, 3);
            entry.target = y;
            entry
        })
    };
    for y in 0..3 {
        for entry in kinds(y) {
            for z in [[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4], [1e4, 1e4, 1e4], [0.0, 1e4, 9999.0]] {
                let (losses, dz) = run(&Cpu, &Case::one(entry, &z, &[-1e4, 1e4, 0.0]));
                let all = losses.iter().chain(&dz).all(|x| x.is_finite());
                assert!(all, "{entry:?} {z:?}: {losses:?} {dz:?}");
            }
        }
    }
    // -ln p = ln(1 + e^-25): in f32, 1 + e^-25 is 1.
    let (losses, dz) = run(&Cpu, &Case::one(Row::hard(0, 1.0), &[25.0, 0.0], &[0.0; 2]));
    let want = (-25.0f64).exp().ln_1p();
    assert!((f64::from(losses[0]) / want - 1.0).abs() < 1e-6, "{losses:?}");
    assert!((f64::from(dz[0]) / -want - 1.0).abs() < 1e-6, "{dz:?}");
    // An impossible class: minus infinity is a logit like any other.
    let (losses, dz) = run(
        &Cpu,
        &Case::one(Row::retain(None, 1.0), &[1.0, f32::NEG_INFINITY], &[0.0, f32::NEG_INFINITY]),
    );
    assert!(losses[0] == 0.0 && dz == [0.0, 0.0], "{losses:?} {dz:?}");
    assert_eq!(softmax(&Cpu, &[0.0, f32::NEG_INFINITY, 0.0], 3), [0.5, 0.0, 0.5]);
}

#[test]
fn kinds_meet_where_they_should() {
    let z = [0.5, -1.0, 2.0, 0.1, 1.5];
    let of = |entry| run(&Cpu, &Case::one(entry, &z, &[1.0, 2.0, 0.0, -1.0, 0.5]));
    let (loss, dz) = of(Row::hard(1, 0.7));
    for same in [Row::focal(1, 0.7, 0.0), Row::retain(Some(1), 0.7), Row::distill(1, 0.7, 0.0, 3.0)]
    {
        assert_eq!(of(same), (loss.clone(), dz.clone()), "{same:?}");
    }
    // With a weight of zero nothing moves; the loss is still told.
    assert_eq!(of(Row::hard(1, 0.0)), (loss.clone(), vec![0.0; 5]));
    let (less, opposite) = of(Row::forget(Some(1), 0.7, 1.0, 10.0));
    assert!((less[0] - (10.0 - loss[0])).abs() < 1e-5);
    assert_eq!(dz, opposite.iter().map(|d| -d).collect::<Vec<f32>>());
    // At the margin, and beyond it, exactly nothing.
    for margin in [loss[0], loss[0] / 2.0, 0.0] {
        let (beyond, still) = of(Row::forget(Some(1), 0.7, 1.0, margin));
        assert!(beyond[0] == 0.0 && still.iter().all(|d| d.to_bits() == 0), "{still:?}");
    }
    // One class: nothing to learn, nothing to forget but the margin.
    for i in 0..9 {
        let (losses, dz) = run(&Cpu, &Case::one(row(i, 1), &[3.0], &[-2.0]));
        assert!(losses[0].is_finite() && dz[0] == 0.0, "{i}: {losses:?} {dz:?}");
    }
}

/// Largest `|z|` and largest loss over 1,000 seeds after `steps` steps of descent by forgetting alone.
fn descend(steps: usize, (rate, margin): (f32, f32)) -> (f32, Vec<f32>) {
    const SEEDS: usize = 1000;
    const N: usize = 6;
    let mut z: Vec<f32> = numbers(5, SEEDS * N).iter().map(|z| 2.0 * z).collect();
    let teacher: Vec<f32> = numbers(6, SEEDS * N).iter().map(|z| 3.0 * z).collect();
    let label = |i: usize| i.is_multiple_of(2).then(|| u32::try_from(i % N).unwrap());
    let table: Vec<Row> = (0..SEEDS).map(|i| Row::forget(label(i), 1.0, 1.0, margin)).collect();
    let mut case = Case { classes: N, z: vec![], teacher, table };
    for _ in 0..steps {
        case.z = std::mem::take(&mut z);
        let (_, dz) = run(&Cpu, &case);
        z = case.z.iter().zip(dz).map(|(z, d)| z - rate * d).collect();
    }
    case.z = z;
    let (losses, _) = run(&Cpu, &case);
    (
        case.z
            .iter()
            .fold(0.0f32, |top, z| if z.is_finite() { top.max(z.abs()) } else { f32::NAN }),
        losses,
    )
}

/// With a margin `m`, a step `s` and `K` steps: CE is convex in `z`, so each step raises it by at least
/// `s |g|²`; before the last step it was below `m`. So `Σ|g|² <= m/s + |g_last|²` and, by Cauchy and
/// Schwarz, `z` moves at most `s Σ|g| <= sqrt(K s m) + s sqrt(2)`, whatever `K`: and once every
/// row is beyond the margin, `z` stands still.
#[test]
fn forgetting_is_bounded_and_without_a_margin_it_is_not() {
    let (steps, rate, margin) = (400, 0.5f32, 6.0f32);
    let (top, losses) = descend(steps, (rate, margin));
    let bound = 2.0 + (steps as f32 * rate * margin).sqrt() + rate * 2f32.sqrt();
    assert!(top <= bound, "{top} of {bound}");
    assert!(losses.iter().all(|l| *l == 0.0), "every row reached its margin");
    let (later, _) = descend(2 * steps, (rate, margin));
    assert_eq!(later.to_bits(), top.to_bits(), "and stands still there");
    let (free, _) = descend(steps, (rate, f32::INFINITY));
    let (freer, losses) = descend(2 * steps, (rate, f32::INFINITY));
    assert!(free > bound && freer > 1.8 * free, "{free} {freer}: no end");
    assert!(losses.iter().all(|l| *l < -50.0), "below any bound");
}

#[test]
fn entries_that_are_no_losses_are_refused() {
    fn refused<B: Classify>(b: &B) {
        let good = Case::new(9, 5);
        let wrong = |i: usize, change: &dyn Fn(&mut Row)| {
            let mut case = good.clone();
            change(&mut case.table[i]);
            let error = try_run(b, &case, (true, true)).unwrap_err();
            let Error::Routing { op: "class_loss", what } = error else { panic!("{error}") };
            assert!(what.starts_with(&format!("row {i}: ")), "{what}");
        };
        wrong(0, &|row| row.kind = 5);
        wrong(0, &|row| row.target = 5);
        wrong(5, &|row| row.soft = 2);
        wrong(8, &|row| row.target = u32::MAX);
        for bad in [f32::NAN, -1.0, f32::INFINITY] {
            wrong(1, &|row| row.gamma = bad);
            wrong(3, &|row| row.alpha = bad);
            wrong(3, &|row| row.temperature = bad);
            wrong(6, &|row| row.beta = bad);
        }
        wrong(3, &|row| row.temperature = 0.0);
        wrong(6, &|row| row.margin = f32::NAN);
        wrong(6, &|row| row.margin = -1.0);
        let error = try_run(b, &good, (false, true)).unwrap_err();
        assert!(matches!(error, Error::Routing { .. }), "{error}");
        let mut hard = good.clone();
        hard.table = vec![Row::hard(4, 1.0); 9];
        assert!(try_run(b, &hard, (false, true)).is_ok());
        hard.z.pop();
        let error = try_run(b, &hard, (false, true)).unwrap_err();
        assert!(matches!(error, Error::Length { what: "logits", .. }), "{error}");
        hard.classes = 0;
        let error = try_run(b, &hard, (false, true)).unwrap_err();
        assert!(matches!(error, Error::Shape { what: "classes", .. }), "{error}");
    }
    refused(&Cpu);
    refused(&Naive);
}
