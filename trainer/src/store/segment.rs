//! A segment file: 16 bytes of head, then groups of records, each closed by a commit record.
//!
//! ```text
//! head: "MYRSEG"  version u16  segment number u32  crc32 of the 12 bytes before
//! group: records …, commit record {group length u64, number of records u32, BLAKE3 of the group's bytes}
//! ```
//! The group is made durable before its commit record is written, so a valid commit record over bytes that do not
//! match is damage, while bytes after the last commit record are a commit that did not happen: they are cut off.

use super::error::{Error, Result};
use super::fs::Fs;
use super::index::{Entry, Place, Status};
use super::record::{HEADER_LEN, Header, Kind, MAGIC, MAX_REASON, Record};
use crate::ids::{UserId, UserKey};
use std::path::Path;

/// Bytes before the first group.
pub(crate) const HEAD_LEN: u64 = 16;
const MAGIC_VERSION: [u8; 8] = *b"MYRSEG\x01\x00";
const COMMIT_LEN: usize = 44;

/// Name of a segment's file.
pub(crate) fn file_name(number: u32) -> String {
    format!("seg-{number:06}.myr")
}

/// The number in a segment's name; `None` for any other file.
pub(crate) fn parse_file_name(name: &str) -> Option<u32> {
    let number = name.strip_prefix("seg-")?.strip_suffix(".myr")?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

/// The head of a segment.
pub(crate) fn head(number: u32) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&MAGIC_VERSION);
    out[8..12].copy_from_slice(&number.to_le_bytes());
    let crc = crc32fast::hash(&out[..12]);
    out[12..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Checks a segment's head.
pub(crate) fn check_head(fs: &dyn Fs, path: &Path, number: u32) -> Result<()> {
    match fs.read_at(path, 0, 16) {
        Ok(found) if found == head(number) => Ok(()),
        Ok(_) => Err(Error::corrupt(path, 0, None, "this is not the segment its name says")),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(Error::corrupt(path, 0, None, "the head of the segment is cut off"))
        }
        Err(e) => Err(Error::io(path)(e)),
    }
}

/// The bytes of a group so far, as its commit record states them.
#[derive(Debug, Default)]
pub(crate) struct Group {
    len: u64,
    num_records: u32,
    hasher: blake3::Hasher,
}

impl Group {
    /// Takes a record in.
    pub(crate) fn add(&mut self, record: &Record) {
        self.len += record.bytes.len() as u64;
        self.num_records += 1;
        self.hasher.update(&record.bytes);
    }

    /// The record that commits the group.
    pub(crate) fn commit(&self) -> Result<Record> {
        Record::new(Kind::Commit, UserKey([0; 32]), 0, "", &self.statement())
    }

    fn statement(&self) -> [u8; COMMIT_LEN] {
        let mut out = [0; COMMIT_LEN];
        out[..8].copy_from_slice(&self.len.to_le_bytes());
        out[8..12].copy_from_slice(&self.num_records.to_le_bytes());
        out[12..].copy_from_slice(self.hasher.finalize().as_bytes());
        out
    }

    /// Whether a commit record is this group's.
    pub(crate) fn is_committed_by(&self, commit: &Record) -> bool {
        self.num_records > 0 && commit.payload() == self.statement()
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }
}

/// What a scan found.
#[derive(Debug)]
pub(crate) struct Scan {
    /// Committed records, in order.
    pub(crate) entries: Vec<Entry>,
    /// End of the last commit record.
    pub(crate) end: u64,
    /// Bytes after it, of a commit that did not happen.
    pub(crate) torn_bytes: u64,
}

/// Reads the groups of a segment from `from` (the head's end, or the end of a known commit record) on.
///
/// # Errors
/// [`Error::Corrupt`] where committed bytes are damaged; a torn tail is no error.
pub(crate) fn scan(
    fs: &dyn Fs,
    path: &Path,
    (rank, number): (u32, u32),
    from: u64,
) -> Result<Scan> {
    check_head(fs, path, number)?;
    let file_len = fs.len(path).map_err(Error::io(path))?;
    let (mut at, mut end) = (from, from);
    let (mut entries, mut pending, mut group) = (Vec::new(), Vec::new(), Group::default());
    while at < file_len {
        let record = match Record::read(fs, path, at, file_len)? {
            Ok(record) => record,
            Err((what, key)) => {
                if commit_follows(fs, path, at, file_len)? {
                    return Err(Error::corrupt(path, at, key, what));
                }
                break;
            }
        };
        let next = at + record.bytes.len() as u64;
        if record.header.kind == Kind::Commit {
            if !group.is_committed_by(&record) {
                let what = "the commit record does not match the records before it";
                return Err(Error::corrupt(path, at, None, what));
            }
            entries.append(&mut pending);
            (group, end) = (Group::default(), next);
        } else {
            pending.push(entry(&record, Place { rank, segment: number, offset: at }, path)?);
            group.add(&record);
        }
        at = next;
    }
    Ok(Scan { entries, end, torn_bytes: file_len - end })
}

/// What the index says of a record.
pub(crate) fn entry(record: &Record, place: Place, path: &Path) -> Result<Entry> {
    let Header { kind, generation, key, payload_len, .. } = record.header;
    let corrupt = |what| Error::corrupt(path, place.offset, Some(key), what);
    let id = record.id().ok_or_else(|| corrupt("the id is not UTF-8"))?;
    let status = match kind {
        Kind::Adapter => Status::Done,
        Kind::Tombstone => Status::Forgotten,
        Kind::Commit => return Err(corrupt("a commit record has no entry")),
        Kind::Quarantine => {
            let reason = std::str::from_utf8(record.payload()).ok();
            let reason = reason.filter(|r| r.len() <= MAX_REASON);
            let reason = reason.ok_or_else(|| corrupt("the reason is not a short UTF-8 text"))?;
            Status::Quarantined { reason: reason.to_owned() }
        }
    };
    let user = (status != Status::Forgotten).then(|| UserId::new(id));
    let payload_hash = *blake3::hash(record.payload()).as_bytes();
    Ok(Entry { key, user, status, generation, place, payload_len, payload_hash })
}

/// Whether a whole commit record lies after `at`: then the bytes at `at` were committed, for whoever opens an archive
/// cuts a torn tail off before appending.
fn commit_follows(fs: &dyn Fs, path: &Path, at: u64, file_len: u64) -> Result<bool> {
    let len =
        usize::try_from(file_len - at).map_err(|e| Error::io(path)(std::io::Error::other(e)))?;
    let tail = fs.read_at(path, at, len).map_err(Error::io(path))?;
    for start in 0..tail.len().saturating_sub(HEADER_LEN) {
        if tail[start..start + 4] != MAGIC {
            continue;
        }
        let Ok(header) = Header::decode(&tail[start..]) else { continue };
        let body = tail.get(start + HEADER_LEN..start + HEADER_LEN + COMMIT_LEN);
        if let (Kind::Commit, Some(body)) = (header.kind, body)
            && header.payload_len == COMMIT_LEN as u64
            && crc32fast::hash(body) == header.body_crc
        {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(file_name(1), "seg-000001.myr");
        assert_eq!(parse_file_name(&file_name(1_234_567)), Some(1_234_567));
        for other in ["seg-1.myr", "seg-+00001.myr", "seg-000001.myr.tmp", "index.myr", "seg-.myr"]
        {
            assert_eq!(parse_file_name(other), None, "{other}");
        }
    }
}
