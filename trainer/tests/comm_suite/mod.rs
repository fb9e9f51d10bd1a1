//! One body for every communicator: what each collective gives, edge cases included. Values are small integers, so all
//! comparisons are exact. Run by `comm_worlds.rs` (Solo, Threads) and by `comm_mpi.rs` (real ranks).

use trainer::comm::{
    Communicator, Error, GradientSync, HostSync, LocalShards, Op, Reduce, Result, shards_of,
};

/// Every collective on `comm`; panics on a wrong result, passes a failed collective up.
pub(crate) fn every_collective(comm: &dyn Communicator) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    assert!(rank < size);
    comm.barrier()?;
    for root in 0..size {
        broadcast(comm, root)?;
        gather(comm, root)?;
    }
    gather_all(comm)?;
    floats(comm)?;
    let value = rank as u64 + 1;
    assert_eq!(comm.all_reduce_u64(Reduce::Max, value)?, size as u64);
    assert_eq!(comm.all_reduce_u64(Reduce::Min, value)?, 1);
    assert_eq!(comm.all_reduce_u64(Reduce::Sum, value)?, (size * (size + 1) / 2) as u64);
    assert_eq!(comm.all_reduce_u64(Reduce::Min, u64::MAX)?, u64::MAX);
    let sum = comm.all_reduce_u64(Reduce::Sum, u64::MAX);
    if size == 1 {
        assert_eq!(sum, Ok(u64::MAX));
    } else {
        assert_eq!(sum, Err(Error::Overflow { op: Op::ReduceSum, rank }));
    }
    outside(comm);
    comm.barrier()
}

fn bytes_of(rank: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 7 + rank * 31) % 251).unwrap()).collect()
}

fn broadcast(comm: &dyn Communicator, root: usize) -> Result<()> {
    for len in [0, 1, 5, 10_007] {
        let expected = bytes_of(root, len);
        // What the others held, longer or shorter, must not matter.
        let mut bytes = bytes_of(comm.rank(), if comm.rank() == root { len } else { 3000 });
        comm.broadcast_bytes(root, &mut bytes)?;
        assert_eq!(bytes, expected, "broadcast of {len} bytes from {root}");
    }
    Ok(())
}

/// Lengths that differ by rank; rank 0's is 0.
fn uneven(size: usize) -> Vec<Vec<u8>> {
    (0..size).map(|r| bytes_of(r, r * r * 997)).collect()
}

fn gather(comm: &dyn Communicator, root: usize) -> Result<()> {
    let expected = uneven(comm.size());
    let got = comm.gather_bytes(root, &expected[comm.rank()])?;
    assert_eq!(got, (comm.rank() == root).then_some(expected), "gather on {root}");
    let none = comm.gather_bytes(root, &[])?;
    assert_eq!(none, (comm.rank() == root).then(|| vec![Vec::new(); comm.size()]));
    Ok(())
}

fn gather_all(comm: &dyn Communicator) -> Result<()> {
    let expected = uneven(comm.size());
    assert_eq!(comm.all_gather_bytes(&expected[comm.rank()])?, expected);
    assert_eq!(comm.all_gather_bytes(&[])?, vec![Vec::<u8>::new(); comm.size()]);
    Ok(())
}

fn floats(comm: &dyn Communicator) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    for n in [0u16, 1, 3, 4099] {
        let of = |r: usize| (0..n).map(move |i| f32::from(i) + 10_000.0 * r as f32);
        let mine: Vec<f32> = of(rank).collect();
        let mut all = vec![f32::NAN; usize::from(n) * size];
        comm.all_gather_f32(&mine, &mut all)?;
        let expected: Vec<f32> = (0..size).flat_map(of).collect();
        assert_eq!(all, expected, "{n} floats a rank");
    }
    // A NaN's bits and the sign of zero travel unchanged.
    let odd = [f32::from_bits(0x7fc0_1234), -0.0];
    let mut all = vec![0.0; 2 * size];
    comm.all_gather_f32(&odd, &mut all)?;
    for pair in all.chunks(2) {
        assert_eq!([pair[0].to_bits(), pair[1].to_bits()], [0x7fc0_1234, 0x8000_0000]);
    }
    let error = comm.all_gather_f32(&[1.0], &mut vec![0.0; size + 1]);
    let op = Op::AllGatherF32;
    assert_eq!(error, Err(Error::Length { op, rank, expected: size, got: size + 1 }));
    Ok(())
}

/// Roots outside the world are refused before anything is sent, so the world stays usable.
fn outside(comm: &dyn Communicator) {
    let (rank, size) = (comm.rank(), comm.size());
    let refused = |op| Error::Root { op, rank, root: size, size };
    assert_eq!(comm.broadcast_bytes(size, &mut Vec::new()), Err(refused(Op::BroadcastBytes)));
    assert_eq!(comm.gather_bytes(size, &[]), Err(refused(Op::GatherBytes)));
}

/// Values whose f32 sum depends on the order of addition.
pub(crate) fn shard_gradient(shard: u32, len: usize) -> Vec<f32> {
    let value = |i: usize| {
        let x = (i as f32 * 0.37 + shard as f32 * 1.7).sin();
        x * 10f32.powi(i32::try_from((shard as usize * 5 + i) % 9).unwrap() - 4)
    };
    (0..len).map(value).collect()
}

/// The bits of the sum of `num_shards` shards held by this world's ranks, with buffers of `buffer_bytes`; the loss too.
pub(crate) fn sum_of_shards(
    comm: &dyn Communicator,
    num_shards: u32,
    len: usize,
    buffer_bytes: usize,
) -> Result<(Vec<u32>, u64)> {
    // Descending, to show that the order of the local list does not matter.
    let mut ids = shards_of(comm.rank(), comm.size(), num_shards);
    ids.reverse();
    let values: Vec<f32> = ids.iter().flat_map(|&v| shard_gradient(v, len)).collect();
    let losses: Vec<f64> = ids.iter().map(|&v| 0.1 * f64::from(v) + 1e-7).collect();
    let sync = HostSync::new(num_shards).with_buffer_bytes(buffer_bytes);
    let mut total = vec![f32::NAN; len];
    sync.reduce_shards(comm, LocalShards { ids: &ids, values: &values }, &mut total)?;
    // Again over buffers that hold the last call's numbers, and over another result.
    total.reverse();
    sync.reduce_shards(comm, LocalShards { ids: &ids, values: &values }, &mut total)?;
    let loss = sync.reduce_scalars(comm, &ids, &losses)?;
    Ok((total.iter().map(|x| x.to_bits()).collect(), loss.to_bits()))
}

/// What `sum_of_shards` must give, added up directly.
pub(crate) fn sum_in_order(num_shards: u32, len: usize) -> (Vec<u32>, u64) {
    let mut total = shard_gradient(0, len);
    let mut loss = 1e-7;
    for v in 1..num_shards {
        for (sum, x) in total.iter_mut().zip(shard_gradient(v, len)) {
            *sum += x;
        }
        loss += 0.1 * f64::from(v) + 1e-7;
    }
    (total.iter().map(|x| x.to_bits()).collect(), f64::to_bits(loss))
}
