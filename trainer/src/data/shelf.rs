//! One file of users after its index pass: how a user's record is read again.

use super::json::parse_record;
use super::lamp::Join;
use super::pass::Pass;
use super::selection::Part;
use super::{DataError, Span, UserRecord, UserSummary, user_fingerprint};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Where a user's record is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Spans {
    /// In memory.
    Nowhere,
    /// One place.
    One(Span),
    /// Several, in file order.
    Many(Vec<Span>),
}

impl Spans {
    pub(super) fn iter(&self) -> std::slice::Iter<'_, Span> {
        match self {
            Self::Nowhere => [].iter(),
            Self::One(span) => std::slice::from_ref(span).iter(),
            Self::Many(spans) => spans.iter(),
        }
    }

    pub(super) fn first(&self) -> Option<Span> {
        self.iter().next().copied()
    }

    pub(super) fn push(&mut self, span: Span) {
        match self {
            Self::Nowhere => *self = Self::One(span),
            Self::One(first) => *self = Self::Many(vec![*first, span]),
            Self::Many(spans) => spans.push(span),
        }
    }
}

/// How a file's records are made of its bytes.
#[derive(Debug)]
pub(super) enum Form {
    /// A line of Myriad JSONL.
    Jsonl,
    /// A user's questions.
    Lamp(Join),
    /// An OPPU user.
    Oppu(Join),
}

/// A file of users.
#[derive(Debug)]
pub(super) struct Shelf {
    path: PathBuf,
    form: Form,
    part: Part,
}

impl Shelf {
    pub(super) fn new(path: &Path, form: Form, pass: &Pass<'_>) -> Self {
        Self { path: path.to_owned(), form, part: pass.part }
    }

    pub(super) fn open(&self) -> Result<BufReader<File>, DataError> {
        let file = File::open(&self.path).map_err(DataError::io(&self.path))?;
        Ok(BufReader::with_capacity(1 << 18, file))
    }

    /// Reads the record of a summary again and proves that it is the same.
    pub(super) fn read(
        &self,
        file: &mut BufReader<File>,
        user: &UserSummary,
    ) -> Result<UserRecord, DataError> {
        let changed = || DataError::Changed { path: self.path.clone(), user: user.id.clone() };
        let first = user.spans.first().ok_or_else(changed)?;
        let spans = user.spans.iter().map(|span| read_span(file, &self.path, *span));
        let bytes = spans.collect::<Result<Vec<_>, _>>()?;
        let one = || bytes.first().map(Vec::as_slice);
        let joined = match &self.form {
            Form::Jsonl => one().and_then(|line| parse_record(line).ok()),
            Form::Lamp(join) => join.lamp(&bytes).ok().map(|(record, _)| record),
            Form::Oppu(join) => {
                let joined = one().and_then(|bytes| join.oppu(bytes, first.number).ok());
                joined.map(|(record, _)| record)
            }
        };
        let record = joined.and_then(|record| self.part.cut(record)).ok_or_else(changed)?;
        if user_fingerprint(&record) != user.fingerprint {
            return Err(changed());
        }
        Ok(record)
    }
}

/// The bytes of a place; fewer where the file has become shorter.
pub(super) fn read_span(
    file: &mut BufReader<File>,
    path: &Path,
    span: Span,
) -> Result<Vec<u8>, DataError> {
    // Going relative keeps the buffer when records are read in file order.
    let here = file.stream_position().map_err(DataError::io(path))?;
    match i64::try_from(i128::from(span.start) - i128::from(here)) {
        Ok(distance) => file.seek_relative(distance).map_err(DataError::io(path))?,
        Err(_) => drop(file.seek(SeekFrom::Start(span.start)).map_err(DataError::io(path))?),
    }
    let mut bytes = Vec::new();
    file.take(span.bytes).read_to_end(&mut bytes).map_err(DataError::io(path))?;
    Ok(bytes)
}
