//! What a rank of these tests does.

use kernels::nccl::{Driver, Error, Handles, Region, SUM_KERNEL};
use std::ffi::CString;
use std::io::Write as _;
use std::time::Duration;
use trainer::comm::nccl::{
    Bucket, DeviceSync as _, Machine, NcclOptions, NcclSync, SumOrder, join, prepare, seats,
};
use trainer::comm::{Communicator, GradientSync as _, LocalShards, Mpi, Result, shards_of};

/// V of these tests: more than one launch of the sum's kernel takes, and no multiple of 3.
pub(crate) const SHARDS: u32 = 20;

/// One line in one write, so that the lines of ranks do not mix.
pub(crate) fn say(comm: &dyn Communicator, text: &str) {
    let line = format!("rank {} says: {text}\n", comm.rank());
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Runs `body` as a rank of an MPI job that ends well whatever NCCL does.
pub(crate) fn run(body: impl FnOnce(&dyn Communicator) -> String) {
    let mpi = Mpi::init().unwrap();
    let text = body(&mpi);
    say(&mpi, &text);
    mpi.barrier().unwrap();
    mpi.finish();
}

/// What a CUDA backend on the GPU of this rank's seat would hand over, the sum's kernel with it.
pub(crate) fn handles(comm: &dyn Communicator) -> kernels::nccl::Result<Handles> {
    let driver = Driver::open()?;
    let visible: Vec<_> = driver.devices()?.iter().map(|d| d.uuid).collect();
    let seat = seats(comm, &Machine::here(), &visible).unwrap()[comm.rank()];
    assert_eq!(seat.device, Some(comm.rank()), "four GPUs, all ranks on one machine");
    let context = driver.primary_context(comm.rank())?;
    let name = CString::new(SUM_KERNEL).unwrap();
    let sum = Some(driver.function(context, c"// the fake reads no PTX", &name)?);
    Ok(Handles { context, compute: 0, sum })
}

/// Joins the group of all ranks.
pub(crate) fn sync(
    comm: &dyn Communicator,
    options: NcclOptions,
    limit: Duration,
) -> Result<NcclSync> {
    let group = join(comm, "node-of-the-test", prepare(Ok(handles(comm)?)), limit)?;
    Ok(NcclSync::new(group, options))
}

/// Gradient `shard`, of magnitudes from 1e-6 to 1e3, so that the order of additions shows in the bits.
pub(crate) fn shard(shard: u32, len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_u32.wrapping_mul(shard + 1) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let value = |bits: u32, size: u32| {
        let unit = f64::from(bits) / f64::from(u32::MAX) - 0.5;
        #[expect(clippy::cast_possible_truncation, reason = "any f32 near it will do")]
        let value = (unit * 10f64.powi(i32::try_from(size % 10).unwrap() - 6)) as f32;
        value
    };
    (0..len).map(|_| value(next(), next())).collect()
}

/// The values of a rank's shards, one after the other.
pub(crate) fn shards(comm: &dyn Communicator, len: usize) -> (Vec<u32>, Vec<f32>) {
    let ids = shards_of(comm.rank(), comm.size(), SHARDS);
    let values = ids.iter().flat_map(|&id| shard(id, len)).collect();
    (ids, values)
}

/// The sum through host memory.
pub(crate) fn sum_on_host(
    comm: &dyn Communicator,
    sync: &NcclSync,
    len: usize,
) -> Result<Vec<f32>> {
    let (ids, values) = shards(comm, len);
    let mut total = vec![f32::NAN; len];
    sync.reduce_shards(comm, LocalShards { ids: &ids, values: &values }, &mut total)?;
    Ok(total)
}

/// The sum where the gradients lie, begun in buckets of the lengths `buckets`, last layers first.
pub(crate) fn sum_in_buckets(
    comm: &dyn Communicator,
    sync: &NcclSync,
    buckets: &[usize],
) -> Result<Vec<f32>> {
    let len = buckets.iter().sum();
    let (ids, values) = shards(comm, len);
    let lane = sync.group().lane();
    let (slab, total) = (lane.alloc(values.len())?, lane.alloc(len)?);
    lane.write(slab, &values)?;
    let agreement = sync.agree(comm, &ids)?;
    let mut end = len;
    for &n in buckets.iter().rev() {
        end -= n;
        let at = |i: usize| slab.part(i * len + end, n).address;
        let shards: Vec<u64> = (0..ids.len()).map(at).collect();
        sync.begin(&agreement, Bucket { shards: &shards, total: total.part(end, n) })?;
    }
    sync.finish()?;
    let mut sum = vec![f32::NAN; len];
    lane.read(total, &mut sum)?;
    lane.free(slab);
    lane.free(total);
    Ok(sum)
}

/// The three collectives on small integers, whose sums are exact in any order.
pub(crate) fn collectives(sync: &NcclSync) -> Result<()> {
    let group = sync.group();
    let (rank, size, lane) = (group.place().rank, group.place().size, group.lane());
    for n in [1u16, 5, 40_000] {
        let count = usize::from(n);
        let of = |rank: usize| {
            (0..n).map(move |i| f32::from(i % 97 + 100 * u16::try_from(rank).unwrap()))
        };
        let (one, all) = (lane.alloc(count)?, lane.alloc(count * size)?);
        let read = |region: Region| -> Result<Vec<f32>> {
            group.wait("test")?;
            let mut values = vec![f32::NAN; region.len];
            lane.read(region, &mut values)?;
            Ok(values)
        };
        let mine: Vec<f32> = of(rank).collect();
        let whole: Vec<f32> = (0..size).flat_map(of).collect();
        let added: Vec<f32> =
            (0..count).map(|i| (0..size).map(|r| whole[r * count + i]).sum()).collect();
        lane.write(one, &mine)?;
        group.all_gather(one, all)?;
        assert_eq!(read(all)?, whole);
        group.all_reduce(one, one)?;
        assert_eq!(read(one)?, added);
        // Every rank brings `whole`, so its part of the sum is `size` times its own values.
        group.reduce_scatter(all, one)?;
        #[expect(clippy::cast_precision_loss, reason = "at most 4")]
        let times: Vec<f32> = mine.iter().map(|x| x * size as f32).collect();
        assert_eq!(read(one)?, times);
        assert!(matches!(group.all_gather(all, all), Err(Error::Argument { .. })) || size == 1);
        lane.free(one);
        lane.free(all);
    }
    Ok(())
}

/// Options of these tests.
pub(crate) fn options(order: SumOrder, buffer_bytes: usize) -> NcclOptions {
    NcclOptions { num_shards: SHARDS, order, buffer_bytes }
}
