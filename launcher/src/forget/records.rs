//! Files with a record for each user: lines of JSON with the field `user`, and the texts about users.

use crate::exit::Fails;
use anyhow::Context;
use serde_json::Value;
use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use trainer::ids::UserId;
use trainer::store::write_atomic;

/// What is in a folder, in order; nothing is in one that is not there.
pub(super) fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let found = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("{}", folder.display()))?,
    };
    let mut paths: Vec<PathBuf> =
        found.map(|entry| entry.map(|e| e.path())).collect::<io::Result<_>>()?;
    paths.sort();
    Ok(paths)
}

/// Whether a file is one of lines.
pub(super) fn lines(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "jsonl")
}

/// Whether a file is what an atomic write leaves when it is cut off.
pub(super) fn unfinished(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    (name.starts_with(".myr-") && name.ends_with(".tmp")) || name.ends_with(".copy")
}

/// The records of a user in a file of lines or of texts; of any other file none.
pub(super) fn count(path: &Path, user: &UserId) -> anyhow::Result<usize> {
    if lines(path) {
        let mut count = 0;
        each_line(path, &mut |line| count += usize::from(of(line) == Line::User(user.clone())))?;
        return Ok(count);
    }
    if path.file_name().is_some_and(|name| name == crate::run::PROFILES) {
        return Ok(texts(path)?.iter().filter(|text| is_about(text, user)).count());
    }
    Ok(0)
}

/// Rewrites a file of lines or of texts without the records of a user; how many there were.
pub(super) fn without(path: &Path, user: &UserId) -> anyhow::Result<usize> {
    let count = count(path, user)?;
    if lines(path) {
        let (mut kept, mut broken) = (String::new(), false);
        each_line(path, &mut |line| match of(line) {
            // A line that was cut off could be anybody's.
            Line::Broken => broken = true,
            Line::User(other) if other == *user => {}
            _ => kept.extend([line, "\n"]),
        })?;
        if count > 0 || broken {
            write_atomic(path, kept.as_bytes())?;
        }
    } else if count > 0 {
        let mut texts = texts(path)?;
        texts.retain(|text| !is_about(text, user));
        write_atomic(path, &serde_json::to_vec_pretty(&texts)?)?;
    }
    Ok(count)
}

/// Whose a line is.
#[derive(PartialEq)]
enum Line {
    User(UserId),
    Nobody,
    Broken,
}

fn of(line: &str) -> Line {
    match serde_json::from_str::<Value>(line) {
        Err(_) => Line::Broken,
        Ok(value) => match value.get("user").and_then(Value::as_str) {
            Some(user) => Line::User(UserId::new(user)),
            None => Line::Nobody,
        },
    }
}

fn each_line(path: &Path, work: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    let file = fs::File::open(path).with_context(|| format!("{}", path.display()))?;
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).with_context(|| format!("{}", path.display()))? > 0 {
        work(String::from_utf8_lossy(&line).trim_end_matches('\n'));
        line.clear();
    }
    Ok(())
}

fn texts(path: &Path) -> anyhow::Result<Vec<Value>> {
    let bytes = fs::read(path).with_context(|| format!("{}", path.display()))?;
    serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is not what a run writes", path.display()))
        .input("remove the file, it is written again; then forget the user")
}

fn is_about(text: &Value, user: &UserId) -> bool {
    text.get("id").and_then(Value::as_str) == Some(user.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        write_atomic(&path, text.as_bytes()).unwrap();
        path
    }

    #[test]
    fn lines_of_one_user_go_and_all_else_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (ann, other) = (r#"{"user":"ann","text":"x"}"#, r#"{"user":"ann 2","text":"ann"}"#);
        let also = r#"{ "text": "\"user\":\"ann\"", "stage": 1 }"#;
        let escaped = r#"{"user":"\u0061nn"}"#;
        let text = format!("{ann}\n{other}\n{escaped}\n{also}\n{ann}\n");
        let path = file(folder.path(), "base.jsonl", &text);
        let user = UserId::new("ann");
        assert_eq!(count(&path, &user).unwrap(), 3);
        assert_eq!(without(&path, &user).unwrap(), 3);
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{other}\n{also}\n"));
        assert_eq!(without(&path, &user).unwrap(), 0);
        // A line that a crash cut off goes too, whoever's it was; it makes nobody known.
        let path = file(folder.path(), "rank-0000.jsonl", &format!("{other}\n{{\"user\":\"an"));
        assert_eq!(count(&path, &user).unwrap(), 0);
        assert_eq!(without(&path, &user).unwrap(), 0);
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{other}\n"));
        assert_eq!(count(&file(folder.path(), "x.json", ann), &user).unwrap(), 0);
    }

    #[test]
    fn texts_about_a_user_go_and_a_strange_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"[{"id":"ann","output":"likes bob"},{"id":"bob","output":"ann"}]"#;
        let path = file(folder.path(), crate::run::PROFILES, text);
        assert_eq!(without(&path, &UserId::new("ann")).unwrap(), 1);
        assert_eq!(without(&path, &UserId::new("ann")).unwrap(), 0);
        let left: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(left, serde_json::json!([{"id": "bob", "output": "ann"}]));
        let path = file(folder.path(), crate::run::PROFILES, "{\"ann\": 1}");
        let refused = count(&path, &UserId::new("ann")).unwrap_err();
        assert_eq!(crate::exit::read(&refused).0, crate::exit::Exit::Input);
    }

    #[test]
    fn a_folder_that_is_not_there_has_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(entries(&folder.path().join("x")).unwrap().is_empty());
        assert!(
            unfinished(Path::new("a/.myr-1-2.tmp")) && unfinished(Path::new("base.jsonl.copy"))
        );
        assert!(!unfinished(Path::new("base.jsonl")));
    }
}
