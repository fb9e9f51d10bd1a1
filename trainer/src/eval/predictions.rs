//! Prediction records, and LaMP's file form `{"task": …, "golds": [{"id": …, "output": …}, …]}`.

use super::EvalError;
use crate::ids::UserId;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::io::{Read, Write};

/// The answer to one query.
#[derive(Debug, Clone, PartialEq, Serialize, DeriveDeserialize)]
#[serde(deny_unknown_fields)]
pub struct Prediction {
    /// The user.
    pub user: UserId,
    /// The query's id, unique within the user.
    pub query: String,
    /// The true answer, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gold: Option<String>,
    /// The generated text, or the most likely label.
    pub text: String,
    /// Probabilities of the task's labels, in their order; sum 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_probs: Option<Vec<f32>>,
    /// Expected rating under them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<f32>,
}

impl Prediction {
    /// The most likely label (the first of equals) where there are probabilities, else the text.
    ///
    /// # Errors
    /// Probabilities that do not match the labels, or are no numbers.
    pub fn answer<'a>(&'a self, labels: &'a [String]) -> Result<&'a str, String> {
        let Some(probs) = self.label_probs.as_deref().filter(|_| !labels.is_empty()) else {
            return Ok(&self.text);
        };
        if probs.len() != labels.len() {
            return Err(format!("{} label probabilities for {} labels", probs.len(), labels.len()));
        }
        if let Some(bad) = probs.iter().find(|p| !p.is_finite()) {
            return Err(format!("a label probability is {bad}"));
        }
        let best =
            (1..probs.len()).fold(0, |best, i| if probs[i] > probs[best] { i } else { best });
        Ok(&labels[best])
    }

    /// What predictions are sorted and paired by.
    pub(super) fn key(&self) -> (&UserId, &str) {
        (&self.user, &self.query)
    }
}

/// A predictions or gold file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LampFile {
    /// Task name, such as `LaMP_3`; none for the bare lists of some releases.
    pub task: Option<String>,
    /// (id, output) in file order; ids are distinct.
    pub outputs: Vec<(String, String)>,
}

/// An id for LaMP's files, whose ids are global: `user/query`.
pub fn global_id(user: &UserId, query: &str) -> String {
    format!("{}/{query}", user.as_str())
}

/// Writes LaMP's form, one entry a line, as a stream.
///
/// # Errors
/// The writer's; [`EvalError::LampDuplicate`] (what was written so far is then no valid file).
pub fn write_lamp(
    out: &mut dyn Write,
    task: &str,
    entries: &mut dyn Iterator<Item = (String, String)>,
) -> Result<(), EvalError> {
    #[derive(Serialize)]
    struct Entry<'a> {
        id: &'a str,
        output: &'a str,
    }
    let json = |e: serde_json::Error| EvalError::Io(e.into());
    let mut seen = BTreeSet::new();
    out.write_all(b"{\"task\": ")?;
    serde_json::to_writer(&mut *out, task).map_err(json)?;
    out.write_all(b", \"golds\": [")?;
    for (id, output) in entries {
        out.write_all(if seen.is_empty() { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut *out, &Entry { id: &id, output: &output }).map_err(json)?;
        if let Some(id) = seen.replace(id) {
            return Err(EvalError::LampDuplicate { id });
        }
    }
    out.write_all(b"\n]}\n")?;
    Ok(())
}

/// Reads LaMP's form, or a bare list of its entries; other keys, such as `model`, are skipped.
///
/// # Errors
/// The reader's, another form, an id twice.
pub fn read_lamp(input: &mut dyn Read) -> Result<LampFile, EvalError> {
    let file: LampFile = serde_json::from_reader(input).map_err(|e| {
        if e.is_io() { EvalError::Io(e.into()) } else { EvalError::Lamp(e.to_string()) }
    })?;
    let mut seen = BTreeSet::new();
    match file.outputs.iter().find(|(id, _)| !seen.insert(id.as_str())) {
        Some((id, _)) => Err(EvalError::LampDuplicate { id: id.clone() }),
        None => Ok(file),
    }
}

impl<'de> Deserialize<'de> for LampFile {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(FileVisitor)
    }
}

struct FileVisitor;

impl<'de> Visitor<'de> for FileVisitor {
    type Value = LampFile;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `task` and `golds`, or a list of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<LampFile, A::Error> {
        let mut outputs = Vec::new();
        while let Some(entry) = seq.next_element::<Entry>()? {
            outputs.push((entry.id.0, entry.output.0));
        }
        Ok(LampFile { task: None, outputs })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LampFile, A::Error> {
        let (mut task, mut golds) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "task" if task.is_none() => task = Some(map.next_value::<String>()?),
                "golds" if golds.is_none() => golds = Some(map.next_value::<Vec<Entry>>()?),
                "task" | "golds" => return Err(A::Error::custom(format!("`{key}` twice"))),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let golds = golds.ok_or_else(|| A::Error::missing_field("golds"))?;
        let task = Some(task.ok_or_else(|| A::Error::missing_field("task"))?);
        let outputs = golds.into_iter().map(|entry| (entry.id.0, entry.output.0)).collect();
        Ok(LampFile { task, outputs })
    }
}

/// One entry; other keys are skipped, a key twice is refused.
#[derive(DeriveDeserialize)]
struct Entry {
    id: Scalar,
    output: Scalar,
}

/// A string, or an integer as written.
pub(super) struct Scalar(pub(super) String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl Visitor<'_> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an integer")
    }
    fn visit_str<E: Error>(self, v: &str) -> Result<Scalar, E> {
        Ok(Scalar(v.to_owned()))
    }
    fn visit_i64<E: Error>(self, v: i64) -> Result<Scalar, E> {
        Ok(Scalar(v.to_string()))
    }
    fn visit_u64<E: Error>(self, v: u64) -> Result<Scalar, E> {
        Ok(Scalar(v.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<LampFile, EvalError> {
        read_lamp(&mut text.as_bytes())
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn both_forms_are_read() {
        let whole = r#"{"model":{"x":[1]},"golds":[{"id":"310","output":4},{"id":7,"output":"b","z":null}],"task":"LaMP_3"}"#;
        let outputs = pairs(&[("310", "4"), ("7", "b")]);
        let file = read(whole).unwrap();
        assert_eq!(file, LampFile { task: Some("LaMP_3".to_owned()), outputs: outputs.clone() });
        let bare = r#"[{"id":"310","output":"4"},{"id":"7","output":"b"}]"#;
        assert_eq!(read(bare).unwrap(), LampFile { task: None, outputs });
    }

    #[test]
    fn other_forms_are_refused() {
        for (text, part) in [
            ("7", "an object with `task`"),
            (r#"{"task":"a"}"#, "missing field `golds`"),
            (r#"{"golds":[]}"#, "missing field `task`"),
            (r#"{"task":"a","golds":[{"id":"1"}]}"#, "missing field `output`"),
            (r#"{"task":"a","golds":[{"id":"1","id":"2","output":"x"}]}"#, "duplicate field `id`"),
            (r#"{"task":"a","task":"b","golds":[]}"#, "`task` twice"),
            (r#"[{"id":"1","output":[]}]"#, "a string or an integer"),
            (r#"[{"id":"1","output":"a"},{"id":1,"output":"b"}]"#, "id \"1\" is there twice"),
        ] {
            let shown = read(text).unwrap_err().to_string();
            assert!(shown.contains(part), "{shown}");
        }
    }

    #[test]
    fn writing_refuses_an_id_twice() {
        let mut entries = pairs(&[("1", "a"), ("1", "b")]).into_iter();
        let error = write_lamp(&mut Vec::new(), "t", &mut entries);
        assert!(matches!(error, Err(EvalError::LampDuplicate { id }) if id == "1"));
    }

    #[test]
    fn the_most_likely_label_answers() {
        let labels: Vec<String> = ["1", "2", "3"].map(str::to_owned).into();
        let with = |probs: Option<&[f32]>| Prediction {
            user: UserId::new("u"),
            query: "q".to_owned(),
            gold: None,
            text: "free".to_owned(),
            label_probs: probs.map(<[f32]>::to_vec),
            expected: None,
        };
        assert_eq!(with(None).answer(&labels), Ok("free"));
        assert_eq!(with(Some(&[0.2, 0.4, 0.4])).answer(&labels), Ok("2"));
        assert_eq!(with(Some(&[0.2])).answer(&[]), Ok("free"));
        assert!(with(Some(&[0.2, 0.8])).answer(&labels).is_err());
        assert!(with(Some(&[0.2, f32::NAN, 0.4])).answer(&labels).is_err());
        let text = serde_json::to_string(&with(Some(&[0.25, 0.25, 0.5]))).unwrap();
        assert_eq!(
            serde_json::from_str::<Prediction>(&text).unwrap(),
            with(Some(&[0.25, 0.25, 0.5]))
        );
    }

    proptest! {
        #[test]
        fn files_read_back(task in any::<String>(), outputs in proptest::collection::btree_map(any::<String>(), any::<String>(), 0..6)) {
            let outputs: Vec<(String, String)> = outputs.into_iter().collect();
            let mut file = Vec::new();
            write_lamp(&mut file, &task, &mut outputs.clone().into_iter()).unwrap();
            let back = read_lamp(&mut file.as_slice()).unwrap();
            prop_assert_eq!(back, LampFile { task: Some(task), outputs });
        }

        #[test]
        fn damaged_files_never_panic(at in any::<u16>(), byte: u8, cut in any::<u16>()) {
            let mut file = br#"{"task":"LaMP_3","golds":[{"id":"1","output":"4"},{"id":2,"output":5}],"m":[{}]}"#.to_vec();
            let n = file.len();
            file[usize::from(at) % n] = byte;
            let _ = read_lamp(&mut file.as_slice());
            let _ = read_lamp(&mut &file[..usize::from(cut) % n]);
        }
    }
}
