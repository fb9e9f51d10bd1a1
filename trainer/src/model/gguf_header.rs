//! A bounded walk over a GGUF header, before any other reader sees the file.
//!
//! Owns the checks candle's reader does not make: an alignment that is zero, products of dimensions that overflow, data
//! ranges outside the file, names given twice, and arrays whose values would take far more memory than the file. What
//! passes here is parsed by candle-core without a panic (held by a mutation test). Knows nothing of models.

use super::error::{Error, Result};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// Most array elements of all metadata together (a vocabulary of 256 K tokens with its merges has fewer than 1 M).
const MAX_ELEMENTS: u64 = 1 << 22;
/// Longest metadata and tensor table, in bytes.
const MAX_HEADER_BYTES: u64 = 256 << 20;
/// Most dimensions of a tensor, as in ggml.
const MAX_DIMS: u32 = 4;

/// The element types candle dequantises: code, name, elements of a block, bytes of a block.
const TYPES: &[(u32, &str, u64, u64)] = &[
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (30, "BF16", 1, 2),
];

/// Checks the header of `path`.
///
/// # Errors
/// [`Error::Format`] saying what is wrong, [`Error::TensorType`] for an element type that cannot be read, [`Error::Io`].
pub(crate) fn check(path: &Path) -> Result<()> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let size = file.seek(SeekFrom::End(0)).map_err(Error::io(path))?;
    file.rewind().map_err(Error::io(path))?;
    Walk {
        path,
        reader: BufReader::with_capacity(1 << 16, file),
        at: 0,
        size,
        wide: true,
        elements: 0,
    }
    .run()
}

struct Walk<'a, R> {
    path: &'a Path,
    reader: R,
    at: u64,
    size: u64,
    /// Lengths have 8 bytes (version 2 and 3) instead of 4.
    wide: bool,
    elements: u64,
}

struct Entry {
    name: String,
    offset: u64,
    bytes: u64,
}

impl<R: Read> Walk<'_, R> {
    fn run(&mut self) -> Result<()> {
        if self.bytes(4, "magic")? != b"GGUF" {
            return Err(self.bad("not a GGUF file (little-endian magic `GGUF` expected)"));
        }
        let version = self.u32("version")?;
        if !(1..=3).contains(&version) {
            return Err(self.bad(format!("version {version}; supported: 1 to 3")));
        }
        self.wide = version > 1;
        let tensors = self.length("tensor count")?;
        let entries = self.length("metadata count")?;
        // Smallest entries: a name's length, a type and a byte; a name's length, two numbers and an offset.
        let least = tensors.saturating_mul(20).saturating_add(entries.saturating_mul(9));
        if least > self.size {
            return Err(self.bad(format!("{tensors} tensors and {entries} entries cannot fit")));
        }
        let mut alignment = 32;
        let mut keys = BTreeSet::new();
        for _ in 0..entries {
            let key = self.string("metadata key")?;
            let kind = self.u32("metadata type")?;
            if key == "general.alignment" {
                if kind != 4 {
                    return Err(self.bad("general.alignment must be an unsigned 32-bit number"));
                }
                alignment = u64::from(self.u32("alignment")?);
                if !alignment.is_power_of_two() || alignment > 1 << 16 {
                    return Err(self.bad(format!("alignment {alignment}")));
                }
            } else {
                self.value(kind, true)?;
            }
            if !keys.insert(key.clone()) {
                return Err(self.bad(format!("metadata key {key:?} is there twice")));
            }
        }
        let mut names = BTreeSet::new();
        let mut table = Vec::new();
        for _ in 0..tensors {
            let entry = self.tensor()?;
            if !names.insert(entry.name.clone()) {
                return Err(self.bad(format!("tensor {:?} is there twice", entry.name)));
            }
            table.push(entry);
        }
        let data = self.at.next_multiple_of(alignment);
        for entry in table {
            let end =
                data.checked_add(entry.offset).and_then(|start| start.checked_add(entry.bytes));
            if end.is_none_or(|end| end > self.size) || entry.offset % alignment != 0 {
                return Err(self.bad(format!(
                    "tensor {:?} lies outside the file or is not aligned",
                    entry.name
                )));
            }
        }
        Ok(())
    }

    fn tensor(&mut self) -> Result<Entry> {
        let name = self.string("tensor name")?;
        let dims = self.u32("dimensions")?;
        if dims == 0 || dims > MAX_DIMS {
            return Err(self.bad(format!("tensor {name:?} has {dims} dimensions")));
        }
        let mut count: u64 = 1;
        let mut row = 0;
        for i in 0..dims {
            let dim = self.length("dimension")?;
            row = if i == 0 { dim } else { row };
            count = match count.checked_mul(dim) {
                Some(product) if product > 0 && product < 1 << 48 => product,
                _ => {
                    return Err(
                        self.bad(format!("dimensions of tensor {name:?} are zero or too large"))
                    );
                }
            };
        }
        let code = self.u32("element type")?;
        let Some(&(_, _, block, block_bytes)) = TYPES.iter().find(|t| t.0 == code) else {
            return Err(Error::TensorType {
                path: self.path.to_path_buf(),
                name,
                got: format!("number {code}"),
                supported: "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K",
            });
        };
        if row % block != 0 {
            return Err(
                self.bad(format!("rows of tensor {name:?} do not end on a block of {block}"))
            );
        }
        let offset = self.number(8, "offset")?;
        Ok(Entry { name, offset, bytes: count / block * block_bytes })
    }

    fn value(&mut self, kind: u32, may_nest: bool) -> Result<()> {
        let width = match kind {
            0 | 1 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            7 => {
                return match self.bytes(1, "flag")?[0] {
                    0 | 1 => Ok(()),
                    other => Err(self.bad(format!("flag has the value {other}"))),
                };
            }
            8 => return self.string("metadata value").map(|_| ()),
            9 if may_nest => {
                let kind = self.u32("array type")?;
                let len = self.length("array length")?;
                self.elements = self.elements.saturating_add(len);
                if self.elements > MAX_ELEMENTS || len > self.size - self.at {
                    return Err(self.bad(format!("an array of {len} elements")));
                }
                for _ in 0..len {
                    self.value(kind, false)?;
                }
                return Ok(());
            }
            10..=12 => 8,
            other => {
                return Err(self.bad(format!("metadata type {other}, or an array in an array")));
            }
        };
        self.bytes(width, "metadata value").map(|_| ())
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let len = self.length(what)?;
        let len = usize::try_from(len).map_err(|_| self.bad(format!("{what} of {len} bytes")))?;
        let bytes = self.bytes(len, what)?;
        let text =
            String::from_utf8(bytes).map_err(|_| self.bad(format!("{what} is not UTF-8")))?;
        // candle drops trailing zeros, so two names that differ here would be one there.
        if text.ends_with('\0') {
            return Err(self.bad(format!("{what} ends with a zero byte")));
        }
        Ok(text)
    }

    fn length(&mut self, what: &str) -> Result<u64> {
        self.number(if self.wide { 8 } else { 4 }, what)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        let b = self.bytes(4, what)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn number(&mut self, width: usize, what: &str) -> Result<u64> {
        let bytes = self.bytes(width, what)?;
        Ok(bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    fn bytes(&mut self, len: usize, what: &str) -> Result<Vec<u8>> {
        let end = self.at.saturating_add(len as u64);
        if end > self.size || end > MAX_HEADER_BYTES {
            return Err(
                self.bad(format!("{what} of {len} bytes at byte {} leaves the file", self.at))
            );
        }
        let mut bytes = vec![0; len];
        self.reader.read_exact(&mut bytes).map_err(Error::io(self.path))?;
        self.at = end;
        Ok(bytes)
    }

    fn bad(&self, what: impl Into<String>) -> Error {
        Error::format(self.path, what)
    }
}
