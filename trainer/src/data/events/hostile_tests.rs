//! Files and options that are wrong.

use super::*;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, bytes: &[u8]) -> Vec<PathBuf> {
        let path = self.0.path().join("log");
        File::create(&path).unwrap().write_all(bytes).unwrap();
        vec![path]
    }
}

fn format(more: &str) -> Format {
    let mut keys: toml::Table = "min_events = 2\ntime = \"unix_seconds\"".parse().unwrap();
    keys.extend(more.parse::<toml::Table>().unwrap());
    Format::resolve(None, &keys).unwrap()
}

/// The error under `Stop`, without the file's name, and the result under `Quarantine`.
fn both(bytes: &[u8], format: &Format) -> (String, Result<(EventData, Tally), DataError>) {
    let folder = Folder::new();
    let paths = folder.file(bytes);
    let split = Split { train: 1.0, validation: 0.0, ..Split::default() };
    let strict = read(&paths, format, &split, OnBad::Stop);
    let text = strict.map_or_else(|e| e.to_string(), |_| "no error".to_owned());
    let text = text.replace(&paths[0].display().to_string(), "log");
    (text, read(&paths, format, &split, OnBad::Quarantine))
}

#[test]
fn every_bad_row_says_where_and_why_and_is_skipped() {
    let long = "x".repeat(5000);
    let cases: [(&[u8], &str); 13] = [
        (
            b"a,soon,x",
            r#"log:3: user a: column "time": "soon" is no time, written as seconds since 1970"#,
        ),
        (
            b"a,NaN,x",
            r#"log:3: user a: column "time": "NaN" is no time, written as seconds since 1970"#,
        ),
        (
            b"a,1e9,x",
            r#"log:3: user a: column "time": "1e9" is no time, written as seconds since 1970"#,
        ),
        (
            b"a,99999999999999999999,x",
            r#"log:3: user a: column "time": "99999999999999999999" is no time, written as seconds since 1970"#,
        ),
        (
            b"a,9223372036854775807,x",
            r#"log:3: user a: column "time": "9223372036854775807" is no time, written as seconds since 1970"#,
        ),
        (b"a,,x", r#"log:3: user a: column "time" is empty or missing"#),
        (b",3,x", r#"log:3: column "user" is empty or missing"#),
        (b"a,3,", r#"log:3: user a: column "event" is empty or missing"#),
        (b"a,3", "log:3: the row has 2 columns, not 3"),
        (b"a,3,x,y", "log:3: the row has 4 columns, not 3"),
        (b"a,3,\xff", r#"log:3: column "event": not UTF-8 at byte 0 of the cell"#),
        (
            b"a\x1b[31m,x,x",
            "log:3: user a\\u{1b}[31m: column \"time\": \"x\" is no time, written as seconds since 1970",
        ),
        (long.as_bytes(), "log:3: the row has 1 columns, not 3"),
    ];
    for (row, expected) in cases {
        let file = [b"user,time,event\na,1,x\n", row, b"\na,5,x\na,4,y\n"].concat();
        let (error, lenient) = both(&file, &format(""));
        assert_eq!(error, expected);
        let (data, tally) = lenient.unwrap();
        assert_eq!((tally.rows, tally.bad_rows, tally.problems.len()), (4, 1, 1));
        assert_eq!(data.users[0].times, [1, 4, 5]);
    }
    let file = format!("user,time,event\na,1,x\na,3,{long}\na,5,x\n");
    let (error, lenient) = both(file.as_bytes(), &format(""));
    assert_eq!(error, "log:3: user a: column \"event\" has 5000 bytes, at most 4096 are allowed");
    assert_eq!(lenient.unwrap().1.bad_rows, 1);
    // An id beyond the cap is not printed.
    let file = format!("user,time,event\n{long},1,x\na,5,x\na,6,x\n");
    let (error, _) = both(file.as_bytes(), &format(""));
    assert_eq!(error, "log:2: column \"user\" has 5000 bytes, at most 4096 are allowed");
}

#[test]
fn an_open_quote_takes_the_rest_and_no_memory() {
    let rest = "b,1,x\n".repeat(2000);
    let file = format!("user,time,event\na,1,x\na,2,y\na,\"3,z\n{rest}");
    let (error, lenient) = both(file.as_bytes(), &format("max_row_bytes = 1000"));
    assert_eq!(error, "log:4: the record is longer than 1000 bytes");
    let (data, tally) = lenient.unwrap();
    assert_eq!((data.users.len(), tally.rows, tally.bad_rows), (1, 3, 1));
    // Below the cap it is a row too narrow.
    let (error, _) = both(b"user,time,event\na,1,x\na,\"3,z\nb,1,x\n", &format(""));
    assert_eq!(error, "log:3: the row has 2 columns, not 3");
}

#[test]
fn marks_line_ends_quotes_and_empty_lines_are_no_problem() {
    let plain = b"user,time,event\na,1,x\na,2,y\na,3,\"l\n2\"\n".to_vec();
    let (_, expected) = both(&plain, &format(""));
    let expected = expected.unwrap();
    assert!(expected.0.vocabulary.columns[EVENT].values.contains(&"y".to_owned()));
    let marked = [b"\xEF\xBB\xBF".as_slice(), &plain].concat();
    let crlf = b"\r\n\"user\",time,event\r\n\r\na,1,x\r\na,2,y\r\n\r\na,\"3\",\"l\n2\"".to_vec();
    for file in [marked, crlf] {
        let (error, got) = both(&file, &format(""));
        assert_eq!(error, "no error");
        assert_eq!(got.unwrap(), expected);
    }
}

#[test]
fn headers() {
    let all = |file: &[u8], format: &Format| {
        let (strict, lenient) = both(file, format);
        // What holds for the whole file is never skipped.
        let lenient = lenient.unwrap_err().to_string();
        assert!(lenient.ends_with(strict.trim_start_matches("log")), "{lenient} {strict}");
        strict
    };
    assert_eq!(all(b"", &format("")), "log:1: the file is empty: it has no header");
    assert_eq!(all(b"\xEF\xBB\xBF\n\n", &format("")), "log:3: the file is empty: it has no header");
    let header = r#"log:1: the header has the column "time" 0 times: "user", "when", "event""#;
    assert_eq!(all(b"user,when,event\na,1,x\n", &format("")), header);
    let twice =
        r#"log:1: the header has the column "user" 2 times: "user", "time", "event", "user""#;
    assert_eq!(all(b"user,time,event,user\n", &format("")), twice);
    let nobody = "no user is left: 0 have fewer than 2 events";
    assert_eq!(all(b"user,time,event\n", &format("")), nobody);
    let few = "no user is left: 2 have fewer than 2 events";
    assert_eq!(all(b"user,time,event\na,1,x\nb,1,x\n", &format("")), few);
    let narrow = "log:1: column number 7 (from 0) is asked for, rows have 3 columns";
    let by_number = "header = false\ncolumns = { user = 0, time = 1, event = 7 }";
    assert_eq!(all(b"a,1,x\na,1,x\n", &format(by_number)), narrow);
    let by_number = "columns = { user = 0, time = 1, event = 7 }";
    assert_eq!(all(b"a,1,x\na,1,x\n", &format(by_number)), narrow);
    let missing = read(
        &[Path::new("/nowhere/log").to_owned()],
        &format(""),
        &Split::default(),
        OnBad::Quarantine,
    );
    assert!(matches!(missing, Err(DataError::Io { .. })));
}

#[test]
fn jsonl() {
    let jsonl = format("kind = \"jsonl\"");
    let cases: [(&[u8], &str); 9] = [
        (b"{", "log:2: not valid JSON at column 1: EOF while parsing an object"),
        (b"[1]", "log:2: the record must be an object, found an array"),
        (
            br#"{"user":"a","time":[1],"event":"x"}"#,
            "log:2: `time` must be a string, number or boolean, found an array",
        ),
        (
            br#"{"user":"a","time":1e400,"event":"x"}"#,
            "log:2: not valid JSON at column 24: number out of range",
        ),
        (
            br#"{"user":"a","time":NaN,"event":"x"}"#,
            "log:2: not valid JSON at column 20: expected value",
        ),
        (
            br#"{"user":"a","user":"b","time":1,"event":"x"}"#,
            "log:2: the record has the key \"user\" twice",
        ),
        (
            br#"{"user":"a","time":null,"event":"x"}"#,
            "log:2: user a: column \"time\" is empty or missing",
        ),
        (br#"{"user":"a","event":"x"}"#, "log:2: user a: column \"time\" is empty or missing"),
        (b"{\"user\":\"\xff\"}", "log:2: not UTF-8 at byte 9 of the record"),
    ];
    for (row, expected) in cases {
        let good = br#"{"user":"a","time":1,"event":"x","more":{"user":2}}"#;
        let file =
            [good, &b"\r\n"[..], row, b"\n\n", br#"{"event":true,"time":2.0,"user":"a"}"#].concat();
        let (error, lenient) = both(&file, &jsonl);
        assert_eq!(error, expected);
        let (data, tally) = lenient.unwrap();
        assert_eq!((tally.rows, tally.bad_rows, &data.users[0].times[..]), (3, 1, &[1, 2][..]));
    }
}

#[test]
fn options_without_sense() {
    let refused =
        |text: &str| Format::resolve(None, &text.parse().unwrap()).unwrap_err().to_string();
    for (keys, part) in [
        ("bucket_minutes = 7", "bucket_minutes"),
        ("bucket_minutes = 0", "bucket_minutes"),
        ("min_events = 1", "min_events"),
        ("max_row_bytes = 0", "max_row_bytes"),
        ("intent = \"column\"", "columns.intent"),
        ("header = false", "columns go by number"),
        ("kind = \"jsonl\"\ncolumns = { user = 0 }", "JSONL has keys"),
        ("columns = { contexts = [[\"time\", \"t\"]] }", "columns.contexts"),
        ("columns = { contexts = [[\"a\", \"t\"], [\"a\", \"s\"]] }", "columns.contexts"),
        ("column = 3", "unknown field `column`"),
        ("gap_seconds = -1", "invalid value"),
        ("time_zone = \"Mars\"", "a time zone is"),
        ("intent = { map = { names = {}, other = 1 } }", "other"),
        ("kind = \"xml\"", "unknown variant"),
    ] {
        let error = refused(keys);
        assert!(error.contains(part), "{keys}: {error}");
    }
}

#[test]
fn a_clock_set_back_keeps_the_order_of_moments() {
    let file =
        b"user,time,event\na,2023-10-29T02:10:00+01:00,late\na,2023-10-29T02:30:00+02:00,early\n";
    let (_, read) = both(file, &format("time = \"iso\""));
    let data = read.unwrap().0;
    assert_eq!(data.vocabulary.columns[EVENT].values[1..], ["early", "late"]);
    assert_eq!(data.users[0].rows, [2, 6, 1, 2, 6, 2]);
    assert_eq!(data.users[0].times[0] - data.users[0].times[1], 20 * 60);
}
