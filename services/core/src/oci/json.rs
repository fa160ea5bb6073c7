//! Checks that all parsers read a JSON text the same way: bounded depth, and no duplicate keys.
//! Pure.
//!
//! Parsers differ in which of two equal keys they use, and some treat `layers` and `Layers` as
//! equal. So a manifest could mean one thing to the registry and another to the node (CWE-436).
//! Only in annotations, keys that differ in case are different.

use std::{
    collections::HashSet,
    fmt,
    hash::{BuildHasher as _, RandomState},
};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::JSON_DEPTH;

/// Refuses JSON that is too deep or has duplicate keys. Otherwise only the syntax is checked.
///
/// # Errors
/// What is wrong, and where.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let check = Check {
        room: JSON_DEPTH,
        exact: false,
    };
    check
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end())
        .map_err(|error| error.to_string())
}

#[derive(Clone, Copy)]
struct Check {
    room: usize,
    /// Whether keys that differ in case are different.
    exact: bool,
}

impl Check {
    fn inner<E: serde::de::Error>(self, exact: bool) -> Result<Self, E> {
        let room = self.room.checked_sub(1).ok_or_else(|| {
            E::custom(format_args!(
                "more than {JSON_DEPTH} levels of objects and lists"
            ))
        })?;
        Ok(Self {
            room,
            exact: self.exact || exact,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Check {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Check {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let inner = self.inner(false)?;
        while list.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        // Keyed hashes instead of the keys themselves, because many short keys would take a
        // multiple of the manifest's bytes.
        let (hasher, mut seen) = (RandomState::new(), HashSet::new());
        while let Some(key) = object.next_key::<String>()? {
            let inner = self.inner(key == "annotations")?;
            let name = if self.exact {
                hasher.hash_one(&key)
            } else {
                hasher.hash_one(folded(&key))
            };
            if !seen.insert(name) {
                let key: String = key.chars().take(100).collect();
                return Err(A::Error::custom(format_args!(
                    "the key {key:?} is there twice"
                )));
            }
            object.next_value_seed(inner)?;
        }
        Ok(())
    }
}

/// The case-folded form of a key, as in Go's `encoding/json` (`foldName`): it reads `layer\u{17f}`
/// as `layers`, and U+212A as `k`.
fn folded(key: &str) -> String {
    let key = key.chars().flat_map(char::to_lowercase);
    let key = key.flat_map(char::to_uppercase);
    key.flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_json(json: &str, expect: &str) {
        match check(json.as_bytes()) {
            Ok(()) => assert_eq!(expect, "", "{json}"),
            Err(message) => {
                assert!(
                    !expect.is_empty() && message.contains(expect),
                    "{json}: {message}"
                );
            }
        }
    }

    #[test]
    fn keys_are_there_once() {
        check_json(r#"{"a":1,"b":{"a":2},"c":[{"a":3},{"a":4}]}"#, "");
        check_json(r#"{"a":1,"a":1}"#, r#""a" is there twice"#);
        check_json(r#"{"a":1,"\u0061":2}"#, "twice");
        check_json(r#"{"layers":[],"Layers":[]}"#, "twice");
        // What Go takes for one key: 's', 'k', Greek letters, the sharp s.
        for (one, other) in [
            ("layers", "layer\u{17f}"),
            ("Layers", "LAYER\u{17f}"),
            ("kind", "\u{212a}ind"),
            ("\u{3c3}", "\u{3c2}"),
            ("\u{3b8}", "\u{3f4}"),
            ("\u{3b8}", "\u{3d1}"),
            ("\u{df}", "\u{1e9e}"),
            ("\u{b5}", "\u{39c}"),
        ] {
            check_json(&format!(r#"{{"{one}":1,"{other}":2}}"#), "twice");
            let own = format!(r#"{{"annotations":{{"{one}":"1","{other}":"2"}}}}"#);
            check_json(&own, "");
        }
        check_json(r#"{"s":1,"\u017f":2}"#, "twice");
        check_json(r#"[{"x":{"y":1,"y":2}}]"#, "twice");
        check_json(r#"{"annotations":{"a":"1","A":"2"}}"#, "");
        check_json(r#"{"annotations":{"a":"1","a":"2"}}"#, "twice");
        check_json(r#"{"annotations":{},"Annotations":{}}"#, "twice");
        check_json(r#"[1,-1,1.5,1e3,"x",null,true,{}]"#, "");
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let objects = |depth: usize| format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        check_json(&nested(JSON_DEPTH), "");
        check_json(&nested(JSON_DEPTH + 1), "levels");
        check_json(&objects(JSON_DEPTH), "");
        check_json(&objects(JSON_DEPTH + 1), "levels");
        check_json(&nested(1_000_000), "levels");
    }

    #[test]
    fn nothing_follows_and_nothing_lacks() {
        check_json("", "EOF");
        check_json("{}{}", "trailing");
        check_json(r#"{"a":"#, "EOF");
    }
}
