//! The readers on a large file: memory and speed of the index pass, speed of a stream over all users.
//!
//! `cargo bench -p trainer --bench readers -- --megabytes 1000` writes a file of each format into the folder for
//! temporary files, reads it, removes it. Seconds are those of the processor: what else the machine does is left out.
#![expect(unsafe_code, reason = "a counting allocator is an unsafe trait")]
#![expect(clippy::unwrap_used, reason = "a benchmark panics when wrong")]
#![expect(clippy::print_stdout, reason = "its result")]

#[path = "../tests/generated/mod.rs"]
mod generated;

use std::path::Path;
use std::time::Instant;
use trainer::data::Source;

const MEGABYTES: usize = 1000;

/// Resident at most, whatever the file's size.
const MOST_RESIDENT_KIB: u64 = 128 << 10;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` starts this too.
    if !args.iter().any(|arg| arg == "--bench") {
        return;
    }
    let at = args.iter().position(|arg| arg == "--megabytes");
    let megabytes = at.map_or(MEGABYTES, |at| args[at + 1].parse().unwrap());
    measure("OPPU", generated::oppu, megabytes);
    measure("LaMP", generated::lamp, megabytes);
}

fn measure(name: &str, make: fn(&Path, usize) -> (Source, usize), megabytes: usize) {
    let folder = tempfile::tempdir().unwrap();
    let (source, records) = make(folder.path(), megabytes * 1_000_000);
    let (start, used) = (Instant::now(), processor_s());
    let (data, peak_bytes) = generated::index(&source);
    let (seconds, index_s) = (start.elapsed().as_secs_f64(), processor_s() - used);
    let users = data.index().personal.len();
    assert!(data.index().personal.iter().all(|user| user.num_history >= generated::ITEMS));
    let used = processor_s();
    assert_eq!(data.users().filter(Result::is_ok).count(), users);
    let stream_s = processor_s() - used;
    let resident_kib = peak_resident_kib();
    println!(
        "{name}: {megabytes} MB, {records} records, {users} users; index {seconds:.2} s, {index_s:.2} s on a processor = \
         {:.0} MB/s; stream {stream_s:.2} s; peak heap {:.1} MB, peak resident {:.1} MB",
        megabytes as f64 / index_s,
        peak_bytes as f64 / 1e6,
        resident_kib as f64 / 1024.0
    );
    assert!(peak_bytes < generated::most_bytes(records), "{peak_bytes} bytes on the heap");
    assert!(resident_kib < MOST_RESIDENT_KIB, "{resident_kib} KiB resident");
}

/// The largest resident set so far, in KiB.
fn peak_resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Seconds this thread has had a processor.
fn processor_s() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}
