#!/usr/bin/env python3
"""House rules of the tree that neither rustc nor clippy holds.

Reads every file that git tracks or would track, prints `path:line: rule: what`, and exits with 1 if there is anything
to print. No dependencies. The rules, one function each, are in RULES; the exceptions, with reasons, in ALLOWED.
"""

import ast
import pathlib
import re
import subprocess
import sys
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAX_LINES = 500
MAX_BYTES = 2_000_000
TEXT = {".rs", ".cu", ".cuh", ".py", ".md", ".toml", ".sh", ".sbatch", ".yml", ".yaml", ".json", ".jsonl", ".txt", ""}

# Rule -> {path: reason}.
ALLOWED: dict[str, dict[str, str]] = {
    "size": {},
    "bytes": {},
}

# A crate -> the workspace crates it may depend on.
CRATES = {"kernels": set(), "trainer": {"kernels"}, "launcher": {"kernels", "trainer"}, "tests": set()}

# Folders of one developer's machine. Written in pieces, so that this file does not break its own rule.
PRIVATE_PATH = re.compile(r"(?<![\w.$}-])/(?:" + "|".join(["ro" + "ot", "wo" + "rk", "tmp/" + "wt", "home/" + r"\w+"]) + r")(?![\w-])")


def tracked() -> list[str]:
    """Paths relative to the root: tracked, or new and not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
    return sorted(name for name in set(names) if name and (ROOT / name).is_file())


def rule_size(path: str, lines: list[str]):
    """A source file is at most 500 lines."""
    if pathlib.Path(path).suffix in {".rs", ".cu", ".cuh", ".py"} and len(lines) > MAX_LINES:
        yield 1, f"{len(lines)} lines, the limit is {MAX_LINES}"


def rule_private_path(path: str, lines: list[str]):
    """No path of one developer's machine."""
    for number, line in enumerate(lines, 1):
        if found := PRIVATE_PATH.search(line):
            yield number, f"`{found.group()}` is a path of one machine"


def rule_ignored_test(path: str, lines: list[str]):
    """No `#[ignore]`: a test runs or says in its output why it could not."""
    if path.endswith(".rs"):
        for number, line in enumerate(lines, 1):
            if re.match(r"\s*#\[ignore", line):
                yield number, "ignored test"


def rule_todo(path: str, lines: list[str]):
    """A TODO names its issue."""
    if pathlib.Path(path).suffix in {".rs", ".cu", ".cuh"}:
        for number, line in enumerate(lines, 1):
            if re.search(r"\b(TODO|FIXME|XXX|HACK)\b(?!\(#\d+\))", line):
                yield number, "write TODO(#issue)"


def rule_module_head(path: str, lines: list[str]):
    """A Rust module says at its head what it is."""
    if path.endswith(".rs") and "/src/" in path and not (lines and lines[0].startswith("//!")):
        yield 1, "no `//!` head in the first line"


def rule_module_name(path: str, lines: list[str]):
    """A module is a noun of the domain."""
    stem = pathlib.Path(path).stem
    if path.endswith(".rs") and (stem in {"utils", "util", "common", "helpers", "manager", "misc"} or re.search(r"_v\d+$|_copy$", stem)):
        yield 1, f"`{stem}` says nothing"


def rule_environment(path: str, lines: list[str]):
    """Only launcher/src/env.rs and tests read the environment."""
    if path.endswith(".rs") and "/src/" in path and path != "launcher/src/env.rs" and not path.startswith("tests/"):
        for number, line in enumerate(lines, 1):
            if re.match(r"\s*#\[cfg\(test\)\]\s*$", line):
                return
            if re.search(r"\benv::(vars?|var_os|set_var)\b", line):
                yield number, "only launcher/src/env.rs reads the environment"


def rule_python_syntax(path: str, lines: list[str]):
    """Python files parse."""
    if path.endswith(".py"):
        try:
            ast.parse("\n".join(lines), path)
        except SyntaxError as error:
            yield error.lineno or 1, str(error)


def rule_white_space(path: str, lines: list[str]):
    """No tabs for indentation, no white space at line ends (two spaces at the end are a line break in Markdown)."""
    if pathlib.Path(path).suffix in TEXT - {".json", ".jsonl", ".txt", ""}:
        for number, line in enumerate(lines, 1):
            if line != line.rstrip() and not path.endswith(".md"):
                yield number, "white space at the end of the line"
            if line.startswith("\t"):
                yield number, "tab"


def heading_anchors(lines: list[str]) -> set[str]:
    """Anchors of a Markdown file's headings, as GitHub makes them."""
    anchors: dict[str, int] = {}
    found = set()
    for line in outside_code(lines):
        if match := re.match(r"#{1,6}\s+(.*?)\s*#*$", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match.group(1)).replace("`", "")
            anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            count = anchors.get(anchor, 0)
            anchors[anchor] = count + 1
            found.add(anchor if count == 0 else f"{anchor}-{count}")
    return found


def outside_code(lines: list[str]):
    """The lines with fenced code and inline code emptied."""
    fence = None
    for line in lines:
        mark = re.match(r"\s*(```+|~~~+)", line)
        if fence is None and mark:
            fence = mark.group(1)
            yield ""
        elif fence is not None:
            if line.strip().startswith(fence):
                fence = None
            yield ""
        else:
            yield re.sub(r"`[^`]*`", "", line)


def rule_link(path: str, lines: list[str]):
    """A local Markdown link leads to a file in the tree, and its anchor to a heading."""
    if not path.endswith(".md"):
        return
    for number, line in enumerate(outside_code(lines), 1):
        for target in re.findall(r"\]\(\s*<?([^)>\s]+)", line):
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            name, _, anchor = urllib.parse.unquote(target).partition("#")
            file = (ROOT / path).parent / name if name else ROOT / path
            if name.startswith("/") or not file.resolve().is_relative_to(ROOT):
                yield number, f"`{target}` leaves the tree"
            elif not file.exists():
                yield number, f"`{target}` leads nowhere"
            elif anchor and file.suffix == ".md":
                if anchor not in heading_anchors(file.read_text(encoding="utf-8").splitlines()):
                    yield number, f"no heading `#{anchor}` in {name or path}"


def rule_crate_arrow(path: str, lines: list[str]):
    """kernels < trainer < launcher."""
    crate, _, file = path.partition("/")
    if file == "Cargo.toml" and crate in CRATES:
        for number, line in enumerate(lines, 1):
            match = re.match(r"(kernels|trainer|launcher)\b", line)
            if match and match.group(1) not in CRATES[crate]:
                yield number, f"{crate} must not depend on {match.group(1)}"


RULES = {
    "size": rule_size,
    "private path": rule_private_path,
    "ignored test": rule_ignored_test,
    "todo": rule_todo,
    "module head": rule_module_head,
    "module name": rule_module_name,
    "environment": rule_environment,
    "python syntax": rule_python_syntax,
    "white space": rule_white_space,
    "link": rule_link,
    "crate arrow": rule_crate_arrow,
}


def main() -> int:
    """Applies every rule to every file."""
    problems = 0

    def report(path: str, line: int, rule: str, what: str) -> None:
        nonlocal problems
        problems += 1
        print(f"{path}:{line}: {rule}: {what}")

    files = tracked()
    for path in files:
        file = ROOT / path
        if file.stat().st_size > MAX_BYTES and path not in ALLOWED["bytes"]:
            report(path, 1, "bytes", f"{file.stat().st_size} bytes, the limit is {MAX_BYTES}")
        if file.suffix not in TEXT or path == "Cargo.lock":
            continue
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            report(path, 1, "utf-8", "not UTF-8")
            continue
        for name, rule in RULES.items():
            if path in ALLOWED.get(name, {}):
                continue
            for line, what in rule(path, lines):
                report(path, line, name, what)
    for name, paths in ALLOWED.items():
        for path in paths:
            if path not in files:
                report(path, 1, name, "allowed, but not in the tree")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
