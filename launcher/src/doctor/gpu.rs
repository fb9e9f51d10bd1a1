//! The GPUs: which rank has which, the libraries behind them, and whether they talk.

use super::rates::rate;
use kernels::cuda::usable;
use kernels::nccl::{
    CudaLane, DeviceInfo, Driver, Group, Handles, Lane, Nccl, Result as GpuResult, versions,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use trainer::comm::nccl::{Machine, Seat, join, seats, unanimous};
use trainer::comm::{Communicator, Error};

/// Values of the bandwidth's sample.
const SAMPLE: usize = 4 << 20;
/// All-reduces of the sample, after one that is not counted.
const REPEATS: u32 = 3;

/// What this rank sees.
#[derive(Debug)]
pub(super) struct Gpus {
    driver: GpuResult<(Arc<Driver>, Vec<DeviceInfo>)>,
}

impl Gpus {
    /// Asks the driver, if there is one.
    pub(super) fn look() -> Self {
        let driver = Driver::open().and_then(|driver| {
            let devices = driver.devices()?;
            Ok((Arc::new(driver), devices))
        });
        Self { driver }
    }

    fn devices(&self) -> &[DeviceInfo] {
        self.driver.as_ref().map_or(&[], |(_, devices)| devices)
    }

    /// Who sits at which GPU.
    pub(super) fn seats(
        &self,
        comm: &dyn Communicator,
        machine: &Machine,
    ) -> trainer::comm::Result<Vec<Seat>> {
        let visible: Vec<_> = self.devices().iter().map(|device| device.uuid).collect();
        seats(comm, machine, &visible)
    }

    /// This rank's GPU, or exactly what is missing.
    pub(super) fn describe(&self, seat: Seat) -> String {
        match (&self.driver, seat.device) {
            (Err(kernels::nccl::Error::Missing { .. }), _) => "no GPU: no CUDA driver".to_owned(),
            (Err(error), _) => format!("no GPU: {error}"),
            (Ok((driver, devices)), Some(device)) => devices
                .get(device)
                .map_or_else(|| "no GPU".to_owned(), |device| what_it_is(driver, device)),
            (Ok((_, devices)), None) if devices.is_empty() => {
                "no GPU: the driver shows none (CUDA_VISIBLE_DEVICES?)".to_owned()
            }
            (Ok((_, devices)), None) => format!(
                "no GPU left: sees {}, all taken by lower ranks of the {} on this machine",
                devices.len(),
                seat.local_size
            ),
        }
    }

    /// Lets the GPUs of all ranks exchange one number and then many: whether that is as it should be, and what to say.
    ///
    /// No GPU anywhere is as it should be; on some ranks only, or GPUs that do not talk, is not.
    pub(super) fn talk(
        &self,
        comm: &dyn Communicator,
        machine: &Machine,
        seats: &[Seat],
        limit: Duration,
    ) -> trainer::comm::Result<(bool, String)> {
        let without: Vec<usize> =
            (0..seats.len()).filter(|&rank| seats[rank].device.is_none()).collect();
        if without.len() == seats.len() {
            return Ok((true, "NCCL not tried: no rank has a GPU; runs on CPUs".to_owned()));
        }
        if !without.is_empty() {
            let text = format!("NCCL not tried: ranks {without:?} have no GPU, others have");
            return Ok((false, text));
        }
        let prepared = self.lane(seats[comm.rank()]);
        let outcome = join(comm, &machine.host, prepared, limit).and_then(|group| {
            let said = unanimous(comm, measure(&group))?;
            unanimous(comm, group.close())?;
            Ok(said)
        });
        // All ranks fail together; only those with words of their own know why.
        let own = match outcome {
            Ok(said) => return Ok(said),
            Err(Error::Nccl(error)) => error.to_string(),
            Err(Error::NcclElsewhere { .. }) => String::new(),
            Err(error) => return Err(error),
        };
        let all = super::gather(comm, &own)?;
        let known = all.iter().filter(|text| !text.is_empty());
        let lines: Vec<String> = known.map(|text| format!("NCCL FAILED: {text}")).collect();
        Ok((false, lines.join("\n")))
    }

    fn lane(&self, seat: Seat) -> GpuResult<(Arc<Nccl>, Arc<dyn Lane>)> {
        let (driver, _) = self.driver.as_ref().map_err(Clone::clone)?;
        let nccl = Arc::new(Nccl::open()?);
        let context = driver.primary_context(seat.device.unwrap_or(0))?;
        let handles = Handles { context, compute: 0, sum: None };
        Ok((nccl, Arc::new(CudaLane::new(Arc::clone(driver), handles)?)))
    }
}

/// The device, and why `engine.device = "cuda"` would refuse it if it would.
fn what_it_is(driver: &Driver, device: &DeviceInfo) -> String {
    let (major, minor) = device.capability;
    let capability = (major.unsigned_abs(), minor.unsigned_abs());
    let refused = match driver.version() {
        Ok(version) => usable(version, capability).err().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    refused.map_or_else(|| device.to_string(), |why| format!("{device}, CANNOT BE USED: {why}"))
}

/// One number, then [`SAMPLE`] of them, summed over the ranks.
fn measure(group: &Group) -> GpuResult<(bool, String)> {
    let (size, lane) = (group.place().size, group.lane());
    let region = lane.alloc(SAMPLE)?;
    let one = region.part(0, 1);
    let number = |n: usize| f32::from(u16::try_from(n).unwrap_or(u16::MAX));
    lane.write(one, &[number(group.place().rank + 1)])?;
    let started = Instant::now();
    group.all_reduce(one, one)?;
    group.wait("all_reduce of one value")?;
    let first = started.elapsed();
    let mut sum = [f32::NAN];
    lane.read(one, &mut sum)?;
    // In f32 and not as an integer, so that worlds of thousands of ranks round alike.
    let expected: f32 = (1..=size).map(number).sum();
    lane.zero(region)?;
    let mut started = Instant::now();
    for repeat in 0..=REPEATS {
        if repeat == 1 {
            group.wait("all_reduce of the sample")?;
            started = Instant::now();
        }
        group.all_reduce(region, region)?;
    }
    group.wait("all_reduce of the sample")?;
    let each = started.elapsed() / REPEATS;
    lane.free(region);
    // nccl-tests' bus bandwidth: what every link carries in a ring, 2·(n−1)/n of the bytes.
    let bus = rate(SAMPLE * 4 * 2 * (size - 1) / size, each);
    let good = (sum[0] - expected).abs() <= expected * 1e-4;
    Ok((
        good,
        format!(
            "NCCL: one group of {size} GPUs; sum over ranks {}, expected {expected}, after {:.0} ms; all-reduce of {} MB in {:.2} ms, {bus:.2} GB/s bus bandwidth",
            sum[0],
            first.as_secs_f64() * 1e3,
            SAMPLE * 4 / 1_000_000,
            each.as_secs_f64() * 1e3
        ),
    ))
}

/// The CUDA libraries of all ranks' machines; ranks that see the same share their lines.
pub(super) fn libraries(comm: &dyn Communicator) -> trainer::comm::Result<Vec<String>> {
    let mine: Vec<String> = versions()
        .iter()
        .map(|found| match &found.outcome {
            Ok((version, file)) => format!("{} {version} ({file})", found.library),
            Err(error) => error.to_string(),
        })
        .collect();
    Ok(shared(&super::gather(comm, &mine.join("\n"))?))
}

/// Each different text once, line by line, with its ranks unless they are all.
fn shared(texts: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    for (rank, text) in texts.iter().enumerate() {
        if texts[..rank].contains(text) {
            continue;
        }
        let ranks: Vec<usize> = (0..texts.len()).filter(|&r| texts[r] == *text).collect();
        let who =
            if ranks.len() == texts.len() { String::new() } else { format!("ranks {ranks:?}: ") };
        lines.extend(text.lines().map(|line| format!("{who}{line}")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_said_once() {
        let texts = |all: &[&str]| all.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        assert_eq!(shared(&texts(&["a\nb", "a\nb"])), ["a", "b"]);
        assert_eq!(shared(&texts(&["a", "b", "a"])), ["ranks [0, 2]: a", "ranks [1]: b"]);
    }
}
