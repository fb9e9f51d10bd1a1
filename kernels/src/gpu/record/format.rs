//! The file of a recording: a magic number with the version, the fields in order, little-endian, and a hash of all.

use super::{Argument, Recording, Snapshot, failed};
use crate::error::Result;
use crate::gpu::Arg;
use std::io::Write;
use std::path::Path;

const MAGIC: &[u8; 8] = b"MYRLNCH1";
const HASH: usize = blake3::OUT_LEN;
/// Stands for "points into no buffer".
const NOWHERE: u32 = u32::MAX;

impl Recording {
    /// Writes the file, whole or not at all.
    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let mut bytes = self.encode();
        bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
        let folder = file.parent().unwrap_or(Path::new("."));
        let whole = || -> std::io::Result<()> {
            let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
            temporary.write_all(&bytes)?;
            temporary.persist(file).map(drop).map_err(|error| error.error)
        };
        whole().map_err(|error| failed(file, &error))
    }

    /// The recording in a file.
    ///
    /// # Errors
    /// [`crate::Error::Backend`] when the file cannot be read, is torn or of another version.
    pub fn read(file: &Path) -> Result<Self> {
        let bytes = std::fs::read(file).map_err(|error| failed(file, &error))?;
        let cut = bytes.len().saturating_sub(HASH);
        let (body, hash) = bytes.split_at(cut);
        let known = body.starts_with(MAGIC) && blake3::hash(body).as_bytes() == hash;
        let decoded = if known { decode(Reader(&body[MAGIC.len()..])) } else { None };
        decoded.ok_or_else(|| failed(file, &"not a whole recording of this version"))
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX).to_le_bytes();
        for text in [&self.module, &self.kernel] {
            out.extend(number(text.len()));
            out.extend(text.as_bytes());
        }
        for word in self.grid.iter().chain(&self.block).chain([&self.shared]) {
            out.extend(word.to_le_bytes());
        }
        out.extend(number(self.args.len()));
        for Argument { arg, target } in &self.args {
            out.push(tag(*arg));
            out.extend(arg.bits().to_le_bytes());
            let (which, at) = target.unwrap_or((NOWHERE as usize, 0));
            out.extend(number(which));
            out.extend(at.to_le_bytes());
        }
        out.extend(number(self.buffers.len()));
        for Snapshot { before, after } in &self.buffers {
            out.extend(number(before.len()));
            out.extend(before);
            out.extend(after);
        }
        out
    }
}

fn tag(arg: Arg) -> u8 {
    match arg {
        Arg::Pointer(_) => 0,
        Arg::I32(_) => 1,
        Arg::U32(_) => 2,
        Arg::F32(_) => 3,
        Arg::U64(_) => 4,
    }
}

/// What is left of a file.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (now, later) = self.0.split_at_checked(n)?;
        self.0 = later;
        Some(now)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn len(&mut self) -> Option<usize> {
        self.u64()?.try_into().ok()
    }

    fn text(&mut self) -> Option<String> {
        let n = self.len()?;
        String::from_utf8(self.bytes(n)?.into()).ok()
    }

    fn words(&mut self) -> Option<[u32; 3]> {
        Some([self.u32()?, self.u32()?, self.u32()?])
    }

    fn argument(&mut self) -> Option<Argument> {
        let (tag, bits) = (self.bytes(1)?[0], self.u64()?);
        let low = u32::try_from(bits).ok();
        let arg = match tag {
            0 => Arg::Pointer(bits),
            1 => Arg::I32(low?.cast_signed()),
            2 => Arg::U32(low?),
            3 => Arg::F32(f32::from_bits(low?)),
            4 => Arg::U64(bits),
            _ => return None,
        };
        let (which, at) = (self.len()?, self.u64()?);
        Some(Argument { arg, target: (which != NOWHERE as usize).then_some((which, at)) })
    }

    fn snapshot(&mut self) -> Option<Snapshot> {
        let n = self.len()?;
        Some(Snapshot { before: self.bytes(n)?.into(), after: self.bytes(n)?.into() })
    }
}

fn decode(mut from: Reader<'_>) -> Option<Recording> {
    let (module, kernel) = (from.text()?, from.text()?);
    let (grid, block, shared) = (from.words()?, from.words()?, from.u32()?);
    let args = (0..from.len()?).map(|_| from.argument()).collect::<Option<_>>()?;
    let buffers = (0..from.len()?).map(|_| from.snapshot()).collect::<Option<_>>()?;
    let whole = from.0.is_empty();
    whole.then_some(Recording { module, kernel, grid, block, shared, args, buffers })
}
