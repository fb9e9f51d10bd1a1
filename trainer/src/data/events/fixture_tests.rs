//! Small files in the exact forms of known logs, and one log in three forms.

use super::*;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

fn fixture(name: &str) -> Vec<PathBuf> {
    vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/events").join(name)]
}

fn keys(text: &str) -> toml::Table {
    text.parse().unwrap()
}

fn from_preset(name: &str, more: &str) -> Format {
    Format::resolve(Some(name), &keys(more)).unwrap()
}

/// The names of a user's events.
fn events(data: &EventData, user: usize) -> Vec<&str> {
    let names = &data.vocabulary.columns[EVENT].values;
    let user = &data.users[user];
    (0..user.times.len()).map(|at| names[user.row(at)[EVENT] as usize].as_str()).collect()
}

#[test]
fn lsapp() {
    let format = from_preset("lsapp", "min_events = 2");
    let (data, tally) =
        read(&fixture("lsapp.tsv"), &format, &Split::default(), OnBad::Stop).unwrap();
    let expected = Tally {
        rows: 20,
        not_kept: 6,
        duplicates: 1,
        collapsed: 2,
        // Messenger; Gmail, and Settings, which in training is nobody's second event.
        unseen_intents: [0, 1, 2],
        unknown_events: [0, 1, 1],
        ..Tally::default()
    };
    assert_eq!(tally, expected);
    let mines = "Minesweeper Classic (Mines)";
    assert_eq!(data.vocabulary.intents, ["Facebook", "Google", "Instagram", mines]);
    let values = &data.vocabulary.columns[EVENT].values;
    assert_eq!(values, &[UNKNOWN, "Facebook", "Google", "Instagram", mines, "Settings"]);
    let sizes: Vec<u32> = data.vocabulary.columns.iter().map(|c| c.size).collect();
    assert_eq!(sizes, [24, 7, 6]);
    let seen = [mines, mines, "Google", "Instagram", "Google", "Instagram", UNKNOWN];
    assert_eq!(events(&data, 0), seen);
    assert_eq!(events(&data, 1), ["Settings", "Facebook", UNKNOWN, "Settings"]);
    let first = &data.users[0];
    assert_eq!(first.id.as_str(), "0");
    assert_eq!(first.parts, [0..4, 4..5, 5..7]);
    // `date -u -d '2018-01-16 06:01:05' +%s`: a Tuesday.
    assert_eq!((first.times[0], first.row(0)), (1_516_082_465, &[6, 1, 4][..]));
    assert_eq!(first.row(6), [0, 3, 0]);
    let test: Vec<Window<'_>> = first.windows(Part::Test, 2).collect();
    assert_eq!(test, [Window { rows: &[6, 1, 3, 6, 1, 2], intent: 2, target: 5 }]);
}

#[test]
fn tsinghua() {
    let format = from_preset("tsinghua-app-usage", "min_events = 2\nbucket_minutes = 30");
    let split = Split { train: 1.0, validation: 0.0, ..Split::default() };
    let (data, tally) =
        read(&fixture("App_usage_trace.txt"), &format, &split, OnBad::Stop).unwrap();
    let expected = Tally {
        rows: 11,
        duplicates: 1,
        collapsed: 1,
        short_users: 1,
        short_events: 1,
        ..Tally::default()
    };
    assert_eq!(tally, expected);
    assert_eq!(events(&data, 0), ["13", "1", "13", "20", "1"]);
    // The file has the 24th before the 23rd.
    assert_eq!(events(&data, 1), ["1", "7", "7"]);
    let location = &data.vocabulary.columns[CONTEXTS];
    assert_eq!((location.name.as_str(), location.size), ("location", 5));
    assert_eq!(location.values, [UNKNOWN, "2207", "5", "6", "88"]);
    // A Wednesday; the second half hour; app "1" is the first name, station "2207" too.
    assert_eq!(data.users[0].row(1), [1, 2, 1, 1]);
    assert_eq!(data.users[0].row(4)[..2], [47, 1]);
}

fn generic(kind: &str, more: &str) -> Format {
    let columns = r#"columns = { user = "who", time = "when", event = "what", contexts = [["place", "where"]], intent = "why" }"#;
    let text = format!("kind = \"{kind}\"\nintent = \"column\"\nmin_events = 2\n{columns}");
    let mut table = keys(&text);
    table.extend(keys(more));
    Format::resolve(None, &table).unwrap()
}

fn canonical(paths: &[PathBuf], format: &Format, kind: Kind) -> Vec<u8> {
    let (log, _) = open(paths, format, OnBad::Stop).unwrap();
    let mut out = Vec::new();
    assert_eq!(write(&log, kind, &mut out).unwrap(), log.num_events() as u64);
    out
}

#[test]
fn one_log_in_three_forms() {
    let csv = canonical(&fixture("generic.csv"), &generic("csv", ""), Kind::Csv);
    let lines = [
        "user,time,event,place,intent",
        "ada,2024-03-31T01:30:00+01:00,radio,home,listen",
        "ada,2024-03-31T03:10:00+02:00,mail,home,read",
        "ada,2024-03-31T08:00:00+02:00,\"chat, group\",,",
        "ada,2024-04-01T08:00:00+02:00,radio,train,listen",
        "ada,2024-04-01T09:00:00+02:00,mail,work,read",
        "bob,2024-03-31T11:00:00+02:00,\"say \"\"hi\"\"\",work,talk",
        "bob,2024-03-31T12:00:00+02:00,mail,work,read",
        "bob,2024-03-31T13:00:00+02:00,radio,home,listen",
    ];
    assert_eq!(String::from_utf8(csv.clone()).unwrap(), lines.join("\n") + "\n");
    assert_eq!(canonical(&fixture("generic.tsv"), &generic("tsv", ""), Kind::Csv), csv);
    assert_eq!(canonical(&fixture("generic.jsonl"), &generic("jsonl", ""), Kind::Csv), csv);
}

#[test]
fn canonical_there_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let files = [
        (fixture("generic.csv"), generic("csv", "")),
        (fixture("lsapp.tsv"), from_preset("lsapp", "min_events = 2")),
        (fixture("App_usage_trace.txt"), from_preset("tsinghua-app-usage", "min_events = 2")),
        (fixture("generic.csv"), generic("csv", "time_zone = \"-09:30\"")),
    ];
    for (paths, format) in files {
        let first = canonical(&paths, &format, Kind::Csv);
        let csv = folder.path().join("events.csv");
        File::create(&csv).unwrap().write_all(&first).unwrap();
        let again = Format::canonical_of(Kind::Csv, &csv).unwrap();
        let jsonl = folder.path().join("events.jsonl");
        let second = canonical(std::slice::from_ref(&csv), &again, Kind::Jsonl);
        File::create(&jsonl).unwrap().write_all(&second).unwrap();
        let back = Format::canonical_of(Kind::Jsonl, &jsonl).unwrap();
        assert_eq!(canonical(std::slice::from_ref(&jsonl), &back, Kind::Csv), first);
        // Numbers are the same too, on the same clock.
        let split = Split { train: 1.0, validation: 0.0, ..Split::default() };
        let (data, _) = read(&paths, &format, &split, OnBad::Stop).unwrap();
        let (other, _) = read(&[jsonl], &back, &split, OnBad::Stop).unwrap();
        assert_eq!(data, other);
    }
}

#[test]
fn intents_contexts_and_the_time_zone() {
    let all = Split { train: 1.0, validation: 0.0, ..Split::default() };
    let data = |more: &str| {
        read(&fixture("generic.csv"), &generic("csv", more), &all, OnBad::Stop).unwrap()
    };
    let (written, tally) = data("");
    assert_eq!(written.vocabulary.intents, ["listen", "read"]);
    assert_eq!(written.users[0].intents, [Some(0), Some(1), None, Some(0), Some(1)]);
    assert_eq!((tally.without_intent, tally.unknown_contexts), ([1, 0, 0], [1, 0, 0]));
    let hours =
        |data: &EventData| -> Vec<u32> { (0..3).map(|at| data.users[0].row(at)[TIME]).collect() };
    // An hour was skipped between the first two, which are 40 minutes apart.
    assert_eq!(hours(&written), [1, 3, 8]);
    let (shown, _) = data("time_zone = \"-02:00\"");
    assert_eq!(hours(&shown), [22, 23, 4]);
    assert_eq!([0, 1, 2].map(|at| shown.users[0].row(at)[WEEKDAY]), [5, 5, 6]);
    let (mapped, _) =
        data("intent = { map = { names = { radio = \"media\", mail = \"media\" } } }");
    assert_eq!(mapped.vocabulary.intents, ["chat, group", "media"]);
    let dropped = "intent = { map = { names = { mail = \"text\" }, unmapped = \"dropped\" } }";
    let (dropped, tally) = data(dropped);
    assert_eq!(dropped.vocabulary.intents, ["text"]);
    assert_eq!(dropped.users[0].intents, [None, Some(0), None, None, Some(0)]);
    assert_eq!(tally.without_intent, [3, 0, 0]);
}

#[test]
fn no_window_reaches_over_a_gap() {
    let all = Split { train: 1.0, validation: 0.0, ..Split::default() };
    let read = |gap: u64| {
        let format = generic("csv", &format!("gap_seconds = {gap}\nintent = \"event\""));
        read(&fixture("generic.csv"), &format, &all, OnBad::Stop).unwrap()
    };
    // The night is 24 hours long: exactly so much is no gap.
    assert_eq!(read(86_400).0.users[0].first, [0; 0]);
    let (data, tally) = read(86_399);
    assert_eq!((tally.gaps, &data.users[0].first[..]), (1, &[0, 0, 0, 3, 3][..]));
    assert!(data.users[1].first.is_empty());
    let targets: Vec<(usize, usize)> =
        data.users[0].windows(Part::Train, 9).map(|w| (w.target, w.rows.len() / 4)).collect();
    assert_eq!(targets, [(1, 1), (2, 2), (4, 1)]);
    // Where everything is a gap nothing is a target.
    let format = generic("csv", "gap_seconds = 1");
    let error = super::read(&fixture("generic.csv"), &format, &all, OnBad::Stop).unwrap_err();
    assert!(matches!(error, DataError::Events(EventsError::NoTraining)), "{error}");
}

#[test]
fn counts_below_the_least_are_unknown() {
    let all = Split { train: 1.0, validation: 0.0, ..Split::default() };
    let format = generic("csv", "intent = \"event\"\nmin_count = 2\nmin_intent_count = 3");
    let (data, tally) = read(&fixture("generic.csv"), &format, &all, OnBad::Stop).unwrap();
    assert_eq!(data.vocabulary.columns[EVENT].values, [UNKNOWN, "mail", "radio"]);
    assert_eq!(data.vocabulary.columns[CONTEXTS].values, [UNKNOWN, "home", "work"]);
    // Of three radios one is the first event of its log.
    assert_eq!(data.vocabulary.intents, ["mail"]);
    assert_eq!((tally.unknown_events[0], tally.unknown_contexts[0]), (2, 2));
    assert_eq!(tally.unseen_intents, [3, 0, 0]);
}

#[test]
fn cold_people_do_not_make_vocabularies() {
    let split = Split { cold_users: vec!["ada".to_owned()], ..Split::default() };
    let format = generic("csv", "");
    let (data, _) = read(&fixture("generic.csv"), &format, &split, OnBad::Stop).unwrap();
    assert_eq!(data.users.iter().map(|u| u.cold).collect::<Vec<_>>(), [true, false]);
    // Bob's first two events train; of them one is a target.
    assert_eq!(data.vocabulary.columns[EVENT].values, [UNKNOWN, "mail", "say \"hi\""]);
    assert_eq!(data.vocabulary.intents, ["read"]);
    let both = Split { cold_users: vec!["ada".to_owned(), "bob".to_owned()], ..Split::default() };
    let error = read(&fixture("generic.csv"), &format, &both, OnBad::Stop).unwrap_err();
    assert!(matches!(error, DataError::Events(EventsError::NoTraining)), "{error}");
    let absent = Split { cold_users: vec!["eve".to_owned()], ..Split::default() };
    let error = read(&fixture("generic.csv"), &format, &absent, OnBad::Stop).unwrap_err();
    assert_eq!(error.to_string(), "the cold user \"eve\" is not in the log, or has too few events");
}

#[test]
fn a_vocabulary_from_before_holds() {
    let format = generic("csv", "");
    let all = Split { train: 1.0, validation: 0.0, ..Split::default() };
    let (old, _) = read(&fixture("generic.csv"), &format, &Split::default(), OnBad::Stop).unwrap();
    let text = serde_json::to_string(&old.vocabulary).unwrap();
    let vocabulary: Vocabulary = serde_json::from_str(&text).unwrap();
    assert_eq!(vocabulary, old.vocabulary);
    let paths = fixture("generic.jsonl");
    let with = |format: &Format| read_with(&paths, format, &all, Some(&vocabulary), OnBad::Stop);
    let (new, tally) = with(&generic("jsonl", "")).unwrap();
    assert_eq!(new.vocabulary, old.vocabulary);
    for (new, old) in new.users.iter().zip(&old.users) {
        assert_eq!((&new.rows, &new.intents), (&old.rows, &old.intents));
    }
    // No training part had the place "train", or a second event with the intent "listen".
    let unknown = (tally.unknown_events, tally.unknown_contexts, tally.unseen_intents);
    assert_eq!(unknown, ([0; 3], [2, 0, 0], [2, 0, 0]));
    assert!(with(&generic("jsonl", "bucket_minutes = 30")).is_err());
    let other = Format {
        columns: Columns { contexts: Vec::new(), ..generic("jsonl", "").columns },
        ..generic("jsonl", "")
    };
    assert!(matches!(with(&other), Err(DataError::Events(EventsError::OtherColumns { .. }))));
}

#[test]
fn hand_counted_statistics() {
    let format = from_preset("lsapp", "min_events = 2");
    let split = Split { train: 1.0, validation: 0.0, ..Split::default() };
    let (data, _) = read(&fixture("lsapp.tsv"), &format, &split, OnBad::Stop).unwrap();
    let got = statistics(&data, 2);
    assert_eq!((got.users, got.events, got.event_names, got.intents), (2, 11, 7, 7));
    let train =
        PartStatistics { events: 11, windows: 9, short_windows: 2, tail_windows: 1, users: 2 };
    assert_eq!((got.train, got.test), (train, PartStatistics::default()));
    // Google and Instagram twice, five others once: 8 of 9 are the head once 80 % are reached.
    assert_eq!((got.tail_intents, got.population_top.as_str()), (1, "Google"));
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
    close(got.population_top_share, 2.0 / 9.0);
    close(got.population_entropy, 2.0 * 2.0 / 9.0 * 4.5f64.log2() + 5.0 / 9.0 * 9f64.log2());
    // User 0 has M G I G I Gm, user 1 F Me S.
    close(got.intent_entropy.min, 3f64.log2());
    close(got.intent_entropy.max, 2.0 / 3.0 * 3f64.log2() + 2.0 / 6.0 * 6f64.log2());
    close(got.top_share.mean, 1.0 / 3.0);
    assert_eq!((got.events_per_user.min, got.events_per_user.max), (4.0, 7.0));
    // Three days and one day.
    close(got.events_per_day.min, 7.0 / 3.0);
    close(got.events_per_day.max, 4.0);
    assert_eq!((got.users_with_own_intents, got.own_test_share), (0, 0.0));
    assert_eq!(got.times, Some([1_516_082_465, 1_523_026_200]));
    serde_json::to_string(&got).unwrap();
}

#[test]
fn presets_survive_their_own_keys() {
    for name in PRESETS {
        let format = preset(name).unwrap();
        format.check().unwrap();
        let table = toml::Table::try_from(&format).unwrap();
        assert_eq!(Format::resolve(None, &table).unwrap(), format);
        assert_eq!(Format::resolve(Some(name), &toml::Table::new()).unwrap(), format);
    }
    let more = "columns = { event = \"event_type\" }\nkeep = []\ngap_seconds = 300";
    let other = from_preset("lsapp", more);
    assert_eq!(other.columns.event, "event_type".into());
    assert_eq!(other.columns.user, "user_id".into());
    assert_eq!(
        (other.keep.len(), other.gap_seconds, other.collapse_seconds),
        (0, Some(300), Some(60))
    );
    assert!(
        Format::resolve(Some("lsap"), &toml::Table::new())
            .unwrap_err()
            .to_string()
            .contains("lsapp")
    );
}
