//! What holds for every log.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::fs::File;
use std::io::Write as _;

/// A row and its number.
type Numbered = (usize, (u8, i64, u8));

/// Rows of a log: user, seconds, event. Few values, so that ties and repeats are common.
fn rows() -> impl Strategy<Value = Vec<(u8, i64, u8)>> {
    vec((0..5u8, 0..40i64, 0..4u8), 2..80)
}

/// The rows as CSV, each with its number as the context `row`.
fn csv(rows: &[Numbered]) -> Vec<u8> {
    let mut text = "user,time,event,row\n".to_owned();
    for (number, (user, time, event)) in rows {
        text.push_str(&format!("u{user},{},e{event},{number}\n", time * 1800));
    }
    text.into_bytes()
}

fn format(gap: Option<u64>, collapse: Option<u64>, duplicates: Duplicates) -> Format {
    let mut format = Format::canonical(Kind::Csv, &["row".to_owned()]);
    format.columns.intent = None;
    Format {
        intent: Intent::Event,
        time: TimeFormat::UnixSeconds,
        gap_seconds: gap,
        collapse_seconds: collapse,
        duplicates,
        ..format
    }
}

fn read_rows(
    files: &[&[Numbered]],
    format: &Format,
    split: &Split,
) -> Result<(EventData, Tally), DataError> {
    let folder = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for (number, rows) in files.iter().enumerate() {
        paths.push(folder.path().join(number.to_string()));
        File::create(&paths[number]).unwrap().write_all(&csv(rows)).unwrap();
    }
    read(&paths, format, split, OnBad::Stop)
}

/// The number of the row that an event came from.
fn row_of(data: &EventData, row: &[u32]) -> usize {
    data.vocabulary.columns[CONTEXTS].values[row[CONTEXTS] as usize].parse().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// With every row known by number: windows are what comes before, in the order of time and file.
    #[test]
    fn windows_hold_the_past_alone(
        rows in rows(), gap in prop::option::of(0..20_000u64), collapse in prop::option::of(0..4000u64),
        length in 1..6usize,
    ) {
        let rows: Vec<_> = rows.into_iter().enumerate().collect();
        let everything = Split { train: 1.0, validation: 0.0, ..Split::default() };
        let format = format(gap, collapse, Duplicates::Keep);
        let Ok((data, tally)) = read_rows(&[&rows], &format, &everything) else { return Ok(()) };
        let mut held = 0;
        for user in &data.users {
            // What the definition says, word by word.
            let mut own: Vec<_> =
                rows.iter().filter(|(_, (u, ..))| user.id.as_str() == format!("u{u}")).collect();
            own.sort_by_key(|(number, (_, time, _))| (*time, *number));
            let mut kept = Vec::new();
            for (at, (number, (_, time, event))) in own.iter().enumerate() {
                let repeats = at > 0 && {
                    let (_, (_, then, before)) = own[at - 1];
                    before == event && collapse.is_some_and(|s| (time - then) * 1800 <= s as i64)
                };
                if !repeats { kept.push((*number, *time, *event)); }
            }
            prop_assert_eq!(user.times.len(), kept.len());
            held += kept.len();
            let mut expected = Vec::new();
            for target in 1..kept.len() {
                let mut start = target;
                while start > 0 && target - start < length {
                    let apart = (kept[start].1 - kept[start - 1].1) * 1800;
                    if gap.is_some_and(|gap| apart > gap as i64) { break; }
                    start -= 1;
                }
                let intent = format!("e{}", kept[target].2);
                let known = data.vocabulary.intents.contains(&intent);
                if start < target && known {
                    let rows: Vec<usize> = kept[start..target].iter().map(|k| k.0).collect();
                    expected.push((target, rows, intent));
                }
            }
            let got: Vec<_> = user.windows(Part::Train, length).map(|window| {
                let rows = window.rows.chunks(4).map(|row| row_of(&data, row)).collect::<Vec<_>>();
                (window.target, rows, data.vocabulary.intents[window.intent as usize].clone())
            }).collect();
            prop_assert_eq!(got, expected);
        }
        prop_assert_eq!(held as u64 + tally.collapsed + tally.short_events, tally.rows);
    }

    /// Parts meet, follow one another, and are all there is; nobody else's events change them.
    #[test]
    fn parts_are_disjoint_and_in_order(
        rows in rows(), train in 0.05..1.0f64, validation in 0.0..0.5f64, dates in prop::option::of((0..20i64, 0..20i64)),
    ) {
        let rows: Vec<_> = rows.into_iter().enumerate().collect();
        let date = |hour: i64| format!("1970-01-01 {hour:02}:00:00");
        let split = Split {
            train,
            validation: validation.min(1.0 - train),
            validation_from: dates.map(|(a, b)| date(a.min(b))),
            test_from: dates.map(|(a, b)| date(a.max(b))),
            ..Split::default()
        };
        let format = format(None, None, Duplicates::DropExact);
        let Ok((data, _)) = read_rows(&[&rows], &format, &split) else { return Ok(()) };
        for user in &data.users {
            let [a, b, c] = user.parts.clone();
            prop_assert_eq!((a.start, a.end, b.end, c.end), (0, b.start, c.start, user.times.len()));
            prop_assert!(a.start <= a.end && b.start <= b.end && c.start <= c.end);
            prop_assert!(user.times.is_sorted());
            prop_assert_eq!(user.rows.len(), 4 * user.times.len());
            if let Some((x, y)) = dates {
                let (from, to) = (x.min(y) * 3600, x.max(y) * 3600);
                prop_assert!(user.times[a].iter().all(|t| *t < from));
                prop_assert!(user.times[b].iter().all(|t| (from..to).contains(t)));
                prop_assert!(user.times[c].iter().all(|t| *t >= to));
            }
            let targets: Vec<usize> = Part::ALL.iter().flat_map(|p| user.windows(*p, 3)).map(|w| w.target).collect();
            prop_assert!(targets.is_sorted_by(|a, b| a < b));
        }
        let named = &data.vocabulary;
        prop_assert!(named.intents.is_sorted_by(|a, b| a < b));
        prop_assert!(named.columns[EVENT].values[1..].is_sorted_by(|a, b| a < b));
    }

    /// How rows of different users stand to each other, and where files end, changes nothing.
    #[test]
    fn order_of_users_and_files_changes_nothing(rows in rows(), order in vec(any::<u8>(), 5), cut in 0..80usize) {
        let rows: Vec<_> = rows.into_iter().enumerate().collect();
        let split = Split { cold_share: 0.3, seed: 3, ..Split::default() };
        let format = format(Some(9000), Some(1800), Duplicates::DropExact);
        let plain = read_rows(&[&rows], &format, &split);
        let mut moved = rows.clone();
        moved.sort_by_key(|(_, (user, ..))| (order[usize::from(*user)], *user));
        let (first, second) = moved.split_at(cut.min(moved.len()));
        match (plain, read_rows(&[first, second], &format, &split)) {
            (Ok(plain), Ok(other)) => prop_assert_eq!(plain, other),
            (Err(plain), Err(other)) => prop_assert_eq!(plain.to_string(), other.to_string()),
            (plain, other) => prop_assert!(false, "{:?} {:?}", plain.is_ok(), other.is_ok()),
        }
    }

    /// Whatever bytes a file holds: an answer, no panic.
    #[test]
    fn any_bytes(bytes in vec(prop_oneof![Just(b','), Just(b'"'), Just(b'\n'), Just(b'\r'), Just(b'{'), any::<u8>()], 0..300)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        File::create(&path).unwrap().write_all(&bytes).unwrap();
        let columns = Columns { user: ColumnRef::Number(0), time: ColumnRef::Number(0), event: ColumnRef::Number(0), ..Columns::default() };
        for kind in [Kind::Csv, Kind::Tsv, Kind::Spaced, Kind::Jsonl] {
            let columns = if kind == Kind::Jsonl { Columns::default() } else { columns.clone() };
            let format = Format { kind, header: false, columns, min_events: 2, max_row_bytes: 50, ..Format::default() };
            let read = open(std::slice::from_ref(&path), &format, OnBad::Quarantine);
            prop_assert!(read.is_err());
            let _ = Format::canonical_of(kind, &path);
        }
    }
}
