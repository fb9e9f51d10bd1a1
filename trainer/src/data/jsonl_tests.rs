//! Coercion, every named problem, hostile input.

use super::*;
use crate::ids::UserId;
use proptest::prelude::*;

fn read_with(text: &[u8], limits: Limits) -> Vec<Result<UserRecord, DataError>> {
    Reader::new(text, Path::new("f.jsonl"), limits).collect()
}

fn read(text: &[u8]) -> Vec<Result<UserRecord, DataError>> {
    read_with(text, Limits { max_line_bytes: 2000, ..Limits::new(Role::Personal) })
}

/// The only record's problem.
fn problem(text: &[u8]) -> Problem {
    match read(text).pop() {
        Some(Err(DataError::Bad(problem))) => problem,
        other => panic!("{other:?}"),
    }
}

fn of_items(items: &str) -> String {
    format!(r#"{{"id":"u","history":[{items}]}}"#)
}

#[test]
fn scalars_become_text() {
    let line = of_items(
        r#"{"text":"a\u00e9\ud83d\ude00","i":5,"n":-7,"f":2.50,"w":4.0,"z":-0.0,"t":true,"big":18446744073709551615,"e":1e3}"#,
    );
    let user = read(line.as_bytes()).pop().unwrap().unwrap();
    let item = &user.history[0];
    assert_eq!(item.id, "h0");
    let got: Vec<_> = item.fields.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expected = [
        ("big", "18446744073709551615"),
        ("e", "1000"),
        ("f", "2.5"),
        ("i", "5"),
        ("n", "-7"),
        ("t", "true"),
        ("text", "aé😀"),
        ("w", "4"),
        ("z", "0"),
    ];
    assert_eq!(got, expected);
    let user = read(br#"{"id":42,"history":[{"id":7,"text":"a"}],"queries":[{"text":"b"}]}"#);
    let user = user.into_iter().next().unwrap().unwrap();
    assert_eq!((user.id.as_str(), user.history[0].id.as_str()), ("42", "7"));
    assert_eq!(user.queries[0].id, "q0");
}

#[test]
fn each_problem_has_its_name() {
    let good = r#"{"text":"a"}"#;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"\xEF\xBB\xBF{}".to_vec(), "byte order mark"),
        (b"{\"id\":\"a\xFF\"}".to_vec(), "not UTF-8 at byte 8"),
        (vec![b'x'; 2001], "longer than 2000 bytes"),
        (b"{\"id\":\"u\"".to_vec(), "not valid JSON at column 9: EOF while parsing an object"),
        (format!("{} x", of_items(good)).into_bytes(), "trailing characters"),
        (of_items(r#"{"x":1e999}"#).into_bytes(), "number out of range"),
        (of_items(r#"{"x":"\ud800"}"#).into_bytes(), "not valid JSON at column"),
        (of_items(r#"{"x":"\udc00 "}"#).into_bytes(), "surrogate"),
        (b"[]".to_vec(), "the record must be an object, found an array"),
        (b"7".to_vec(), "the record must be an object, found a number"),
        (b"null".to_vec(), "the record must be an object, found null"),
        (b"{}".to_vec(), "no `id`"),
        (br#"{"id":""}"#.to_vec(), "`id` is empty"),
        (br#"{"id":null}"#.to_vec(), "`id` must be a string, number or boolean, found null"),
        (br#"{"id":"u"}"#.to_vec(), "the history is empty"),
        (br#"{"id":"u","id":"v"}"#.to_vec(), r#"the record has the key "id" twice"#),
        (br#"{"user_id":"u"}"#.to_vec(), r#"unknown key "user_id""#),
        (br#"{"id":"u","history":{}}"#.to_vec(), "`history` must be an array, found an object"),
        (of_items("3").into_bytes(), "history[0] must be an object, found a number"),
        (of_items("{}").into_bytes(), "history[0] has no field"),
        (of_items(r#"{"id":"x"}"#).into_bytes(), "history[0] has no field"),
        (of_items(r#"{"id":"","x":1}"#).into_bytes(), "history[0].id is empty"),
        (of_items(r#"{"x":1,"x":2}"#).into_bytes(), r#"history[0] has the key "x" twice"#),
        (of_items(r#"{"x":null}"#).into_bytes(), "history[0].x must be a string"),
        (of_items(r#"{"x":[[[1]]]}"#).into_bytes(), "history[0].x must be a string"),
        (of_items(r#"{"x":99999999999999999999}"#).into_bytes(), "too large to keep exactly"),
        (of_items(r#"{"id":1,"x":1},{"id":"1","x":1}"#).into_bytes(), r#"have the id "1""#),
    ];
    for (text, part) in cases {
        let shown = problem(&text).to_string();
        assert!(shown.starts_with("f.jsonl:1: ") && shown.contains(part), "{part}: {shown}");
    }
    let long = format!(r#"{{"id":"{}","history":[{good}]}}"#, "i".repeat(4097));
    let found = read_with(long.as_bytes(), Limits::new(Role::Personal)).pop();
    assert!(matches!(
        found,
        Some(Err(DataError::Bad(Problem { what: What::IdTooLong { .. }, .. })))
    ));
}

#[test]
fn nesting_stops_at_the_first_bracket() {
    let deep = of_items(&format!(r#"{{"x":{}"#, "[".repeat(900)));
    assert!(problem(deep.as_bytes()).to_string().contains("history[0].x must be a string"));
    assert!(problem("[".repeat(1900).as_bytes()).to_string().contains("must be an object"));
}

#[test]
fn a_bad_line_leaves_the_others_and_a_second_record_is_refused() {
    let text = format!("{}\nnot json\n{}\r\n  \n", of_items(r#"{"x":1}"#), of_items(r#"{"x":2}"#));
    let mut read = read(text.as_bytes()).into_iter();
    assert_eq!(read.next().unwrap().unwrap().history[0].field("x"), Some("1"));
    assert!(matches!(
        read.next(),
        Some(Err(DataError::Bad(Problem { at: Location::Line(2), .. })))
    ));
    let Some(Err(DataError::Bad(second))) = read.next() else { panic!() };
    assert_eq!((second.at, second.user), (Location::Line(3), Some(UserId::new("u"))));
    assert_eq!(second.what, What::DuplicateUser { first: Location::Line(1) });
    assert!(read.next().is_none());
}

#[test]
fn the_user_is_named_when_known_and_control_characters_are_escaped() {
    let bad = problem(b"{\"id\":\"a\\u001b[2J\",\"history\":[{\"x\":null}]}");
    assert_eq!(bad.user, Some(UserId::new("a\u{1b}[2J")));
    assert!(!bad.to_string().contains('\u{1b}'));
}

#[test]
fn a_system_error_ends_the_iteration() {
    struct Broken;
    impl io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("gone"))
        }
    }
    let limits = Limits::new(Role::Personal);
    let mut reader = Reader::new(BufReader::new(Broken), Path::new("f"), limits);
    assert!(matches!(reader.next(), Some(Err(DataError::Io { .. }))));
    assert!(reader.next().is_none());
}

/// The guide's example is valid and says what the guide says.
#[test]
fn the_guides_example_reads() {
    let guide = include_str!("../../../docs/guides/data.md");
    let (_, rest) = guide.split_once("```jsonl\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let users: Vec<_> = read(example.as_bytes()).into_iter().map(Result::unwrap).collect();
    let shape = |u: &UserRecord| (u.id.to_string(), u.history.len(), u.queries.len());
    assert_eq!(
        users.iter().map(shape).collect::<Vec<_>>(),
        [("ann".to_owned(), 2, 1), ("bob".to_owned(), 1, 0)]
    );
    assert_eq!(users[1].history[0].id, "h0");
}

#[test]
fn check_counts_and_lists() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let good = of_items(r#"{"x":1},{"x":2}"#);
    writeln!(file, "{good}\n{good}\n[]").unwrap();
    let report = crate::data::check(file.path(), Limits::new(Role::Personal)).unwrap();
    assert_eq!((report.users, report.items, report.queries, report.num_problems), (1, 2, 0, 2));
    assert_eq!(
        report.problems.iter().map(|p| p.at).collect::<Vec<_>>(),
        [2, 3].map(Location::Line)
    );
}

fn items(prefix: &'static str) -> impl Strategy<Value = Vec<Item>> {
    let fields = proptest::collection::btree_map("[a-h]{1,3}", any::<String>(), 1..4);
    proptest::collection::vec(fields, 0..4).prop_map(move |list| {
        let numbered = list.into_iter().enumerate();
        numbered.map(|(i, fields)| Item { id: format!("{prefix}{i}"), fields }).collect()
    })
}

proptest! {
    #[test]
    fn written_records_read_back(id in "\\PC{1,20}", history in items("../"), queries in items("é"), profile in proptest::option::of(any::<String>())) {
        prop_assume!(!history.is_empty());
        let record = UserRecord { id: UserId::new(&id), history, queries, profile };
        let mut line = Vec::new();
        write_user(&mut line, &record).unwrap();
        prop_assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
        let back = read_with(&line, Limits::new(Role::Personal)).pop().unwrap().unwrap();
        prop_assert_eq!(back, record);
    }

    #[test]
    fn integers_are_coerced_as_written(n in any::<i64>(), m in any::<u64>()) {
        let line = format!(r#"{{"id":{n},"history":[{{"id":{m},"x":{n}}}]}}"#);
        let user = read(line.as_bytes()).pop().unwrap().unwrap();
        prop_assert_eq!(user.id.as_str(), n.to_string());
        prop_assert_eq!(&user.history[0].id, &m.to_string());
        prop_assert_eq!(&user.history[0].fields["x"], &n.to_string());
    }

    /// Any damage gives records or problems; what still reads, writes and reads back the same.
    #[test]
    fn damaged_lines_never_panic(edits in proptest::collection::vec((any::<u16>(), any::<u8>(), 0u8..3), 1..6)) {
        let mut bytes = concat!(
            r#"{"id":"u\ud83d\ude00","history":[{"id":1,"text":"a b","score":4.5,"date":1e3}],"#,
            r#""queries":[{"id":"é","text":"\"c\\","ok":true}]}"#, "\n",
            r#"{"id":"v","history":[{"text":"[[[[{{{{"}]}"#, "\n",
        ).as_bytes().to_vec();
        for (at, byte, kind) in edits {
            let at = usize::from(at) % bytes.len();
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        for record in read(&bytes) {
            match record {
                Ok(user) => {
                    let mut line = Vec::new();
                    write_user(&mut line, &user).unwrap();
                    prop_assert_eq!(read_with(&line, Limits::new(Role::Personal)).pop().unwrap().unwrap(), user);
                }
                Err(e) => prop_assert!(e.to_string().starts_with("f.jsonl:")),
            }
        }
    }
}
