//! Names that must not be confused: users, slots, optimiser steps.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// A user's id as written in the data; data, never a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(Arc<str>);

impl UserId {
    /// Takes the id as it is.
    pub fn new(id: &str) -> Self {
        Self(Arc::from(id))
    }

    /// The id as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The user's key: BLAKE3 of the id under a domain of its own. File names and seeds use the key, never the id.
    pub fn key(&self) -> UserKey {
        UserKey(blake3::derive_key("myriad 2026 user id", self.0.as_bytes()))
    }
}

impl fmt::Display for UserId {
    /// The id with control characters escaped, safe in a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// The 32-byte name of a user in files, orders and seeds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserKey(pub [u8; 32]);

impl UserKey {
    /// 64 lower-case hexadecimal digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The key of the counter-based random streams of this user under the run's seed.
    pub fn random_key(&self, seed: u64) -> [u32; 2] {
        let mut hasher = blake3::Hasher::new_derive_key("myriad 2026 random key");
        hasher.update(&seed.to_le_bytes()).update(&self.0);
        let h = hasher.finalize();
        let word = |i: usize| u32::from_le_bytes([0, 1, 2, 3].map(|b| h.as_bytes()[4 * i + b]));
        [word(0), word(1)]
    }
}

impl fmt::Debug for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex()[..16])
    }
}

/// A place in the adapter slabs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// Optimiser steps a user has finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Step(pub u32);
