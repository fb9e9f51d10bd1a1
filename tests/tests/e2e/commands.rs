//! The command line: frozen in `cli.txt`, which only a deliberate change of the product changes.

use crate::process::Start;
use std::path::Path;

fn help(args: &[&str]) -> String {
    let args: Vec<&str> = args.iter().copied().chain(["--help"]).collect();
    Start::new(Path::new(env!("CARGO_TARGET_TMPDIR")), 0, &args).run().must(0).stdout
}

/// Names in the first column of the section `heading`.
fn names(help: &str, heading: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|l| *l != heading).skip(1);
    let section = lines.take_while(|l| l.is_empty() || l.starts_with(' '));
    let entries = section.filter(|l| {
        let indent = l.len() - l.trim_start().len();
        let text = l.trim_start();
        if heading == "Commands:" {
            indent == 2
        } else {
            text.starts_with('-') || text.starts_with('<')
        }
    });
    // `--config <FILE>   The config …`: up to two spaces in a row.
    entries.map(|l| l.trim().split("  ").next().unwrap().to_owned()).collect()
}

fn describe(command: &[&str], out: &mut Vec<String>) {
    let text = help(command);
    out.push(format!("launcher {}", command.join(" ")).trim_end().to_owned());
    for heading in ["Arguments:", "Options:"] {
        out.extend(names(&text, heading).into_iter().map(|n| format!("    {n}")));
    }
    for name in names(&text, "Commands:") {
        if name != "help" {
            let below: Vec<&str> = command.iter().copied().chain([name.as_str()]).collect();
            describe(&below, out);
        }
    }
}

#[test]
fn commands_and_flags_are_frozen() {
    let mut lines = Vec::new();
    describe(&[], &mut lines);
    let now = lines.join("\n") + "\n";
    let frozen = include_str!("cli.txt");
    assert!(
        now == frozen,
        "tests/tests/e2e/cli.txt says otherwise; the command line is now:\n{now}"
    );
}

#[test]
fn usage_errors_end_with_2() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for args in
        [&[][..], &["run"], &["run", "--confg", "x.toml"], &["fly"], &["forget", "--run", "x"]]
    {
        Start::new(folder, 0, args).run().must(2).says(&["Usage"]);
    }
}

#[test]
fn completions_name_every_command() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let script = Start::new(folder, 0, &["completions", "bash"]).run().must(0).stdout;
    for command in names(&help(&[]), "Commands:") {
        assert!(script.contains(&command), "{command} is missing");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    crate::story::put(file.path(), script.as_bytes());
    let checked = std::process::Command::new("bash").arg("-n").arg(file.path()).status().unwrap();
    assert!(checked.success(), "bash cannot read it");
}
