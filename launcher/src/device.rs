//! What a rank computes on: its processors, or one GPU of its machine.

use crate::env::Env;
use crate::exit::Fails;
use kernels::cuda::{Cuda, CudaBackend, Options};
use kernels::gpu::Gpu;
use kernels::nccl::{DeviceInfo, Driver};
use trainer::comm::Communicator;
use trainer::comm::nccl::{Machine, seats};
use trainer::config::DeviceKind;

/// Graphs that are kept with `engine.graphs`: shapes of packs that repeat, and those of answers while sequences end.
const GRAPHS: usize = 64;

/// The device of a rank; clones are the same one.
#[derive(Debug, Clone)]
pub(crate) enum Device {
    Cpu,
    Cuda(CudaBackend),
}

/// An expression with `$backend` bound to the backend of a [`Device`], compiled for each.
macro_rules! on {
    ($device:expr, $backend:ident => $work:expr) => {
        match &$device {
            $crate::device::Device::Cpu => {
                let $backend = kernels::Cpu;
                $work
            }
            $crate::device::Device::Cuda(gpu) => {
                let $backend = gpu.clone();
                $work
            }
        }
    };
}
pub(crate) use on;

impl Device {
    /// Bytes that are free on a GPU now; none for processors.
    pub(crate) fn free(&self) -> anyhow::Result<Option<usize>> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda(gpu) => Ok(Some(gpu.device().memory_info()?.0)),
        }
    }

    /// The device that `engine.device` asks for, with graphs if `engine.graphs` does; every rank must call it, since
    /// ranks of a machine share out its GPUs.
    pub(crate) fn open(
        (place, graphs): (DeviceKind, bool),
        env: &Env,
        comm: &dyn Communicator,
    ) -> anyhow::Result<Self> {
        if place == DeviceKind::Cpu {
            return Ok(Self::Cpu);
        }
        let hint = "launcher doctor says what is missing; engine.device = \"cpu\" needs no GPU";
        let found = Driver::open().and_then(|driver| driver.devices());
        let visible: &[DeviceInfo] = found.as_deref().unwrap_or_default();
        let uuids: Vec<_> = visible.iter().map(|device| device.uuid).collect();
        let machine = Machine::here();
        let seat = seats(comm, &machine, &uuids)?[comm.rank()];
        let ordinal = match (&found, seat.device) {
            (Err(error), _) => {
                return Err(anyhow::anyhow!("no GPU on {}: {error}", machine.host)).input(hint);
            }
            (Ok(_), None) => {
                return Err(anyhow::anyhow!(
                    "no GPU left on {}: {} for {} ranks",
                    machine.host,
                    visible.len(),
                    seat.local_size
                ))
                .input(hint);
            }
            (Ok(_), Some(ordinal)) => ordinal,
        };
        let cache = Some(env.cache.join("device-code"));
        // Where scripts/build-kernels writes; without it the device code is compiled at first use.
        let cubins = Some(env.cache.join("cubins"));
        let cuda = Cuda::open(Options { ordinal, cache, cubins }).input(hint)?;
        let kept = if graphs { GRAPHS } else { 0 };
        Ok(Self::Cuda(Gpu::with_graphs(cuda, kept).input(hint)?))
    }
}
