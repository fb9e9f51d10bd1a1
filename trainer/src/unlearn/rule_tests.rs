//! Forget and retain sets by hand-computed cases; smoothing, weights, nonsense.

use super::*;

fn split(rule: Rule, population: &[u64], person: &[u64], smoothing: f64) -> Split {
    Split::new(rule, Counts { population, person, hits: &[] }, smoothing, true).unwrap()
}

fn ratio(tau: f64, min_count: u64) -> Rule {
    Rule::Ratio { tau, min_count }
}

/// Shares, smoothed by 1 over 4 intents: population (50, 30, 16, 4) + 1 over 104, person (2, 3, 1, 6) + 1 over 16.
const POPULATION: [u64; 4] = [50, 30, 16, 4];
const PERSON: [u64; 4] = [2, 3, 1, 6];

#[test]
fn ratios_by_hand() {
    // p_i / p_pop = (3/16)/(51/104) .3824, (4/16)/(31/104) .8387, (2/16)/(17/104) .7647, (7/16)/(5/104) 9.1.
    let of = |tau, least| split(ratio(tau, least), &POPULATION, &PERSON, 1.0).forget;
    assert_eq!(of(9.1001, 0), [0_u32; 0]);
    assert_eq!(of(9.0999, 0), [3]);
    assert_eq!(of(0.83, 0), [1, 3]);
    assert_eq!(of(0.77, 3), [1, 3]);
    assert_eq!(of(0.77, 4), [3]);
    assert_eq!(of(0.77, 7), [0_u32; 0]);
    assert_eq!(of(0.3, 0), [0, 1, 2, 3]);
}

#[test]
fn weights_by_hand() {
    // Two intents above 1: population (90, 8, 2) + 1 over 103, person (2, 3, 5) + 1 over 13.
    let split = split(ratio(1.5, 1), &[90, 8, 2], &[2, 3, 5], 1.0);
    assert_eq!(split.forget, [1, 2]);
    let [a, b] = [(4.0 / 13.0) / (9.0 / 103.0), (6.0 / 13.0) / (3.0 / 103.0)].map(f64::ln);
    let scale = 8.0 / (3.0 * a + 5.0 * b);
    assert!((split.weights[0] - scale * a).abs() < 1e-12);
    assert!((split.weights[1] - scale * b).abs() < 1e-12);
    assert!((3.0 * split.weights[0] + 5.0 * split.weights[1] - 8.0).abs() < 1e-12);
    assert_eq!(split.weight(2), Some(split.weights[1]));
    assert_eq!((split.weight(0), split.weight(7)), (None, None));
    let counts = Counts { population: &[90, 8, 2], person: &[2, 3, 5], hits: &[] };
    let plain = Split::new(ratio(1.5, 1), counts, 1.0, false).unwrap();
    assert_eq!(plain.weights, [1.0, 1.0]);
}

#[test]
fn differences_by_hand() {
    // p_i - p_pop: -.303, -.048, -.038, +.389.
    let of = |top, least| {
        let rule = Rule::Difference { top, min_count: least };
        split(rule, &POPULATION, &PERSON, 1.0).forget
    };
    assert_eq!(of(3, 0), [3], "only what the person does more");
    assert_eq!(of(0, 0), [0_u32; 0]);
    assert_eq!(of(3, 7), [0_u32; 0]);
    // Equal differences: the smaller numbers.
    let even = split(Rule::Difference { top: 2, min_count: 1 }, &[9, 1, 1, 1], &[0, 4, 4, 4], 1.0);
    assert_eq!(even.forget, [1, 2]);
}

#[test]
fn teacher_errors_by_hand() {
    let of = |recall_below, min_count| {
        let counts = Counts { population: &POPULATION, person: &PERSON, hits: &[1, 3, 0, 2] };
        let rule = Rule::TeacherError { recall_below, min_count };
        Split::new(rule, counts, 1.0, true)
    };
    // Recalls 1/2, 1, 0, 1/3.
    assert_eq!(of(0.5, 1).unwrap().forget, [2, 3]);
    assert_eq!(of(0.51, 1).unwrap().forget, [0, 2, 3]);
    assert_eq!(of(1.0, 1).unwrap().forget, [0, 2, 3]);
    assert_eq!(of(0.5, 2).unwrap().forget, [3]);
    // Intent 2 is rarer in the person than in the population: all weight goes to intent 3, 6 of 7 targets.
    let weights = of(0.5, 1).unwrap().weights;
    assert!(weights[0].abs() < 1e-15);
    assert!((weights[1] - 7.0 / 6.0).abs() < 1e-12);
    // Nothing that the person does more: plain weights.
    let counts = Counts { population: &[1, 9], person: &[5, 2], hits: &[5, 0] };
    let rule = Rule::TeacherError { recall_below: 0.5, min_count: 1 };
    assert_eq!(Split::new(rule, counts, 1.0, true).unwrap().weights, [1.0]);
}

/// The drawing's shares, population -> individual: forgotten are 8 (.007 -> .229), 14 (.003 -> .041) and 10 (.034 ->
/// .066); retained, among others, 4 (.012 -> .086) and 11 (x 1.98, taken as .050 -> .099). The rest stands for the 13
/// others.
#[test]
fn no_threshold_draws_the_published_figure() {
    let mut population = [0_u64; 18];
    let mut person = [0_u64; 18];
    for (number, p, own) in [(8, 7, 229), (14, 3, 41), (10, 34, 66), (4, 12, 86), (11, 50, 99)] {
        population[number - 1] = p;
        person[number - 1] = own;
    }
    let others: Vec<usize> = (0..18).filter(|n| person[*n] == 0).collect();
    for (i, &n) in others.iter().enumerate() {
        // 894 and 479 of 1000 over 13 intents: none over-represented.
        population[n] = if i == 0 { 894 - 12 * 68 } else { 68 };
        person[n] = if i == 0 { 479 - 12 * 36 } else { 36 };
    }
    assert_eq!((population.iter().sum::<u64>(), person.iter().sum::<u64>()), (1000, 1000));
    let named = |rule| {
        let split = split(rule, &population, &person, 1e-9);
        split.forget.iter().map(|n| n + 1).collect::<Vec<u32>>()
    };
    assert_eq!(named(ratio(1.9, 3)), [4, 8, 10, 11, 14], "the drawn three, and two retained ones");
    assert_eq!(named(ratio(1.95, 3)), [4, 8, 11, 14]);
    assert_eq!(named(ratio(2.0, 3)), [4, 8, 14]);
    assert_eq!(named(ratio(8.0, 3)), [8, 14]);
    assert_eq!(named(ratio(20.0, 3)), [8]);
    let top = |top| named(Rule::Difference { top, min_count: 3 });
    assert_eq!(top(3), [4, 8, 11]);
    assert_eq!(top(5), [4, 8, 10, 11, 14]);
    let drawn = [8, 10, 14];
    assert!((1..4000).all(|i| named(ratio(f64::from(i) * 0.01, 1)) != drawn));
    assert!((0..=18).all(|k| top(k) != drawn));
    // The third reading does: a teacher that is right on 4 and 11.
    let mut hits = person;
    for number in [8, 10, 14] {
        hits[number - 1] /= 4;
    }
    let counts = Counts { population: &population, person: &person, hits: &hits };
    let rule = Rule::TeacherError { recall_below: 0.5, min_count: 3 };
    let split = Split::new(rule, counts, 1.0, true).unwrap();
    assert_eq!(split.forget, [7, 9, 13]);
}

#[test]
fn smoothing_tames_what_the_population_never_does() {
    let rule = ratio(2.0, 1);
    let smoothed = split(rule, &[1000, 0], &[10, 1], 1.0);
    assert_eq!(smoothed.forget, [1]);
    assert!(smoothed.weights[0].is_finite());
    assert_eq!(split(rule, &[0, 0], &[0, 0], 1.0), Split::default());
    assert_eq!(split(rule, &[], &[], 1.0), Split::default());
}

#[test]
fn nonsense_is_refused() {
    let counts = Counts { population: &POPULATION, person: &PERSON, hits: &[0; 4] };
    let of = |rule, counts, smoothing| Split::new(rule, counts, smoothing, true).unwrap_err();
    let parameter = |rule, smoothing| match of(rule, counts, smoothing) {
        RuleError::Parameter { key, .. } => key,
        other => panic!("{other}"),
    };
    assert_eq!(parameter(ratio(0.0, 1), 1.0), "tau");
    assert_eq!(parameter(ratio(f64::NAN, 1), 1.0), "tau");
    assert_eq!(parameter(ratio(2.0, 1), 0.0), "smoothing");
    assert_eq!(parameter(ratio(2.0, 1), f64::INFINITY), "smoothing");
    let teacher = |recall_below, min_count| Rule::TeacherError { recall_below, min_count };
    assert_eq!(parameter(teacher(1.1, 1), 1.0), "recall_below");
    assert_eq!(parameter(teacher(0.5, 0), 1.0), "min_count");
    let short = Counts { person: &PERSON[..3], ..counts };
    assert!(matches!(
        of(ratio(2.0, 1), short, 1.0),
        RuleError::Lengths { got: 3, expected: 4, .. }
    ));
    let unseen = Counts { hits: &[], ..counts };
    assert!(matches!(of(teacher(0.5, 1), unseen, 1.0), RuleError::Lengths { got: 0, .. }));
    let lucky = Counts { hits: &[0, 4, 0, 0], ..counts };
    let hits = RuleError::Hits { intent: 1, hits: 4, count: 3 };
    assert_eq!(of(teacher(0.5, 1), lucky, 1.0), hits);
    assert!(toml::from_str::<Rule>("rule = \"ratio\"\ntau = 2.0\nmin_count = 3\n").is_ok());
    assert!(toml::from_str::<Rule>("rule = \"ratio\"\ntau = 2.0\nmin_count = 3\nq = 1\n").is_err());
}
