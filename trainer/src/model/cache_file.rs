//! The file of converted weights: format, writer, checked and mapped reader.
//!
//! Owns the bytes: magic, version, lengths, two checksums, a JSON header, then 64-byte aligned little-endian `f32`. A
//! file is written under a temporary name and renamed when whole. Knows tensors by name; must never know what a base
//! computes. Bases and overlays share the format ([`Role`]).
//!
//! ```text
//! 0  magic "MYRIADBW"   8 version u32   12 header bytes u32   16 data bytes u64
//! 24 blake3 of bytes 0..24, 56..88 and the header   56 blake3 of the data   88 header, zeros to a multiple of 64   data
//! ```

use super::error::{Error, Result};
use super::mapped;
use super::spec::{BaseSpec, Kind, TensorSpec};
use kernels::linear::Layout;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, Permissions};
use std::io::{BufWriter, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::NamedTempFile;

const MAGIC: [u8; 8] = *b"MYRIADBW";
const VERSION: u32 = 1;
const PREAMBLE: usize = 88;
const ALIGN: usize = 64;
/// Elements to which every tensor is aligned.
const ALIGN_ELEMENTS: usize = ALIGN / size_of::<f32>();
/// Largest header that is read, in bytes.
const MAX_HEADER_BYTES: usize = 64 << 20;
/// Prefix of files that are being written.
pub(crate) const UNFINISHED: &str = ".unfinished-";

/// Identity of a base's weights: BLAKE3 over its canonical tensors and specification, whatever file they came from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseHash(pub [u8; 32]);

impl BaseHash {
    /// The first 16 hexadecimal digits, as used in file names.
    pub fn short(&self) -> String {
        self.to_string()[..16].to_owned()
    }

    /// Reads 64 hexadecimal digits.
    pub fn parse(hex: &str) -> Option<Self> {
        blake3::Hash::from_hex(hex).ok().map(|h| Self(*h.as_bytes()))
    }
}

impl fmt::Display for BaseHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for BaseHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl Serialize for BaseHash {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BaseHash {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let hex = String::deserialize(d)?;
        Self::parse(&hex).ok_or_else(|| serde::de::Error::custom("64 hexadecimal digits expected"))
    }
}

/// Hash over canonical tensors in canonical order.
pub(crate) struct CanonicalHasher(blake3::Hasher);

impl CanonicalHasher {
    /// Of a whole base.
    pub(crate) fn base(spec: &BaseSpec) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 base weights");
        let bytes = spec.canonical_bytes();
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(&bytes);
        Self(hasher)
    }

    /// Of the tensors that replace some of `parent`'s.
    pub(crate) fn overlay(parent: BaseHash) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 merged weights");
        hasher.update(&parent.0);
        Self(hasher)
    }

    pub(crate) fn add(&mut self, tensor: &TensorSpec, canonical: &[f32]) {
        self.0.update(&(tensor.name.len() as u64).to_le_bytes()).update(tensor.name.as_bytes());
        self.0
            .update(&(canonical.len() as u64).to_le_bytes())
            .update(bytemuck::cast_slice(canonical));
    }

    pub(crate) fn finish(&self) -> BaseHash {
        BaseHash(*self.0.finalize().as_bytes())
    }
}

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Every tensor of a base.
    Base,
    /// Some tensors that replace a parent's.
    Overlay,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stored {
    PreparedOutIn,
    PreparedInOut,
    Vector,
    Table,
}

impl Stored {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::Matrix { layout: Layout::OutIn, .. } => Self::PreparedOutIn,
            Kind::Matrix { layout: Layout::InOut, .. } => Self::PreparedInOut,
            Kind::Vector { .. } => Self::Vector,
            Kind::Table { .. } => Self::Table,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    shape: Vec<usize>,
    stored: Stored,
    /// In elements from the start of the data.
    offset: usize,
    /// In elements.
    len: usize,
}

/// The JSON header.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    pub(crate) role: Role,
    pub(crate) hash: BaseHash,
    pub(crate) parent: Option<BaseHash>,
    /// [`kernels::linear::Linear::prepared_form`] of the backend that prepared the matrices.
    pub(crate) form: String,
    pub(crate) spec: BaseSpec,
    tensors: Vec<Entry>,
}

impl Header {
    /// A header for `tensors` with their stored lengths; the hash is filled in by [`Writer::finish`].
    pub(crate) fn plan(
        role: Role,
        parent: Option<BaseHash>,
        form: &str,
        spec: &BaseSpec,
        tensors: &[(TensorSpec, usize)],
    ) -> Self {
        let mut offset = 0;
        let entry = |(tensor, len): &(TensorSpec, usize)| {
            let entry = Entry {
                name: tensor.name.clone(),
                shape: tensor.kind.dims(),
                stored: Stored::of(tensor.kind),
                offset,
                len: *len,
            };
            offset = (offset + len).next_multiple_of(ALIGN_ELEMENTS);
            entry
        };
        let tensors = tensors.iter().map(entry).collect();
        Self {
            role,
            hash: BaseHash([0; 32]),
            parent,
            form: form.to_owned(),
            spec: spec.clone(),
            tensors,
        }
    }

    /// Elements that the file holds, gaps included.
    pub(crate) fn data_len(&self) -> usize {
        self.tensors.last().map_or(0, |last| last.offset + last.len)
    }
}

/// Writes one file: every planned tensor in order, then [`Writer::finish`].
pub(crate) struct Writer {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    header: Header,
    data: blake3::Hasher,
    written: usize,
}

impl Writer {
    /// Starts a file in the folder of `path`, under a temporary name.
    pub(crate) fn create(path: &Path, header: Header) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let tmp = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(folder)
            .map_err(Error::io(folder))?;
        let mut file = BufWriter::with_capacity(1 << 20, tmp);
        let head = preamble(&header, 0, [0; 32]).map_err(|what| Error::format(path, what))?;
        file.write_all(&head).map_err(Error::io(path))?;
        Ok(Self { path: path.to_path_buf(), file, header, data: blake3::Hasher::new(), written: 0 })
    }

    /// Appends the next tensor's stored elements.
    pub(crate) fn append(&mut self, elements: &[f32]) -> Result<()> {
        let gap = self.written.next_multiple_of(ALIGN_ELEMENTS) - self.written;
        for part in [&[0.0; ALIGN_ELEMENTS][..gap], elements] {
            let bytes: &[u8] = bytemuck::cast_slice(part);
            self.data.update(bytes);
            self.file.write_all(bytes).map_err(Error::io(&self.path))?;
        }
        self.written += gap + elements.len();
        Ok(())
    }

    /// Completes the header, syncs the file and renames it to the path that `name` gives.
    pub(crate) fn finish(mut self, hash: BaseHash, name: &Path) -> Result<()> {
        self.header.hash = hash;
        let data_bytes = (self.written * size_of::<f32>()) as u64;
        let data_hash = *self.data.finalize().as_bytes();
        let head = preamble(&self.header, data_bytes, data_hash)
            .map_err(|what| Error::format(&self.path, what))?;
        let io = |e: std::io::Error| Error::Io { path: name.to_path_buf(), source: e };
        self.file.rewind().map_err(io)?;
        self.file.write_all(&head).map_err(io)?;
        let tmp = self.file.into_inner().map_err(|e| io(e.into_error()))?;
        tmp.as_file().sync_all().map_err(io)?;
        tmp.persist(name).map_err(|e| io(e.error))?;
        sync_folder(name)
    }
}

/// Makes a rename in the folder of `path` durable.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io(folder))
}

fn preamble(
    header: &Header,
    data_bytes: u64,
    data_hash: [u8; 32],
) -> std::result::Result<Vec<u8>, String> {
    let json = serde_json::to_vec(header).map_err(|e| e.to_string())?;
    let header_bytes = u32::try_from(json.len()).map_err(|_| "header too large".to_owned())?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(header_bytes.to_le_bytes());
    bytes.extend(data_bytes.to_le_bytes());
    bytes.extend(header_hash(&bytes, &data_hash, &json));
    bytes.extend(data_hash);
    bytes.extend(json);
    bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
    Ok(bytes)
}

fn header_hash(start: &[u8], data_hash: &[u8], json: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(start).update(data_hash).update(json).finalize().as_bytes()
}

/// The data of a mapped file as `f32`.
#[derive(Debug)]
pub(crate) struct Floats {
    map: Mmap,
    start: usize,
}

impl AsRef<[f32]> for Floats {
    fn as_ref(&self) -> &[f32] {
        // Whole, aligned and inside the map since `CacheFile::open` checked it.
        self.map.get(self.start..).and_then(|b| bytemuck::try_cast_slice(b).ok()).unwrap_or(&[])
    }
}

/// A checked, mapped file.
#[derive(Debug)]
pub(crate) struct CacheFile {
    pub(crate) path: PathBuf,
    pub(crate) header: Header,
    pub(crate) floats: Arc<Floats>,
    data_hash: [u8; 32],
    index: BTreeMap<String, Place>,
}

/// Where a tensor lies in the data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) kind: Kind,
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

impl CacheFile {
    /// Maps and checks a file: magic, version, lengths, header checksum, and the table against the specification. The
    /// data's checksum is left to [`CacheFile::verify`].
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let bad = |what: &str| {
            Error::format(path, format!("not a whole file of converted weights: {what}"))
        };
        let map = mapped::map(path)?;
        let start = map.get(..PREAMBLE).ok_or_else(|| bad("too short"))?;
        if start[..8] != MAGIC {
            return Err(bad("wrong magic"));
        }
        let number = |range: std::ops::Range<usize>| {
            start[range].iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b))
        };
        if number(8..12) != u64::from(VERSION) {
            return Err(bad(&format!("version {}, this program reads {VERSION}", number(8..12))));
        }
        let header_bytes = usize::try_from(number(12..16)).unwrap_or(usize::MAX);
        if header_bytes > MAX_HEADER_BYTES {
            return Err(bad("header too large"));
        }
        let json =
            map.get(PREAMBLE..PREAMBLE + header_bytes).ok_or_else(|| bad("cut in the header"))?;
        if header_hash(&start[..24], &start[56..88], json) != start[24..56] {
            return Err(bad("header checksum"));
        }
        let header: Header = serde_json::from_slice(json).map_err(|e| bad(&e.to_string()))?;
        let data_start = (PREAMBLE + header_bytes).next_multiple_of(ALIGN);
        let data_bytes = number(16..24);
        if (map.len() as u64).checked_sub(data_start as u64) != Some(data_bytes)
            || data_bytes % 4 != 0
        {
            return Err(bad("data cut or too long"));
        }
        header.spec.validate(path)?;
        let elements = usize::try_from(data_bytes / 4).unwrap_or(usize::MAX);
        let index = place(&header, elements).map_err(|what| bad(&what))?;
        let mut data_hash = [0; 32];
        data_hash.copy_from_slice(&start[56..88]);
        let floats = Arc::new(Floats { map, start: data_start });
        Ok(Self { path: path.to_path_buf(), header, floats, data_hash, index })
    }

    /// Reads the whole data and compares its checksum.
    pub(crate) fn verify(&self) -> Result<()> {
        let data: &[u8] = bytemuck::cast_slice((*self.floats).as_ref());
        if *blake3::hash(data).as_bytes() == self.data_hash {
            return Ok(());
        }
        Err(Error::format(&self.path, "the data's checksum is wrong"))
    }

    pub(crate) fn find(&self, name: &str) -> Option<Place> {
        self.index.get(name).copied()
    }

    pub(crate) fn slice(&self, place: Place) -> &[f32] {
        (*self.floats).as_ref().get(place.offset..place.offset + place.len).unwrap_or(&[])
    }
}

/// Checks the table: tensors of the specification, in its order (all of them for a base), apart and inside the data.
fn place(header: &Header, elements: usize) -> std::result::Result<BTreeMap<String, Place>, String> {
    let specified = header.spec.tensors();
    if header.role == Role::Base && header.tensors.len() != specified.len() {
        return Err(format!("{} tensors instead of {}", header.tensors.len(), specified.len()));
    }
    let mut specified = specified.into_iter();
    let mut free = 0;
    let mut index = BTreeMap::new();
    for entry in &header.tensors {
        let Some(tensor) = specified.find(|t| t.name == entry.name) else {
            return Err(format!("tensor `{}` is unknown or out of order", entry.name));
        };
        let matrix = matches!(tensor.kind, Kind::Matrix { .. });
        let end = entry.offset.checked_add(entry.len);
        let sound = entry.shape == tensor.kind.dims()
            && entry.stored == Stored::of(tensor.kind)
            && entry.offset >= free
            && entry.offset.is_multiple_of(ALIGN_ELEMENTS)
            && end.is_some_and(|end| end <= elements)
            && (matrix || entry.len == tensor.kind.len());
        if !sound {
            return Err(format!("tensor `{}` has a wrong entry", entry.name));
        }
        free = entry.offset + entry.len;
        index
            .insert(tensor.name, Place { kind: tensor.kind, offset: entry.offset, len: entry.len });
    }
    Ok(index)
}
