//! What kernels refuse after seeing values: one word of the device, noted without waiting, checked by reads.
//!
//! `refuse` of `cu/common.cuh` keeps the largest word `code | !row | value`, so the one that is reported
//! (highest code, then lowest row) does not depend on the order of threads. The kernel leaves the row it
//! refuses unwritten. [`TABLE`] mirrors the enum `Refusal` of that file; a test holds the two together.

use crate::error::Error;

/// Operation and what it refuses, by code; code zero is nothing. New entries go to the end of both lists.
pub const TABLE: [(&str, &str, &str); 22] = [
    ("REFUSED_EMBED_ID", "embed", "id"),
    ("REFUSED_EMBED_POSITION", "embed", "position"),
    ("REFUSED_GATHER_ROW", "gather", "index"),
    ("REFUSED_SCATTER_ROW", "scatter", "index"),
    ("REFUSED_LOOKUP_ID", "lookup", "id"),
    ("REFUSED_ROPE_POSITION", "rope", "position"),
    ("REFUSED_POOL_RANGE", "pool", "range whose end"),
    ("REFUSED_POOL_OVERLAP", "pool", "range that overlaps the one before: its start"),
    ("REFUSED_LABEL", "head_loss", "target"),
    ("REFUSED_UPDATE", "adamw", "update at offset"),
    ("REFUSED_LORA_RANK", "lora", "segment of that number: its rank"),
    ("REFUSED_LORA_SEGMENT", "lora", "segment of that number: its extent, from pack row"),
    ("REFUSED_INTENT_ORDER", "intent", "segment that overlaps the one before: its start"),
    ("REFUSED_INTENT_END", "intent", "segment whose end"),
    ("REFUSED_INTENT_DELTA", "intent", "segment whose delta, from element"),
    ("REFUSED_INTENT_GRADIENT", "intent", "segment whose gradient, from element"),
    (
        "REFUSED_INTENT_OVERLAP",
        "intent",
        "segment whose gradient overlaps another's: it, from element",
    ),
    ("REFUSED_CLASS_KIND", "class_loss", "kind"),
    ("REFUSED_CLASS_TARGET", "class_loss", "target"),
    ("REFUSED_CLASS_SOFT", "class_loss", "soft flag"),
    ("REFUSED_CLASS_TEACHER", "class_loss", "without a teacher, kind"),
    (
        "REFUSED_CLASS_NUMBER",
        "class_loss",
        "of gamma 4, alpha 5, temperature 6, beta 7, margin 8 the number",
    ),
];

/// Rows are told up to this one.
const LAST_ROW: u64 = 0xff_ffff;

/// The error in a word `code (8 bits) | LAST_ROW - row (24) | value (32)`; none for zero.
pub fn decode(word: u64) -> Option<Error> {
    if word == 0 {
        return None;
    }
    let (code, row, value) = (word >> 56, LAST_ROW - (word >> 32 & LAST_ROW), word & 0xffff_ffff);
    let entry = usize::try_from(code).ok().and_then(|code| TABLE.get(code.checked_sub(1)?));
    let (op, of) = entry.map_or(("device", "unknown"), |(_, op, of)| (*op, *of));
    Some(Error::Routing { op, what: format!("row {row}: {of} {value} is out of range") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_names_operation_row_and_value() {
        assert_eq!(decode(0), None);
        let word = (3u64 << 56) | ((LAST_ROW - 17) << 32) | 99;
        let text = decode(word).map(|e| e.to_string());
        assert_eq!(text.as_deref(), Some("gather: row 17: index 99 is out of range"));
        assert!(decode(u64::MAX).is_some_and(|e| e.to_string().starts_with("device: row 0")));
    }

    #[test]
    fn device_code_has_the_same_codes() {
        let text = crate::gpu::source::header("common.cuh").unwrap_or_default();
        let (_, body) = text.split_once("enum Refusal").expect("common.cuh has the enum");
        let (body, _) = body.split_once('}').expect("the enum ends");
        let names: Vec<&str> =
            body.split([' ', ',', '\n', '{']).filter(|w| w.starts_with("REFUSED_")).collect();
        assert_eq!(names, TABLE.map(|(name, _, _)| name));
        assert!(body.contains("REFUSED_EMBED_ID = 1"));
    }
}
