//! A JSON parser that keeps only the parts named by a [`Shape`].
//!
//! A review holds a pod twice, and most of it is not needed. Other parts are validated and dropped
//! while parsing, so a review costs little more memory than its body. The parser bounds the nesting
//! (128 levels), [`Budget`] bounds what is kept.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Which parts of a document are kept.
#[derive(Debug)]
pub(super) enum Shape {
    /// Text, numbers and booleans. A list or an object is kept without its content.
    Plain,
    /// The members of an object with these names.
    Members(&'static [(&'static str, Self)]),
    /// All members of an object.
    Map,
    /// All items of a list.
    List(&'static Self),
}

/// How much of one document may still be kept.
#[derive(Debug)]
pub(super) struct Budget {
    values: usize,
    bytes: usize,
    exceeded: bool,
}

impl Budget {
    /// A budget of this number of values and bytes of text.
    pub(super) fn at_most(values: usize, bytes: usize) -> Self {
        Self {
            values,
            bytes,
            exceeded: false,
        }
    }

    /// Whether something was dropped because the budget was used up.
    pub(super) fn exceeded(&self) -> bool {
        self.exceeded
    }

    /// Takes one value with a text of this length from the budget. Returns whether it may be kept.
    fn take(&mut self, bytes: usize) -> bool {
        match (self.values.checked_sub(1), self.bytes.checked_sub(bytes)) {
            (Some(values), Some(bytes)) if !self.exceeded => {
                (self.values, self.bytes) = (values, bytes);
                true
            }
            _ => {
                self.exceeded = true;
                false
            }
        }
    }
}

/// Parses `text` and keeps what `shape` names. Fails if the text is not a JSON document.
pub(super) fn parse(
    text: &[u8],
    shape: &'static Shape,
    budget: &mut Budget,
) -> Result<Value, serde_json::Error> {
    let mut parser = serde_json::Deserializer::from_slice(text);
    let value = Pruned { shape, budget }.deserialize(&mut parser)?;
    parser.end()?;
    Ok(value)
}

/// Deserializes a value by its shape.
struct Pruned<'a> {
    shape: &'static Shape,
    budget: &'a mut Budget,
}

impl Pruned<'_> {
    fn plain(self, bytes: usize, value: impl FnOnce() -> Value) -> Value {
        if self.budget.take(bytes) {
            value()
        } else {
            Value::Null
        }
    }
}

impl<'de> DeserializeSeed<'de> for Pruned<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Value, D::Error> {
        parser.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pruned<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(self.plain(0, || value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(self.plain(0, || value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(self.plain(0, || value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(self.plain(0, || value.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(self.plain(text.len(), || text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        let keeps = self.budget.take(0);
        match self.shape {
            Shape::List(shape) if keeps => {
                while !self.budget.exceeded()
                    && let Some(entry) = list.next_element_seed(Pruned {
                        shape,
                        budget: &mut *self.budget,
                    })?
                {
                    entries.push(entry);
                }
            }
            _ => {}
        }
        while list.next_element_seed(Skip)?.is_some() {}
        Ok(Value::Array(entries))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        let keeps = self.budget.take(0);
        match self.shape {
            Shape::Members(names) if keeps => {
                while let Some(known) = object.next_key_seed(Known(names))? {
                    let Some((name, shape)) = known else {
                        object.next_value_seed(Skip)?;
                        continue;
                    };
                    let budget = &mut *self.budget;
                    let value = object.next_value_seed(Pruned { shape, budget })?;
                    members.insert((*name).to_owned(), value);
                }
            }
            Shape::Map if keeps => {
                while let Some(name) = object.next_key_seed(Name(&mut *self.budget))? {
                    let Some(name) = name else {
                        object.next_value_seed(Skip)?;
                        continue;
                    };
                    let value = object.next_value_seed(Pruned {
                        shape: &Shape::Plain,
                        budget: &mut *self.budget,
                    })?;
                    members.insert(name, value);
                }
            }
            _ => {}
        }
        while object.next_key_seed(Skip)?.is_some() {
            object.next_value_seed(Skip)?;
        }
        Ok(Value::Object(members))
    }
}

/// Looks up the name of a member among those that are kept.
struct Known(&'static [(&'static str, Shape)]);

impl<'de> DeserializeSeed<'de> for Known {
    type Value = Option<&'static (&'static str, Shape)>;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_str(self)
    }
}

impl Visitor<'_> for Known {
    type Value = Option<&'static (&'static str, Shape)>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|(known, _)| *known == name))
    }
}

/// Keeps the name of a member if the budget allows it.
struct Name<'a>(&'a mut Budget);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.take(name.len()).then(|| name.to_owned()))
    }
}

/// Validates a value and drops it. Unlike `IgnoredAny` it respects the nesting limit of the parser
/// and checks all text.
struct Skip;

impl<'de> DeserializeSeed<'de> for Skip {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<(), D::Error> {
        parser.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Skip {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
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

    fn visit_f64<E>(self, value: f64) -> Result<(), E>
    where
        E: serde::de::Error,
    {
        if value.is_finite() {
            Ok(())
        } else {
            Err(E::custom("a number out of range"))
        }
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        while object.next_key_seed(Self)?.is_some() {
            object.next_value_seed(Self)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SHAPE: Shape = Shape::Members(&[
        ("text", Shape::Plain),
        ("map", Shape::Map),
        (
            "list",
            Shape::List(&Shape::Members(&[("name", Shape::Plain)])),
        ),
    ]);

    fn read(text: &str, values: usize, bytes: usize) -> (Result<Value, String>, bool) {
        static STATIC: Shape = SHAPE;
        let mut budget = Budget::at_most(values, bytes);
        let value = parse(text.as_bytes(), &STATIC, &mut budget);
        (value.map_err(|error| error.to_string()), budget.exceeded())
    }

    #[test]
    fn only_what_is_named_is_kept() {
        for (text, expect) in [
            (
                r#"{"text":"a","other":{"x":[1,"y",{}]}}"#,
                json!({"text": "a"}),
            ),
            (
                r#"{"text":{"a":1},"list":{"a":1},"map":[1]}"#,
                json!({"text": {}, "list": {}, "map": []}),
            ),
            (
                r#"{"map":{"a":"1","b":{"c":2},"d":null}}"#,
                json!({"map": {"a": "1", "b": {}, "d": null}}),
            ),
            (
                r#"{"list":[{"name":"a","x":1},7,null,[1]]}"#,
                json!({"list": [{"name": "a"}, 7, null, []]}),
            ),
            (r#"{"text":1,"text":"\u0061"}"#, json!({"text": "a"})),
            ("[1]", json!([])),
            ("true", json!(true)),
        ] {
            assert_eq!(read(text, 99, 99), (Ok(expect), false), "{text}");
        }
    }

    #[test]
    fn invalid_json_is_refused_at_any_depth() {
        let deep =
            |levels: usize| format!("{{\"x\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(read(&deep(100), 99, 99).0.is_ok());
        for text in [
            "",
            "{",
            "{}x",
            r#"{"x":}"#,
            r#"{"x":"\q"}"#,
            r#"{"list":[1,]}"#,
            r#"{"x":1e999}"#,
            &deep(200),
        ] {
            assert!(read(text, 99, 99).0.is_err(), "{text}");
            assert_eq!(
                serde_json::from_str::<Value>(text).is_err(),
                read(text, 99, 99).0.is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_kept_is_bounded_in_values_and_in_bytes() {
        let exceeds = |text: &str, values, bytes| {
            let (value, exceeded) = read(text, values, bytes);
            assert!(value.is_ok(), "{text}: {value:?}");
            exceeded
        };
        // The object, the list and three entries.
        assert!(!exceeds(r#"{"list":[1,2,3]}"#, 5, 0));
        assert!(exceeds(r#"{"list":[1,2,3]}"#, 4, 0));
        // The object, the map, two names and two values.
        assert!(!exceeds(r#"{"map":{"ab":"c","d":"e"}}"#, 6, 5));
        assert!(exceeds(r#"{"map":{"ab":"c","d":"e"}}"#, 5, 5));
        assert!(exceeds(r#"{"map":{"ab":"c","d":"e"}}"#, 6, 4));
        assert!(exceeds(r#"{"text":"abcdef","x":1}"#, 9, 5));
        assert!(
            !exceeds(r#"{"x":"abcdef","y":[1,2,3]}"#, 1, 0),
            "what is dropped costs nothing"
        );
    }
}
