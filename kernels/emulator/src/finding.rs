//! Findings of a launch, and their places in the source.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// An address outside every allocation, of shared memory where it must be, or past an array's end.
    OutOfBounds,
    /// An address that is not a multiple of the access.
    Misaligned,
    /// Two threads, one of them writing, without a barrier between them.
    Race,
    /// A read of bytes that nobody wrote.
    Uninitialised,
    /// Memory touched while cp.async is filling it.
    InFlight,
    /// A thread returned before its copies arrived.
    CopyNeverWaitedFor,
    /// Threads of a block came to different barriers, or returned before one.
    DivergentBarrier,
    /// Lanes of a warp came to different collectives.
    DivergentWarp,
    /// No thread can go on.
    Deadlock,
    /// A signed integer left its range.
    Overflow,
}

/// One thing that a launch did wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was wrong.
    pub kind: Kind,
    /// The block.
    pub block: [u32; 3],
    /// The thread, in row-major order; none at the end of a block.
    pub thread: Option<u32>,
    /// `file:line` in the kernel's sources; without debug tools the library and the offset in it.
    pub place: String,
    /// The other thread of a race with its place.
    pub other: Option<(u32, String)>,
    /// Details.
    pub what: String,
}

const KINDS: &[(&str, Kind)] = &[
    ("out of bounds", Kind::OutOfBounds),
    ("misaligned", Kind::Misaligned),
    ("race", Kind::Race),
    ("uninitialised read", Kind::Uninitialised),
    ("copy in flight", Kind::InFlight),
    ("copy never waited for", Kind::CopyNeverWaitedFor),
    ("divergent barrier", Kind::DivergentBarrier),
    ("divergent warp", Kind::DivergentWarp),
    ("deadlock", Kind::Deadlock),
    ("integer overflow", Kind::Overflow),
];

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let name = KINDS.iter().find(|(_, kind)| kind == self).map_or("?", |(name, _)| name);
        f.write_str(name)
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.kind)?;
        if !self.place.is_empty() {
            write!(f, " at {}", self.place)?;
        }
        write!(f, ", block {:?}", self.block)?;
        if let Some(thread) = self.thread {
            write!(f, ", thread {thread}")?;
        }
        if let Some((thread, place)) = &self.other {
            write!(f, ", against thread {thread} at {place}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// The findings as indented lines.
pub(crate) fn listed(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("\n  {finding}")).collect()
}

/// Reads the runtime's text (`runtime/findings.cpp`); lines that do not fit its form are skipped.
pub(crate) fn parse(text: &str) -> Vec<Finding> {
    let mut places = BTreeMap::new();
    text.lines().filter_map(|line| parse_line(line, &mut places)).collect()
}

fn parse_line(line: &str, places: &mut BTreeMap<String, String>) -> Option<Finding> {
    let fields: Vec<&str> = line.splitn(9, '\t').collect();
    let [kind, x, y, z, thread, place, other_thread, other_place, what] = fields[..] else {
        return None;
    };
    let mut resolve =
        |place: &str| places.entry(place.to_owned()).or_insert_with(|| source_line(place)).clone();
    Some(Finding {
        kind: KINDS.iter().find(|(name, _)| *name == kind)?.1,
        block: [x.parse().ok()?, y.parse().ok()?, z.parse().ok()?],
        thread: thread.parse().ok(),
        place: resolve(place),
        other: other_thread.parse().ok().map(|thread| (thread, resolve(other_place))),
        what: what.to_owned(),
    })
}

/// `file:line` without folders. A code address (`library+0xoffset`) is looked up with addr2line: of the inlined
/// functions that end there the innermost outside the runtime and the PTX wrappers.
fn source_line(place: &str) -> String {
    let short = |line: &str| {
        Path::new(line).file_name().map_or_else(String::new, |name| name.to_string_lossy().into())
    };
    let Some((library, offset)) = place.rsplit_once("+0x") else { return short(place) };
    let output =
        Command::new("addr2line").args(["-i", "-e", library, &format!("0x{offset}")]).output();
    let Ok(output) = output else { return short(place) };
    let runtime = PathBuf::from(crate::compile::RUNTIME);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrapper = |line: &&str| {
        let file = line.rsplit_once(':').map_or(*line, |(file, _)| file);
        !file.starts_with("??")
            && !Path::new(file).starts_with(&runtime)
            && !file.ends_with("/ptx.cuh")
    };
    text.lines()
        .map(|line| line.split(" (").next().unwrap_or(line))
        .find(wrapper)
        .map_or_else(|| short(place), short)
}
