//! Graphs: lists of launches and products that are one call of the driver.
//!
//! Captured on a stream that is used for nothing else, so what other threads queue meanwhile is not caught, and run
//! on the computing one.

use super::memory::Memory;
use super::product::Padded;
use super::{Queue, driver};
use crate::error::{Error, Result};
use cudarc::driver::{CudaGraph, CudaStream, result, sys};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The graphs by their numbers.
#[derive(Debug)]
pub(super) struct Graphs {
    // Dropped before the stream it was made on.
    made: Mutex<BTreeMap<u64, Made>>,
    drawing: Arc<CudaStream>,
    queue: Queue,
}

/// A graph, and the memory of the device that its launches name but its list does not.
struct Made {
    graph: CudaGraph,
    padded: Padded,
}

// SAFETY: a graph is used under the mutex alone, from whichever thread has made its context current.
unsafe impl Send for Made {}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |memory: &Option<Arc<Memory>>| memory.as_ref().map(|memory| memory.address());
        f.debug_struct("Made").field("padded", &self.padded.each_ref().map(bytes)).finish()
    }
}

impl Graphs {
    pub(super) fn new(queue: &Queue) -> Result<Self> {
        let drawing = queue.context.new_stream().map_err(driver("stream"))?;
        Ok(Self { made: Mutex::default(), drawing, queue: queue.clone() })
    }

    /// Makes a graph of what `record` queues on the stream it is given; `padded` tells afterwards which copies its
    /// products use. False if something in it cannot be captured.
    pub(super) fn capture(
        &self,
        number: u64,
        record: impl FnOnce(&CudaStream) -> Result<()>,
        padded: impl FnOnce() -> Padded,
    ) -> bool {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        // Relaxed: calls of the driver that are no work of this stream (loading a module) are allowed.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        if self.drawing.begin_capture(mode).is_err() {
            return false;
        }
        let recorded = record(&self.drawing);
        let graph = self.drawing.end_capture(sys::CUgraphInstantiate_flags(0));
        let (Ok(()), Ok(Some(graph))) = (recorded, graph) else { return false };
        made.insert(number, Made { graph, padded: padded() });
        true
    }

    /// Queues a graph.
    pub(super) fn replay(&self, number: u64) -> Result<()> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let Made { graph, .. } = made.get(&number).ok_or_else(|| Error::Backend {
            op: "replay",
            what: format!("there is no graph {number}"),
        })?;
        // SAFETY: the graph is whole and is given up only after a wait; its launches name memory that is alive: the
        // list that is replayed names it too, or `padded` keeps it.
        unsafe { result::graph::launch(graph.cu_graph_exec(), self.queue.stream.cu_stream()) }
            .map_err(driver("replay"))
    }

    /// Gives a graph up when it no longer runs.
    pub(super) fn forget(&self, number: u64) -> Result<()> {
        self.queue.wait()?;
        self.made.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        Ok(())
    }
}
