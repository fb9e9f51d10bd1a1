//! What a session stands on: the rank's device and how much of a GPU it may take; base and tokenizer.

use crate::device::{Device, on};
use crate::env::Env;
use crate::exit::Fails;
use crate::plan::room::{Room, Source, untold};
use anyhow::Context;
use kernels::gpu::Gpu;
use kernels::gpu::dry::DryRun;
use trainer::comm::Communicator;
use trainer::config::{Config, DeviceKind, Engine};
use trainer::model::cache::MappedBase;
use trainer::model::tokenizer::Tokenizer;

const HINT: &str = "scripts/setup fetches the model the shipped configs use";

/// What a session is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To compute.
    Run,
    /// To say what a run would take; on a GPU of so many bytes, where that is not the one at hand.
    Plan { gpu: Option<usize> },
}

/// The device of a rank.
#[derive(Debug)]
pub(crate) struct Ground {
    /// None in a plan for a GPU.
    device: Option<Device>,
    /// Bytes that were free on the GPU when it was opened, before anything was on it.
    free: Option<usize>,
}

impl Ground {
    /// Opens the device, the base and its tokenizer; ranks of a node take turns, the first converts, the others find the file. A plan for
    /// a GPU opens and converts nothing: it needs the base's form alone.
    pub(crate) fn open(
        config: &Config,
        purpose: Purpose,
        env: &Env,
        comm: &dyn Communicator,
    ) -> anyhow::Result<(Self, MappedBase, Tokenizer)> {
        let place = config.engine.device;
        if place == DeviceKind::Cuda && purpose != Purpose::Run {
            let source = trainer::model::weights::open(&config.base.path).input(HINT)?;
            let base = MappedBase::outline(&Gpu::new(DryRun::new())?, source.spec());
            let tokenizer = Tokenizer::open(&config.base.path, base.spec()).input(HINT)?;
            return Ok((Self { device: None, free: None }, base, tokenizer));
        }
        let device = Device::open((place, config.engine.graphs), env, comm)?;
        let cache = config.base.cache_dir.clone().unwrap_or_else(|| env.cache.join("prepared"));
        let source = trainer::model::weights::open(&config.base.path).input(HINT)?;
        let base = on!(device, backend => MappedBase::load(&backend, source.as_ref(), &cache))
            .input(HINT)?;
        let tokenizer = Tokenizer::open(&config.base.path, base.spec()).input(HINT)?;
        Ok((Self { free: device.free()?, device: Some(device) }, base, tokenizer))
    }

    /// The device of a rank whose base is made in the run itself; a plan for a GPU opens none.
    pub(crate) fn bare(
        engine: &Engine,
        purpose: Purpose,
        (env, comm): (&Env, &dyn Communicator),
    ) -> anyhow::Result<Self> {
        if engine.device == DeviceKind::Cuda && purpose != Purpose::Run {
            return Ok(Self { device: None, free: None });
        }
        let device = Device::open((engine.device, engine.graphs), env, comm)?;
        Ok(Self { free: device.free()?, device: Some(device) })
    }

    /// What computes.
    ///
    /// # Errors
    /// In a plan for a GPU, which has nothing that computes.
    pub(crate) fn device(&self) -> anyhow::Result<&Device> {
        self.device.as_ref().context("a plan computes nothing")
    }

    /// How much of its GPU the rank may take; none without one. Every rank must call it: a plan that is told of no GPU
    /// looks for the one at hand, and ranks of a machine share out its GPUs.
    pub(crate) fn room(
        &self,
        engine: &Engine,
        purpose: Purpose,
        (env, comm): (&Env, &dyn Communicator),
    ) -> anyhow::Result<Option<Room>> {
        let gpu = match purpose {
            Purpose::Run => None,
            Purpose::Plan { gpu } => gpu,
        };
        if engine.device != DeviceKind::Cuda {
            return match gpu {
                None => Ok(None),
                Some(_) => Err(anyhow::anyhow!("--gpu, but engine.device is \"cpu\""))
                    .input("add --set engine.device=cuda"),
            };
        }
        let named = gpu.map(|bytes| Room { bytes, source: Source::Named });
        let free = self.free.map(|bytes| Room { bytes, source: Source::Free });
        let look = || {
            let device = Device::open((engine.device, false), env, comm)?;
            device.free()?.context("the device does not say what is free")
        };
        untold(Room::of(engine, named.or(free), look)).map(Some)
    }
}
