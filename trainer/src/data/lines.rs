//! Lines of a file as bytes with a cap on their length, counted from 1.

use std::io::{self, BufRead};

/// What the next line is.
pub(crate) enum Line {
    /// A line, without its newline, is in the buffer.
    Whole,
    /// A line beyond the cap went by; the buffer holds its start.
    TooLong,
    /// The end.
    End,
}

/// Reads lines into one reused buffer; never holds more than `limit_bytes` of a line.
pub(crate) struct Lines<R> {
    input: R,
    pub(crate) limit_bytes: usize,
    /// The line last read.
    pub(crate) buffer: Vec<u8>,
    /// Its number, from 1; 0 before the first.
    pub(crate) number: u64,
    /// Byte offset at which it starts.
    pub(crate) start: u64,
    /// Byte offset after it and its newline.
    pub(crate) end: u64,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(input: R, limit_bytes: usize) -> Self {
        Self { input, limit_bytes, buffer: Vec::new(), number: 0, start: 0, end: 0 }
    }

    /// Goes to the next line. A final line needs no newline.
    pub(crate) fn advance(&mut self) -> io::Result<Line> {
        self.buffer.clear();
        self.start = self.end;
        let mut too_long = false;
        loop {
            let chunk = match self.input.fill_buf() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if chunk.is_empty() {
                if self.end == self.start {
                    return Ok(Line::End);
                }
                break;
            }
            let newline = chunk.iter().position(|&b| b == b'\n');
            let content = &chunk[..newline.unwrap_or(chunk.len())];
            let room = self.limit_bytes - self.buffer.len();
            too_long |= content.len() > room;
            self.buffer.extend_from_slice(&content[..content.len().min(room)]);
            let taken = newline.map_or(chunk.len(), |at| at + 1);
            self.end += taken as u64;
            self.input.consume(taken);
            if newline.is_some() {
                break;
            }
        }
        self.number += 1;
        Ok(if too_long { Line::TooLong } else { Line::Whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    #[test]
    fn lines_offsets_and_cap() {
        // A buffer of 3 bytes makes every line cross refills.
        let input = BufReader::with_capacity(3, &b"abc\n\nabcdefgh\nxy"[..]);
        let mut lines = Lines::new(input, 5);
        let mut seen = Vec::new();
        loop {
            let kind = match lines.advance().unwrap() {
                Line::End => break,
                Line::Whole => "whole",
                Line::TooLong => "long",
            };
            let text = String::from_utf8(lines.buffer.clone()).unwrap();
            seen.push((kind, text, lines.number, lines.start, lines.end));
        }
        let expected = [
            ("whole", "abc", 1, 0, 4),
            ("whole", "", 2, 4, 5),
            ("long", "abcde", 3, 5, 14),
            ("whole", "xy", 4, 14, 16),
        ];
        assert_eq!(seen, expected.map(|(k, t, n, s, e)| (k, t.to_owned(), n, s, e)));
    }
}
