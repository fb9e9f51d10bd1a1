//! Windows of events as examples: numbers of rows in one table, and the intent that follows.

use super::{Error, Result};
use crate::data::events::{EventData, EventUser, Part, Window};
use crate::model::event::EventTable;
use crate::prompt::Example;

/// The events of all people under consecutive numbers, person by person.
#[derive(Debug)]
pub struct Windows {
    table: EventTable,
    /// Number of each person's first event.
    first: Vec<u32>,
    length: usize,
}

impl Windows {
    /// Numbers the events of `data`; windows have at most `length` of them.
    ///
    /// # Errors
    /// [`Error::TooManySteps`] for more than 2^31 events.
    pub fn new(data: &EventData, length: usize) -> Result<Self> {
        let mut table = EventTable::new(data.vocabulary.columns.len());
        let first = data.users.iter().map(|u| table.add(&u.rows).ok_or(Error::TooManySteps));
        Ok(Self { first: first.collect::<Result<_>>()?, table, length })
    }

    /// The rows under their numbers.
    pub fn table(&self) -> &EventTable {
        &self.table
    }

    /// The windows of a part of a person's time, the newest `most` of them, in order of time: number of the target event,
    /// example.
    pub fn of(
        &self,
        (number, user): (usize, &EventUser),
        part: Part,
        most: Option<usize>,
    ) -> Vec<(usize, Example)> {
        let all: Vec<Window<'_>> = user.windows(part, self.length).collect();
        let skip = most.map_or(0, |most| all.len().saturating_sub(most));
        all[skip..].iter().map(|w| (w.target, self.example(number, w))).collect()
    }

    fn example(&self, number: usize, window: &Window<'_>) -> Example {
        let events = window.rows.len() / self.table.width();
        // Numbers of events fit: the table has counted them.
        let end = self.first[number] + u32::try_from(window.target).unwrap_or(u32::MAX);
        let start = end - u32::try_from(events).unwrap_or(u32::MAX);
        Example { tokens: (start..end).chain([window.intent]).collect(), prompt_len: events }
    }
}
