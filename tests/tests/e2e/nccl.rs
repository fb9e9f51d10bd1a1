//! `launcher doctor` where GPUs are, or seem to be: a driver and an NCCL without a GPU (`tests/fake-nccl`).

use crate::process::{Ended, Start, root};
use crate::story::Story;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The fake libraries' folder on the loader's way, before the machine's own.
fn loader_path() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake-nccl");
        let build = root().join("tests/fake-nccl/build");
        let status = Command::new("bash").arg(build).arg(&folder).status().unwrap();
        assert!(status.success(), "the fake libraries do not compile (a C compiler, package gcc)");
        let mut path = OsString::from(folder);
        path.push(":");
        path.push(std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default());
        path.into()
    })
}

fn doctor(story: &Story, ranks: usize, args: &[&str]) -> Start {
    let args = [&["doctor"], args].concat();
    Start::new(story.root(), ranks, &args).env("LD_LIBRARY_PATH", loader_path())
}

#[track_caller]
fn prints(ended: &Ended, texts: &[&str]) {
    for text in texts {
        assert!(ended.stdout.contains(text), "no {text:?} in\n{}", ended.stdout);
    }
}

#[test]
fn three_ranks_three_gpus() {
    let story = Story::new();
    let ended = doctor(&story, 3, &[]).run().must(0);
    prints(
        &ended,
        &[
            "one world of 3 ranks; sum over ranks 6, expected 6",
            "host: gathering 4 MB from each rank to all",
            "ranks on this node 3",
            "CUDA driver for CUDA 13.0 (",
            "NCCL 2.30.7 (",
            "NCCL: one group of 3 GPUs; sum over ranks 6, expected 6",
            "GB/s bus bandwidth",
        ],
    );
    for rank in 0..3 {
        let line = ended.stdout.lines().find(|l| l.starts_with(&format!("rank {rank} of 3 on ")));
        let gpu = format!("; GPU {rank}, Fake GPU, 16 GiB, compute capability 9.0, GPU-fafafafa-");
        assert!(line.unwrap().contains(&gpu), "{}", ended.stdout);
    }
    assert_eq!(ended.stdout.matches("NCCL: one group").count(), 1, "{}", ended.stdout);
}

#[test]
fn one_process_one_gpu() {
    let story = Story::new();
    let ended = doctor(&story, 0, &[]).run().must(0);
    prints(
        &ended,
        &["; GPU 0, Fake GPU", "NCCL: one group of 1 GPUs; sum over ranks 1, expected 1"],
    );
}

#[test]
fn fewer_gpus_than_ranks() {
    let story = Story::new();
    let ended = doctor(&story, 2, &[]).env("FAKE_NCCL_DEVICES", Path::new("1")).run().must(4);
    prints(
        &ended,
        &[
            "; GPU 0, Fake GPU",
            "no GPU left: sees 1, all taken by lower ranks of the 2 on this machine",
            "NCCL not tried: ranks [1] have no GPU, others have",
        ],
    );
}

#[test]
fn a_driver_without_a_gpu() {
    let story = Story::new();
    let ended = doctor(&story, 0, &[]).env("FAKE_NCCL_DEVICES", Path::new("0")).run().must(0);
    let why = "CUDA driver: cuInit: CUDA_ERROR_NO_DEVICE (code 100)";
    prints(&ended, &[&format!("no GPU: {why}"), "NCCL not tried: no rank has a GPU; runs on CPUs"]);
}

#[test]
fn a_driver_of_another_age() {
    let story = Story::new();
    let old = |start: Start| start.env("FAKE_NCCL_CUDA", Path::new("12040"));
    let ended = old(doctor(&story, 0, &[])).run().must(0);
    let why = "the driver serves CUDA 12.4: 13.0 is needed, release 580 or newer";
    let gpu = "GPU 0, Fake GPU, 16 GiB, compute capability 9.0, GPU-fafafafa-";
    prints(&ended, &[gpu, &format!(", CANNOT BE USED: open: {why}")]);
    let args = ["bench", "kernels", "--op", "rope", "--device", "cuda"];
    let bench = Start::new(story.root(), 0, &args).env("LD_LIBRARY_PATH", loader_path());
    old(bench).run().must(3).says(&[&format!("error: open: {why}")]);
}

#[test]
fn gpus_that_do_not_talk_end_with_their_words() {
    let story = Story::new();
    let fault = |fault: &str| {
        let start = doctor(&story, 2, &["--timeout-s", "5"]);
        start.env("FAKE_NCCL_FAULT", Path::new(fault)).run().must(4)
    };
    let ended = fault("absent=1");
    prints(&ended, &["NCCL FAILED: NCCL: init: rank 0 of 2 on ", "not over after 5s"]);
    let ended = fault("refused=1:0");
    let own = "rank 1 of 2 on ";
    prints(
        &ended,
        &["NCCL FAILED: NCCL: all_reduce: ", own, "invalid usage (code 5); last error: refused"],
    );
    prints(&ended, &["one world of 2 ranks"]);
}

#[test]
fn several_worlds_are_named() {
    let story = Story::new();
    // As an mpirun of another MPI leaves it: told of four processes, alone in its world.
    let start = Start::new(story.root(), 0, &["doctor"]);
    let start = start.env("PMI_SIZE", Path::new("4"));
    let ended = start.env("OMPI_MCA_ess_singleton_isolated", Path::new("1")).run().must(4);
    let text =
        "SEPARATE WORLDS: the MPI launcher started 4 processes, but this world has 1: 4 worlds";
    prints(&ended, &["one world of 1 ranks", text]);
}
