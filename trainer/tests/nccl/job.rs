//! Starting ranks on the fake libraries, and what they leave behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// No job may take longer; every wait in it is bounded by a second or two, or by the 30 s of a test of sums.
const LATEST: Duration = Duration::from_secs(100);

pub(crate) const RANK: &str = "MYRIAD_NCCL_RANK";

#[expect(clippy::disallowed_methods, reason = "how a test tells its ranks from itself")]
pub(crate) fn is_rank() -> bool {
    std::env::var(RANK).is_ok()
}

/// The folder of the fake libraries, built once for this program.
fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fake-nccl");
        let build = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fake-nccl/build");
        let status = Command::new("bash").arg(build).arg(&folder).status().unwrap();
        assert!(status.success(), "the fake libraries do not compile (a C compiler, package gcc)");
        folder
    })
}

/// How a job ended.
pub(crate) struct Ended {
    /// What its ranks said, one line each; `line` finds them.
    pub(crate) output: String,
    /// By rank, the calls it made of the fake libraries.
    pub(crate) calls: Vec<Vec<String>>,
    /// From the start of the job to its end.
    pub(crate) wall: Duration,
}

impl Ended {
    /// What rank `rank` said.
    #[track_caller]
    pub(crate) fn said(&self, rank: usize) -> &str {
        let prefix = format!("rank {rank} says: ");
        let found = self.output.lines().find_map(|line| line.strip_prefix(&prefix));
        found.unwrap_or_else(|| panic!("rank {rank} said nothing\n{}", self.output))
    }

    /// How often rank `rank` made a call that begins with `call`.
    pub(crate) fn count(&self, rank: usize, call: &str) -> usize {
        self.calls[rank].iter().filter(|line| line.starts_with(call)).count()
    }
}

fn signal_term(process: u32) {
    Command::new("kill").arg(process.to_string()).status().unwrap();
}

/// Runs this binary's test `name` on `ranks` ranks with the fault `fault`; stops the test unless all ranks end well.
#[track_caller]
pub(crate) fn job(name: &str, ranks: usize, fault: &str) -> Ended {
    let myself = std::env::current_exe().unwrap();
    let log = tempfile::tempdir().unwrap();
    let mut command = Command::new("mpirun");
    command.arg("-n").arg(ranks.to_string()).arg(&myself);
    for key in [
        "OMPI_ALLOW_RUN_AS_ROOT",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
        "OMPI_MCA_rmaps_base_oversubscribe",
        "OMPI_MCA_mpi_yield_when_idle",
        RANK,
    ] {
        command.env(key, "1");
    }
    // First on the loader's way, before any CUDA of this machine.
    let inherited = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut path = libraries().as_os_str().to_owned();
    path.push(":");
    path.push(inherited);
    command.env("LD_LIBRARY_PATH", path);
    command.env("FAKE_NCCL_LOG", log.path()).env("FAKE_NCCL_FAULT", fault);
    command.args(["--exact", name, "--nocapture", "--test-threads", "1"]).stdin(Stdio::null());
    let said = log.path().join("said");
    command.stdout(Stdio::null()).stderr(std::fs::File::create(&said).unwrap());
    let started = Instant::now();
    let mut child = command.spawn().expect("mpirun (package openmpi-bin) starts");
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if started.elapsed() > LATEST {
            // mpirun takes its ranks with it.
            signal_term(child.id());
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let wall = started.elapsed();
    let output = String::from_utf8_lossy(&std::fs::read(&said).unwrap()).into_owned();
    let good = status.is_some_and(|status| status.success());
    assert!(good, "{ranks} ranks with fault `{fault}`: {status:?} after {wall:?}\n{output}");
    let read = |rank: usize| {
        let text = std::fs::read_to_string(log.path().join(rank.to_string())).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    };
    Ended { output, calls: (0..ranks).map(read).collect(), wall }
}
