//! Rows of CSV and TSV files, with a cap on their length.

use crate::data::lines::Line;
use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use std::io::{self, BufRead};

/// Cells of a row at most; a row of more is too long.
const MAX_CELLS: usize = 1 << 16;

/// Reads rows into one reused buffer.
pub(super) struct CsvRows<R> {
    input: R,
    parser: Reader,
    pub(super) limit_bytes: usize,
    /// The cells of the row last read, one after another, and where each ends.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    num_cells: usize,
    /// The line on which that row starts, from 1.
    pub(super) line: u64,
    /// The line at which the input stands.
    next_line: u64,
}

impl<R: BufRead> CsvRows<R> {
    pub(super) fn new(input: R, delimiter: u8, limit_bytes: usize) -> Self {
        let parser = ReaderBuilder::new().delimiter(delimiter).build();
        let (bytes, ends) = (vec![0; limit_bytes.min(1 << 12)], vec![0; 32]);
        Self { input, parser, limit_bytes, bytes, ends, num_cells: 0, line: 1, next_line: 1 }
    }

    /// The cells of the row last read, quotes undone.
    pub(super) fn cells(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).take(self.num_cells).map(|(from, to)| &self.bytes[from..*to])
    }

    /// Goes to the next row that is not an empty line.
    pub(super) fn advance(&mut self) -> io::Result<Line> {
        self.skip_line_ends()?;
        self.line = self.next_line;
        let (mut filled, mut cells, mut too_long) = (0, 0, false);
        loop {
            let chunk = fill(&mut self.input)?;
            let (out, ends) = (&mut self.bytes[filled..], &mut self.ends[cells..]);
            let (result, read, written, ended) = self.parser.read_record(chunk, out, ends);
            let breaks = memchr::memchr_iter(b'\n', &chunk[..read]).count();
            self.next_line += breaks as u64;
            self.input.consume(read);
            filled += written;
            cells += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if self.bytes.len() < self.limit_bytes => {
                    let more = (2 * self.bytes.len()).min(self.limit_bytes);
                    self.bytes.resize(more, 0);
                }
                ReadRecordResult::OutputEndsFull if self.ends.len() < MAX_CELLS => {
                    self.ends.resize(2 * self.ends.len(), 0);
                }
                // The rest of the row goes by, over what there is of it.
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {
                    (filled, cells, too_long) = (0, 0, true);
                }
                ReadRecordResult::Record if too_long => return Ok(Line::TooLong),
                ReadRecordResult::Record => {
                    self.num_cells = cells;
                    return Ok(Line::Whole);
                }
                ReadRecordResult::End => {
                    return Ok(if too_long { Line::TooLong } else { Line::End });
                }
            }
        }
    }

    /// The parser skips empty lines too, but does not say how many.
    fn skip_line_ends(&mut self) -> io::Result<()> {
        loop {
            let chunk = fill(&mut self.input)?;
            let skipped = chunk.iter().take_while(|b| matches!(b, b'\n' | b'\r')).count();
            if skipped == 0 {
                return Ok(());
            }
            self.next_line += memchr::memchr_iter(b'\n', &chunk[..skipped]).count() as u64;
            self.input.consume(skipped);
        }
    }
}

fn fill<R: BufRead>(input: &mut R) -> io::Result<&[u8]> {
    // Twice, because a loop that returns what it borrowed is not accepted yet.
    while let Err(e) = input.fill_buf() {
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
    input.fill_buf()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn all(text: &str, capacity: usize, limit: usize) -> Vec<(u64, Option<Vec<String>>)> {
        let mut rows =
            CsvRows::new(BufReader::with_capacity(capacity, text.as_bytes()), b',', limit);
        let mut seen = Vec::new();
        loop {
            let row = match rows.advance().unwrap() {
                Line::End => return seen,
                Line::TooLong => None,
                Line::Whole => {
                    Some(rows.cells().map(|c| String::from_utf8_lossy(c).into_owned()).collect())
                }
            };
            seen.push((rows.line, row));
        }
    }

    fn row(line: u64, cells: &[&str]) -> (u64, Option<Vec<String>>) {
        (line, Some(cells.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn quotes_line_ends_and_numbers() {
        let text = "a,b\r\n\r\n\"x\ny\",\"q\"\"z\"\n\n\n,\r\nlast,1";
        let expected = [
            row(1, &["a", "b"]),
            row(3, &["x\ny", "q\"z"]),
            row(7, &["", ""]),
            row(8, &["last", "1"]),
        ];
        for capacity in [1, 2, 3, 7, 1000] {
            assert_eq!(all(text, capacity, 100), expected, "{capacity}");
        }
    }

    #[test]
    fn rows_beyond_the_cap_go_by() {
        let long = "y".repeat(50);
        let text = format!("a,b\n{long},1\nc,d\n\"{long}\n");
        for capacity in [1, 8, 1000] {
            let seen = all(&text, capacity, 10);
            assert_eq!(seen, [row(1, &["a", "b"]), (2, None), row(3, &["c", "d"]), (4, None)]);
        }
        assert_eq!(all("", 8, 10), []);
        assert_eq!(all("\n\r\n", 8, 10), []);
        let many = format!("{}\nx\n", ",".repeat(MAX_CELLS));
        assert_eq!(all(&many, 1000, 10), [(1, None), row(2, &["x"])]);
    }
}
