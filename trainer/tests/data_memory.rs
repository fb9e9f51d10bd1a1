//! Indexing a file takes memory for its largest record and a summary a user, not for the file.
#![expect(unsafe_code, reason = "a counting allocator is an unsafe trait")]
#![expect(clippy::unwrap_used, reason = "a test panics when wrong")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use trainer::data::{Dataset, LampSet, LampTask, OnBad, Selection, Source, load};

struct Counting;

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK_BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: forwards every call unchanged to the system's allocator, which keeps the trait's contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE_BYTES.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK_BYTES.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One measurement at a time: the counters are the process's.
static ALONE: Mutex<()> = Mutex::new(());

const ITEMS: usize = 60;

/// Fields of an item or query of about 500 bytes, with escapes now and then.
fn text(out: &mut String, seed: usize) {
    for word in 0..60 {
        let n = (seed * 7919 + word * 104_729) % 9973;
        let quote = if usize::is_multiple_of(n, 97) { "\\\"" } else { "" };
        write!(out, "{quote}word{n}{quote} ").unwrap();
    }
}

fn profile(out: &mut String, user: usize) {
    out.push_str("\"profile\": [");
    for i in 0..ITEMS {
        let comma = if i == 0 { "" } else { ", " };
        write!(out, "{comma}{{\"id\": \"{user}{i:03}\", \"text\": \"").unwrap();
        text(out, user + i);
        let (month, score) = (1 + (i / 5) % 12, 1 + i % 5);
        write!(out, "\", \"score\": \"{score}\", \"date\": \"2011-{month:02}-01\"}}").unwrap();
    }
    out.push(']');
}

/// Writes an array of records until it has so many bytes; the number of records.
fn generate(path: &Path, bytes: usize, record: impl Fn(&mut String, usize)) -> usize {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    let (mut text, mut written, mut number) = (String::new(), 0, 0);
    while written < bytes {
        text.clear();
        text.push_str(if number == 0 { "[" } else { ", " });
        record(&mut text, number);
        file.write_all(text.as_bytes()).unwrap();
        written += text.len();
        number += 1;
    }
    file.write_all(b"]\n").unwrap();
    file.into_inner().unwrap();
    number
}

fn oppu(folder: &Path, bytes: usize) -> (Source, usize) {
    let personal = folder.join("user_others.json");
    let users = generate(&personal, bytes, |out, user| {
        write!(out, "{{\"user_id\": \"{user}\", ").unwrap();
        profile(out, user);
        write!(out, ", \"query\": [{{\"id\": \"{user}q\", \"input\": \"review: ").unwrap();
        text(out, user);
        out.push_str("\", \"gold\": \"4\"}]}");
    });
    let task = LampTask::Rating;
    let (labels, profiles, population, population_profiles) = (None, None, None, None);
    let selection = Selection::default();
    let source = Source::Oppu {
        task,
        personal,
        labels,
        profiles,
        population,
        population_profiles,
        selection,
    };
    (source, users)
}

/// Every fourth user asks three times, far apart.
fn lamp(folder: &Path, bytes: usize) -> (Source, usize) {
    let questions = folder.join("dev_questions.json");
    let records = generate(&questions, bytes, |out, question| {
        let user =
            if question.is_multiple_of(2) { question } else { question / 6 * 4 + 100_000_000 };
        write!(out, "{{\"id\": \"{question}\", \"user_id\": \"{user}\", \"input\": \"review: ")
            .unwrap();
        text(out, question);
        out.push_str("\", ");
        profile(out, user);
        out.push('}');
    });
    let personal = LampSet { questions, outputs: None, profiles: None };
    let selection = Selection::default();
    (Source::Lamp { task: LampTask::Rating, personal, population: None, selection }, records)
}

struct Measured {
    data: Dataset,
    peak_bytes: usize,
    seconds: f64,
    processor_s: f64,
}

fn measure(source: &Source) -> Measured {
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    PEAK_BYTES.store(before, Ordering::Relaxed);
    let (start, used) = (Instant::now(), processor_s());
    let data = load(source, OnBad::Stop).unwrap();
    let (seconds, processor_s) = (start.elapsed().as_secs_f64(), processor_s() - used);
    let peak_bytes = PEAK_BYTES.load(Ordering::Relaxed) - before;
    Measured { data, peak_bytes, seconds, processor_s }
}

/// About 32 KiB a record: its text, its record, their copies, and buffers of 256 KiB.
const RECORD_SHARE: usize = 2 << 20;

/// Summary, key, spans and the table of known users.
const USER_SHARE: usize = 600;

#[test]
fn sixty_four_megabytes_take_two() {
    let _alone = ALONE.lock().unwrap();
    let bytes = 64 << 20;
    for make in [oppu, lamp] {
        let folder = tempfile::tempdir().unwrap();
        let (source, records) = make(folder.path(), bytes);
        let measured = measure(&source);
        let most = RECORD_SHARE + USER_SHARE * records;
        assert!(measured.peak_bytes < most, "{} bytes, {most} at most", measured.peak_bytes);
        let index = measured.data.index();
        let queries: usize = index.personal.iter().map(|u| u.num_queries).sum();
        assert_eq!(queries, records);
        assert!(records > 1000 && index.personal.iter().all(|u| u.num_history >= ITEMS));
        // A user at the end is read by itself.
        let last = index.personal.len() - 1;
        assert_eq!(
            measured.data.user(last).unwrap().history.len(),
            index.personal[last].num_history
        );
    }
}

/// The largest resident set so far, in KiB.
fn peak_rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Seconds this thread has had a processor; what else the machine does is left out.
fn processor_s() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

#[test]
#[ignore = "writes 1 GB twice; prints peak memory and speed"]
fn one_gigabyte() {
    let _alone = ALONE.lock().unwrap();
    for (name, make) in [("OPPU", oppu as fn(&Path, usize) -> _), ("LaMP", lamp)] {
        let folder = tempfile::tempdir().unwrap();
        let (source, records) = make(folder.path(), 1_000_000_000);
        let measured = measure(&source);
        let users = measured.data.index().personal.len();
        let used = processor_s();
        assert_eq!(measured.data.users().filter(|u| u.is_ok()).count(), users);
        let again = processor_s() - used;
        writeln!(
            std::io::stderr(),
            "{name}: {records} records, {users} users; index {:.2} s, of them {:.2} s on a processor \
             = {:.0} MB/s; stream {again:.2} s on a processor; peak heap {:.1} MB, peak resident {:.1} MB",
            measured.seconds,
            measured.processor_s,
            1000.0 / measured.processor_s,
            measured.peak_bytes as f64 / 1e6,
            peak_rss_kib() as f64 / 1024.0
        )
        .unwrap();
        assert!(measured.peak_bytes < RECORD_SHARE + USER_SHARE * records);
        assert!(peak_rss_kib() < 128 << 10);
    }
}
