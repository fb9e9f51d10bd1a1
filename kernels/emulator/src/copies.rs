//! Copies that leave beside the computing stream, which on a GPU end at no particular time.
//!
//! The emulator runs everything in one order, so a forgotten wait would never show. [`Copies::Late`] puts such a copy
//! as late as the device's contract allows: before the range is overwritten by the host's calls, or when somebody
//! waits. [`Copies::Unordered`] forgets the former, as a device with a bug would.

use crate::emulator::{Allocation, Memory};
use kernels::Result;
use kernels::backend::Coming;
use kernels::error::check_eq;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// When what leaves is copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Copies {
    /// When it is asked for.
    #[default]
    AtOnce,
    /// As late as is allowed.
    Late,
    /// Later still, after the range was overwritten: a seeded bug of the device.
    Unordered,
}

/// Copies on their way.
#[derive(Debug, Default)]
pub(crate) struct Queue(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    copies: Copies,
    begun: Vec<Weak<Copy>>,
}

/// One copy, done when there are bytes.
#[derive(Debug)]
struct Copy {
    from: Arc<Allocation>,
    range: Range<usize>,
    bytes: Mutex<Option<Vec<u8>>>,
}

#[derive(Debug)]
struct Leaving(Arc<Copy>);

impl Queue {
    pub(crate) fn set(&self, copies: Copies) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).copies = copies;
    }

    /// A copy of a checked range.
    pub(crate) fn begin(&self, src: &Memory, range: Range<usize>) -> Box<dyn Coming> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = Copy { from: Arc::clone(&src.0), range, bytes: Mutex::new(None) };
        let copy = Arc::new(copy);
        if state.copies == Copies::AtOnce {
            copy.bytes();
        }
        state.begun.retain(|other| other.strong_count() > 0);
        state.begun.push(Arc::downgrade(&copy));
        Box::new(Leaving(copy))
    }

    /// A range is about to be overwritten.
    pub(crate) fn overwritten(&self, memory: &Memory, range: Range<usize>) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.copies == Copies::Unordered {
            return;
        }
        for copy in state.begun.iter().filter_map(Weak::upgrade) {
            let overlaps = copy.range.start < range.end && range.start < copy.range.end;
            if overlaps && Arc::ptr_eq(&copy.from, &memory.0) {
                copy.bytes();
            }
        }
    }
}

impl Copy {
    /// Copies, unless that is done.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.get_or_insert_with(|| self.from.contents(&self.range)).clone()
    }
}

impl Coming for Leaving {
    fn finish(self: Box<Self>, dst: &mut [u8]) -> Result<()> {
        let bytes = self.0.bytes();
        check_eq("finish", "bytes", bytes.len(), dst.len())?;
        dst.copy_from_slice(&bytes);
        Ok(())
    }
}
