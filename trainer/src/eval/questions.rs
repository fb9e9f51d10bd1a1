//! Who asked which query, and how much history they have: LaMP's questions files and OPPU's user files.
//!
//! LaMP: `[{"id", "user_id"?, "profile": […]}]`; OPPU: `[{"user_id", "profile": […], "query": [{"id"}]}]`. Profiles are
//! counted as they stream by, never kept.

use super::EvalError;
use super::predictions::Scalar;
use crate::ids::UserId;
use serde::Deserialize as DeriveDeserialize;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

/// The user of every query, and history sizes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owners {
    /// By query id. A LaMP question without `user_id` is its own user.
    pub users: BTreeMap<String, UserId>,
    /// History items by user, the most where questions of one user differ; empty if any record has no profile.
    pub history: BTreeMap<UserId, usize>,
}

/// Reads either form.
///
/// # Errors
/// The reader's, another form, a query id twice.
pub fn read(input: &mut dyn Read) -> Result<Owners, EvalError> {
    serde_json::from_reader(input).map_err(|e| {
        if e.is_io() { EvalError::Io(e.into()) } else { EvalError::Questions(e.to_string()) }
    })
}

/// A record of either form; other keys are skipped.
#[derive(DeriveDeserialize)]
struct Record {
    id: Option<Scalar>,
    user_id: Option<Scalar>,
    profile: Option<Count>,
    query: Option<Vec<QueryId>>,
}

#[derive(DeriveDeserialize)]
struct QueryId {
    id: Scalar,
}

impl<'de> Deserialize<'de> for Owners {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_seq(OwnersVisitor)
    }
}

struct OwnersVisitor;

impl<'de> Visitor<'de> for OwnersVisitor {
    type Value = Owners;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of questions or of users")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Owners, A::Error> {
        let (mut owners, mut whole) = (Owners::default(), true);
        while let Some(record) = seq.next_element::<Record>()? {
            let (user, ids) = match (record.id, record.user_id, record.query) {
                (_, Some(user), Some(queries)) => {
                    (user.0, queries.into_iter().map(|query| query.id.0).collect())
                }
                (Some(id), Some(user), None) => (user.0, vec![id.0]),
                (Some(id), None, None) => (id.0.clone(), vec![id.0]),
                (_, None, Some(_)) => return Err(A::Error::missing_field("user_id")),
                (None, _, None) => return Err(A::Error::missing_field("id")),
            };
            let user = UserId::new(&user);
            whole &= record.profile.is_some();
            let size = record.profile.map_or(0, |count| count.0);
            let known = owners.history.entry(user.clone()).or_insert(size);
            *known = size.max(*known);
            for id in ids {
                if owners.users.contains_key(&id) {
                    return Err(A::Error::custom(format!("query id {id:?} is there twice")));
                }
                owners.users.insert(id, user.clone());
            }
        }
        if !whole {
            owners.history.clear();
        }
        Ok(owners)
    }
}

/// The length of a list.
struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_seq(CountVisitor)
    }
}

struct CountVisitor;

impl<'de> Visitor<'de> for CountVisitor {
    type Value = Count;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of profile items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Count, A::Error> {
        let mut count = 0;
        while seq.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Count(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> Result<Owners, EvalError> {
        read(&mut text.as_bytes())
    }

    fn users(owners: &Owners) -> Vec<(&str, &str)> {
        owners.users.iter().map(|(id, user)| (id.as_str(), user.as_str())).collect()
    }

    fn sizes(owners: &Owners) -> Vec<(&str, usize)> {
        owners.history.iter().map(|(user, size)| (user.as_str(), *size)).collect()
    }

    #[test]
    fn both_forms_are_read() {
        let lamp = r#"[{"id":"10","input":"x","profile":[{"id":"1","text":"]"},{}],"user_id":7},
            {"id":11,"user_id":"7","profile":[{}]},{"id":"12","profile":[]}]"#;
        let owners = from(lamp).unwrap();
        assert_eq!(users(&owners), [("10", "7"), ("11", "7"), ("12", "12")]);
        assert_eq!(sizes(&owners), [("12", 0), ("7", 2)]);
        let oppu = r#"[{"user_id":3,"profile":[{},{},{}],"query":[{"id":1,"input":"","gold":"4"},{"id":2}]},
            {"user_id":"4","query":[]}]"#;
        let owners = from(oppu).unwrap();
        assert_eq!(users(&owners), [("1", "3"), ("2", "3")]);
        // User 4 has no profile: sizes that are not whole are none.
        assert!(owners.history.is_empty());
    }

    #[test]
    fn other_forms_are_refused() {
        for (text, part) in [
            ("{}", "a list of questions"),
            ("[3]", "struct Record"),
            ("[{}]", "missing field `id`"),
            (r#"[{"query":[]}]"#, "missing field `user_id`"),
            (r#"[{"id":"1","profile":{}}]"#, "a list of profile items"),
            (r#"[{"id":"1"},{"id":1}]"#, "\"1\" is there twice"),
            (r#"[{"id":"1","profile":[{}"#, "EOF"),
            ("\u{feff}[]", "expected value"),
        ] {
            let shown = from(text).unwrap_err().to_string();
            assert!(shown.contains(part), "{shown}");
        }
    }
}
