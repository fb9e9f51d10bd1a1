//! Every named problem of LaMP and OPPU files, selections, damage.

use super::*;
use crate::data::{
    DataError, Dataset, LampSet, Location, OnBad, Problem, Selection, Source, Tally, What, load,
};
use proptest::prelude::*;
use std::io::Write as _;
use std::path::PathBuf;
use tempfile::TempDir;

const TASK: LampTask = LampTask::Rating;

pub(super) struct Case {
    folder: TempDir,
    task: LampTask,
    pub(super) selection: Selection,
}

impl Case {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, task: TASK, selection: Selection::default() }
    }

    pub(super) fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(text.as_ref()).unwrap();
        path
    }

    pub(super) fn lamp(&self, questions: &str, outputs: Option<&str>) -> Source {
        let questions = self.file("q.json", questions);
        let outputs = outputs.map(|text| self.file("o.json", text));
        let personal = LampSet { questions, outputs, profiles: None };
        Source::Lamp {
            task: self.task,
            personal,
            population: None,
            selection: self.selection.clone(),
        }
    }

    pub(super) fn oppu(&self, users: &str, labels: Option<&str>, profiles: Option<&str>) -> Source {
        Source::Oppu {
            task: self.task,
            personal: self.file("u.json", users),
            labels: labels.map(|text| self.file("l.json", text)),
            profiles: profiles.map(|text| self.file("p.json", text)),
            population: None,
            population_profiles: None,
            selection: self.selection.clone(),
        }
    }
}

/// The problems of a lenient load; a strict one must end with the first.
fn problems(source: &Source) -> Vec<Problem> {
    let index = load(source, OnBad::Quarantine).unwrap().index().clone();
    match load(source, OnBad::Stop) {
        Err(DataError::Bad(first)) => assert_eq!(first, index.quarantined[0]),
        Ok(_) => assert!(index.quarantined.is_empty()),
        Err(other) => panic!("{other}"),
    }
    index.quarantined
}

pub(super) fn item(id: &str) -> String {
    format!(r#"{{"id":"{id}","text":"t{id}","score":"1"}}"#)
}

fn question(id: &str, more: &str) -> String {
    format!(r#"{{"id":"{id}","input":"x review: {id}","profile":[{}]{more}}}"#, item("1"))
}

pub(super) fn user(id: &str) -> String {
    format!(
        r#"{{"user_id":"{id}","profile":[{}],"query":[{{"id":"{id}q","input":"review: r","gold":3}}]}}"#,
        item("1")
    )
}

pub(super) fn ids(data: &Dataset) -> Vec<&str> {
    data.index().personal.iter().map(|u| u.id.as_str()).collect()
}

#[test]
fn each_problem_of_a_record_has_its_name_and_place() {
    let case = Case::new();
    let profile = |items: &str| format!(r#"{{"id":"a","input":"review: r","profile":{items}}}"#);
    let cases = [
        ("7".to_owned(), "the record must be an object, found a number"),
        ("{}".to_owned(), "the record has no `id`"),
        (r#"{"id":"a","profile":[]}"#.to_owned(), "the record has no `input`"),
        (r#"{"id":"a","input":"review: r"}"#.to_owned(), "user a: the record has no `profile`"),
        (r#"{"id":"a","input":["review:"],"profile":[]}"#.to_owned(), "`input` must be a string"),
        (r#"{"id":"a","id":"b"}"#.to_owned(), r#"the record has the key "id" twice"#),
        (r#"{"id":""}"#.to_owned(), "`id` is empty"),
        (
            r#"{"id":"a","input":"no sign","profile":[]}"#.to_owned(),
            r#"question "a": the question's text has no `review:`"#,
        ),
        (profile("{}"), "`profile` must be an array, found an object"),
        (profile("[]"), "the history is empty"),
        (profile("[[]]"), "profile[0] must be an object, found an array"),
        (profile(r#"[{"text":"t","score":1}]"#), "profile[0] has no `id`"),
        (
            profile(r#"[{"id":1,"text":null,"score":1}]"#),
            "profile[0].text must be a string, number or boolean, found null",
        ),
        (
            profile(&format!(r#"[{},{{"id":1,"text":"other","score":1}}]"#, item("1"))),
            r#"two items of `profile` have the id "1""#,
        ),
        (profile(r#"[{"id":1,"text":"a" "score":1}]"#), "not valid JSON at column 61"),
    ];
    for (record, part) in cases {
        let text = format!("[{},\n {record}\n, {}]", question("first", ""), question("last", ""));
        let source = case.lamp(&text, None);
        let found = problems(&source);
        let [problem] = &found[..] else { panic!("{part}: {found:?}") };
        let at = text.find(&record).unwrap() as u64;
        assert_eq!(problem.at, Location::Record(2, at), "{part}");
        let shown = problem.to_string();
        assert!(shown.contains(&format!("q.json: record 2 at byte {at}: ")), "{shown}");
        assert!(shown.contains(part), "{part}: {shown}");
        assert_eq!(ids(&load(&source, OnBad::Quarantine).unwrap()), ["first", "last"]);
    }
    let bytes = [question("a", "").into_bytes(), b"{\"id\":\"\xFF\"}".to_vec()].join(&b'\n');
    let mut source = case.lamp("", None);
    let Source::Lamp { personal, .. } = &mut source else { panic!() };
    personal.questions = case.file("utf8.jsonl", bytes);
    assert!(problems(&source)[0].to_string().contains("record 2 at byte"));
}

#[test]
fn answers_must_match_questions() {
    let case = Case::new();
    let questions = format!("[{},{}]", question("a", ""), question("b", r#","output":2"#));
    let golds = |list: &str| format!(r#"{{"task":"LaMP_3","golds":[{list}]}}"#);
    let source =
        case.lamp(&questions, Some(&golds(r#"{"id":"a","output":4},{"id":"c","output":1}"#)));
    let shown = problems(&source)[0].to_string();
    assert!(shown.contains("o.json: ids do not match"), "{shown}");
    assert!(shown.contains(r#"1 questions without an answer: "b""#), "{shown}");
    assert!(shown.contains(r#"1 answers without a question: "c""#), "{shown}");
    let data = load(&source, OnBad::Quarantine).unwrap();
    let golds_of = data.users().map(|u| u.unwrap().queries[0].field("gold").map(str::to_owned));
    assert_eq!(golds_of.collect::<Vec<_>>(), [Some("4".to_owned()), Some("2".to_owned())]);

    for (list, part) in [
        (
            r#"{"id":"a","output":4},{"id":"b","output":1},{"id":"a","output":5}"#,
            r#"record 3 at byte 70: a second text for the id "a""#,
        ),
        (r#"{"id":"a","output":4},{"id":"b"}"#, "record 2 at byte 48: the record has no `output`"),
        (
            r#"{"id":"a","output":[4]}"#,
            "`output` must be a string, number or boolean, found an array",
        ),
    ] {
        let shown = problems(&case.lamp(&questions, Some(&golds(list))))[0].to_string();
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let same = golds(r#"{"id":"a","output":4},{"id":"b","output":1},{"id":"a","output":4}"#);
    assert_eq!(problems(&case.lamp(&questions, Some(&same))), []);
    let wrong = r#"{"golds":[{"id":"a","output":4},{"id":"b","output":4}],"task":"LaMP_4"}"#;
    let error = load(&case.lamp(&questions, Some(wrong)), OnBad::Quarantine).unwrap_err();
    assert!(error.to_string().contains(r#"`task` is "LaMP_4", not rating"#), "{error}");
    let error = load(&case.lamp(&questions, Some("")), OnBad::Stop).unwrap_err();
    assert!(error.to_string().contains("the file is empty"), "{error}");
    // Two users' questions of one id would get one answer.
    let twice = ["u", "v"].map(|u| question("a", &format!(r#","user_id":"{u}""#))).join(",");
    let found = problems(&case.lamp(&format!("[{twice}]"), Some(r#"[{"id":"a","output":4}]"#)));
    assert!(matches!(&found[0].what, What::DuplicateQuestion { .. }), "{found:?}");
    let found = problems(&case.lamp(&format!("[{0},{0}]", question("a", "")), None));
    assert_eq!(found[0].what, What::DuplicateUser { first: Location::Record(1, 1) });
}

#[test]
fn population_questions_need_answers_and_others() {
    let case = Case::new();
    let personal = format!("[{}]", question("a", ""));
    let mut source = case.lamp(&personal, None);
    let others = [question("b", ""), question("a", r#","gold":1"#), question("c", r#","gold":1"#)];
    let others = case.file("others.json", format!("[{}]", others.join(",")));
    let Source::Lamp { population, .. } = &mut source else { panic!() };
    *population = Some(LampSet { questions: others, outputs: None, profiles: None });
    let found = problems(&source);
    assert_eq!(found[0].what, What::NoAnswer { id: "b".to_owned() });
    assert_eq!(found[1].what, What::InBothSets);
    assert_eq!(load(&source, OnBad::Quarantine).unwrap().index().population.len(), 1);
}

#[test]
fn oppu_labels_and_profiles() {
    let case = Case::new();
    let users = format!("[{},{}]", user("a"), user("b"));
    let labels = r#"[{"id":"aq","output":1},{"id":"bq","output":2}]"#;
    let texts = |data: &Dataset| -> Vec<_> { data.users().map(|u| u.unwrap().profile).collect() };
    for (profiles, found) in [
        (r#"[{"id":"b","output":"B"},{"id":"a","output":"A"}]"#, ["A", "B"]),
        (
            r#"[{"id":"b","output":"B"},{"id":"x","output":"X"},{"id":"a","output":"A"}]"#,
            ["A", "B"],
        ),
        (r#"[{"id":0,"output":"A"},{"id":1,"output":"B"}]"#, ["A", "B"]),
    ] {
        let data = load(&case.oppu(&users, Some(labels), Some(profiles)), OnBad::Stop).unwrap();
        assert_eq!(texts(&data), found.map(|t| Some(t.to_owned())), "{profiles}");
    }
    for (profiles, part) in [
        (
            r#"[{"id":0,"output":"A"}]"#,
            r#"2 users without a profile text: "a", "b"; 1 profile texts without a user: "0""#,
        ),
        (
            r#"[{"id":"a","output":"A"},{"id":7,"output":"B"}]"#,
            r#"1 users without a profile text: "b"; 1 profile texts"#,
        ),
    ] {
        let shown = problems(&case.oppu(&users, None, Some(profiles)))[0].to_string();
        assert!(shown.contains("p.json: ") && shown.contains(part), "{shown}");
    }
    let shown =
        problems(&case.oppu(&users, Some(r#"[{"id":"aq","output":1}]"#), None))[0].to_string();
    assert!(
        shown.contains(r#"l.json: ids do not match: 1 questions without an answer: "bq""#),
        "{shown}"
    );
    let bad = r#"{"user_id":"c","profile":[],"query":[{"id":1}]}"#;
    let shown = problems(&case.oppu(&format!("[{bad},{},{}]", user("a"), user("a")), None, None));
    assert!(shown[0].to_string().contains("record 1 at byte 1: user c: query[0] has no `input`"));
    assert!(matches!(shown[1].what, What::DuplicateUser { .. }));
    // A bad record keeps its place in the list.
    let profiles = r#"[{"id":0,"output":"A"},{"id":1,"output":"B"}]"#;
    let data = load(
        &case.oppu(&format!("[{bad},{}]", user("a")), None, Some(profiles)),
        OnBad::Quarantine,
    );
    assert_eq!(texts(&data.unwrap()), [Some("B".to_owned())]);
}

#[test]
fn extras_are_kept_or_counted() {
    let case = Case::new();
    let record = format!(
        r#"{{"id":"a","input":"review: r","text":"mine","n":2.50,"l":[1,[2]],"profile":[{},{{"id":2,"text":"t","score":4,"asin":7,"ok":true,"none":null,"o":{{"p":[]}}}},{0}]}}"#,
        item("1")
    );
    let data = load(&case.lamp(&format!("[{record}]"), None), OnBad::Stop).unwrap();
    let user = data.user(0).unwrap();
    assert_eq!(user.history.len(), 2);
    let of = |f| user.history[1].field(f);
    assert_eq!(["asin", "ok", "none", "o"].map(of), [Some("7"), Some("true"), None, None]);
    let of = |f| user.queries[0].field(f);
    assert_eq!(["text", "n", "l", "gold"].map(of), [Some("r"), Some("2.5"), None, None]);
    let expected = Tally { dropped_values: 3, repeated_items: 1, ..Tally::default() };
    assert_eq!(data.index().tally, expected);
}

/// Questions of one user stand apart; without all dates the last question's order counts.
#[test]
fn unions() {
    let case = Case::new();
    let ask = |id: &str, user: &str, items: &[&str]| {
        let items: Vec<String> = items.iter().map(|i| item(i)).collect();
        format!(
            r#"{{"id":"{id}","user_id":"{user}","input":"review: r{id}","profile":[{}]}}"#,
            items.join(",")
        )
    };
    let records = [
        ask("1", "u", &["a", "b", "c"]),
        ask("2", "v", &["a"]),
        ask("3", "u", &["d", "b", "a"]),
        r#"{"id":"4","user_id":"u","input":"none","profile":[]}"#.to_owned(),
    ];
    let source = case.lamp(&format!("[{}]", records.join(",\n")), None);
    let data = load(&source, OnBad::Quarantine).unwrap();
    assert_eq!(data.index().quarantined.len(), 1);
    assert_eq!(ids(&data), ["u", "v"]);
    let users: Vec<_> = data.users().map(Result::unwrap).collect();
    assert_eq!(users[0].history.iter().map(|i| i.id.as_str()).collect::<String>(), "cdba");
    assert_eq!(users[0].queries.iter().map(|i| i.id.as_str()).collect::<String>(), "13");
    assert_eq!(data.user(0).unwrap(), users[0]);
    // The file is another: noticed for the user it is about.
    case.file(
        "q.json",
        std::fs::read_to_string(case.folder.path().join("q.json")).unwrap().replace("td", "tX"),
    );
    assert!(matches!(data.user(0), Err(DataError::Changed { .. })));
    assert_eq!(data.user(1).unwrap(), users[1]);
}

#[test]
fn selections() {
    let mut case = Case::new();
    let person = |id: &str, items: usize, queries: usize| {
        let items: Vec<String> = (0..items).map(|i| item(&format!("{i}"))).collect();
        let queries: Vec<String> = (0..queries)
            .map(|q| format!(r#"{{"id":"{id}{q}","input":"review: {q}","gold":1}}"#))
            .collect();
        format!(
            r#"{{"user_id":"{id}","profile":[{}],"query":[{}]}}"#,
            items.join(","),
            queries.join(",")
        )
    };
    let users = [person("a", 1, 2), person("b", 4, 3), person("c", 5, 0), person("d", 3, 1)];
    case.selection = Selection {
        personal_users: Some(2),
        population_users: Some(1),
        min_history: Some(3),
        max_history: Some(2),
        max_queries: Some(1),
        max_population_items: Some(2),
    };
    let mut source = case.oppu(&format!("[{}] broken", users.join(",")), None, None);
    let others = [person("e", 1, 3), person("f", 1, 1)];
    let others = case.file("others.json", format!("[{}]", others.join(",")));
    if let Source::Oppu { population, .. } = &mut source {
        *population = Some(others);
    }
    // What stands behind the last user taken is not read.
    let data = load(&source, OnBad::Stop).unwrap();
    assert_eq!(ids(&data), ["b", "c"]);
    assert_eq!(data.index().personal[0].num_history, 2);
    let shown = |list: &[crate::data::Item]| list.iter().map(|i| i.id.clone()).collect::<Vec<_>>();
    let user = data.user(0).unwrap();
    assert_eq!(
        (shown(&user.history), shown(&user.queries)),
        (vec!["2".into(), "3".into()], vec!["b0".into()])
    );
    let other = data.population_user(0).unwrap();
    assert_eq!(
        (shown(&other.history), shown(&other.queries)),
        (vec!["0".into()], vec!["e1".into(), "e2".into()])
    );
    assert_eq!(data.index().population.len(), 1);
    let lines = users.iter().map(|u| {
        u.replace("user_id", "id").replace("profile", "history").replace("query", "queries")
    });
    let personal = case.file("u.jsonl", lines.collect::<Vec<_>>().join("\n"));
    let selection = case.selection.clone();
    let jsonl = Source::Jsonl { personal, population: None, max_line_bytes: 9999, selection };
    let error = load(&jsonl, OnBad::Stop).unwrap_err();
    assert!(matches!(error, DataError::NotEnoughUsers { wanted: 1, found: 0, .. }), "{error}");
    let Source::Jsonl { selection, .. } = &jsonl else { panic!() };
    let selection = Selection { population_users: None, ..selection.clone() };
    let Source::Jsonl { personal, .. } = jsonl else { panic!() };
    let jsonl = Source::Jsonl { personal, population: None, max_line_bytes: 9999, selection };
    let data = load(&jsonl, OnBad::Stop).unwrap();
    assert_eq!(ids(&data), ["b", "c"]);
    assert_eq!(shown(&data.user(0).unwrap().history), ["2", "3"]);
    case.selection.personal_users = Some(4);
    let error = load(&case.oppu(&format!("[{}]", users.join(",")), None, None), OnBad::Stop);
    let wanted = DataError::NotEnoughUsers { wanted: 4, found: 3, min_history: 3 };
    assert_eq!(error.unwrap_err().to_string(), wanted.to_string());
    case.selection.max_history = Some(0);
    let error = load(&case.oppu("[]", None, None), OnBad::Stop).unwrap_err();
    assert!(matches!(error, DataError::Selection(_)), "{error}");
}

#[test]
fn a_truncated_file_keeps_what_is_whole() {
    let case = Case::new();
    let text = format!("[{},{},{}]", user("a"), user("b"), user("c"));
    let cut = text.find(r#""c""#).unwrap() + 40;
    let source = case.oppu(&text[..cut], None, None);
    let found = problems(&source);
    assert!(found[0].to_string().contains("the file ends inside a record"), "{}", found[0]);
    assert_eq!(ids(&load(&source, OnBad::Quarantine).unwrap()), ["a", "b"]);
}

#[test]
fn sources_are_serde() {
    let case = Case::new();
    for source in [case.lamp("", Some("")), case.oppu("", None, None)] {
        let text = serde_json::to_string(&source).unwrap();
        assert_eq!(serde_json::from_str::<Source>(&text).unwrap(), source);
    }
}

proptest! {
    /// Any damage anywhere gives records or problems, and what is given reads again.
    #[test]
    fn damage_never_panics(edits in proptest::collection::vec((any::<u16>(), any::<u8>(), 0u8..4), 1..6), which in 0usize..4) {
        let case = Case::new();
        let mut files = [
            format!("[{},{},{}]", question("a", r#","user_id":"u""#), question("b", r#","n":[{}],"user_id":"u""#), question("c", "")).into_bytes(),
            br#"{"task":"LaMP_3","golds":[{"id":"a","output":"4"},{"id":"b","output":1},{"id":"c","output":1}]}"#.to_vec(),
            format!("[{},{}]", user("a"), user("b")).into_bytes(),
            br#"[{"id":"a","output":"A \ud83d\ude00"},{"id":"b","output":"B"}]"#.to_vec(),
        ];
        for (at, byte, kind) in edits {
            let bytes = &mut files[which];
            let at = usize::from(at) % bytes.len().max(1);
            match kind {
                0 if at < bytes.len() => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => bytes.insert(at, b"[]{}\",:\\"[usize::from(byte) % 8]),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let [questions, outputs, users, profiles] = files;
        let personal = LampSet {
            questions: case.file("q", questions),
            outputs: Some(case.file("o", outputs)),
            profiles: None,
        };
        let selection = Selection::default();
        let lamp = Source::Lamp { task: TASK, personal, population: None, selection };
        let mut oppu = case.oppu("", None, None);
        if let Source::Oppu { personal, profiles: texts, .. } = &mut oppu {
            (*personal, *texts) = (case.file("u", users), Some(case.file("p", profiles)));
        }
        for source in [lamp, oppu] {
            match load(&source, OnBad::Quarantine) {
                Ok(data) => for (number, user) in data.users().enumerate() {
                    prop_assert_eq!(user.unwrap(), data.user(number).unwrap());
                },
                Err(e) => prop_assert!(e.to_string().contains("`task` is"), "{}", e),
            }
            let _ = load(&source, OnBad::Stop);
        }
    }
}
