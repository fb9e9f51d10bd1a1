//! Texts by id: answers (LaMP outputs, OPPU labels) and profile texts.
//!
//! `{"task": …, "golds": [{"id", "output"}]}`, the bare list, or one such object a line. Held in
//! memory: about the file's size.

use super::{LampTask, parse};
use crate::data::elements::{Element, Elements, MAX_RECORD_BYTES};
use crate::data::pass::Pass;
use crate::data::{DataError, Location, Problem, What};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The texts of one file.
#[derive(Debug)]
pub(crate) struct Golds {
    /// The file, for messages.
    pub(super) path: Arc<Path>,
    by_id: BTreeMap<Box<str>, usize>,
    /// By number in the file; a bad record leaves a gap.
    texts: Vec<Option<Box<str>>>,
}

/// What the texts are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Answers to questions of a task, which the file may name.
    Answers(LampTask),
    /// Texts about users.
    Profiles,
}

impl Golds {
    /// Reads a file whole.
    pub(super) fn read(path: &Path, kind: Kind, pass: &mut Pass<'_>) -> Result<Self, DataError> {
        let mut elements = Elements::open(path, Some("golds"), MAX_RECORD_BYTES)?;
        let path: Arc<Path> = Arc::from(path);
        let mut golds = Self { path: path.clone(), by_id: BTreeMap::new(), texts: Vec::new() };
        loop {
            let element = elements.advance().map_err(DataError::io(&path))?;
            let at = Location::Record(elements.number, elements.start);
            let bad = |user, what| Problem { file: path.clone(), at, user, what };
            match element {
                Element::End => break,
                Element::Broken(byte, reason) => {
                    let what = What::Structure { byte, reason };
                    let at = Location::File;
                    pass.refuse(Problem { file: path.clone(), at, user: None, what })?;
                }
                Element::TooLong => {
                    golds.texts.push(None);
                    let limit_bytes = MAX_RECORD_BYTES;
                    pass.refuse(bad(None, What::RecordTooLong { limit_bytes }))?;
                }
                Element::Whole => match parse::gold(elements.buffer()) {
                    Ok((gold, _)) => {
                        if let Err(what) = golds.add(gold) {
                            pass.refuse(bad(None, what))?;
                        }
                    }
                    Err((user, what)) => {
                        golds.texts.push(None);
                        pass.refuse(bad(user, what))?;
                    }
                },
            }
        }
        if let (Kind::Answers(expected), Some(found)) = (kind, &elements.task)
            && !expected.is_called(found)
        {
            let what = What::WrongTask { expected, found: found.clone() };
            return Err(Problem { file: path, at: Location::File, user: None, what }.into());
        }
        Ok(golds)
    }

    /// Adds a text. The same id and text again is no harm; an id with another text is refused.
    fn add(&mut self, gold: parse::Gold) -> Result<(), What> {
        let number = self.texts.len();
        self.texts.push(Some(gold.output.into()));
        match self.by_id.get(gold.id.as_str()) {
            Some(&first) if self.texts[first] == self.texts[number] => Ok(()),
            Some(_) => Err(What::DuplicateText { id: gold.id }),
            None => {
                self.by_id.insert(gold.id.into(), number);
                Ok(())
            }
        }
    }

    /// Texts there are, gaps included.
    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// The number of an id's text.
    pub(super) fn number(&self, id: &str) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    /// A text by its number, from 0.
    pub(super) fn text(&self, number: usize) -> Option<&str> {
        self.texts.get(number)?.as_deref()
    }

    /// The text of an id.
    pub(super) fn get(&self, id: &str) -> Option<&str> {
        self.text(self.number(id)?)
    }

    /// Ids with the numbers of their texts, by id.
    pub(super) fn ids(&self) -> impl Iterator<Item = (&str, usize)> {
        self.by_id.iter().map(|(id, number)| (&**id, *number))
    }
}
