//! Large files in the formats of OPPU and LaMP, and what indexing one takes: for the test and the benchmark of the
//! readers' memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
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

/// History items of a record.
pub(crate) const ITEMS: usize = 60;

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

/// An OPPU users file of so many bytes; its users.
pub(crate) fn oppu(folder: &Path, bytes: usize) -> (Source, usize) {
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

/// A LaMP questions file of so many bytes, in which every fourth user asks three times, far apart; its questions.
pub(crate) fn lamp(folder: &Path, bytes: usize) -> (Source, usize) {
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

/// Indexes a source: the data set, and the bytes on the heap at most, beyond those before.
pub(crate) fn index(source: &Source) -> (Dataset, usize) {
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    PEAK_BYTES.store(before, Ordering::Relaxed);
    let data = load(source, OnBad::Stop).unwrap();
    (data, PEAK_BYTES.load(Ordering::Relaxed) - before)
}

/// About 32 KiB a record: its text, its record, their copies, and buffers of 256 KiB.
const RECORD_SHARE: usize = 2 << 20;

/// Summary, key, spans and the table of known users.
const USER_SHARE: usize = 600;

/// Bytes that indexing so many records may take, whatever the file's size.
pub(crate) fn most_bytes(records: usize) -> usize {
    RECORD_SHARE + USER_SHARE * records
}
