//! What is kept of a list while it is read. Each entry is read by itself, into a bounded number of
//! bytes: an invalid entry does not affect the others, and invalid data uses no memory.

use std::{collections::BTreeMap, fmt, mem::size_of};

use holdfast_core::{Digest, Tag};
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::{
    Error, Result,
    lists::{MAX_REFERRERS, MAX_TAGS, Pages, Referrer},
};
use crate::limits::{REFERRER_ANNOTATION_BYTES, UPSTREAM_LIST_BYTES};

/// Most bytes of a text of an entry. Longer ones say nothing: no media type and no digest is so
/// long.
const TEXT_BYTES: usize = 1024;
/// What an annotation takes in memory beside its bytes.
const ANNOTATION_COST: usize = 128;
/// What each allocation takes beside its bytes.
const ALLOCATION_COST: usize = 16;

/// What lists have for entries.
pub(super) trait Entry: Sized {
    /// The member of a page that has them.
    const MEMBER: &'static str;
    /// Whether a page is an index: without this member and a schema version it is no list.
    const IS_INDEX: bool;
    /// Most entries of a list.
    const MOST: usize;

    /// Makes sense of one.
    fn of(raw: RawEntry) -> Option<Self>;

    /// About the bytes that it takes in memory.
    fn cost(&self) -> usize;
}

impl Entry for Tag {
    const MEMBER: &'static str = "tags";
    const IS_INDEX: bool = false;
    const MOST: usize = MAX_TAGS;

    fn of(raw: RawEntry) -> Option<Self> {
        Self::parse(&raw.text?).ok()
    }

    fn cost(&self) -> usize {
        size_of::<Self>() + self.as_str().len() + ALLOCATION_COST
    }
}

impl Entry for Referrer {
    const MEMBER: &'static str = "manifests";
    const IS_INDEX: bool = true;
    const MOST: usize = MAX_REFERRERS;

    fn of(raw: RawEntry) -> Option<Self> {
        Some(Self {
            media_type: raw.media_type?,
            digest: Digest::parse(&raw.digest?).ok()?,
            size: raw.size?,
            artifact_type: raw.artifact_type,
            annotations: raw.annotations,
        })
    }

    fn cost(&self) -> usize {
        let kind = self.artifact_type.as_ref().map_or(0, String::len);
        let texts = self.media_type.len() + self.digest.as_str().len() + kind;
        let annotations = self.annotations.iter().flatten();
        let annotations = annotations.map(|(key, value)| annotation_cost(key, value));
        size_of::<Self>() + 3 * ALLOCATION_COST + texts + annotations.sum::<usize>()
    }
}

fn annotation_cost(key: &str, value: &str) -> usize {
    ANNOTATION_COST + key.len() + value.len()
}

/// What was taken of a list so far.
pub(super) struct Collected<T> {
    entries: Vec<T>,
    bytes: usize,
    complete: bool,
    /// Whether a bound was reached.
    full: bool,
}

impl<T> Default for Collected<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            bytes: 0,
            complete: true,
            full: false,
        }
    }
}

impl<T> From<Collected<T>> for Pages<T> {
    fn from(taken: Collected<T>) -> Self {
        Self {
            entries: taken.entries,
            complete: taken.complete,
            bytes: taken.bytes,
        }
    }
}

impl<T: Entry> Collected<T> {
    /// Reads one page.
    pub(super) fn read(&mut self, page: &[u8]) -> Result<()> {
        let mut parser = serde_json::Deserializer::from_slice(page);
        let read = Page(self).deserialize(&mut parser);
        read.and_then(|()| parser.end())
            .map_err(|_| Error::Invalid("what came as a list is none".to_owned()))
    }

    /// Whether a bound was reached.
    pub(super) fn is_full(&self) -> bool {
        self.full || self.entries.len() >= T::MOST
    }

    /// There is more than was taken.
    pub(super) fn cut(&mut self) {
        self.complete = false;
    }

    fn add(&mut self, raw: RawEntry) {
        let is_cut = raw.is_cut;
        let Some(entry) = T::of(raw) else {
            return;
        };
        let cost = entry.cost();
        if self.entries.len() >= T::MOST || self.bytes + cost > UPSTREAM_LIST_BYTES {
            self.full = true;
            self.cut();
            return;
        }
        if is_cut {
            self.cut();
        }
        self.bytes += cost;
        self.entries.push(entry);
    }
}

/// Reads a page into what was taken.
struct Page<'a, T>(&'a mut Collected<T>);

impl<'de, T: Entry> DeserializeSeed<'de> for Page<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<(), D::Error> {
        parser.deserialize_map(self)
    }
}

impl<'de, T: Entry> Visitor<'de> for Page<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a page of a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut page: A) -> Result<(), A::Error> {
        let (mut has_version, mut has_list, mut is_there) = (false, false, false);
        while let Some(key) = page.next_key::<String>()? {
            if key == T::MEMBER {
                if is_there {
                    return Err(A::Error::custom("two lists"));
                }
                is_there = true;
                has_list = page.next_value_seed(Entries(&mut *self.0))?;
            } else {
                has_version |= key == "schemaVersion";
                page.next_value::<IgnoredAny>()?;
            }
        }
        if T::IS_INDEX && !(has_version && has_list) {
            return Err(A::Error::custom("no index"));
        }
        Ok(())
    }
}

/// Reads the list itself; whether there is one, or `null`.
struct Entries<'a, T>(&'a mut Collected<T>);

impl<'de, T: Entry> DeserializeSeed<'de> for Entries<'_, T> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<bool, D::Error> {
        parser.deserialize_any(self)
    }
}

impl<'de, T: Entry> Visitor<'de> for Entries<'_, T> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<bool, A::Error> {
        while let Some(read) = list.next_element_seed(ValueSeed::Entry)? {
            self.0.add(match read {
                Field::Text(text) => RawEntry {
                    text: Some(text),
                    ..RawEntry::default()
                },
                Field::Entry(raw) => *raw,
                _ => continue,
            });
        }
        Ok(true)
    }
}

/// What an entry says, where it makes sense.
#[derive(Default)]
pub(super) struct RawEntry {
    text: Option<String>,
    media_type: Option<String>,
    digest: Option<String>,
    size: Option<u64>,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
    /// Whether its annotations were too many.
    is_cut: bool,
}

impl RawEntry {
    fn set(&mut self, key: &str, value: Field) {
        match (key, value) {
            ("mediaType", Field::Text(text)) => self.media_type = Some(text),
            ("digest", Field::Text(text)) => self.digest = Some(text),
            ("artifactType", Field::Text(text)) => self.artifact_type = Some(text),
            ("size", Field::Number(size)) => self.size = Some(size),
            ("annotations", Field::Annotations(found)) => self.annotations = Some(found),
            ("annotations", Field::TooMany) => self.is_cut = true,
            _ => {}
        }
    }
}

/// A value, as far as it may be of use.
enum Field {
    Text(String),
    Number(u64),
    Null,
    Entry(Box<RawEntry>),
    Annotations(BTreeMap<String, String>),
    TooMany,
    Other,
}

/// Reads a value of any kind; the objects of a mode that names none are dropped while they are
/// read.
#[derive(Clone, Copy)]
enum ValueSeed {
    /// Text of at most this many bytes, a number or nothing.
    Plain(usize),
    /// A text or an object with members that are plain, and annotations.
    Entry,
    /// An object of texts.
    Annotations,
}

impl<'de> DeserializeSeed<'de> for ValueSeed {
    type Value = Field;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Field, D::Error> {
        parser.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Field, E> {
        Ok(Field::Number(number))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_str<E>(self, text: &str) -> Result<Field, E> {
        let most = match self {
            Self::Plain(most) => most,
            Self::Entry => TEXT_BYTES,
            Self::Annotations => 0,
        };
        Ok(if text.len() <= most {
            Field::Text(text.to_owned())
        } else {
            Field::Other
        })
    }

    fn visit_unit<E>(self) -> Result<Field, E> {
        Ok(Field::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Field, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Field, A::Error> {
        match self {
            Self::Plain(_) => {
                while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Field::Other)
            }
            Self::Entry => {
                let mut raw = Box::<RawEntry>::default();
                while let Some(key) = object.next_key::<String>()? {
                    let mode = match key.as_str() {
                        "annotations" => Self::Annotations,
                        _ => Self::Plain(TEXT_BYTES),
                    };
                    raw.set(&key, object.next_value_seed(mode)?);
                }
                Ok(Field::Entry(raw))
            }
            Self::Annotations => annotations(object),
        }
    }
}

/// Annotations, all of them or none: a search for one must not take some for all.
fn annotations<'de, A: MapAccess<'de>>(mut object: A) -> Result<Field, A::Error> {
    let (mut found, mut cost) = (BTreeMap::new(), 0);
    while let Some(key) = object.next_key::<String>()? {
        let value = match object.next_value_seed(ValueSeed::Plain(REFERRER_ANNOTATION_BYTES))? {
            Field::Text(value) => value,
            Field::Null => String::new(),
            _ => {
                cost = usize::MAX;
                continue;
            }
        };
        cost = cost.saturating_add(annotation_cost(&key, &value));
        if cost > REFERRER_ANNOTATION_BYTES {
            found.clear();
        } else {
            found.insert(key, value);
        }
    }
    Ok(if cost > REFERRER_ANNOTATION_BYTES {
        Field::TooMany
    } else {
        Field::Annotations(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    fn entry(more: &str) -> String {
        format!(r#"{{"mediaType":"m","digest":"{DIGEST}","size":1{more}}}"#)
    }

    fn index(entries: &str) -> String {
        format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#)
    }

    /// Entries, and whether the list is complete; `None` if it is no list.
    fn check<T: Entry>(page: &str, expect: Option<(usize, bool)>) -> Vec<T> {
        let mut taken = Collected::<T>::default();
        let read = taken.read(page.as_bytes()).is_ok();
        assert!(taken.bytes <= UPSTREAM_LIST_BYTES);
        let page: String = page.chars().take(200).collect();
        let found = read.then_some((taken.entries.len(), taken.complete));
        assert_eq!(found, expect, "{page}");
        taken.entries
    }

    #[test]
    fn entries_are_read_one_by_one() {
        for (page, expect) in [
            (r#"{"name":"a","tags":["1","2"]}"#, Some((2, true))),
            (r#"{"tags":null}"#, Some((0, true))),
            (
                r#"{"tags":["1",2,null,["3"],{"4":5},"-"]}"#,
                Some((1, true)),
            ),
            (r#"{"tags":["1"],"tags":["2"]}"#, None),
            (r#"{"tags":"1"}"#, None),
            (r#"{"tags":["1"]} {}"#, None),
            (r#"["1"]"#, None),
            ("<html>", None),
        ] {
            check::<Tag>(page, expect);
        }
        let whole = entry(r#","artifactType":"a","annotations":{"k":"v","n":null}"#);
        for (page, expect) in [
            (index(&whole), Some((1, true))),
            (index("[0],[0]"), Some((0, true))),
            (
                index(&format!("{},{}", entry(""), r#"{"digest":1}"#)),
                Some((1, true)),
            ),
            (r#"{"schemaVersion":2,"manifests":null}"#.to_owned(), None),
            (r#"{"manifests":[]}"#.to_owned(), None),
            ("{}".to_owned(), None),
            ("[2,[]]".to_owned(), None),
        ] {
            check::<Referrer>(&page, expect);
        }
        let found = check::<Referrer>(&index(&whole), Some((1, true))).remove(0);
        assert_eq!(found.artifact_type.as_deref(), Some("a"));
        let annotations: Vec<_> = found.annotations.unwrap().into_iter().collect();
        let text = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        assert_eq!(annotations, [("k", "v"), ("n", "")].map(text));
    }

    #[test]
    fn an_entry_has_so_many_bytes_of_annotations_or_none() {
        let most = REFERRER_ANNOTATION_BYTES - ANNOTATION_COST - 1;
        for (bytes, complete) in [(most, true), (most + 1, false)] {
            let value = "v".repeat(bytes);
            let page = index(&entry(&format!(r#","annotations":{{"k":"{value}"}}"#)));
            let found = check::<Referrer>(&page, Some((1, complete)));
            assert_eq!(found[0].annotations.is_some(), complete);
        }
        let many: Vec<_> = (0..300_000).map(|key| format!(r#""{key}":"""#)).collect();
        let many = format!(r#","annotations":{{{}}}"#, many.join(","));
        let found = check::<Referrer>(&index(&entry(&many)), Some((1, false)));
        assert_eq!(found[0].annotations, None);
    }

    #[test]
    fn a_list_has_so_many_entries_and_so_many_bytes() {
        let tags = |number: usize, pad: usize| {
            let tags: Vec<_> = (0..number).map(|tag| format!("\"{tag:0pad$}\"")).collect();
            format!(r#"{{"tags":[{}]}}"#, tags.join(","))
        };
        check::<Tag>(&tags(MAX_TAGS, 1), Some((MAX_TAGS, true)));
        check::<Tag>(&tags(MAX_TAGS + 1, 1), Some((MAX_TAGS, false)));
        let cost = size_of::<Tag>() + ALLOCATION_COST + 128;
        let fit = UPSTREAM_LIST_BYTES / cost;
        check::<Tag>(&tags(fit + 1, 128), Some((fit, false)));
        let large = format!(r#","annotations":{{"k":"{}"}}"#, "v".repeat(60_000));
        let page = index(&vec![entry(&large); 60].join(","));
        let found = check::<Referrer>(&page, Some((34, false)));
        assert!(found.iter().all(|one| one.annotations.is_some()));
    }
}
