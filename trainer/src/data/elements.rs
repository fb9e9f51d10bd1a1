//! Records of JSON files of any size, one at a time with their places, without parsing them.
//!
//! Three layouts are told apart by the first byte and, for objects, by their keys: an array of records
//! `[…]`; an object around such an array, `{"task": …, "golds": […]}`; one record a line. Only quotes,
//! backslashes and brackets are looked at, so a record that is bad inside does not hide the next one.
//! Memory: one record, at most the limit.

use super::DataError;
use super::lines::{Line, Lines};
use super::syntax::{Step, Syntax};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

/// The cap on a record: 64 MiB, as for a line of JSONL.
pub(super) const MAX_RECORD_BYTES: usize = 64 << 20;

/// What the next record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    /// A record is in the buffer.
    Whole,
    /// A record beyond the cap went by.
    TooLong,
    /// The file's structure ends here in a way that leaves no record after it: where and why.
    Broken(u64, &'static str),
    /// The end.
    End,
}

enum Walk {
    Array(Scan<BufReader<File>>),
    Lines(Lines<BufReader<File>>),
}

/// Iterates over the records of a file.
pub(super) struct Elements {
    walk: Walk,
    stage: Stage,
    wrapped: bool,
    /// `task` of the object around the array, if it has been read and is a string.
    pub(super) task: Option<String>,
    /// Number of the record last returned, from 1.
    pub(super) number: u64,
    /// Byte offset at which it starts.
    pub(super) start: u64,
    /// Its bytes.
    pub(super) bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    First,
    Later,
    Over,
    Broken(u64, &'static str),
}

impl Elements {
    /// Opens a file; with `list`, also an object whose key of that name holds the records.
    pub(super) fn open(
        path: &Path,
        list: Option<&str>,
        limit_bytes: usize,
    ) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io(path))?;
        let input = BufReader::with_capacity(1 << 18, file);
        Self::start(input, list, limit_bytes).map_err(DataError::io(path))
    }

    fn start(input: BufReader<File>, list: Option<&str>, limit_bytes: usize) -> io::Result<Self> {
        let mut scan = Scan::new(input, limit_bytes);
        let (mut stage, mut task, mut wrapped) = (Stage::First, None, false);
        match scan.next_byte()? {
            Some(b'[') => scan.skip(1),
            Some(b'{') => {
                let entered = match list {
                    Some(list) => scan.enter(list, &mut task)?,
                    None => Entered::No,
                };
                match entered {
                    Entered::Yes => wrapped = true,
                    Entered::Broken(at, why) => stage = Stage::Broken(at, why),
                    Entered::No => {
                        let mut input = scan.input;
                        input.seek(SeekFrom::Start(0))?;
                        let walk = Walk::Lines(Lines::new(input, limit_bytes));
                        return Ok(Self::at_start(walk, Stage::First, false, None));
                    }
                }
            }
            Some(0xEF) => stage = Stage::Broken(0, "a byte order mark; save the file without one"),
            Some(_) => stage = Stage::Broken(scan.position, "neither `[` nor `{`"),
            None => stage = Stage::Broken(scan.position, "the file is empty"),
        }
        Ok(Self::at_start(Walk::Array(scan), stage, wrapped, task))
    }

    fn at_start(walk: Walk, stage: Stage, wrapped: bool, task: Option<String>) -> Self {
        Self { walk, stage, wrapped, task, number: 0, start: 0, bytes: 0 }
    }

    /// The record last returned.
    pub(super) fn buffer(&self) -> &[u8] {
        match &self.walk {
            Walk::Array(scan) => &scan.buffer,
            Walk::Lines(lines) => &lines.buffer,
        }
    }

    /// Goes to the next record.
    pub(super) fn advance(&mut self) -> io::Result<Element> {
        match self.stage {
            Stage::Over => return Ok(Element::End),
            Stage::Broken(at, why) => {
                self.stage = Stage::Over;
                return Ok(Element::Broken(at, why));
            }
            Stage::First | Stage::Later => {}
        }
        let element = match &mut self.walk {
            Walk::Lines(lines) => loop {
                let element = match lines.advance()? {
                    Line::End => break Element::End,
                    Line::Whole if lines.buffer.iter().all(u8::is_ascii_whitespace) => continue,
                    Line::Whole => Element::Whole,
                    Line::TooLong => Element::TooLong,
                };
                (self.start, self.bytes) = (lines.start, lines.end - lines.start);
                break element;
            },
            Walk::Array(scan) => {
                let element = scan.element(self.stage == Stage::First)?;
                (self.start, self.bytes) = (scan.start, scan.position - scan.start);
                match element {
                    Element::End => scan.leave(self.wrapped, &mut self.task)?,
                    other => other,
                }
            }
        };
        self.stage = match element {
            Element::Whole | Element::TooLong => Stage::Later,
            Element::Broken(..) | Element::End => Stage::Over,
        };
        self.number += u64::from(self.stage == Stage::Later);
        Ok(element)
    }
}

/// Whether an object holds the list.
enum Entered {
    /// The next byte is the list's first.
    Yes,
    No,
    Broken(u64, &'static str),
}

/// Whether a value ended.
#[derive(PartialEq, Eq)]
enum Value {
    Ended,
    /// `]` or `}` that closes the other bracket, at this byte.
    Mismatch(u64),
    /// The input ended inside.
    Truncated,
}

const TRUNCATED: &str = "the file ends inside a record (is it whole?)";
const MISMATCH: &str = "a bracket closes one of the other kind";

/// A cursor over JSON text that knows strings and brackets only.
struct Scan<R> {
    input: R,
    limit_bytes: usize,
    /// The value last read, cut at the limit.
    buffer: Vec<u8>,
    /// Byte offset at which it starts.
    start: u64,
    /// Byte offset of the next byte.
    position: u64,
}

impl<R: BufRead> Scan<R> {
    fn new(input: R, limit_bytes: usize) -> Self {
        Self { input, limit_bytes, buffer: Vec::new(), start: 0, position: 0 }
    }

    fn skip(&mut self, bytes: usize) {
        self.input.consume(bytes);
        self.position += bytes as u64;
    }

    fn chunk(&mut self) -> io::Result<&[u8]> {
        loop {
            match self.input.fill_buf() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Asked again because the borrow of a returned chunk would outlive the loop's.
                Err(e) => return Err(e),
                Ok(_) => return self.input.fill_buf(),
            }
        }
    }

    /// The next byte that is no white space, not consumed.
    fn next_byte(&mut self) -> io::Result<Option<u8>> {
        loop {
            let chunk = self.chunk()?;
            if chunk.is_empty() {
                return Ok(None);
            }
            let blank = chunk.iter().take_while(|b| b" \t\r\n".contains(b)).count();
            let found = chunk.get(blank).copied();
            self.skip(blank);
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    /// The next record of the array the cursor is in; [`Element::End`] stands behind its `]`.
    fn element(&mut self, first: bool) -> io::Result<Element> {
        match (self.next_byte()?, first) {
            (Some(b']'), _) => {
                self.skip(1);
                return Ok(Element::End);
            }
            (Some(b','), false) => self.skip(1),
            (Some(_), true) => {}
            (Some(_), false) => {
                return Ok(Element::Broken(self.position, "no `,` between records"));
            }
            (None, _) => return Ok(Element::Broken(self.position, TRUNCATED)),
        }
        if let Some(b',' | b']' | b'}' | b':') = self.next_byte()? {
            return Ok(Element::Broken(self.position, "no record where one must stand"));
        }
        Ok(match self.value()? {
            Value::Ended if self.position - self.start > self.limit_bytes as u64 => {
                Element::TooLong
            }
            Value::Ended => Element::Whole,
            Value::Mismatch(at) => Element::Broken(at, MISMATCH),
            Value::Truncated => Element::Broken(self.start, TRUNCATED),
        })
    }

    /// Reads one value into the buffer. Nothing is checked but strings and the kinds of the brackets,
    /// of which the outermost 128 are remembered.
    fn value(&mut self) -> io::Result<Value> {
        self.buffer.clear();
        self.next_byte()?;
        self.start = self.position;
        let mut syntax = Syntax::default();
        loop {
            let limit_bytes = self.limit_bytes;
            let room = limit_bytes - self.buffer.len();
            // Not `self.chunk()`: the buffer is written while the chunk is borrowed.
            let chunk = match self.input.fill_buf() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if chunk.is_empty() {
                let scalar = syntax.is_scalar() && self.position > self.start;
                return Ok(if scalar { Value::Ended } else { Value::Truncated });
            }
            let step = syntax.read(chunk);
            let taken = match step {
                Step::More => chunk.len(),
                Step::Ended(at) | Step::Mismatch(at) => at,
            };
            self.buffer.extend_from_slice(&chunk[..taken.min(room)]);
            self.input.consume(taken);
            self.position += taken as u64;
            match step {
                Step::More => {}
                Step::Ended(_) => return Ok(Value::Ended),
                Step::Mismatch(_) => return Ok(Value::Mismatch(self.position)),
            }
        }
    }

    /// From `{` into the array of its key `list`.
    fn enter(&mut self, list: &str, task: &mut Option<String>) -> io::Result<Entered> {
        self.skip(1);
        let quoted = format!("\"{list}\"");
        let mut first = true;
        loop {
            match (self.next_byte()?, first) {
                (Some(b'}'), _) => return Ok(Entered::No),
                (Some(b','), false) => self.skip(1),
                (Some(_), true) => {}
                (_, _) => return Ok(Entered::Broken(self.position, "an object that is not one")),
            }
            first = false;
            let Some(key) = self.key()? else {
                return Ok(Entered::Broken(self.position, "an object that is not one"));
            };
            if key == quoted.as_bytes() && self.next_byte()? == Some(b'[') {
                self.skip(1);
                return Ok(Entered::Yes);
            }
            if self.value()? != Value::Ended {
                return Ok(Entered::Broken(self.position, TRUNCATED));
            }
            self.note(&key, task);
        }
    }

    /// A key with its quotes, and behind its `:`.
    fn key(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.next_byte()? != Some(b'"') || self.value()? != Value::Ended {
            return Ok(None);
        }
        let key = std::mem::take(&mut self.buffer);
        if self.next_byte()? != Some(b':') {
            return Ok(None);
        }
        self.skip(1);
        Ok(Some(key))
    }

    fn note(&self, key: &[u8], task: &mut Option<String>) {
        if key == b"\"task\"" {
            *task = serde_json::from_slice(&self.buffer).ok();
        }
    }

    /// What stands behind the array: the rest of the object around it, then nothing.
    fn leave(&mut self, wrapped: bool, task: &mut Option<String>) -> io::Result<Element> {
        if wrapped && let Some((at, why)) = self.rest_of_object(task)? {
            return Ok(Element::Broken(at, why));
        }
        Ok(match self.next_byte()? {
            None => Element::End,
            Some(_) => Element::Broken(self.position, "text after the end of the records"),
        })
    }

    /// The keys behind the array, up to the `}`; where and why it does not end.
    fn rest_of_object(
        &mut self,
        task: &mut Option<String>,
    ) -> io::Result<Option<(u64, &'static str)>> {
        loop {
            match self.next_byte()? {
                Some(b'}') => {
                    self.skip(1);
                    return Ok(None);
                }
                Some(b',') => self.skip(1),
                _ => {
                    return Ok(Some((self.position, "the object around the records does not end")));
                }
            }
            let Some(key) = self.key()? else {
                return Ok(Some((self.position, "no key where one must stand")));
            };
            if self.value()? != Value::Ended {
                return Ok(Some((self.position, TRUNCATED)));
            }
            self.note(&key, task);
        }
    }
}

#[cfg(test)]
#[path = "elements_tests.rs"]
mod tests;
