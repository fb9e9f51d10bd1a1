//! Safetensors files, written byte by byte so that equal contents are equal files, and read within bounds.

use super::error::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::ops::Range;
use std::path::Path;

/// Longest header of a file we write or read; 80 layers of 7 sites take 160 KB.
pub(crate) const MAX_HEADER: usize = 1 << 20;

/// A header in the making: metadata and tensors in the order given, all `f32`, from one flat vector.
pub(crate) struct Header(String);

/// A whole file.
pub(crate) struct Encoded {
    /// Bytes of the header.
    pub(crate) header: usize,
    /// The file.
    pub(crate) bytes: Vec<u8>,
}

impl Header {
    /// Metadata, no tensor yet.
    pub(crate) fn new(metadata: &[(&str, String)]) -> Self {
        let mut header = String::from("{\"__metadata__\":{");
        for (i, (name, value)) in metadata.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(header, "{comma}{}:{}", quoted(name), quoted(value));
        }
        header.push('}');
        Self(header)
    }

    /// The tensor that lies at `range` of the flat vector.
    pub(crate) fn add(&mut self, name: &str, dims: &[usize], range: Range<usize>) {
        let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
        let (name, dims) = (quoted(name), dims.join(","));
        let (begin, end) = (4 * range.start, 4 * range.end);
        let _ = write!(
            self.0,
            ",{name}:{{\"dtype\":\"F32\",\"shape\":[{dims}],\"data_offsets\":[{begin},{end}]}}"
        );
    }

    /// The file of this header and the flat vector.
    pub(crate) fn with(self, values: &[f32]) -> Encoded {
        let mut header = self.0;
        header.push('}');
        // The data must begin at a multiple of 8.
        while !header.len().is_multiple_of(8) {
            header.push(' ');
        }
        let mut bytes = Vec::with_capacity(8 + header.len() + 4 * values.len());
        bytes.extend_from_slice(&(header.len() as u64).to_le_bytes());
        bytes.extend_from_slice(header.as_bytes());
        for value in values {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        Encoded { header: header.len(), bytes }
    }
}

/// A safetensors file within our bounds.
#[derive(Debug)]
pub(crate) struct File<'a> {
    /// Its metadata.
    pub(crate) metadata: BTreeMap<String, String>,
    /// Name, dtype, shape, bytes of each tensor, by name.
    pub(crate) tensors: BTreeMap<String, Tensor<'a>>,
}

/// A tensor of such a file.
#[derive(Debug)]
pub(crate) struct Tensor<'a> {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: &'a [u8],
}

/// Reads a safetensors file: header at most 1 MiB, no name twice, tensors tiling the data exactly.
///
/// # Errors
/// [`Error::Refused`] naming `path`.
pub(crate) fn parse<'a>(bytes: &'a [u8], path: &Path) -> Result<File<'a>> {
    let refused = |what: String| Error::Refused { path: path.to_owned(), what };
    let header = bytes.first_chunk().map(|b| u64::from_le_bytes(*b));
    let header = header.and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= MAX_HEADER);
    let header =
        header.ok_or_else(|| refused("its header is missing or above 1 MiB".to_owned()))?;
    let json =
        bytes.get(8..8 + header).ok_or_else(|| refused("its header is cut off".to_owned()))?;
    let unique: std::result::Result<UniqueKeys, _> = serde_json::from_slice(json);
    unique.map_err(|e| refused(format!("its header is malformed: {e}")))?;
    let (_, meta) = SafeTensors::read_metadata(bytes).map_err(|e| refused(e.to_string()))?;
    let file = SafeTensors::deserialize(bytes).map_err(|e| refused(e.to_string()))?;
    let tensors = file.iter().map(|(name, view)| {
        let (dtype, shape) = (view.dtype(), view.shape().to_vec());
        (name.to_owned(), Tensor { dtype, shape, data: view.data() })
    });
    let metadata = meta.metadata().iter().flatten();
    let metadata = metadata.map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok(File { metadata, tensors: tensors.collect() })
}

/// A JSON string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Accepts a JSON object none of whose keys comes twice.
struct UniqueKeys;

impl<'de> serde::Deserialize<'de> for UniqueKeys {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(Self)
    }
}

impl<'de> Visitor<'de> for UniqueKeys {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object without a repeated key")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self, A::Error> {
        let mut seen = BTreeSet::new();
        while let Some((key, _)) = map.next_entry::<String, IgnoredAny>()? {
            if let Some(twice) = seen.replace(key) {
                return Err(serde::de::Error::custom(format!("{twice:?} comes twice")));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_twice_is_refused() {
        let json = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.extend_from_slice(&[0; 4]);
        assert!(SafeTensors::deserialize(&bytes).is_ok(), "the crate alone lets it pass");
        let error = parse(&bytes, Path::new("x")).unwrap_err().to_string();
        assert!(error.contains("comes twice"), "{error}");
        let huge = u64::MAX.to_le_bytes();
        assert!(parse(&huge, Path::new("x")).is_err());
    }
}
