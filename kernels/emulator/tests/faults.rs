//! Every kind of bug is found, at its line, and is not there when its fault is not compiled in.

use crate::harness::{Bench, Shape, numbers, pointer};
use emulator::{Emulator, Error, Finding, Kind, Mode};
use kernels::gpu::Arg;

type Outcome = Result<(), Error>;

/// The findings of a launch that must have failed by them.
fn findings(result: Outcome) -> Vec<Finding> {
    match result {
        Err(Error::Findings { findings, .. }) => findings,
        Err(other) => panic!("another error: {other}"),
        Ok(()) => panic!("no finding"),
    }
}

/// The first finding of `kind`, which must be there, with its place in `file`.
fn expect(result: Outcome, kind: Kind, file: &str) -> Finding {
    let all = findings(result);
    let found = all.iter().find(|finding| finding.kind == kind);
    let found = found.unwrap_or_else(|| panic!("no {kind} in {all:#?}")).clone();
    let line = found.place.strip_prefix(file).and_then(|rest| rest.strip_prefix(':'));
    assert!(line.is_some_and(|line| line.parse::<u32>().is_ok()), "place: {found}");
    found
}

fn rows(bench: &Bench) -> Outcome {
    let (x, y, n) = (bench.floats(&numbers(900, 1)), bench.poisoned(3), bench.poisoned(3));
    let args = [pointer(&x), pointer(&y), pointer(&n), Arg::I32(300)];
    bench.run(("rows", "row_sums"), &Shape { grid: [3, 1, 1], threads: 128, shared: 0 }, &args)
}

fn tile(bench: &Bench) -> Outcome {
    let (m, n, k) = (40, 40, 104);
    let (a, b) = (bench.upload(&vec![0; 2 * m * k]), bench.upload(&vec![0; 2 * n * k]));
    let d = bench.poisoned(m * n);
    let args = [pointer(&a), pointer(&b), pointer(&d), Arg::I32(40), Arg::I32(40), Arg::I32(104)];
    let shape = Shape { grid: [2, 2, 1], threads: 128, shared: 3 * 2 * 32 * 40 * 2 };
    bench.run(("tile", "tile_product"), &shape, &args)
}

/// A kernel of bugs.cu on 256 floats in and out.
fn bugs(bench: &Bench, kernel: &str, threads: u32) -> Outcome {
    let (x, y) = (bench.floats(&numbers(256, 1)), bench.poisoned(256));
    let shape = Shape { grid: [1, 1, 1], threads, shared: 512 };
    bench.run(("bugs", kernel), &shape, &[pointer(&x), pointer(&y)])
}

/// The finding with the fault compiled in; without it there is none.
fn only_with(fault: &str, kind: Kind, file: &str, run: impl Fn(&Bench) -> Outcome) -> Finding {
    run(&Bench::new(Mode::Checked, &[])).unwrap();
    expect(run(&Bench::new(Mode::Checked, &[fault])), kind, file)
}

#[test]
fn missing_barriers_are_races_between_warps() {
    let found = only_with("NO_BARRIER", Kind::Race, "rows.cu", rows);
    let (_, other) = found.other.unwrap();
    assert!(other.starts_with("rows.cu:"), "{other}");
    only_with("REUSE", Kind::Race, "rows.cu", rows);
    only_with("STAGE_BARRIER", Kind::Race, "tile.cu", tile);
    only_with("WARP_BARRIER", Kind::Race, "bugs.cu", |bench| bugs(bench, "pairs", 64));
}

#[test]
fn blocks_that_write_one_element_race() {
    let found = only_with("ONE_ROW", Kind::Race, "rows.cu", rows);
    assert!(found.what.contains("another block"), "{found}");
    let count = |bench: &Bench| {
        let y = bench.upload(&[0; 4]);
        let shape = Shape { grid: [2, 1, 1], threads: 64, shared: 0 };
        bench.run(("bugs", "counted"), &shape, &[pointer(&y)])?;
        assert_eq!(bench.read(&y)[0].to_bits(), 128);
        Ok(())
    };
    only_with("NOT_ATOMIC", Kind::Race, "bugs.cu", count);
}

#[test]
fn accesses_past_the_end_are_out_of_bounds() {
    let found = only_with("PAST_END", Kind::OutOfBounds, "rows.cu", rows);
    assert_eq!((found.block, found.thread), ([2, 0, 0], Some(44)), "300 = 2 * 128 + 44");
    only_with("PREDICATE", Kind::OutOfBounds, "tile.cu", tile);
    only_with("SHARED_END", Kind::OutOfBounds, "bugs.cu", |bench| bugs(bench, "reversed", 128));
}

#[test]
fn wrong_waits_read_copies_in_flight() {
    only_with("WAIT", Kind::InFlight, "tile.cu", tile);
    only_with("WAIT_ONE", Kind::InFlight, "bugs.cu", |bench| bugs(bench, "staged", 32));
    let left = bugs(&Bench::new(Mode::Checked, &["LEFT"]), "staged", 32);
    assert!(findings(left).iter().any(|finding| finding.kind == Kind::CopyNeverWaitedFor));
}

#[test]
fn reads_of_what_nobody_wrote_are_found() {
    let reversed = |bench: &Bench| bugs(bench, "reversed", 128);
    only_with("HALF_WRITTEN", Kind::Uninitialised, "bugs.cu", reversed);
    // Device memory too: the same kernel on an input that was never written.
    let bench = Bench::new(Mode::Checked, &[]);
    let (x, y) = (bench.poisoned(128), bench.poisoned(128));
    let shape = Shape { grid: [1, 1, 1], threads: 128, shared: 512 };
    let result = bench.run(("bugs", "reversed"), &shape, &[pointer(&x), pointer(&y)]);
    expect(result, Kind::Uninitialised, "bugs.cu");
}

/// In fast mode too: no instrumentation is needed to see them.
#[test]
fn divergence_is_found() {
    let reversed = |bench: &Bench| bugs(bench, "reversed", 128);
    only_with("DIVERGENT_BARRIER", Kind::DivergentBarrier, "bugs.cu", reversed);
    let sums = |bench: &Bench| bugs(bench, "warp_sums", 32);
    only_with("DIVERGENT_WARP", Kind::DivergentWarp, "bugs.cu", sums);
    only_with("MISSING_LANES", Kind::Deadlock, "bugs.cu", sums);
    let fast = |fault: &'static str| Bench::new(Mode::Fast, &[fault]);
    expect(reversed(&fast("DIVERGENT_BARRIER")), Kind::DivergentBarrier, "bugs.cu");
    expect(sums(&fast("DIVERGENT_WARP")), Kind::DivergentWarp, "bugs.cu");
    expect(sums(&fast("MISSING_LANES")), Kind::Deadlock, "bugs.cu");
}

#[test]
fn misaligned_accesses_are_found() {
    only_with("ROW_ALIGNMENT", Kind::Misaligned, "tile.cu", tile);
    let bench = Bench::new(Mode::Checked, &[]);
    let (x, y) = (bench.floats(&numbers(256, 1)), bench.poisoned(256));
    let copy = |shift| {
        let shape = Shape { grid: [1, 1, 1], threads: 32, shared: 0 };
        bench.run(("bugs", "wide_copy"), &shape, &[pointer(&x), pointer(&y), Arg::I32(shift)])
    };
    copy(4).unwrap();
    expect(copy(1), Kind::Misaligned, "bugs.cu");
}

#[test]
fn indices_that_overflow_are_found() {
    let bench = Bench::new(Mode::Checked, &[]);
    let y = bench.poisoned(32);
    let run = |row| {
        let shape = Shape { grid: [1, 1, 1], threads: 32, shared: 0 };
        bench.run(("bugs", "addresses"), &shape, &[pointer(&y), Arg::I32(row), Arg::I32(1 << 16)])
    };
    run(1 << 14).unwrap();
    expect(run(1 << 15), Kind::Overflow, "bugs.cu");
}

#[test]
fn a_fault_that_no_source_knows_is_refused() {
    let unknown = Emulator::open(Mode::Fast, &["NO_SUCH_FAULT"]);
    assert!(matches!(unknown, Err(Error::UnknownFault(name)) if name == "NO_SUCH_FAULT"));
}
