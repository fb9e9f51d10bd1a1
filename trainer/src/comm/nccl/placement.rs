//! Which rank takes which GPU: pure, from what every rank said of itself.
//!
//! As in nccl-tests the ranks' machines are compared by hashes of their names, not by what a launcher's environment
//! says; as NCCL does, the name is the running kernel's boot id where there is one, so that containers of one machine
//! count as one machine. GPUs are compared by UUID, so a scheduler that shows each rank its own GPU (every rank sees
//! "GPU 0") is understood as well as one that shows all GPUs to all ranks.

use super::super::{Communicator, Error, Result};
use kernels::nccl::Uuid;
use std::collections::BTreeSet;

/// The machine of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its name, for people.
    pub host: String,
    /// What tells it from others.
    pub hash: u64,
}

impl Machine {
    /// Asks the kernel.
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let host = read("/proc/sys/kernel/hostname");
        let boot = read("/proc/sys/kernel/random/boot_id");
        let host = if host.is_empty() { "an unnamed machine".to_owned() } else { host };
        let hash = hash(if boot.is_empty() { &host } else { &boot });
        Self { host, hash }
    }
}

fn hash(name: &str) -> u64 {
    let bytes: [u8; 32] = blake3::hash(name.as_bytes()).into();
    bytes.iter().take(8).fold(0, |hash, &byte| hash << 8 | u64::from(byte))
}

/// For each rank: its place among the ranks of its machine in rank order, and how many they are.
pub fn local_ranks(machines: &[u64]) -> Vec<(usize, usize)> {
    let place = |(rank, machine): (usize, &u64)| {
        let before = machines[..rank].iter().filter(|m| *m == machine).count();
        (before, machines.iter().filter(|m| *m == machine).count())
    };
    machines.iter().enumerate().map(place).collect()
}

/// A rank's place: on its machine, and at a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    /// Its place among the ranks of its machine.
    pub local_rank: usize,
    /// Ranks on its machine.
    pub local_size: usize,
    /// Its GPU, as a number among those it sees; `None` if every one it sees is another rank's, or it sees none.
    pub device: Option<usize>,
}

/// Every rank's seat, the same on all ranks: in rank order each takes the first GPU it sees that no earlier rank of its
/// machine has taken. With all GPUs visible to all ranks that is the local rank's GPU.
///
/// # Errors
/// What the communicator says.
pub fn seats(comm: &dyn Communicator, machine: &Machine, visible: &[Uuid]) -> Result<Vec<Seat>> {
    let mut mine = machine.hash.to_le_bytes().to_vec();
    mine.extend(visible.iter().flat_map(|uuid| uuid.0));
    let said: Vec<(u64, Vec<Uuid>)> =
        comm.all_gather_bytes(&mine)?.iter().map(|bytes| read(bytes)).collect::<Result<_>>()?;
    Ok(assign(&said))
}

fn read(bytes: &[u8]) -> Result<(u64, Vec<Uuid>)> {
    let (hash, uuids) = bytes.split_first_chunk::<8>().ok_or(Error::NoRanks)?;
    Ok((u64::from_le_bytes(*hash), uuids.as_chunks::<16>().0.iter().map(|u| Uuid(*u)).collect()))
}

fn assign(said: &[(u64, Vec<Uuid>)]) -> Vec<Seat> {
    let machines: Vec<u64> = said.iter().map(|(machine, _)| *machine).collect();
    let mut taken = BTreeSet::new();
    let places = local_ranks(&machines).into_iter().zip(said);
    let seat =
        |((local_rank, local_size), (machine, visible)): ((usize, usize), &(u64, Vec<Uuid>))| {
            let device = visible.iter().position(|&uuid| taken.insert((*machine, uuid)));
            Seat { local_rank, local_size, device }
        };
    places.map(seat).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::Threads;

    fn gpu(number: u8) -> Uuid {
        Uuid([number; 16])
    }

    fn devices(said: &[(u64, Vec<Uuid>)]) -> Vec<Option<usize>> {
        assign(said).iter().map(|seat| seat.device).collect()
    }

    #[test]
    fn counts_within_each_machine_in_rank_order() {
        let (a, b) = (17, 4);
        assert_eq!(local_ranks(&[a, a, b, a, b]), [(0, 3), (1, 3), (0, 2), (2, 3), (1, 2)]);
        assert_eq!(local_ranks(&[]), []);
    }

    #[test]
    fn all_gpus_visible_gives_the_local_rank() {
        let all: Vec<Uuid> = (0..4).map(gpu).collect();
        // Two machines whose GPUs have the same UUIDs cannot be, but must not confuse either.
        let said: Vec<_> = [1, 2, 1, 2, 1].map(|machine| (machine, all.clone())).into();
        assert_eq!(devices(&said), [Some(0), Some(0), Some(1), Some(1), Some(2)]);
    }

    #[test]
    fn one_gpu_shown_to_each_rank() {
        let said: Vec<_> = (0..4).map(|r| (1, vec![gpu(r)])).collect();
        assert_eq!(devices(&said), [Some(0); 4]);
    }

    #[test]
    fn overlapping_views_and_too_few_gpus() {
        let said = [(1, vec![gpu(3), gpu(1)]), (1, vec![gpu(1), gpu(3)]), (1, vec![gpu(3)])];
        assert_eq!(devices(&said), [Some(0), Some(0), None]);
        assert_eq!(devices(&[(1, vec![]), (1, vec![gpu(0)])]), [None, Some(0)]);
    }

    #[test]
    fn every_rank_learns_all_seats() {
        let machine = |rank| Machine { host: String::new(), hash: [5, 9, 5][rank] };
        let world = Threads::run(3, |comm| seats(comm, &machine(comm.rank()), &[gpu(0), gpu(1)]));
        for told in world.unwrap() {
            let told = told.unwrap();
            let places: Vec<_> = told.iter().map(|s| (s.local_rank, s.local_size)).collect();
            assert_eq!(places, [(0, 2), (0, 1), (1, 2)]);
            assert_eq!(told[2].device, Some(1));
        }
    }

    #[test]
    fn this_machine_is_itself() {
        assert_eq!(Machine::here(), Machine::here());
        assert_ne!(hash("node-1"), hash("node-2"));
    }
}
