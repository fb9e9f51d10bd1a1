//! A world of one rank.

use super::{Communicator, Error, Op, Reduce, Result, check_all, check_root};
use std::sync::OnceLock;

/// The only rank of its world; collectives are copies.
#[derive(Debug, Default)]
pub struct Solo {
    aborted: OnceLock<i32>,
}

impl Solo {
    /// A world of one.
    pub fn new() -> Self {
        Self::default()
    }

    fn alive(&self) -> Result<()> {
        match self.aborted.get() {
            None => Ok(()),
            Some(&code) => Err(Error::Aborted { rank: 0, code }),
        }
    }
}

impl Communicator for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn barrier(&self) -> Result<()> {
        self.alive()
    }

    fn broadcast_bytes(&self, root: usize, _bytes: &mut Vec<u8>) -> Result<()> {
        check_root(Op::BroadcastBytes, root, self)?;
        self.alive()
    }

    fn all_gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.alive()?;
        Ok(vec![mine.to_vec()])
    }

    fn all_gather_f32(&self, mine: &[f32], all: &mut [f32]) -> Result<()> {
        check_all(mine.len(), all.len(), self)?;
        self.alive()?;
        all.copy_from_slice(mine);
        Ok(())
    }

    fn gather_bytes(&self, root: usize, mine: &[u8]) -> Result<Option<Vec<Vec<u8>>>> {
        check_root(Op::GatherBytes, root, self)?;
        self.alive()?;
        Ok(Some(vec![mine.to_vec()]))
    }

    fn all_reduce_u64(&self, _reduce: Reduce, value: u64) -> Result<u64> {
        self.alive()?;
        Ok(value)
    }

    fn abort(&self, code: i32) -> Error {
        Error::Aborted { rank: 0, code: *self.aborted.get_or_init(|| code) }
    }
}
