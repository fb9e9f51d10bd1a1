//! The ranks of this job, and how an error in one of them ends all.

use crate::env::Env;
use trainer::comm::{Communicator, Solo};

/// The communicator of the job.
#[derive(Debug)]
pub(crate) enum World {
    /// One process.
    Solo(Solo),
    /// One of the processes of an MPI launcher.
    #[cfg(feature = "mpi")]
    Mpi(trainer::comm::Mpi),
}

impl World {
    /// Joins the MPI job that started this process; a process started alone stays alone, without MPI.
    pub(crate) fn join(env: &Env) -> anyhow::Result<Self> {
        #[cfg(feature = "mpi")]
        if env.started_by_mpi {
            return Ok(Self::Mpi(trainer::comm::Mpi::init()?));
        }
        anyhow::ensure!(
            cfg!(feature = "mpi") || !env.started_by_mpi,
            "started as one of several MPI processes, but built without the feature `mpi`"
        );
        Ok(Self::Solo(Solo::new()))
    }

    pub(crate) fn comm(&self) -> &dyn Communicator {
        match self {
            Self::Solo(solo) => solo,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi,
        }
    }

    /// Leaves in good order; every rank must.
    pub(crate) fn finish(self) {
        match self {
            Self::Solo(_) => {}
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.finish(),
        }
    }
}
