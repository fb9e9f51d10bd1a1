//! The index of a rank's archive: what is committed, and up to where in each segment.
//!
//! ```text
//! "MYRIDX"  version u16  body length u64  BLAKE3 of the body [32]  body
//! body: segments u32, each {number u32, committed end u64}
//!       entries u64, each {key [32], generation u64, status u8, segment u32, offset u64, payload length u64,
//!                          BLAKE3 of the payload [32], id (u32 + bytes), reason (u32 + bytes)}
//! ```
//! It can be rebuilt from the segments, but while it is there it is a witness: a segment shorter than its committed
//! end is damage and not a torn tail.

use super::codec::{Cursor, push_text};
use super::error::{Error, Result};
use crate::ids::{UserId, UserKey};
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the file.
pub(crate) const FILE_NAME: &str = "index.myr";
const MAGIC_VERSION: [u8; 8] = *b"MYRIDX\x01\x00";
const HEAD_LEN: usize = 48;

/// What became of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// The adapter is there.
    Done,
    /// Training was given up.
    Quarantined {
        /// Why.
        reason: String,
    },
    /// Everything of the user was removed on request.
    Forgotten,
}

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// MPI rank whose archive it is in.
    pub rank: u32,
    /// Segment number.
    pub segment: u32,
    /// First byte of the record.
    pub offset: u64,
}

/// A user's newest committed record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The user's key.
    pub key: UserKey,
    /// The id as written in the data; `None` once forgotten.
    pub user: Option<UserId>,
    /// What became of the user.
    pub status: Status,
    /// Number of the commit among the user's; the highest counts.
    pub generation: u64,
    /// Where the record lies.
    pub place: Place,
    /// Bytes of the payload.
    pub payload_len: u64,
    /// BLAKE3 of the payload.
    pub payload_hash: [u8; 32],
}

impl Entry {
    /// Whether two records say the same.
    pub(crate) fn same_content(&self, other: &Self) -> bool {
        (&self.status, self.payload_hash) == (&other.status, other.payload_hash)
    }
}

/// Takes a record into a map that holds each user's newest; says whether the one left behind makes the other void.
///
/// # Errors
/// [`Error::Conflict`] for two different records of one generation.
pub(crate) fn absorb(entries: &mut BTreeMap<UserKey, Entry>, new: Entry) -> Result<bool> {
    let Some(old) = entries.get_mut(&new.key) else {
        entries.insert(new.key, new);
        return Ok(false);
    };
    if old.generation == new.generation {
        if old.same_content(&new) {
            return Ok(false);
        }
        let (key, generation) = (new.key, new.generation);
        let ranks = [old.place.rank, new.place.rank];
        return Err(Error::Conflict { key, generation, ranks });
    }
    let loser_lives = if new.generation > old.generation {
        let lives = old.status != Status::Forgotten;
        *old = new;
        lives
    } else {
        new.status != Status::Forgotten
    };
    Ok(old.status == Status::Forgotten && loser_lives)
}

/// The index in memory.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Index {
    /// Committed end of each segment.
    pub(crate) segments: BTreeMap<u32, u64>,
    /// Each user's newest record.
    pub(crate) entries: BTreeMap<UserKey, Entry>,
}

impl Index {
    /// The file's bytes.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let too_long = |got| Error::TooLong { what: "the index", got, max: u32::MAX as usize };
        let mut out = vec![0; HEAD_LEN];
        let num_segments = u32::try_from(self.segments.len());
        out.extend(num_segments.map_err(|_| too_long(self.segments.len()))?.to_le_bytes());
        for (number, end) in &self.segments {
            out.extend(number.to_le_bytes());
            out.extend(end.to_le_bytes());
        }
        out.extend((self.entries.len() as u64).to_le_bytes());
        for e in self.entries.values() {
            out.extend(e.key.0);
            out.extend(e.generation.to_le_bytes());
            let (status, reason) = match &e.status {
                Status::Done => (1, ""),
                Status::Quarantined { reason } => (2, reason.as_str()),
                Status::Forgotten => (3, ""),
            };
            out.push(status);
            out.extend(e.place.segment.to_le_bytes());
            out.extend(e.place.offset.to_le_bytes());
            out.extend(e.payload_len.to_le_bytes());
            out.extend(e.payload_hash);
            for text in [e.user.as_ref().map_or("", UserId::as_str), reason] {
                push_text(&mut out, text).ok_or_else(|| too_long(text.len()))?;
            }
        }
        let body = &out[HEAD_LEN..];
        let (len, hash) = (body.len() as u64, blake3::hash(body));
        out[..8].copy_from_slice(&MAGIC_VERSION);
        out[8..16].copy_from_slice(&len.to_le_bytes());
        out[16..HEAD_LEN].copy_from_slice(hash.as_bytes());
        Ok(out)
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for anything that was not written by [`Self::encode`].
    pub(crate) fn decode(path: &Path, bytes: &[u8], rank: u32) -> Result<Self> {
        let corrupt = |what| Error::corrupt(path, 0, None, what);
        let mut c = Cursor(bytes);
        let cut = "the index is cut off";
        if c.array().ok_or_else(|| corrupt(cut))? != MAGIC_VERSION {
            return Err(corrupt("this is not an index of a version this build knows"));
        }
        let len = c.u64().ok_or_else(|| corrupt(cut))?;
        let hash = c.array().ok_or_else(|| corrupt(cut))?;
        if len != c.0.len() as u64 || *blake3::hash(c.0).as_bytes() != hash {
            return Err(corrupt("the index fails its checksum"));
        }
        let index = Self::decode_body(&mut c, rank);
        index.filter(|_| c.0.is_empty()).ok_or_else(|| corrupt("the index is malformed"))
    }

    fn decode_body(c: &mut Cursor<'_>, rank: u32) -> Option<Self> {
        let mut index = Self::default();
        for _ in 0..c.u32()? {
            index.segments.insert(c.u32()?, c.u64()?);
        }
        for _ in 0..c.u64()? {
            let key = UserKey(c.array()?);
            let generation = c.u64()?;
            let [status] = c.array()?;
            let place = Place { rank, segment: c.u32()?, offset: c.u64()? };
            let (payload_len, payload_hash) = (c.u64()?, c.array()?);
            let (id, reason) = (c.text()?, c.text()?);
            let status = match status {
                1 => Status::Done,
                2 => Status::Quarantined { reason: reason.to_owned() },
                3 => Status::Forgotten,
                _ => return None,
            };
            let user = (status != Status::Forgotten).then(|| UserId::new(id));
            let known = user.as_ref().is_none_or(|u| u.key() == key);
            if !known || !index.segments.contains_key(&place.segment) {
                return None;
            }
            let entry = Entry { key, user, status, generation, place, payload_len, payload_hash };
            index.entries.insert(key, entry);
        }
        Some(index)
    }
}
