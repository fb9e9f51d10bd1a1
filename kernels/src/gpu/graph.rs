//! Work held back and given to the device as one: launches and products between two exchanges with the host.
//!
//! A graph is the list it was made from: kernels, geometry, every argument and address. A list that comes a second
//! time is made into a graph, and from the third time on it is one call of the device. Equality is that of all the
//! bytes, so a graph does what the list would have done, whatever changed in between: another argument, or another
//! address because the workspace grew, is another list. The first time is always plain: modules are loaded and
//! products choose their algorithms outside of any capture.

use super::{Arg, Device, Launch, Product};
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Lists shorter than this are queued as they are.
const SHORTEST: usize = 4;
/// A list is cut here: an endless run of launches must not fill the memory.
const LONGEST: usize = 16_384;
/// Lists remembered as seen once.
const REMEMBERED: usize = 4096;

/// A launch or product that owns what it says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Work {
    /// As [`Launch`].
    Launch {
        /// Name of the source.
        module: &'static str,
        /// Name of the entry.
        kernel: Box<str>,
        /// Blocks in x, y, z.
        grid: [u32; 3],
        /// Threads of a block in x, y, z.
        block: [u32; 3],
        /// Bytes of dynamic shared memory.
        shared: u32,
        /// Arguments in order.
        args: Box<[Arg]>,
    },
    /// A dense product.
    Product(Product),
}

impl Work {
    /// Queues it.
    ///
    /// # Errors
    /// As [`Device::launch`] and [`Device::product`].
    pub fn queue(&self, device: &impl Device) -> Result<()> {
        self.give(|launch| device.launch(launch), |product| device.product(product))
    }

    /// Gives it to one of two callers.
    pub(crate) fn give(
        &self,
        launch: impl FnOnce(&Launch<'_>) -> Result<()>,
        product: impl FnOnce(&Product) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Launch { module, kernel, grid, block, shared, args } => launch(&Launch {
                module,
                kernel,
                grid: *grid,
                block: *block,
                shared: *shared,
                args,
            }),
            Self::Product(what) => product(what),
        }
    }
}

impl From<&Launch<'_>> for Work {
    fn from(launch: &Launch<'_>) -> Self {
        let Launch { module, kernel, grid, block, shared, args } = *launch;
        Self::Launch { module, kernel: kernel.into(), grid, block, shared, args: args.into() }
    }
}

/// What has become of the lists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GraphCounts {
    /// Lists queued launch by launch.
    pub plain: u64,
    /// Graphs made.
    pub captured: u64,
    /// Lists that were one call.
    pub replayed: u64,
    /// Graphs given up for newer ones.
    pub forgotten: u64,
}

/// The list that grows, and the graphs there are.
#[derive(Debug)]
pub(super) struct Graphs {
    list: Vec<Work>,
    /// Hashes of lists seen once, oldest first.
    seen: VecDeque<u64>,
    /// Latest used last.
    known: Vec<Graph>,
    kept: usize,
    next: u64,
    counts: GraphCounts,
    /// Of a flush whose caller could not be told.
    failed: Option<Error>,
}

/// A graph on the device.
#[derive(Debug)]
struct Graph {
    hash: u64,
    list: Vec<Work>,
    number: u64,
}

impl Graphs {
    /// At most `kept` graphs.
    pub(super) fn new(kept: usize) -> Self {
        Self {
            list: Vec::new(),
            seen: VecDeque::new(),
            known: Vec::new(),
            kept,
            next: 0,
            counts: GraphCounts::default(),
            failed: None,
        }
    }

    pub(super) fn counts(&self) -> GraphCounts {
        self.counts
    }

    /// Holds work back.
    pub(super) fn push(&mut self, device: &impl Device, work: Work) -> Result<()> {
        self.list.push(work);
        if self.list.len() < LONGEST { Ok(()) } else { self.flush(device) }
    }

    /// Gives the list to the device.
    pub(super) fn flush(&mut self, device: &impl Device) -> Result<()> {
        let list = std::mem::take(&mut self.list);
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if list.len() < SHORTEST {
            return self.plain(device, &list);
        }
        let hash = fingerprint(&list);
        if let Some(at) = self.known.iter().position(|g| g.hash == hash && g.list == list) {
            let graph = self.known.remove(at);
            let number = graph.number;
            self.known.push(graph);
            self.counts.replayed += 1;
            return device.replay(number);
        }
        if !self.seen.contains(&hash) {
            if self.seen.len() == REMEMBERED {
                self.seen.pop_front();
            }
            self.seen.push_back(hash);
            return self.plain(device, &list);
        }
        let number = self.next;
        if self.kept == 0 || !device.capture(number, &list)? {
            return self.plain(device, &list);
        }
        self.next += 1;
        self.counts.captured += 1;
        if self.known.len() == self.kept {
            device.forget(self.known.remove(0).number)?;
            self.counts.forgotten += 1;
        }
        self.known.push(Graph { hash, list, number });
        self.counts.replayed += 1;
        device.replay(number)
    }

    /// As [`Graphs::flush`] where nobody can be told; the next flush tells.
    pub(super) fn flush_later_told(&mut self, device: &impl Device) {
        self.failed = self.flush(device).err();
    }

    fn plain(&mut self, device: &impl Device, list: &[Work]) -> Result<()> {
        self.counts.plain += u64::from(!list.is_empty());
        list.iter().try_for_each(|work| work.queue(device))
    }
}

fn fingerprint(list: &[Work]) -> u64 {
    let mut hasher = DefaultHasher::new();
    list.hash(&mut hasher);
    hasher.finish()
}
