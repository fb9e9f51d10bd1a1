//! How the GPUs of a world of ranks become one NCCL group.
//!
//! Every step that can fail on one rank is followed by an exchange over the [`Communicator`], so that all ranks leave
//! with an error when one does and none waits for a group that will never be.

use super::super::{Communicator, Error, Result};
use kernels::nccl::{CudaLane, Driver, Group, Handles, Lane, Nccl, Place, UniqueId};
use std::sync::Arc;
use std::time::Duration;

/// Forms the group of all ranks of `comm`: the id is made on rank 0 and broadcast, then every rank joins.
///
/// `prepared` is this rank's NCCL and lane, or why it has none; every rank must call, whatever it prepared. `limit`
/// bounds the joining and every later wait of the group.
///
/// # Errors
/// This rank's own error, or [`Error::NcclElsewhere`] naming the first rank that had one.
pub fn join(
    comm: &dyn Communicator,
    host: &str,
    prepared: kernels::nccl::Result<(Arc<Nccl>, Arc<dyn Lane>)>,
    limit: Duration,
) -> Result<Group> {
    // What keeps a rank from preparing is mostly its machine's: an error elsewhere names it.
    let (nccl, lane) = agreed(comm, prepared, |error| format!("on {host}: {error}"))?;
    let place = Place { rank: comm.rank(), size: comm.size(), host: host.to_owned() };
    let made = match comm.rank() {
        0 => nccl.unique_id(&place).map(|id| id.bytes().to_vec()),
        _ => Ok(Vec::new()),
    };
    let mut bytes = unanimous(comm, made)?;
    comm.broadcast_bytes(0, &mut bytes)?;
    let got = bytes.len();
    let damaged = Error::Length {
        op: super::super::Op::BroadcastBytes,
        rank: place.rank,
        expected: 128,
        got,
    };
    let id = UniqueId::from_bytes(&bytes).ok_or(damaged)?;
    unanimous(comm, Group::join(nccl, lane, id, place, limit))
}

/// NCCL, and a lane beside the stream of `handles`: what this rank brings to [`join`], or why it cannot.
///
/// # Errors
/// No handles; no NCCL or driver on this machine; what they say.
pub fn prepare(
    handles: kernels::Result<Handles>,
) -> kernels::nccl::Result<(Arc<Nccl>, Arc<dyn Lane>)> {
    let refused =
        |e: kernels::Error| kernels::nccl::Error::Argument { op: "GPU", what: e.to_string() };
    let handles = handles.map_err(refused)?;
    let (nccl, driver) = (Arc::new(Nccl::open()?), Arc::new(Driver::open()?));
    Ok((nccl, Arc::new(CudaLane::new(driver, handles)?)))
}

/// What this rank made, if every rank made its own.
///
/// # Errors
/// As [`join`].
pub fn unanimous<T>(comm: &dyn Communicator, mine: kernels::nccl::Result<T>) -> Result<T> {
    agreed(comm, mine, ToString::to_string)
}

fn agreed<T>(
    comm: &dyn Communicator,
    mine: kernels::nccl::Result<T>,
    words: impl FnOnce(&kernels::nccl::Error) -> String,
) -> Result<T> {
    let text = mine.as_ref().err().map_or_else(String::new, words);
    let all = comm.all_gather_bytes(text.as_bytes())?;
    let mine = mine?;
    match all.iter().position(|said| !said.is_empty()) {
        None => Ok(mine),
        Some(rank) => Err(Error::NcclElsewhere {
            rank,
            what: String::from_utf8_lossy(&all[rank]).into_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::Threads;

    #[test]
    fn one_rank_without_the_library_is_an_error_on_all() {
        let missing = kernels::nccl::Error::Missing {
            library: "NCCL",
            tried: "libnccl.so.2".into(),
            why: "no such file".into(),
        };
        let outcomes = Threads::run(3, |comm| {
            unanimous(comm, if comm.rank() == 1 { Err(missing.clone()) } else { Ok(()) })
        });
        let outcomes = outcomes.unwrap();
        assert_eq!(outcomes[1], Err(Error::Nccl(missing.clone())));
        for rank in [0, 2] {
            let elsewhere = Error::NcclElsewhere { rank: 1, what: missing.to_string() };
            assert_eq!(outcomes[rank], Err(elsewhere));
        }
    }

    #[test]
    fn a_rank_that_cannot_prepare_is_named_with_its_machine() {
        let broken = || kernels::Error::Backend { op: "load", what: "no such module".into() };
        let outcomes = Threads::run(3, |comm| {
            let host = format!("node{}", comm.rank());
            join(comm, &host, prepare(Err(broken())), Duration::from_secs(1)).map(|_| ())
        });
        let own = kernels::nccl::Error::Argument { op: "GPU", what: broken().to_string() };
        assert!(outcomes.unwrap().into_iter().all(|o| o == Err(Error::Nccl(own.clone()))));
        let alone = Threads::run(2, |comm| {
            let mine = if comm.rank() == 1 { Err(own.clone()) } else { Ok(()) };
            agreed(comm, mine, |error| format!("on node{}: {error}", comm.rank()))
        });
        let what = "on node1: GPU: load: no such module".to_owned();
        assert_eq!(alone.unwrap()[0], Err(Error::NcclElsewhere { rank: 1, what }));
    }
}
