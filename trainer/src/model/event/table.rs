//! The numbers that events have in a pack.

/// Added to an event's number: the model sees its time, weekday and contexts, but not what it is.
pub const MASKED: u32 = 1 << 31;

/// Distinct rows of events, each under a number: what a pack has in the place of token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventTable {
    width: usize,
    rows: Vec<u32>,
}

impl EventTable {
    /// No row yet, of `width` columns.
    pub fn new(width: usize) -> Self {
        Self { width: width.max(1), rows: Vec::new() }
    }

    /// Appends rows, row-major; the number of the first. Equal rows may have several numbers: nothing depends on them.
    ///
    /// None when there are more than a number can name.
    pub fn add(&mut self, rows: &[u32]) -> Option<u32> {
        let first = u32::try_from(self.len()).ok()?;
        let last = self.len() + rows.len() / self.width;
        if last > MASKED as usize {
            return None;
        }
        self.rows.extend_from_slice(rows);
        Some(first)
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.rows.len() / self.width
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Columns of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The row of a number, whether masked or not; none beyond the table.
    pub fn row(&self, number: u32) -> Option<&[u32]> {
        let at = (number & !MASKED) as usize * self.width;
        self.rows.get(at..at + self.width)
    }
}
