//! The device under the tests: the emulator, or a GPU with `MYRIAD_TEST_DEVICE=cuda` (as `scripts/first-gpu` sets it).
//!
//! Every launch is also held to `kernels/cu/limits.toml`: the machine code is judged there for blocks of so many
//! threads, and so much shared memory that a launch brings. The launchers must not ask for more.

use emulator::{Copies, Emulator, Mode};
use kernels::backend::Coming;
use kernels::cuda::{Cuda, Options};
use kernels::gpu::{Device, Flash, Launch, Product, Work};
use kernels::{Error, Result};
use std::collections::BTreeMap;
use std::sync::OnceLock;

const LIMITS: &str = include_str!("../../cu/limits.toml");

/// A device of either kind.
#[derive(Debug)]
pub(crate) enum TestDevice {
    Emulator(Box<Emulator>),
    Cuda(Box<Cuda>),
}

/// Memory of a device of either kind.
#[derive(Debug)]
pub(crate) enum TestMemory {
    Emulator(<Emulator as Device>::Memory),
    Cuda(<Cuda as Device>::Memory),
}

/// Whether the tests run on a GPU.
pub(crate) fn real() -> bool {
    static REAL: OnceLock<bool> = OnceLock::new();
    *REAL.get_or_init(|| match std::env::var_os("MYRIAD_TEST_DEVICE") {
        None => false,
        Some(name) if name == "emulator" => false,
        Some(name) if name == "cuda" => true,
        Some(name) => panic!("MYRIAD_TEST_DEVICE is {}: emulator or cuda", name.display()),
    })
}

/// Says, where it is so, that a test needs the emulator; `scripts/first-gpu` counts these lines.
pub(crate) fn skipped_on_gpu(what: &str) -> bool {
    if real() {
        eprintln!("SKIPPED: {what}: only the emulator can do this");
    }
    real()
}

impl TestDevice {
    /// The device of this run; a GPU knows neither modes nor seeded bugs.
    pub(crate) fn open(mode: Mode, faults: &[&str]) -> Self {
        if !real() {
            let emulator =
                Emulator::open(mode, faults).and_then(|emulator| {
                    match std::env::var_os("EMULATOR_LOG") {
                        Some(folder) => emulator.logged(folder.as_ref()),
                        None => Ok(emulator),
                    }
                });
            return Self::Emulator(Box::new(emulator.unwrap_or_else(|error| panic!("{error}"))));
        }
        assert!(faults.is_empty(), "seeded bugs are for the emulator");
        let cache = Some(env!("CARGO_TARGET_TMPDIR").into());
        let cuda = Cuda::open(Options { cache, ..Options::default() });
        Self::Cuda(Box::new(cuda.unwrap_or_else(|error| panic!("{error}"))))
    }

    /// As [`TestDevice::open`], with attention kernels that the device brings along: on the emulator plain ones in their
    /// place, on a GPU those of feature `flash-attn`, where the tests were built with it.
    pub(crate) fn open_flash() -> Self {
        match Self::open(Mode::Fast, &[]) {
            Self::Emulator(emulator) => Self::Emulator(Box::new(emulator.with_flash())),
            cuda => cuda,
        }
    }

    /// The order of blocks, warps and lanes, which a GPU chooses itself.
    pub(crate) fn set_order(&self, seed: u32) {
        if let Self::Emulator(device) = self {
            device.set_order(seed);
        }
    }

    /// When what leaves is copied, which a GPU decides itself.
    pub(crate) fn set_copies(&self, copies: Copies) {
        if let Self::Emulator(device) = self {
            device.set_copies(copies);
        }
    }

    /// Makes bytes as if never written; on a GPU they become NaN in every format.
    pub(crate) fn poison(&self, memory: &TestMemory, offset: usize, len: usize) -> Result<()> {
        match (self, memory) {
            (Self::Emulator(device), TestMemory::Emulator(memory)) => device
                .poison(memory, offset, len)
                .map_err(|error| Error::Backend { op: "poison", what: error.to_string() }),
            _ => self.write(memory, offset, &vec![0xff; len]),
        }
    }
}

/// Runs a call on the device and its own memory.
macro_rules! on {
    ($self:ident, $memory:ident, $device:ident => $call:expr) => {
        match ($self, $memory) {
            (TestDevice::Emulator($device), TestMemory::Emulator($memory)) => $call,
            (TestDevice::Cuda($device), TestMemory::Cuda($memory)) => $call,
            _ => panic!("memory of another device"),
        }
    };
}

impl Device for TestDevice {
    type Memory = TestMemory;

    fn alloc(&self, bytes: usize) -> Result<TestMemory> {
        match self {
            Self::Emulator(device) => device.alloc(bytes).map(TestMemory::Emulator),
            Self::Cuda(device) => device.alloc(bytes).map(TestMemory::Cuda),
        }
    }

    fn address(&self, memory: &TestMemory) -> u64 {
        on!(self, memory, device => device.address(memory))
    }

    fn write(&self, dst: &TestMemory, offset: usize, src: &[u8]) -> Result<()> {
        on!(self, dst, device => device.write(dst, offset, src))
    }

    fn read(&self, src: &TestMemory, offset: usize, dst: &mut [u8]) -> Result<()> {
        on!(self, src, device => device.read(src, offset, dst))
    }

    fn zero(&self, dst: &TestMemory, offset: usize, len: usize) -> Result<()> {
        on!(self, dst, device => device.zero(dst, offset, len))
    }

    fn copy(
        &self,
        (dst, dst_offset): (&TestMemory, usize),
        (src, src_offset): (&TestMemory, usize),
        len: usize,
    ) -> Result<()> {
        match (self, dst, src) {
            (Self::Emulator(device), TestMemory::Emulator(dst), TestMemory::Emulator(src)) => {
                device.copy((dst, dst_offset), (src, src_offset), len)
            }
            (Self::Cuda(device), TestMemory::Cuda(dst), TestMemory::Cuda(src)) => {
                device.copy((dst, dst_offset), (src, src_offset), len)
            }
            _ => panic!("memory of another device"),
        }
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        within_limits(launch)?;
        match self {
            Self::Emulator(device) => device.launch(launch),
            Self::Cuda(device) => device.launch(launch),
        }
    }

    fn product(&self, product: &Product) -> Result<()> {
        match self {
            Self::Emulator(device) => device.product(product),
            Self::Cuda(device) => device.product(product),
        }
    }

    fn has_flash(&self) -> bool {
        match self {
            Self::Emulator(device) => device.has_flash(),
            Self::Cuda(device) => device.has_flash(),
        }
    }

    fn flash(&self, call: &Flash) -> Result<()> {
        match self {
            Self::Emulator(device) => device.flash(call),
            Self::Cuda(device) => device.flash(call),
        }
    }

    fn begin_read(&self, src: &TestMemory, offset: usize, len: usize) -> Result<Box<dyn Coming>> {
        on!(self, src, device => device.begin_read(src, offset, len))
    }

    fn evict(&self, src: &TestMemory, offset: usize, len: usize) -> Result<Box<dyn Coming>> {
        on!(self, src, device => device.evict(src, offset, len))
    }

    fn capture(&self, number: u64, list: &[Work]) -> Result<bool> {
        match self {
            Self::Emulator(device) => device.capture(number, list),
            Self::Cuda(device) => device.capture(number, list),
        }
    }

    fn replay(&self, number: u64) -> Result<()> {
        match self {
            Self::Emulator(device) => device.replay(number),
            Self::Cuda(device) => device.replay(number),
        }
    }

    fn forget(&self, number: u64) -> Result<()> {
        match self {
            Self::Emulator(device) => device.forget(number),
            Self::Cuda(device) => device.forget(number),
        }
    }
}

/// What the table says of a launch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Limit {
    threads: u32,
    shared: u32,
}

/// `module.kernel` to its limits; a kernel that is not there is `scripts/check-kernels`' to find.
fn limits(text: &str) -> BTreeMap<&str, Limit> {
    let number = |text: &str| text.trim().parse::<u32>().unwrap();
    let (mut all, mut name) = (BTreeMap::<&str, Limit>::new(), "");
    for line in text.lines() {
        if let Some(section) = line.strip_prefix('[') {
            name = section.trim_end_matches(']');
        } else if let Some(bytes) = line.strip_prefix("dynamic_shared = ") {
            all.entry(name).or_default().shared = number(bytes);
        } else if let Some((_, row)) = line.split_once("{ threads = ") {
            all.entry(name).or_default().threads = number(row.split(',').next().unwrap());
        }
    }
    all
}

fn within_limits(launch: &Launch<'_>) -> Result<()> {
    static TABLE: OnceLock<BTreeMap<&str, Limit>> = OnceLock::new();
    let table = TABLE.get_or_init(|| limits(LIMITS));
    let Some(limit) = table.get(format!("{}.{}", launch.module, launch.kernel).as_str()) else {
        return Ok(());
    };
    let threads: u32 = launch.block.iter().product();
    if threads <= limit.threads && launch.shared <= limit.shared {
        return Ok(());
    }
    let Limit { threads: wanted, shared } = *limit;
    let what = format!(
        "{}: {threads} threads, {} bytes of shared memory; kernels/cu/limits.toml has at most {wanted} and {shared}",
        launch.kernel, launch.shared
    );
    Err(Error::Backend { op: launch.module, what })
}

#[test]
fn launches_are_held_to_the_table_of_limits() {
    let text = "# head\n[a.b]\ndynamic_shared = 96\nsm_80 = { threads = 64, registers = 8 }\n[a.c]\nsm_80 = { threads = 32, x = 1 }\n";
    let table = limits(text);
    assert_eq!(table["a.b"], Limit { threads: 64, shared: 96 });
    assert_eq!(table["a.c"], Limit { threads: 32, shared: 0 });
    let launch = |kernel, block, shared| {
        within_limits(&Launch { module: "linear", kernel, grid: [1; 3], block, shared, args: &[] })
    };
    assert!(launch("no such kernel", [1, 1, 1], 0).is_ok());
    let limit = limits(LIMITS)["linear.linear_gradient_64"];
    assert!(limit.shared > 0);
    assert!(launch("linear_gradient_64", [limit.threads, 1, 1], limit.shared).is_ok());
    assert!(launch("linear_gradient_64", [limit.threads, 1, 1], limit.shared + 1).is_err());
    assert!(launch("linear_gradient_64", [limit.threads, 2, 1], limit.shared).is_err());
}
