//! Layouts, spans, damage.

use super::*;
use proptest::prelude::*;
use std::io::Write as _;

/// What was found: records as text, then how it ended.
fn walk(text: &[u8], list: Option<&str>, limit: usize) -> (Vec<String>, Option<String>, String) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    // Seven bytes a read: every state crosses chunks.
    let input = BufReader::with_capacity(7, file);
    let mut elements = Elements::start(input, list, limit).unwrap();
    let mut seen = Vec::new();
    loop {
        match elements.advance().unwrap() {
            Element::Whole => {
                let [start, bytes] =
                    [elements.start, elements.bytes].map(|n| usize::try_from(n).unwrap());
                let span = &text[start..start + bytes];
                let shown = String::from_utf8_lossy(elements.buffer()).into_owned();
                assert_eq!(shown.trim(), String::from_utf8_lossy(span).trim());
                seen.push(shown);
            }
            Element::TooLong => seen.push("too long".to_owned()),
            Element::Broken(at, why) => {
                assert!(at <= text.len() as u64, "{at}");
                assert_eq!(elements.advance().unwrap(), Element::End);
                return (seen, elements.task, format!("{at}: {why}"));
            }
            Element::End => {
                assert_eq!(elements.number, seen.len() as u64);
                assert_eq!(elements.advance().unwrap(), Element::End);
                return (seen, elements.task, String::new());
            }
        }
    }
}

fn records(text: &str) -> Vec<String> {
    let (seen, _, end) = walk(text.as_bytes(), Some("golds"), 1000);
    assert_eq!(end, "", "{text}");
    seen
}

#[test]
fn layouts() {
    let (a, b) = (r#"{"a":"]},\"[{","b":[[1],{}]}"#, r#"{ "a" : "\\" }"#);
    assert_eq!(records(&format!("[{a},{b}]")), [a, b]);
    assert_eq!(records(&format!(" [\n {a} \n,\n{b}\n ]\n\n")), [a, b]);
    assert_eq!(records(&format!("{a}\n\n  \n{b}\r\n")), [a, &format!("{b}\r")]);
    assert_eq!(records(&format!("{a}\n{b}")), [a, b]);
    assert_eq!(records("[]"), [""; 0]);
    assert_eq!(records("[1, \"x,]\",true ,null,[[]],-1.5e3]").len(), 6);
    let wrapped =
        format!("{{\"model\": {{\"golds\": [7]}}, \"task\":\"LaMP_3\",\"golds\":[{a},{b}]}}");
    let (seen, task, end) = walk(wrapped.as_bytes(), Some("golds"), 1000);
    assert_eq!((seen.len(), task.as_deref(), end.as_str()), (2, Some("LaMP_3"), ""));
    let later = format!("{{\"golds\":[{a}],\n\"task\":\"x\", \"n\": 5 }}\n");
    let (seen, task, end) = walk(later.as_bytes(), Some("golds"), 1000);
    assert_eq!((seen.len(), task.as_deref(), end.as_str()), (1, Some("x"), ""));
    // Without a list to look for, an object is a line.
    assert_eq!(walk(later.as_bytes(), None, 1000).0.len(), 2);
}

#[test]
fn a_long_record_hides_nothing() {
    let long = format!("[{{\"a\":\"{}\"}}, {{\"b\":1}}]", "x".repeat(5000));
    let (seen, _, end) = walk(long.as_bytes(), None, 100);
    assert_eq!((seen, end.as_str()), (vec!["too long".to_owned(), "{\"b\":1}".to_owned()], ""));
}

#[test]
fn broken_structures() {
    let cases = [
        ("", 0, "0: the file is empty"),
        ("  \n", 0, "3: the file is empty"),
        ("hello", 0, "0: neither"),
        ("\u{feff}[]", 0, "0: a byte order mark"),
        ("[", 0, "1: the file ends"),
        ("[{\"a\":1},", 1, "9: the file ends"),
        ("[{\"a\":1}, {\"b\": [1, 2", 1, "10: the file ends"),
        ("[{\"a\":1}, {\"b\": \"x]}", 1, "10: the file ends"),
        ("[{\"a\":[1,2}, {}]", 0, "10: a bracket closes"),
        ("[{} {}]", 1, "4: no `,`"),
        ("[{},]", 1, "4: no record"),
        ("[,{}]", 0, "1: no record"),
        ("[{}}", 1, "3: no `,`"),
        ("[{}] x", 1, "5: text after"),
        ("{\"golds\":[{}]", 1, "13: the object around"),
        ("{\"golds\":[{}], 5}", 1, "15: no key"),
    ];
    for (text, records, end) in cases {
        let found = walk(text.as_bytes(), Some("golds"), 1000);
        assert_eq!(found.0.len(), records, "{text}");
        assert!(found.2.starts_with(end), "{text}: {}", found.2);
    }
}

#[test]
fn deep_nesting_is_counted() {
    let n = 100_000;
    let deep = format!("[{{\"a\":{}{}}}, {{\"b\":2}}]", "[".repeat(n), "]".repeat(n));
    let (seen, _, end) = walk(deep.as_bytes(), None, 1 << 20);
    assert_eq!((seen.len(), end.as_str()), (2, ""));
    let open = format!("[{}", "[{\"a\":".repeat(n));
    assert!(walk(open.as_bytes(), None, 1 << 20).2.contains("ends inside"));
}

proptest! {
    #[test]
    fn any_bytes_end(bytes in proptest::collection::vec(proptest::sample::select(b"[]{}\",:\\ \na1".to_vec()), 0..60)) {
        for list in [None, Some("a")] {
            walk(&bytes, list, 20);
        }
    }

    #[test]
    fn spans_are_the_values(values in proptest::collection::vec("\\PC{0,12}", 0..8), blank in " {0,3}") {
        let objects: Vec<String> = values.iter().map(|v| serde_json::json!({"k": [v, {"x": v}]}).to_string()).collect();
        let text = format!("[{blank}{}{blank}]", objects.join(&format!("{blank},{blank}")));
        prop_assert_eq!(walk(text.as_bytes(), None, 1000).0, objects);
    }
}
