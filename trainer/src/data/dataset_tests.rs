//! Index pass, streams, access by number, quarantine.

use super::*;
use crate::data::{Location, Selection, What};
use std::fs::File;
use std::io::Write as _;

const PERSONAL: &str = concat!(
    r#"{"id":"a","history":[{"text":"x","score":1}],"queries":[{"text":"y","score":2}]}"#,
    "\n\n",
    r#"{"id":"b","history":[]}"#,
    "\n",
    r#"{"id":"../../c","history":[{"text":"zz","score":1}]}"#,
);

const POPULATION: &str = concat!(
    r#"{"id":"d","queries":[{"text":"x","score":1}]}"#,
    "\n",
    r#"{"id":"a","queries":[{"text":"x","score":1}]}"#,
    "\n",
    r#"{"id":"e","queries":[]}"#,
    "\n",
);

fn write(path: &Path, text: &str) {
    File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

fn source(root: &Path) -> Source {
    let (personal, population) = (root.join("p.jsonl"), root.join("o.jsonl"));
    write(&personal, PERSONAL);
    write(&population, POPULATION);
    Source::Jsonl {
        personal,
        population: Some(population),
        max_line_bytes: 1000,
        selection: Selection::default(),
    }
}

#[test]
fn index_streams_and_numbers_agree() {
    let root = tempfile::tempdir().unwrap();
    let data = load(&source(root.path()), OnBad::Quarantine).unwrap();
    let index = data.index();
    let names: Vec<_> = index.personal.iter().map(|u| u.id.as_str()).collect();
    assert_eq!(names, ["a", "../../c"]);
    assert_eq!(index.population.iter().map(|u| u.id.as_str()).collect::<Vec<_>>(), ["d"]);
    let first = &index.personal[0];
    assert_eq!((first.num_history, first.num_queries, first.bytes), (1, 1, 22));
    let streamed: Vec<_> = data.users().map(Result::unwrap).collect();
    for number in [1, 0] {
        assert_eq!(data.user(number).unwrap(), streamed[number]);
    }
    assert!(matches!(data.user(2), Err(DataError::NoSuchUser { index: 2, len: 2 })));
    assert_eq!(data.population().map(Result::unwrap).next(), data.population_user(0).ok());
    let reasons: Vec<_> = index.quarantined.iter().map(|p| (p.at, p.what.clone())).collect();
    let expected = [(3, What::EmptyHistory), (2, What::InBothSets), (3, What::NoQueries)];
    assert_eq!(reasons, expected.map(|(line, what)| (Location::Line(line), what)));
    let shown = index.quarantined[0].to_string();
    assert!(
        shown.ends_with("p.jsonl:3: user b: the history is empty: there is nothing to train on"),
        "{shown}"
    );
}

#[test]
fn strict_stops_at_the_first_bad_record() {
    let root = tempfile::tempdir().unwrap();
    let error = load(&source(root.path()), OnBad::Stop).unwrap_err();
    assert!(matches!(
        error,
        DataError::Bad(Problem { at: Location::Line(3), what: What::EmptyHistory, .. })
    ));
}

#[test]
fn a_file_changed_after_the_index_pass_is_noticed() {
    let root = tempfile::tempdir().unwrap();
    let source = source(root.path());
    let data = load(&source, OnBad::Quarantine).unwrap();
    let before = data.index().fingerprint;
    write(&root.path().join("p.jsonl"), &PERSONAL.replace("\"zz\"", "\"yy\""));
    assert!(data.user(0).is_ok());
    assert!(matches!(data.user(1), Err(DataError::Changed { .. })));
    assert_eq!(data.users().filter(Result::is_err).count(), 1);
    assert_ne!(load(&source, OnBad::Quarantine).unwrap().index().fingerprint, before);
}

#[test]
fn a_missing_file_is_named() {
    let source = Source::Jsonl {
        personal: "/no/such.jsonl".into(),
        population: None,
        max_line_bytes: 9,
        selection: Selection::default(),
    };
    assert!(load(&source, OnBad::Quarantine).unwrap_err().to_string().contains("/no/such.jsonl"));
}
