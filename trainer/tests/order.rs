//! The house rules that the compiler does not hold: who may use whom, sizes, names, the environment.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::path::{Path, PathBuf};

/// Crates of the workspace whose sources are read.
const CRATES: [&str; 4] = ["kernels", "trainer", "launcher", "tests"];

/// Lines a source file may have.
const MOST_LINES: usize = 500;

/// Files that may be longer, with the reason.
const LONGER: &[(&str, &str)] = &[(
    "kernels/tests/attention.rs",
    "one operation's whole suite: shapes, prefixes, decoding, invariance",
)];

/// Names that say nothing.
const EMPTY_NAMES: [&str; 4] = ["utils", "common", "helpers", "v2"];

/// The only file that reads the environment.
const ENVIRONMENT: &str = "launcher/src/env.rs";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// All files and folders below `folder`, in order; a missing folder has none.
fn below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    let deeper: Vec<PathBuf> = paths.iter().filter(|p| p.is_dir()).flat_map(|p| below(p)).collect();
    paths.extend(deeper);
    paths
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let rust = |p: &PathBuf| p.is_file() && p.extension().is_some_and(|e| e == "rs");
    below(folder).into_iter().filter(rust).collect()
}

fn name_in(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap().to_str().unwrap().to_owned()
}

/// The code of a source text: comments, documentation and the insides of literals blanked out, lines kept.
fn code(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    while at < bytes.len() {
        let end = match (bytes[at], bytes.get(at + 1)) {
            ('/', Some('/')) => find(&bytes, at, |r| r[0] == '\n'),
            ('/', Some('*')) => block_comment(&bytes, at),
            ('"', _) => string(&bytes, at + 1),
            ('r', Some('"' | '#')) if !at.checked_sub(1).is_some_and(|b| is_name(bytes[b])) => {
                raw_string(&bytes, at)
            }
            // A character literal; a lifetime has no second quote there.
            ('\'', Some('\\')) => find(&bytes, at + 3, |r| r[0] == '\'') + 1,
            ('\'', Some(_)) if bytes.get(at + 2) == Some(&'\'') => at + 3,
            _ => {
                out.push(bytes[at]);
                at += 1;
                continue;
            }
        };
        let end = end.min(bytes.len());
        out.extend(bytes[at..end].iter().map(|&c| if c == '\n' { c } else { ' ' }));
        at = end;
    }
    out
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The first place from `at` where `here` holds, or the end.
fn find(text: &[char], at: usize, here: impl Fn(&[char]) -> bool) -> usize {
    (at..text.len()).find(|&i| here(&text[i..])).unwrap_or(text.len())
}

fn block_comment(text: &[char], at: usize) -> usize {
    let (mut depth, mut at) = (0, at);
    while at < text.len() {
        match text[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string(text: &[char], mut at: usize) -> usize {
    while at < text.len() && text[at] != '"' {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn raw_string(text: &[char], at: usize) -> usize {
    let hashes = text[at + 1..].iter().take_while(|&&c| c == '#').count();
    if text.get(at + 1 + hashes) != Some(&'"') {
        return at + 1; // r#name, not a string
    }
    let end =
        |r: &[char]| r[0] == '"' && r.len() > hashes && r[1..=hashes].iter().all(|&c| c == '#');
    find(text, at + 2 + hashes, end) + 1 + hashes
}

/// The modules in the order that the head of `lib.rs` gives.
fn module_order(lib: &str) -> Vec<String> {
    let head: String = lib.lines().filter_map(|l| l.strip_prefix("//!")).collect();
    let links = head.split("[`").skip(1).filter_map(|rest| rest.split_once("`]"));
    links.map(|(name, _)| name.to_owned()).collect()
}

/// Every first name after `crate::` in code, groups in braces taken apart, with what follows it.
fn used(code: &str) -> Vec<(String, String)> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].chars().next_back().is_some_and(|c| is_name(c) || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let group = rest.trim_start().strip_prefix('{').map(first_level);
        for item in group.unwrap_or_else(|| vec![rest]) {
            let item = item.trim_start();
            let end = item.find(|c| !is_name(c)).unwrap_or(item.len());
            let after: String = item[end..].chars().take(8).collect();
            names.push((item[..end].to_owned(), after));
        }
    }
    names
}

/// The parts between the commas of a brace's first level; `text` starts behind the brace.
fn first_level(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&text[start..at]);
                return parts;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts
}

/// What the file of module `module` (place `own` in `order`) uses against the order.
fn against_order(order: &[String], own: usize, code: &str) -> Vec<String> {
    let place = |name: &str| order.iter().position(|m| m == name);
    let later = |(name, after): &(String, String)| {
        // `error` collects the modules' own error enums and nothing else of theirs.
        let collected = order[own] == "error" && after.starts_with("::Error");
        place(name).is_some_and(|p| p > own) && !collected
    };
    used(code).into_iter().filter(later).map(|(name, _)| name).collect()
}

#[test]
fn trainer_modules_use_only_earlier_ones() {
    let source = root().join("trainer/src");
    let lib = std::fs::read_to_string(source.join("lib.rs")).unwrap();
    let order = module_order(&lib);
    let mut declared: Vec<String> = code(&lib)
        .lines()
        .filter_map(|l| Some(l.trim().strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned()))
        .collect();
    let mut listed = order.clone();
    declared.sort();
    listed.sort();
    assert_eq!(listed, declared, "lib.rs must list every module once, lowest first");
    let mut faults = Vec::new();
    for path in sources(&source) {
        let name = name_in(&source, &path);
        let module = name.split('/').next().unwrap().trim_end_matches(".rs");
        let Some(own) = order.iter().position(|m| m == module) else {
            assert_eq!(name, "lib.rs", "a file outside the listed modules");
            continue;
        };
        let text = code(&std::fs::read_to_string(&path).unwrap());
        let depth = name.matches('/').count() + usize::from(!name.ends_with("mod.rs"));
        let to_root = "super::".repeat(depth);
        for later in &order[own + 1..] {
            if text.contains(&format!("{to_root}{later}::")) {
                faults.push(format!("{name}: reaches {later} by {to_root}"));
            }
        }
        for later in against_order(&order, own, &text) {
            faults.push(format!("{name}: uses {later}, which comes after {module}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn lower_crates_do_not_know_higher_ones() {
    let root = root();
    let mut faults = Vec::new();
    for (lower, higher) in [("kernels", &["trainer", "launcher"][..]), ("trainer", &["launcher"])] {
        let folder = root.join(lower).join("src");
        for path in sources(&folder) {
            let text = code(&std::fs::read_to_string(&path).unwrap());
            let words: Vec<&str> = text.split(|c| !is_name(c)).collect();
            for name in higher.iter().filter(|name| words.contains(name)) {
                faults.push(format!("{}: names {name}", name_in(&root, &path)));
            }
        }
        let manifest = std::fs::read_to_string(root.join(lower).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let dependencies = manifest.get(table).and_then(toml::Value::as_table);
            for name in higher.iter().filter(|n| dependencies.is_some_and(|d| d.contains_key(**n)))
            {
                faults.push(format!("{lower}/Cargo.toml: {table} has {name}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn files_are_short_and_named() {
    let root = root();
    let mut faults = Vec::new();
    let mut seen = 0;
    for path in CRATES.iter().flat_map(|c| below(&root.join(c))) {
        let name = name_in(&root, &path);
        let rust = path.extension().is_some_and(|e| e == "rs");
        let stem = path.file_stem().unwrap().to_str().unwrap();
        if (rust || path.is_dir()) && EMPTY_NAMES.contains(&stem) {
            faults.push(format!("{name}: `{stem}` says nothing about what is inside"));
        }
        if rust {
            seen += 1;
            let lines = std::fs::read_to_string(&path).unwrap().lines().count();
            let allowed = LONGER.iter().any(|(file, _)| *file == name);
            if lines > MOST_LINES && !allowed {
                faults.push(format!("{name}: {lines} lines, at most {MOST_LINES}"));
            }
        }
    }
    assert!(seen > 20, "{seen} sources found: looking in the wrong place");
    assert!(LONGER.iter().all(|(file, reason)| root.join(file).exists() && !reason.is_empty()));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Whether code reads the environment; `env!` is read when compiling and is no matter.
fn reads_environment(code: &str) -> bool {
    let squeezed: String = code.chars().filter(|c| !c.is_whitespace()).collect();
    let through_group = squeezed.match_indices("std::{").any(|(at, open)| {
        let group = first_level(&squeezed[at + open.len()..]);
        group.iter().any(|item| *item == "env" || item.starts_with("env::"))
    });
    squeezed.contains("std::env") && !squeezed.contains("std::env!") || through_group
}

#[test]
fn only_the_launcher_reads_the_environment() {
    let root = root();
    let readers: Vec<String> = CRATES
        .iter()
        .flat_map(|c| sources(&root.join(c).join("src")))
        .filter(|path| reads_environment(&code(&std::fs::read_to_string(path).unwrap())))
        .map(|path| name_in(&root, &path))
        .filter(|name| name != ENVIRONMENT)
        .collect();
    assert!(readers.is_empty(), "{readers:?}");
}

#[test]
fn the_rules_see_what_they_forbid() {
    let order: Vec<String> = ["error", "ids", "config", "comm"].map(str::to_owned).into();
    let faults = |own, text: &str| against_order(&order, own, &code(text));
    assert_eq!(faults(1, "use crate::config::Config;"), ["config"]);
    assert_eq!(faults(1, "use crate::{\n  error, config::{A, B}, comm\n};"), ["config", "comm"]);
    assert_eq!(faults(1, "fn f() -> crate::comm::Error {}"), ["comm"]);
    assert_eq!(faults(3, "use crate::config::Config; use crate::Error;"), [""; 0]);
    assert_eq!(faults(0, "Comm(#[from] crate::comm::Error)"), [""; 0]);
    assert_eq!(faults(0, "use crate::comm::Solo;"), ["comm"]);
    for hidden in [
        "// crate::config::X",
        "/// [`crate::config`]",
        "/* a /* b */ crate::config */",
        r#"let s = "crate::config \" crate::comm";"#,
        "let s = r#\"crate::config \"x\" \"#;",
        "let c = '\"'; // crate::config",
        "fn f<'a>(x: &'a str) {} // crate::config",
    ] {
        assert_eq!(faults(1, hidden), [""; 0], "{hidden}");
    }
    assert_eq!(faults(1, "let c = '\"'; crate::config::f(); let d = '\\'';"), ["config"]);
    assert!(reads_environment("use std::env;"));
    assert!(reads_environment("use std::{fs, env::{self}};"));
    assert!(reads_environment("std :: env :: var()"));
    assert!(!reads_environment(&code("// std::env\nlet e = env!(\"X\"); use std::{fs, io};")));
    let lib = "//! Lowest first:\n//! [`a`], [`b`],\n//! [`c`].\npub mod b;";
    assert_eq!(module_order(lib), ["a", "b", "c"]);
}
