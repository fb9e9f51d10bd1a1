//! One record: a header of 68 bytes, the user's id, the payload.
//!
//! ```text
//! 0  "MYRR"   4 version u16   6 kind u16   8 id length u32   12 crc32 of id and payload
//! 16 payload length u64   24 generation u64   32 user key [32]   64 crc32 of bytes 0..64
//! ```
//! A record is a pure function of (kind, user, generation, payload).

use super::codec::Cursor;
use super::error::{Error, Result};
use super::fs::Fs;
use crate::ids::{UserId, UserKey};
use std::path::Path;

/// Bytes of a header.
pub(crate) const HEADER_LEN: usize = 68;
/// First bytes of every record.
pub(crate) const MAGIC: [u8; 4] = *b"MYRR";
const VERSION: u16 = 1;
/// Longest id.
pub(crate) const MAX_ID: usize = 1 << 20;
/// Longest reason of a quarantine.
pub(crate) const MAX_REASON: usize = 1 << 16;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A finished adapter; the payload is a safetensors file.
    Adapter = 1,
    /// A user given up; the payload is the reason, UTF-8.
    Quarantine = 2,
    /// A user forgotten; no id, no payload.
    Tombstone = 3,
    /// The records since the commit before are committed; see `segment.rs`. No user.
    Commit = 4,
}

/// The fixed part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) id_len: u32,
    pub(crate) body_crc: u32,
    pub(crate) payload_len: u64,
    pub(crate) generation: u64,
    pub(crate) key: UserKey,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6..8].copy_from_slice(&(self.kind as u16).to_le_bytes());
        out[8..12].copy_from_slice(&self.id_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.body_crc.to_le_bytes());
        out[16..24].copy_from_slice(&self.payload_len.to_le_bytes());
        out[24..32].copy_from_slice(&self.generation.to_le_bytes());
        out[32..64].copy_from_slice(&self.key.0);
        let crc = crc32fast::hash(&out[..64]);
        out[64..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header; says what is wrong with it.
    pub(crate) fn decode(bytes: &[u8]) -> std::result::Result<Self, &'static str> {
        const SHORT: &str = "the record header is cut off";
        let head = bytes.get(..HEADER_LEN).ok_or(SHORT)?;
        let mut c = Cursor(head);
        if c.array().ok_or(SHORT)? != MAGIC {
            return Err("no record begins here");
        }
        let crc = u32::from_le_bytes([head[64], head[65], head[66], head[67]]);
        if crc32fast::hash(&head[..64]) != crc {
            return Err("the record header fails its checksum");
        }
        if c.u16().ok_or(SHORT)? != VERSION {
            return Err("the record is of a version this build does not know");
        }
        let kind = match c.u16().ok_or(SHORT)? {
            1 => Kind::Adapter,
            2 => Kind::Quarantine,
            3 => Kind::Tombstone,
            4 => Kind::Commit,
            _ => return Err("the record is of a kind this build does not know"),
        };
        let id_len = c.u32().ok_or(SHORT)?;
        let body_crc = c.u32().ok_or(SHORT)?;
        let payload_len = c.u64().ok_or(SHORT)?;
        let generation = c.u64().ok_or(SHORT)?;
        let key = UserKey(c.array().ok_or(SHORT)?);
        if id_len as usize > MAX_ID {
            return Err("the record's id is longer than any id");
        }
        Ok(Self { kind, id_len, body_crc, payload_len, generation, key })
    }

    /// Bytes of the whole record.
    pub(crate) fn record_len(&self) -> u64 {
        (HEADER_LEN as u64 + u64::from(self.id_len)).saturating_add(self.payload_len)
    }

    /// The user, where the record is one's.
    pub(crate) fn owner(&self) -> Option<UserKey> {
        (self.kind != Kind::Commit).then_some(self.key)
    }
}

/// A record, read and checked.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) header: Header,
    /// Header, id and payload as they lie in the file.
    pub(crate) bytes: Vec<u8>,
}

impl Record {
    /// Encodes a record.
    pub(crate) fn new(
        kind: Kind,
        key: UserKey,
        generation: u64,
        id: &str,
        payload: &[u8],
    ) -> Result<Self> {
        let too_long = |got| Error::TooLong { what: "a user's id", got, max: MAX_ID };
        let id_len = u32::try_from(id.len()).map_err(|_| too_long(id.len()))?;
        if id.len() > MAX_ID {
            return Err(too_long(id.len()));
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(id.as_bytes());
        crc.update(payload);
        let (body_crc, payload_len) = (crc.finalize(), payload.len() as u64);
        let header = Header { kind, id_len, body_crc, payload_len, generation, key };
        let mut bytes = Vec::with_capacity(HEADER_LEN + id.len() + payload.len());
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(id.as_bytes());
        bytes.extend_from_slice(payload);
        Ok(Self { header, bytes })
    }

    /// Reads the record at `offset` of a file of `file_len` bytes and checks all of it; `Ok(Err(…))` says what is wrong
    /// with the bytes.
    ///
    /// # Errors
    /// Only of the system.
    pub(crate) fn read(
        fs: &dyn Fs,
        path: &Path,
        offset: u64,
        file_len: u64,
    ) -> Result<std::result::Result<Self, (&'static str, Option<UserKey>)>> {
        if file_len.saturating_sub(offset) < HEADER_LEN as u64 {
            return Ok(Err(("the record header is cut off", None)));
        }
        let head = fs.read_at(path, offset, HEADER_LEN).map_err(Error::io(path))?;
        let header = match Header::decode(&head) {
            Ok(header) => header,
            Err(what) => return Ok(Err((what, None))),
        };
        let wrong = |what| Ok(Err((what, header.owner())));
        let fits = header.record_len() <= file_len - offset;
        let Some(len) = usize::try_from(header.record_len()).ok().filter(|_| fits) else {
            return wrong("the record is cut off");
        };
        let bytes = fs.read_at(path, offset, len).map_err(Error::io(path))?;
        if bytes[..HEADER_LEN] != head || crc32fast::hash(&bytes[HEADER_LEN..]) != header.body_crc {
            return wrong("the record fails its checksum");
        }
        let record = Self { header, bytes };
        let consistent = match record.header.kind {
            Kind::Adapter | Kind::Quarantine => {
                record.id().is_some_and(|id| UserId::new(id).key() == header.key)
            }
            Kind::Tombstone => header.id_len == 0 && header.payload_len == 0,
            Kind::Commit => header.id_len == 0 && header.key == UserKey([0; 32]),
        };
        if consistent { Ok(Ok(record)) } else { wrong("the record's id is not its key's") }
    }

    /// The id, if it is UTF-8.
    pub(crate) fn id(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes[HEADER_LEN..HEADER_LEN + self.header.id_len as usize]).ok()
    }

    /// The payload.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.bytes[HEADER_LEN + self.header.id_len as usize..]
    }
}
