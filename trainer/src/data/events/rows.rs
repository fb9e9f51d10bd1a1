//! Rows of a file one after another, as the texts of the columns asked for.
//!
//! One row is in memory at a time, none longer than the cap. A byte order mark at the start of a file, empty lines and
//! `\r\n` are no part of any row.

use super::csv_rows::CsvRows;
use super::error::BadEvent;
use super::format::{ColumnRef, Format, Kind};
use super::json_row::{self, parse_row};
use crate::data::lines::{Line, Lines};
use crate::data::{DataError, Location, Problem, What};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

const BOM: &[u8] = b"\xEF\xBB\xBF";
/// Columns of a header that a message shows.
const SHOWN_COLUMNS: usize = 32;
const BUFFER_BYTES: usize = 1 << 16;

/// The rows of one file.
pub(super) struct Rows {
    file: Arc<Path>,
    form: Form,
    /// The columns asked for, as messages call them.
    labels: Vec<String>,
    /// Where they stand in a row; empty for JSONL.
    places: Vec<usize>,
    /// Cells of the header, or of the first row.
    width: Option<usize>,
    /// The texts of the row last read, in the order of the columns asked for.
    pub(super) cells: Vec<String>,
    /// The line on which it starts, from 1.
    pub(super) line: u64,
}

enum Form {
    Csv(Box<CsvRows<BufReader<File>>>),
    Spaced(Lines<BufReader<File>>),
    Json(Lines<BufReader<File>>),
}

/// What there is of the next row.
enum Raw<'a> {
    End,
    TooLong,
    Cells(Vec<&'a [u8]>),
    Json(&'a [u8]),
}

impl Form {
    /// The next row that is not empty, and the line on which it starts.
    fn advance(&mut self) -> std::io::Result<(u64, Raw<'_>)> {
        let json = matches!(self, Self::Json(_));
        match self {
            Self::Csv(rows) => {
                let raw = match rows.advance()? {
                    Line::End => Raw::End,
                    Line::TooLong => Raw::TooLong,
                    Line::Whole => Raw::Cells(rows.cells().collect()),
                };
                Ok((rows.line, raw))
            }
            Self::Spaced(lines) | Self::Json(lines) => loop {
                match lines.advance()? {
                    Line::End => return Ok((lines.number, Raw::End)),
                    Line::TooLong => return Ok((lines.number, Raw::TooLong)),
                    Line::Whole if lines.buffer.trim_ascii().is_empty() => {}
                    Line::Whole => {
                        let bytes = lines.buffer.trim_ascii();
                        if json {
                            return Ok((lines.number, Raw::Json(bytes)));
                        }
                        let cells = bytes.split(|b| matches!(b, b' ' | b'\t'));
                        let cells = cells.filter(|cell| !cell.is_empty()).collect();
                        return Ok((lines.number, Raw::Cells(cells)));
                    }
                }
            },
        }
    }
}

impl Rows {
    /// Opens a file and finds the columns by its header.
    ///
    /// # Errors
    /// The system's; a header without the columns, whatever is done with bad rows: nothing of the file could be read.
    pub(super) fn open(path: &Path, format: &Format) -> Result<Self, DataError> {
        let io = DataError::io(path);
        let file = File::open(path).map_err(io)?;
        let mut input = BufReader::with_capacity(BUFFER_BYTES, file);
        if input.fill_buf().map_err(DataError::io(path))?.starts_with(BOM) {
            input.consume(BOM.len());
        }
        let limit = format.max_row_bytes;
        let form = match format.kind {
            Kind::Tsv => Form::Csv(Box::new(CsvRows::new(input, b'\t', limit))),
            Kind::Spaced => Form::Spaced(Lines::new(input, limit)),
            Kind::Jsonl => Form::Json(Lines::new(input, limit)),
            Kind::Csv | Kind::Ml100kGenre => Form::Csv(Box::new(CsvRows::new(input, b',', limit))),
        };
        let wanted = format.wanted();
        let mut rows = Self {
            file: Arc::from(path),
            form,
            labels: wanted.iter().map(|column| column.label()).collect(),
            places: Vec::new(),
            width: None,
            cells: vec![String::new(); wanted.len()],
            line: 1,
        };
        if format.kind != Kind::Jsonl {
            if format.header {
                rows.header(&wanted)?;
            } else {
                let number = |column: &&ColumnRef| match column {
                    ColumnRef::Number(number) => *number,
                    ColumnRef::Name(_) => usize::MAX, // Format::check() lets none through
                };
                rows.places = wanted.iter().map(number).collect();
            }
        }
        Ok(rows)
    }

    /// A problem with the row last read, or what is left of it.
    pub(super) fn problem(&self, what: impl Into<What>) -> Problem {
        let at = Location::Line(self.line);
        Problem { file: self.file.clone(), at, user: None, what: what.into() }
    }

    fn header(&mut self, wanted: &[&ColumnRef]) -> Result<(), DataError> {
        let path = self.file.clone();
        let (line, raw) = self.form.advance().map_err(DataError::io(&path))?;
        self.line = line.max(1);
        let found = match raw {
            Raw::Cells(cells) => {
                let names = cells.iter().map(|cell| String::from_utf8_lossy(cell).into_owned());
                let names: Vec<String> = names.collect();
                places(&names, wanted).map(|places| (names.len(), places)).map_err(What::from)
            }
            Raw::TooLong => Err(What::RecordTooLong { limit_bytes: self.limit() }),
            Raw::End | Raw::Json(_) => Err(BadEvent::NoHeader.into()),
        };
        let (width, places) = found.map_err(|what| DataError::Bad(self.problem(what)))?;
        (self.width, self.places) = (Some(width), places);
        Ok(())
    }

    fn limit(&self) -> usize {
        match &self.form {
            Form::Csv(rows) => rows.limit_bytes,
            Form::Spaced(lines) | Form::Json(lines) => lines.limit_bytes,
        }
    }

    /// Goes to the next row; `false` at the end.
    ///
    /// # Errors
    /// The system's; a bad row, after which the next one can be read.
    pub(super) fn advance(&mut self) -> Result<bool, DataError> {
        let limit_bytes = self.limit();
        let (line, raw) = self.form.advance().map_err(DataError::io(&self.file))?;
        self.line = line;
        let read = match raw {
            Raw::End => return Ok(false),
            Raw::TooLong => Err(What::RecordTooLong { limit_bytes }),
            Raw::Json(bytes) => parse_row(bytes, &self.labels, &mut self.cells),
            Raw::Cells(cells) => {
                let expected = *self.width.get_or_insert(cells.len());
                if cells.len() == expected {
                    fill(&cells, &self.places, &self.labels, &mut self.cells).map_err(What::from)
                } else {
                    Err(BadEvent::Width { expected, found: cells.len() }.into())
                }
            }
        };
        read.map(|()| true).map_err(|what| DataError::Bad(self.problem(what)))
    }
}

/// Where the columns stand in a header.
fn places(names: &[String], wanted: &[&ColumnRef]) -> Result<Vec<usize>, BadEvent> {
    let place = |column: &&ColumnRef| match column {
        ColumnRef::Number(number) if *number < names.len() => Ok(*number),
        ColumnRef::Number(number) => {
            Err(BadEvent::ColumnNumber { number: *number, width: names.len() })
        }
        ColumnRef::Name(wanted) => {
            let mut found = (0..names.len()).filter(|&at| names[at].trim() == wanted.as_str());
            match (found.next(), found.count()) {
                (Some(place), 0) => Ok(place),
                (first, more) => Err(BadEvent::Column {
                    column: wanted.clone(),
                    found: more + usize::from(first.is_some()),
                    header: names.iter().take(SHOWN_COLUMNS).cloned().collect(),
                }),
            }
        }
    };
    wanted.iter().map(place).collect()
}

/// Copies the cells asked for.
fn fill(
    cells: &[&[u8]],
    places: &[usize],
    labels: &[String],
    out: &mut [String],
) -> Result<(), BadEvent> {
    for ((place, label), text) in places.iter().zip(labels).zip(out) {
        let width = cells.len();
        let cell = cells.get(*place).ok_or(BadEvent::ColumnNumber { number: *place, width })?;
        let read = std::str::from_utf8(cell)
            .map_err(|e| BadEvent::NotUtf8 { column: label.clone(), byte: e.valid_up_to() })?;
        text.clear();
        text.push_str(read);
    }
    Ok(())
}

/// The columns of the first row of a file: its header, or the keys of its first object.
pub(super) fn first_names(path: &Path, kind: Kind) -> Result<Vec<String>, DataError> {
    let format = Format { kind, header: false, ..Format::default() };
    let mut rows = Rows { places: Vec::new(), ..Rows::open(path, &format)? };
    let (line, raw) = rows.form.advance().map_err(DataError::io(path))?;
    let what = match raw {
        Raw::Cells(cells) => {
            let names = cells.iter().map(|cell| String::from_utf8_lossy(cell).into_owned());
            return Ok(names.collect());
        }
        Raw::Json(bytes) => match json_row::keys(bytes) {
            Ok(keys) => return Ok(keys),
            Err(what) => what,
        },
        Raw::TooLong => What::RecordTooLong { limit_bytes: format.max_row_bytes },
        Raw::End => BadEvent::NoHeader.into(),
    };
    rows.line = line.max(1);
    Err(DataError::Bad(rows.problem(what)))
}
