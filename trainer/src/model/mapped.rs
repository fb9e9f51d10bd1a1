//! Files mapped into memory: the one place of this module with `unsafe`.

use super::error::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

// Cached files hold little-endian numbers that are used where they lie.
const _: () = assert!(cfg!(target_endian = "little"), "mapped weights are little-endian");

/// Maps a whole file for reading; an empty file is refused.
///
/// # Errors
/// [`Error::Io`], or [`Error::Format`] for an empty file.
pub(crate) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io(path))?;
    let meta = file.metadata().map_err(Error::io(path))?;
    if !meta.is_file() || meta.len() == 0 {
        return Err(Error::format(path, "empty, or not a regular file"));
    }
    #[expect(
        unsafe_code,
        reason = "mapping is how the ranks of a node share the pages of the weights"
    )]
    // SAFETY: the map is private and read-only. Cached files are written under another name, renamed into place and
    // never modified; a base's own files are only read while they are converted, and nobody may rewrite them then.
    let map = unsafe { Mmap::map(&file) };
    map.map_err(Error::io(path))
}

/// Reads a small file whole.
///
/// # Errors
/// [`Error::Io`], or [`Error::Format`] when it has more than `limit` bytes.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let file = File::open(path).map_err(Error::io(path))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::format(path, format!("larger than {limit} bytes")));
    }
    Ok(bytes)
}
