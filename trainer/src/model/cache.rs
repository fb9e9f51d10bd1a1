//! Converted weights, written once and mapped by every rank of a node.
//!
//! Owns the folder of converted bases and [`MappedBase`], through which all weights are read. A conversion runs under a
//! lock of the folder, so of many ranks or launchers one converts and the others wait, then map the same pages. Which
//! file belongs to a source is remembered by the identity (device, inode, length, change time) of the source's files.
//! Must never know a user; the forms of prepared weights belong to [`kernels::linear`]. Start reading at
//! [`MappedBase::load`].

pub use super::cache_file::BaseHash;
use super::cache_file::{
    CacheFile, CanonicalHasher, Header, Place, Role, UNFINISHED, Writer, sync_folder,
};
use super::error::{Error, Result};
use super::mapped;
use super::spec::{BaseDescription, BaseSpec, Kind, TensorSpec};
use super::weights::{WeightSource, read_finite};
use kernels::linear::{HostStorage, Linear};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A frozen base in mapped memory, with the overlays merged into it; cheap to clone.
#[derive(Debug, Clone)]
pub struct MappedBase {
    spec: BaseSpec,
    hash: BaseHash,
    /// The base, then overlays; the last one that has a tensor wins. None of an outline.
    files: Vec<Arc<CacheFile>>,
    /// Bytes that the file of an outline will have.
    outlined_bytes: usize,
}

impl MappedBase {
    /// The base of `source`, from the cache `folder` or converted into it now.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::NonFinite`] for a NaN or infinite weight; what reading the source finds wrong.
    pub fn load<B: Linear>(backend: &B, source: &dyn WeightSource, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let link =
            folder.join(format!("{}-{}.source", source_key(source)?, backend.prepared_form()));
        if let Some(base) = lookup(backend, source, folder, &link) {
            return Ok(base);
        }
        let lock_path = folder.join(".lock");
        let lock = OpenOptions::new().create(true).append(true).open(&lock_path);
        let lock = lock.map_err(Error::io(&lock_path))?;
        lock.lock().map_err(Error::io(&lock_path))?;
        if let Some(base) = lookup(backend, source, folder, &link) {
            return Ok(base);
        }
        sweep(folder);
        let path = convert(backend, source, folder)?;
        let base = Self::open(&path)?;
        write_link(&link, base.hash)?;
        Ok(Self { spec: source.spec().clone(), ..base })
    }

    /// Maps one file of converted weights.
    ///
    /// # Errors
    /// [`Error::Format`] when it is not whole; [`Error::Mismatch`] when it is an overlay.
    pub fn open(path: &Path) -> Result<Self> {
        let file = CacheFile::open(path)?;
        expect(path, "role", Role::Base, file.header.role)?;
        Ok(Self {
            spec: file.header.spec.clone(),
            hash: file.header.hash,
            files: vec![Arc::new(file)],
            outlined_bytes: 0,
        })
    }

    /// What `spec` will be once it is converted for the backend, for plans: it has sizes and no numbers; whoever asks it
    /// for a tensor is told that there is none.
    pub fn outline<B: Linear>(backend: &B, spec: &BaseSpec) -> Self {
        let header = header(backend, spec).1;
        Self {
            spec: spec.clone(),
            hash: header.hash,
            files: Vec::new(),
            outlined_bytes: header.data_len() * size_of::<f32>(),
        }
    }

    /// The same base with the tensors of an overlay in place of its own.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the overlay was merged into another base or for another backend.
    pub fn with_overlay(&self, path: &Path) -> Result<Self> {
        let file = CacheFile::open(path)?;
        expect(path, "role", Role::Overlay, file.header.role)?;
        expect(path, "parent", Some(self.hash), file.header.parent)?;
        expect(path, "form", self.form(), file.header.form.as_str())?;
        let (ours, theirs) = (self.spec.canonical_bytes(), file.header.spec.canonical_bytes());
        expect(path, "same specification", true, ours == theirs)?;
        let hash = file.header.hash;
        let files = self.files.iter().cloned().chain([Arc::new(file)]).collect();
        Ok(Self { spec: self.spec.clone(), hash, files, outlined_bytes: 0 })
    }

    /// What the base is.
    pub fn spec(&self) -> &BaseSpec {
        &self.spec
    }

    /// Identity of the weights, overlays included; adapters record it.
    pub fn hash(&self) -> BaseHash {
        self.hash
    }

    /// Parameter counts, for planning.
    pub fn describe(&self) -> BaseDescription {
        self.spec.describe()
    }

    /// Bytes of the mapped files; ranks of one node share them.
    pub fn mapped_bytes(&self) -> usize {
        let mapped = self.files.iter().map(|f| size_of_val((*f.floats).as_ref()));
        mapped.sum::<usize>() + self.outlined_bytes
    }

    /// Name of the prepared form the files hold; empty for an outline, which holds none.
    pub fn form(&self) -> &str {
        self.files.first().map_or("", |file| &file.header.form)
    }

    /// A product's weight, for example `layers.3.q.weight` or `head`; `embedding` and `head` are one when tied.
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`]; [`Error::Mismatch`] when the files were prepared for another backend.
    pub fn weight<B: Linear>(&self, backend: &B, name: &str) -> Result<B::Weight> {
        let (file, place) = self.find(name, "weight")?;
        let Kind::Matrix { shape, .. } = place.kind else { return no_such(name, "weight") };
        expect(&file.path, "form", backend.prepared_form(), file.header.form.as_str())?;
        expect(&file.path, "prepared length", backend.prepared_len(shape), place.len)?;
        let storage: HostStorage = Arc::clone(&file.floats) as HostStorage;
        Ok(backend.weight(shape, &storage, place.offset)?)
    }

    /// A norm's weight or bias, a product's bias, or the table `positions` (row-major).
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`].
    pub fn vector(&self, name: &str) -> Result<&[f32]> {
        let (file, place) = self.find(name, "vector")?;
        match place.kind {
            Kind::Matrix { .. } => no_such(name, "vector"),
            Kind::Vector { .. } | Kind::Table { .. } => Ok(file.slice(place)),
        }
    }

    /// A product's weight in canonical layout, bit-equal to what was prepared.
    ///
    /// # Errors
    /// As [`MappedBase::weight`].
    pub fn canonical<B: Linear>(&self, backend: &B, name: &str) -> Result<Vec<f32>> {
        let (file, place) = self.find(name, "tensor")?;
        let Kind::Matrix { shape, layout } = place.kind else {
            return Ok(file.slice(place).to_vec());
        };
        expect(&file.path, "form", backend.prepared_form(), file.header.form.as_str())?;
        expect(&file.path, "prepared length", backend.prepared_len(shape), place.len)?;
        let mut plain = vec![0.0; place.kind.len()];
        backend.unprepare(shape, layout, file.slice(place), &mut plain)?;
        Ok(plain)
    }

    /// Reads every mapped byte and compares the checksums of the data.
    ///
    /// # Errors
    /// [`Error::Format`] naming the damaged file.
    pub fn verify(&self) -> Result<()> {
        self.files.iter().try_for_each(|f| f.verify())
    }

    /// The hash of the base below all overlays, computed anew from the mapped weights.
    ///
    /// # Errors
    /// As [`MappedBase::weight`].
    pub fn recompute_hash<B: Linear>(&self, backend: &B) -> Result<BaseHash> {
        let files = self.files.iter().take(1).cloned().collect();
        let bare = Self { files, ..self.clone() };
        let mut hasher = CanonicalHasher::base(&bare.spec);
        for tensor in bare.spec.tensors() {
            hasher.add(&tensor, &bare.canonical(backend, &tensor.name)?);
        }
        Ok(hasher.finish())
    }

    fn find(&self, name: &str, kind: &'static str) -> Result<(&CacheFile, Place)> {
        let name = if name == "embedding" && self.spec.tied_head { "head" } else { name };
        let hit = self.files.iter().rev().find_map(|f| Some((&**f, f.find(name)?)));
        hit.map_or_else(|| no_such(name, kind), Ok)
    }
}

fn no_such<T>(name: &str, kind: &'static str) -> Result<T> {
    Err(Error::NoSuchTensor { name: name.to_owned(), kind })
}

fn expect<T: PartialEq + std::fmt::Debug>(
    path: &Path,
    what: &'static str,
    expected: T,
    got: T,
) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    let (expected, got) = (format!("{expected:?}"), format!("{got:?}"));
    Err(Error::Mismatch { path: path.to_path_buf(), what, expected, got })
}

/// Stored elements of a tensor.
pub(crate) fn stored_len<B: Linear>(backend: &B, kind: Kind) -> usize {
    match kind {
        Kind::Matrix { shape, .. } => backend.prepared_len(shape),
        Kind::Vector { .. } | Kind::Table { .. } => kind.len(),
    }
}

/// Appends a canonical tensor in its stored form; `scratch` is reused between calls.
pub(crate) fn append<B: Linear>(
    backend: &B,
    writer: &mut Writer,
    kind: Kind,
    canonical: &[f32],
    scratch: &mut Vec<f32>,
) -> Result<()> {
    let Kind::Matrix { shape, layout } = kind else { return writer.append(canonical) };
    // Padding in a prepared form must be the same bytes in every file.
    scratch.clear();
    scratch.resize(backend.prepared_len(shape), 0.0);
    backend.prepare(shape, layout, canonical, scratch)?;
    writer.append(scratch)
}

/// Name of a source in the cache: changes whenever one of its files may have changed.
fn source_key(source: &dyn WeightSource) -> Result<String> {
    let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 base source");
    hasher.update(&source.spec().canonical_bytes());
    for path in source.files() {
        let meta = std::fs::metadata(&path).map_err(Error::io(&path))?;
        let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
        for number in
            [meta.dev(), meta.ino(), meta.len()].into_iter().chain(times.map(i64::cast_unsigned))
        {
            hasher.update(&number.to_le_bytes());
        }
    }
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

fn base_path(folder: &Path, hash: BaseHash, form: &str) -> PathBuf {
    folder.join(format!("{}-{form}.myriad", hash.short()))
}

/// The cached base of a source, if it is there and whole; a damaged one is converted again.
fn lookup<B: Linear>(
    backend: &B,
    source: &dyn WeightSource,
    folder: &Path,
    link: &Path,
) -> Option<MappedBase> {
    let hex = mapped::read_small(link, 64).ok()?;
    let hash = BaseHash::parse(std::str::from_utf8(&hex).ok()?)?;
    let base = MappedBase::open(&base_path(folder, hash, backend.prepared_form())).ok()?;
    let spec = source.spec();
    let same = base.hash == hash
        && base.form() == backend.prepared_form()
        && base.spec.canonical_bytes() == spec.canonical_bytes();
    same.then(|| MappedBase { spec: spec.clone(), ..base })
}

/// Removes what a killed conversion left; the caller holds the folder's lock.
fn sweep(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            // Failure costs space only.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// The tensors of a base with their stored lengths, and the header of their file.
fn header<B: Linear>(backend: &B, spec: &BaseSpec) -> (Vec<(TensorSpec, usize)>, Header) {
    let table: Vec<(TensorSpec, usize)> = spec
        .tensors()
        .into_iter()
        .map(|t| {
            let len = stored_len(backend, t.kind);
            (t, len)
        })
        .collect();
    let header = Header::plan(Role::Base, None, backend.prepared_form(), spec, &table);
    (table, header)
}

fn convert<B: Linear>(backend: &B, source: &dyn WeightSource, folder: &Path) -> Result<PathBuf> {
    let (spec, form) = (source.spec(), backend.prepared_form());
    let (table, header) = header(backend, spec);
    let mut writer = Writer::create(&folder.join("base"), header)?;
    let mut hasher = CanonicalHasher::base(spec);
    let mut scratch = Vec::new();
    for (tensor, _) in &table {
        let canonical = read_finite(source, tensor)?;
        hasher.add(tensor, &canonical);
        append(backend, &mut writer, tensor.kind, &canonical, &mut scratch)?;
    }
    let hash = hasher.finish();
    let path = base_path(folder, hash, form);
    writer.finish(hash, &path)?;
    Ok(path)
}

fn write_link(link: &Path, hash: BaseHash) -> Result<()> {
    let folder = link.parent().unwrap_or(Path::new("."));
    let tmp = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(folder)
        .map_err(Error::io(folder))?;
    let io = |e| Error::Io { path: link.to_path_buf(), source: e };
    let mut file: &File = tmp.as_file();
    file.write_all(hash.to_string().as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
    tmp.persist(link).map_err(|e| io(e.error))?;
    sync_folder(link)
}
