//! The population stage on GPUs: gradients summed where they lie, in buckets, while the backward goes on.
//!
//! The model runs on the emulator, whose memory is the process's as the fake driver's is: what the fake NCCL gathers and
//! adds are the emulator's gradients. Bytes are compared with the way through the host, and over numbers of ranks; the
//! order of launches and collectives is read from the fake's log, into which the device of [`crate::world`] writes too.

use crate::job::{Ended, is_rank};
use crate::rank::{SHARDS, options, run, shards, sync};
use crate::sums::{bits, bound, in_order};
use crate::world::{Setting, Watched, Way, World, gpu, job, mark};
use kernels::Backend as _;
use kernels::gpu::{Gpu, GpuBuf};
use std::time::Duration;
use trainer::comm::nccl::{NcclOptions, SumOrder};
use trainer::comm::{Communicator, HostSync};
use trainer::stage::Result;
use trainer::stage::sums::{BetweenGpus, ByHost, OnGpu, Part, ShardSums};

const LIMIT: Duration = Duration::from_secs(30);
/// Short for a test, long beside what a step takes here.
const SOON: Duration = Duration::from_millis(2500);

/// Through the host, then between GPUs in a bucket for each block and in one for all; alone also without NCCL.
fn every_way(comm: &dyn Communicator, num_shards: u32) -> String {
    let world = World::open(comm);
    let setting = Setting::new(num_shards);
    let by_host = world.train(comm, &mut ByHost::new(HostSync::new(num_shards)), setting).unwrap();
    for bucket_bytes in [0, usize::MAX] {
        mark(comm, &format!("buckets of {bucket_bytes}"));
        let options = NcclOptions { buffer_bytes: 1 << 14, ..NcclOptions::new(num_shards) };
        let sync = sync(comm, options, LIMIT).unwrap();
        let sums = BetweenGpus::new(world.gpu.clone(), sync, num_shards);
        let mut sums: Box<Way> = Box::new(sums.with_bucket_bytes(bucket_bytes));
        let got = world.train(comm, &mut *sums, setting).unwrap();
        assert_eq!(got, by_host, "buckets of {bucket_bytes} bytes");
        sums.close().unwrap();
    }
    if comm.size() == 1 {
        mark(comm, "on one GPU");
        let got = world.train(comm, &mut OnGpu::new(num_shards), setting).unwrap();
        assert_eq!(got, by_host, "on one GPU");
    }
    by_host.said()
}

/// Between GPUs in buckets, with work held back for graphs: what a bucket sums must have been given to the device.
fn with_graphs(comm: &dyn Communicator) -> String {
    let setting = Setting::new(5);
    let by_host = World::open(comm).train(comm, &mut ByHost::new(HostSync::new(5)), setting);
    let by_host = by_host.unwrap();
    let world = World::on(gpu(comm, 8));
    for bucket_bytes in [0, usize::MAX] {
        let sync = sync(comm, NcclOptions::new(5), LIMIT).unwrap();
        let sums = BetweenGpus::new(world.gpu.clone(), sync, 5);
        let mut sums: Box<Way> = Box::new(sums.with_bucket_bytes(bucket_bytes));
        let got = world.train(comm, &mut *sums, setting).unwrap();
        assert_eq!(got, by_host, "buckets of {bucket_bytes} bytes");
        sums.close().unwrap();
    }
    assert!(world.gpu.graph_counts().plain > 0, "work was held back");
    by_host.said()
}

#[test]
fn same_bytes_where_work_is_held_back_for_graphs() {
    if is_rank() {
        return run(with_graphs);
    }
    let name = "stage::same_bytes_where_work_is_held_back_for_graphs";
    let (one, two) = (job(name, 1, ""), job(name, 2, ""));
    assert_eq!([two.said(0), two.said(1)], [one.said(0); 2]);
}

/// The calls after a mark, launches and collectives alone, as `L` and `G`; equal neighbours are one.
pub(crate) fn order(ended: &Ended, rank: usize, bucket_bytes: usize) -> String {
    let mark = format!("mark buckets of {bucket_bytes}");
    let calls = ended.calls[rank].iter().skip_while(|call| **call != mark).skip(1);
    let calls = calls.take_while(|call| !call.starts_with("mark"));
    let mut order = String::new();
    for call in calls {
        let letter = match call {
            call if call.starts_with("launch ") => 'L',
            call if call.starts_with("ncclAllGather") => 'G',
            _ => continue,
        };
        if !order.ends_with(letter) {
            order.push(letter);
        }
    }
    order
}

pub(crate) fn gathers(ended: &Ended, rank: usize) -> Vec<&String> {
    ended.calls[rank].iter().filter(|call| call.starts_with("ncclAllGather")).collect()
}

#[test]
fn same_bytes_on_every_number_of_ranks_and_as_by_the_host() {
    if is_rank() {
        return run(|comm| every_way(comm, 5));
    }
    let mut said = Vec::new();
    for ranks in 1..=4 {
        let name = "stage::same_bytes_on_every_number_of_ranks_and_as_by_the_host";
        let ended = job(name, ranks, if ranks == 2 { "slow=1:3" } else { "" });
        for rank in 0..ranks {
            said.push(ended.said(rank).to_owned());
            assert_eq!(ended.count(rank, "error"), 0, "{:?}", ended.calls[rank]);
            assert_eq!(ended.count(rank, "ncclCommAbort"), 0);
            assert_eq!(gathers(&ended, rank), gathers(&ended, 0), "the same buckets on all ranks");
        }
        // Steps of two blocks: the first bucket goes off before the backward of the other block.
        assert_eq!(order(&ended, 0, 0), "LGLG".repeat(Setting::STEPS), "{ranks} ranks");
        assert_eq!(order(&ended, 0, usize::MAX), "LG".repeat(Setting::STEPS), "{ranks} ranks");
    }
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
}

#[test]
fn a_rank_without_a_shard_takes_part() {
    if is_rank() {
        return run(|comm| every_way(comm, 2));
    }
    let name = "stage::a_rank_without_a_shard_takes_part";
    let (alone, three) = (job(name, 1, ""), job(name, 3, ""));
    for rank in 0..3 {
        assert_eq!(three.said(rank), alone.said(0));
    }
    assert_eq!(three.count(2, "launch"), 0, "rank 2 holds none of two shards");
    assert_eq!(gathers(&three, 2), gathers(&three, 0));
    assert_eq!(order(&three, 2, 0), "G");
}

/// Sums all of the vector with the first bucket of a step, when the lower block's backward is still to come.
#[derive(Debug)]
struct TooEarly {
    sums: Box<Way>,
    params: usize,
    begun: bool,
}

impl ShardSums<Gpu<Watched>> for TooEarly {
    fn agree(&mut self, comm: &dyn Communicator, ids: &[u32]) -> Result<()> {
        self.sums.agree(comm, ids)
    }

    fn bucket_bytes(&self) -> Option<usize> {
        Some(0)
    }

    fn begin(
        &mut self,
        comm: &dyn Communicator,
        of: (&Gpu<Watched>, &mut GpuBuf<Watched, f32>),
        part: Part<'_>,
    ) -> Result<()> {
        if std::mem::replace(&mut self.begun, true) {
            return Ok(());
        }
        let below = self.params - part.len;
        let shards: Vec<usize> = part.shards.iter().map(|first| first - below).collect();
        let whole = Part { shards: &shards, total: part.total - below, len: self.params };
        self.sums.begin(comm, of, whole)?;
        // Now, however late the fake's stream is.
        self.sums.finish()
    }

    fn finish(&mut self) -> Result<()> {
        self.begun = false;
        self.sums.finish()
    }

    fn scalars(&self, comm: &dyn Communicator, values: &[f64]) -> Result<f64> {
        self.sums.scalars(comm, values)
    }
}

fn too_early(comm: &dyn Communicator) -> String {
    let (world, setting) = (World::open(comm), Setting::new(5));
    let by_host = world.train(comm, &mut ByHost::new(HostSync::new(5)), setting).unwrap();
    let sync = sync(comm, NcclOptions::new(5), LIMIT).unwrap();
    let sums = Box::new(BetweenGpus::new(world.gpu.clone(), sync, 5));
    let mut sums = TooEarly { sums, params: world.params(), begun: false };
    let got = world.train(comm, &mut sums, setting).unwrap();
    sums.sums.close().unwrap();
    assert_eq!(got.steps[0].0.to_bits(), by_host.steps[0].0.to_bits(), "the loss is not summed");
    if got == by_host { "the same".into() } else { "other bytes".into() }
}

#[test]
fn a_bucket_begun_too_early_would_show() {
    if is_rank() {
        return run(too_early);
    }
    let ended = job("stage::a_bucket_begun_too_early_would_show", 1, "");
    assert_eq!(ended.said(0), "other bytes");
}

/// Trains between GPUs until an error; then every slot is free and the group is gone.
fn until_error(comm: &dyn Communicator) -> String {
    let world = World::open(comm);
    let sync = sync(comm, NcclOptions::new(5), SOON).unwrap();
    let mut sums = BetweenGpus::new(world.gpu.clone(), sync, 5).with_bucket_bytes(0);
    let error = world.train(comm, &mut sums, Setting::new(5)).unwrap_err();
    let sums: &mut Way = &mut sums;
    let again = sums.finish().map_or_else(|e| e.to_string(), |()| "no error".into());
    format!("{error}; then: {again}")
}

#[track_caller]
fn says(ended: &Ended, rank: usize, texts: &[&str]) {
    for text in texts {
        assert!(ended.said(rank).contains(text), "no `{text}` in: {}", ended.said(rank));
    }
    assert_eq!(ended.count(rank, "ncclCommAbort"), 1);
    assert_eq!(ended.count(rank, "ncclCommDestroy"), 0);
}

#[test]
fn a_bucket_that_never_ends_is_an_error_in_time() {
    if is_rank() {
        return run(until_error);
    }
    // Three gathers a bucket (five shards, two ranks), two buckets a step: 9 is the second bucket of the second step.
    let name = "stage::a_bucket_that_never_ends_is_an_error_in_time";
    let ended = job(name, 2, "stuck=0:9");
    for rank in 0..2 {
        let place = format!("NCCL: gradient sum: rank {rank} of 2 on node-of-the-test");
        says(&ended, rank, &[&place, "not over after 2.5s", "then: NCCL", "was aborted"]);
    }
}

#[test]
fn a_call_refused_during_the_backward_ends_the_step() {
    if is_rank() {
        return run(until_error);
    }
    let name = "stage::a_call_refused_during_the_backward_ends_the_step";
    let ended = job(name, 2, "refused=1:6");
    says(&ended, 1, &["NCCL: all_gather: rank 1 of 2", "invalid usage (code 5)"]);
    says(&ended, 0, &["not over after 2.5s"]);
    let calls = &ended.calls[1];
    let refused = calls.iter().position(|call| call.starts_with("error")).unwrap();
    let after = &calls[refused..];
    assert!(after.iter().any(|call| call.starts_with("launch")), "the backward goes on: {after:?}");
    assert!(!after.iter().any(|call| call.starts_with("ncclAllGather")), "{after:?}");
}

/// Rank 1's device fails below the block whose bucket has begun.
fn failing_launch(comm: &dyn Communicator) -> String {
    let world = World::open(comm);
    let sync = sync(comm, NcclOptions::new(5), SOON).unwrap();
    let mut sums = BetweenGpus::new(world.gpu.clone(), sync, 5).with_bucket_bytes(0);
    if comm.rank() == 1 {
        world.gpu.device().fail_after_call("ncclGroupEnd");
    }
    world.train(comm, &mut sums, Setting::new(5)).unwrap_err().to_string()
}

#[test]
fn a_device_that_fails_with_a_bucket_open() {
    if is_rank() {
        return run(failing_launch);
    }
    let ended = job("stage::a_device_that_fails_with_a_bucket_open", 2, "");
    says(&ended, 1, &["the launch failed, as the test asked"]);
    assert_eq!(ended.count(1, "ncclGroupEnd"), 1, "one bucket was under way");
    says(&ended, 0, &["NCCL: gradient sum: rank 0 of 2", "not over after 2.5s"]);
}

/// The sum in a slab of the emulator's, both orders; then the stage in NCCL's order.
fn rank_order(comm: &dyn Communicator) -> String {
    const LEN: usize = 3001;
    let (world, setting) = (World::open(comm), Setting::new(5));
    let (ids, values) = shards(comm, LEN);
    let mut slab = world.gpu.alloc::<f32>(values.len() + LEN).unwrap();
    let first: Vec<usize> = (0..ids.len()).map(|i| i * LEN).collect();
    let sum_of = |sums: &mut Way, slab: &mut _| {
        world.gpu.write(slab, 0, &values).unwrap();
        // Two buckets, the last values first.
        for (start, len) in [(1000, LEN - 1000), (0, 1000)] {
            let shards: Vec<usize> = first.iter().map(|first| first + start).collect();
            let part = Part { shards: &shards, total: values.len() + start, len };
            sums.begin(comm, (&world.gpu, slab), part).unwrap();
        }
        sums.finish().unwrap();
        let mut sum = vec![f32::NAN; LEN];
        world.gpu.read(slab, values.len(), &mut sum).unwrap();
        sum
    };
    let way = |order: SumOrder, num_shards: u32| -> Box<Way> {
        let options = NcclOptions { num_shards, ..options(order, 1 << 20) };
        let sync = sync(comm, options, LIMIT).unwrap();
        Box::new(BetweenGpus::new(world.gpu.clone(), sync, num_shards))
    };
    let exact = in_order(LEN);
    let mut in_shards = way(SumOrder::Shards, SHARDS);
    let part = Part { shards: &first, total: 0, len: 0 };
    let early = in_shards.begin(comm, (&world.gpu, &mut slab), part).unwrap_err().to_string();
    assert_eq!(early, "a gradient sum was begun before the ranks had agreed on their shards");
    in_shards.agree(comm, &ids).unwrap();
    assert_eq!(bits(&sum_of(&mut *in_shards, &mut slab)), bits(&exact));
    let far = Part { shards: &first, total: values.len() + 1, len: LEN };
    assert!(in_shards.begin(comm, (&world.gpu, &mut slab), far).is_err(), "outside of the slab");
    in_shards.close().unwrap();
    let mut in_ranks = way(SumOrder::Ranks, SHARDS);
    in_ranks.agree(comm, &ids).unwrap();
    let sum = sum_of(&mut *in_ranks, &mut slab);
    in_ranks.close().unwrap();
    let bound = bound(LEN);
    assert!((0..LEN).all(|i| (sum[i] - exact[i]).abs() <= bound[i]));
    let differ = bits(&sum).iter().zip(bits(&exact)).filter(|(a, b)| **a != *b).count();
    let by_host = world.train(comm, &mut ByHost::new(HostSync::new(5)), setting).unwrap();
    let mut in_ranks = way(SumOrder::Ranks, 5);
    let trained = world.train(comm, &mut *in_ranks, setting).unwrap();
    in_ranks.close().unwrap();
    // The first step's loss comes before any sum; its norm is of gradients that differ by rounding alone.
    let ((loss, norm), (loss_of, norm_of)) = (trained.steps[0], by_host.steps[0]);
    assert_eq!(loss.to_bits(), loss_of.to_bits());
    assert!((norm - norm_of).abs() <= 1e-5 * norm_of, "{norm} {norm_of}");
    format!("{differ} differ")
}

#[test]
fn the_order_of_ranks_is_within_its_bound() {
    if is_rank() {
        return run(rank_order);
    }
    let name = "stage::the_order_of_ranks_is_within_its_bound";
    let ended = job(name, 3, "");
    let differ: usize = ended.said(2).strip_suffix(" differ").unwrap().parse().unwrap();
    assert!(differ > 300, "{differ}");
    assert!(ended.count(0, "ncclAllReduce") > 2);
    assert_eq!(job(name, 1, "").said(0), "0 differ");
}
