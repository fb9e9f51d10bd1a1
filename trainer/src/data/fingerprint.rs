//! Hashes over parsed records: equal records give equal hashes however the file spells them.

use super::{Item, UserRecord};
use crate::ids::UserKey;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A BLAKE3 hash, printed and serialised as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<Fingerprint> for String {
    fn from(value: Fingerprint) -> Self {
        value.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let hash = blake3::Hash::from_hex(text.as_bytes());
        hash.map(|h| Self(*h.as_bytes())).map_err(|e| format!("not a fingerprint: {e}"))
    }
}

/// Hash of one record: history and queries in order, fields by name, id, the profile text if there is
/// one; every text length-prefixed.
pub fn user_fingerprint(record: &UserRecord) -> Fingerprint {
    let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 user record");
    let mut text = |s: &str| {
        hasher.update(&(s.len() as u64).to_le_bytes()).update(s.as_bytes());
    };
    let mut items = |list: &[Item]| {
        text(&list.len().to_string());
        for item in list {
            text(&item.id);
            text(&item.fields.len().to_string());
            for (name, value) in &item.fields {
                text(name);
                text(value);
            }
        }
    };
    items(&record.history);
    items(&record.queries);
    text(record.id.as_str());
    if let Some(profile) = &record.profile {
        text(profile);
    }
    Fingerprint(*hasher.finalize().as_bytes())
}

/// Hash of a data set: its personal and population users' (key, hash) pairs, each set sorted by key.
///
/// *Order*: independent of the order of users in the files.
pub fn fingerprint(
    personal: &[(UserKey, Fingerprint)],
    population: &[(UserKey, Fingerprint)],
) -> Fingerprint {
    let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 data set");
    for set in [personal, population] {
        let mut sorted = set.to_vec();
        sorted.sort_unstable();
        hasher.update(&(sorted.len() as u64).to_le_bytes());
        for (key, hash) in &sorted {
            hasher.update(&key.0).update(&hash.0);
        }
    }
    Fingerprint(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Role, jsonl};
    use std::path::Path;

    fn of(line: &str) -> Fingerprint {
        let limits = jsonl::Limits::new(Role::Personal);
        let mut reader = jsonl::Reader::new(line.as_bytes(), Path::new("t"), limits);
        user_fingerprint(&reader.next().unwrap().unwrap())
    }

    #[test]
    fn spelling_does_not_count_content_does() {
        let plain = of(r#"{"id":"u","history":[{"id":"1","text":"é","score":5}],"queries":[]}"#);
        let other = of(r#" {"history":[{"score":"5","text":"\u00e9","id":1}], "id":"u" }"#);
        assert_eq!(plain, other);
        for changed in [
            r#"{"id":"v","history":[{"id":"1","text":"é","score":5}]}"#,
            r#"{"id":"u","history":[{"id":"1","text":"é5","score":""}]}"#,
            r#"{"id":"u","history":[{"id":"1","text":"é","score":4}]}"#,
            r#"{"id":"u","history":[{"id":"1","text":"é","score":5}],"queries":[{"text":""}]}"#,
            r#"{"id":"u","history":[{"id":"1","text":"é","score":5}],"profile":""}"#,
            r#"{"id":"u","history":[{"id":"1","text":"é","score":5}],"profile":"p"}"#,
        ] {
            assert_ne!(plain, of(changed), "{changed}");
        }
    }

    #[test]
    fn moving_an_item_to_the_queries_counts() {
        let x = r#"{"id":"1","text":"x"}"#;
        let y = r#"{"id":"2","text":"y"}"#;
        let both = of(&format!(r#"{{"id":"u","history":[{x},{y}],"queries":[]}}"#));
        assert_ne!(both, of(&format!(r#"{{"id":"u","history":[{x}],"queries":[{y}]}}"#)));
        assert_ne!(both, of(&format!(r#"{{"id":"u","history":[{y},{x}],"queries":[]}}"#)));
    }

    #[test]
    fn a_set_has_no_order_but_sides() {
        let (a, b) =
            ((UserKey([1; 32]), Fingerprint([2; 32])), (UserKey([3; 32]), Fingerprint([4; 32])));
        assert_eq!(fingerprint(&[a, b], &[]), fingerprint(&[b, a], &[]));
        assert_ne!(fingerprint(&[a], &[b]), fingerprint(&[a, b], &[]));
        let text = serde_json::to_string(&b.1).unwrap();
        assert_eq!(serde_json::from_str::<Fingerprint>(&text).unwrap(), b.1);
        assert!(serde_json::from_str::<Fingerprint>("\"ab\"").is_err());
    }
}
