//! Where events go.

use super::{Error, Event, Record};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Takes events. Events are for people: losing some at a crash is allowed, changing a result by them is not.
pub trait EventSink: Send + Sync + fmt::Debug {
    /// Takes one event.
    ///
    /// # Errors
    /// The place it goes to fails.
    fn emit(&self, event: Event) -> Result<(), Error>;

    /// Hands what was taken to the operating system; call it every few seconds and at the end.
    ///
    /// # Errors
    /// The place it goes to fails.
    fn flush(&self) -> Result<(), Error>;
}

/// Forgets all events.
#[derive(Debug, Default, Clone, Copy)]
pub struct NullSink;

impl EventSink for NullSink {
    fn emit(&self, _: Event) -> Result<(), Error> {
        Ok(())
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// Appends events to a rank's own file, `rank-0003.jsonl`, readable by its owner alone (losses are personal data).
#[derive(Debug)]
pub struct JsonlSink {
    path: PathBuf,
    rank: usize,
    file: Mutex<BufWriter<File>>,
}

impl JsonlSink {
    /// Opens the file of `rank` in `folder`, both made if missing. After a crash the last line may be cut short; it is
    /// ended, so that what follows stands on lines of its own.
    ///
    /// # Errors
    /// The folder or file cannot be made, read or written.
    pub fn open(folder: &Path, rank: usize) -> Result<Self, Error> {
        let path = folder.join(format!("rank-{rank:04}.jsonl"));
        let failed = |path: &Path, source| Error::Io { path: path.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
        let open = || -> std::io::Result<File> {
            let mut options = OpenOptions::new();
            let mut file = options.read(true).append(true).create(true).mode(0o600).open(&path)?;
            if file.seek(SeekFrom::End(0))? > 0 {
                file.seek(SeekFrom::End(-1))?;
                let mut last = [0];
                file.read_exact(&mut last)?;
                if last != *b"\n" {
                    file.write_all(b"\n")?;
                }
            }
            Ok(file)
        };
        let file = open().map_err(|e| failed(&path, e))?;
        Ok(Self { path, rank, file: Mutex::new(BufWriter::new(file)) })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn with<T>(
        &self,
        body: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<T>,
    ) -> Result<T, Error> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        body(&mut file).map_err(|source| Error::Io { path: self.path.clone(), source })
    }
}

impl EventSink for JsonlSink {
    fn emit(&self, event: Event) -> Result<(), Error> {
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        // Milliseconds: f64 holds them exactly enough, more digits only make the file longer.
        let at_s = (since.as_secs_f64() * 1e3).round() / 1e3;
        let line = Record { at_s, rank: self.rank, event }.to_line()?;
        self.with(|file| file.write_all(line.as_bytes()))
    }

    fn flush(&self) -> Result<(), Error> {
        self.with(BufWriter::flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Stage;
    use std::os::unix::fs::PermissionsExt as _;

    fn finished(seconds: f64) -> Event {
        Event::StageFinished { stage: Stage::Merge, seconds }
    }

    #[test]
    fn a_torn_line_spoils_nothing_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let events = folder.path().join("events");
        let sink = JsonlSink::open(&events, 3).unwrap();
        assert_eq!(sink.path(), events.join("rank-0003.jsonl"));
        sink.emit(finished(1.0)).unwrap();
        assert_eq!(std::fs::read(sink.path()).unwrap(), b"", "kept back until flushed");
        sink.flush().unwrap();
        let path = sink.path().to_owned();
        drop(sink);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // A crash in the middle of a line.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"at_s\":1.").unwrap();
        for seconds in [2.0, 3.0] {
            let sink = JsonlSink::open(&events, 3).unwrap();
            sink.emit(finished(seconds)).unwrap();
            sink.flush().unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let read: Vec<Option<Event>> =
            text.lines().map(|l| Record::from_line(l).ok().map(|r| r.event)).collect();
        let expected = [Some(1.0), None, Some(2.0), Some(3.0)].map(|s| s.map(finished));
        assert_eq!(read, expected);
    }

    #[test]
    fn threads_do_not_mix_lines() {
        let folder = tempfile::tempdir().unwrap();
        let sink = JsonlSink::open(folder.path(), 0).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| sink.emit(finished(0.25)).unwrap()));
            }
        });
        sink.flush().unwrap();
        let text = std::fs::read_to_string(sink.path()).unwrap();
        assert_eq!(text.lines().count(), 2000);
        assert!(text.lines().all(|l| Record::from_line(l).is_ok()));
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let path = PathBuf::from("/dev/full");
        let sink = JsonlSink { path, rank: 0, file: Mutex::new(BufWriter::new(full)) };
        sink.emit(finished(1.0)).unwrap();
        assert!(matches!(sink.flush(), Err(Error::Io { .. })));
    }
}
