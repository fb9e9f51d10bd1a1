//! Who adds the population stage's gradients (and those of distilling) on which device.

use crate::exit::Fails;
use anyhow::Context;
use kernels::cuda::CudaBackend;
use kernels::{Cpu, Ops};
use std::time::Duration;
use trainer::comm::nccl::{Machine, NcclOptions, NcclSync, join, prepare};
use trainer::comm::{Communicator, HostSync};
use trainer::config::GradientSum;
use trainer::stage::sums::{BetweenGpus, ByHost, OnGpu, ShardSums};

/// How long a rank waits for the others' gradients, and for them to join: longer than any step may take.
const LIMIT: Duration = Duration::from_secs(600);

/// What to try when GPUs do not talk.
const HINT: &str = "launcher doctor tries NCCL alone; engine.gradient_sum = \"host\" copies through the host and needs none";

/// A backend that knows how gradients that lie in its memory are added.
pub(crate) trait Adds: Ops {
    /// The sums of `num_shards` virtual shards; every rank must call.
    fn sums(
        &self,
        comm: &dyn Communicator,
        place: GradientSum,
        num_shards: u32,
    ) -> anyhow::Result<Box<dyn ShardSums<Self>>>;
}

impl Adds for Cpu {
    fn sums(
        &self,
        _: &dyn Communicator,
        _: GradientSum,
        num_shards: u32,
    ) -> anyhow::Result<Box<dyn ShardSums<Self>>> {
        Ok(Box::new(ByHost::new(HostSync::new(num_shards))))
    }
}

impl Adds for CudaBackend {
    /// On the GPU where the rank is alone, between GPUs by NCCL where it is not.
    fn sums(
        &self,
        comm: &dyn Communicator,
        place: GradientSum,
        num_shards: u32,
    ) -> anyhow::Result<Box<dyn ShardSums<Self>>> {
        match (place, comm.size()) {
            (GradientSum::Host, _) => Ok(Box::new(ByHost::new(HostSync::new(num_shards)))),
            (GradientSum::Device, 1) => Ok(Box::new(OnGpu::new(num_shards))),
            (GradientSum::Device, _) => {
                let host = Machine::here().host;
                let group = join(comm, &host, prepare(self.device().handles()), LIMIT)
                    .with_context(|| format!("rank {} on {host}", comm.rank()))
                    .machine(HINT)?;
                let sync = NcclSync::new(group, NcclOptions::new(num_shards));
                Ok(Box::new(BetweenGpus::new(self.clone(), sync, num_shards)))
            }
        }
    }
}

/// Whether this is an error of GPUs that talk.
pub(crate) fn of_nccl<T>(outcome: &trainer::stage::Result<T>) -> bool {
    use trainer::comm::Error::{Nccl, NcclElsewhere};
    matches!(outcome, Err(trainer::stage::Error::Comm(Nccl(_) | NcclElsewhere { .. })))
}

/// Adds to an error of GPUs that talk who says it and what to try.
pub(crate) fn explained<T>(
    comm: &dyn Communicator,
    outcome: trainer::stage::Result<T>,
) -> anyhow::Result<T> {
    if !of_nccl(&outcome) {
        return Ok(outcome?);
    }
    let host = Machine::here().host;
    outcome.with_context(|| format!("rank {} on {host}", comm.rank())).machine(HINT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{Exit, read};
    use trainer::comm::Solo;
    use trainer::stage::Error;

    #[test]
    fn an_error_of_nccl_names_rank_and_machine_and_what_to_try() {
        let error = kernels::nccl::Error::Missing {
            library: "NCCL",
            tried: "libnccl.so.2".into(),
            why: "no such file".into(),
        };
        let outcome: trainer::stage::Result<()> =
            Err(Error::Comm(trainer::comm::Error::Nccl(error)));
        let error = explained(&Solo::new(), outcome).unwrap_err();
        let text = format!("{error:#}");
        let start = format!("rank 0 on {}: NCCL cannot be loaded", Machine::here().host);
        assert!(text.starts_with(&start), "{text}");
        assert_eq!(read(&error), (Exit::Internal, Some(HINT)));
        let other: trainer::stage::Result<()> = Err(Error::NoSlot);
        let error = explained(&Solo::new(), other).unwrap_err();
        assert_eq!(
            (read(&error), error.to_string()),
            ((Exit::Internal, None), Error::NoSlot.to_string())
        );
    }
}
