//! Reads a foreign configuration key by key. Keys that no code asked for are errors: they were
//! meant and not understood.

use serde_json::{Map, Value};
use std::time::Duration;

use crate::{Problem, validate::distance};

/// What was read: problems that refuse the file, and notes of what changes nothing here.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<Problem>,
    pub(super) notes: Vec<String>,
}

impl Findings {
    /// Refuses a key.
    pub(super) fn refuse(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem {
            path: path.into(),
            message: message.into(),
        });
    }

    /// Tells that a key changes nothing here.
    pub(super) fn note(&mut self, path: &str, why: &str) {
        self.notes.push(format!("{path} changes nothing: {why}"));
    }
}

/// One mapping of the document, from which keys are taken.
#[derive(Debug)]
pub(super) struct Section {
    path: String,
    left: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Section {
    /// The whole document.
    pub(super) fn root(document: Value, findings: &mut Findings) -> Self {
        Self::of(String::new(), document, findings)
    }

    fn of(path: String, value: Value, findings: &mut Findings) -> Self {
        let left = match value {
            Value::Object(map) => map,
            Value::Null => Map::new(),
            // `storage: inmemory` is short for `storage: {inmemory: {}}`.
            Value::String(word) => Map::from_iter([(word, Value::Null)]),
            _ => {
                findings.refuse(&path, "must be a mapping");
                Map::new()
            }
        };
        Self {
            path,
            left,
            known: Vec::new(),
        }
    }

    /// The full path of a key.
    pub(super) fn path(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// Takes a key's raw value.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        // The order of what is left does not matter.
        self.left.swap_remove(key)
    }

    /// Takes a mapping; an absent one is empty.
    pub(super) fn section(&mut self, key: &'static str, findings: &mut Findings) -> Self {
        let value = self.take(key).unwrap_or(Value::Null);
        Self::of(self.path(key), value, findings)
    }

    /// Takes a mapping if it is there.
    pub(super) fn optional(&mut self, key: &'static str, findings: &mut Findings) -> Option<Self> {
        let value = self.take(key)?;
        Some(Self::of(self.path(key), value, findings))
    }

    /// Takes a list of mappings.
    pub(super) fn sections(&mut self, key: &'static str, findings: &mut Findings) -> Vec<Self> {
        let path = self.path(key);
        match self.take(key) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) => items
                .into_iter()
                .enumerate()
                .map(|(index, item)| Self::of(format!("{path}[{index}]"), item, findings))
                .collect(),
            Some(_) => {
                findings.refuse(path, "must be a list");
                Vec::new()
            }
        }
    }

    /// Takes a text; an empty one counts as absent, a number is taken as it is written.
    pub(super) fn text(&mut self, key: &'static str, findings: &mut Findings) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text).filter(|text| !text.is_empty()),
            Value::Number(number) => Some(number.to_string()),
            Value::Null => None,
            _ => {
                findings.refuse(self.path(key), "must be a text");
                None
            }
        }
    }

    /// Takes a list of texts; a single text is a list of one.
    pub(super) fn texts(&mut self, key: &'static str, findings: &mut Findings) -> Vec<String> {
        let value = self.take(key);
        texts(value).unwrap_or_else(|| {
            findings.refuse(self.path(key), "must be a list of texts");
            Vec::new()
        })
    }

    /// Takes `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str, findings: &mut Findings) -> Option<bool> {
        match self.take(key)? {
            Value::Bool(flag) => Some(flag),
            Value::Null => None,
            _ => {
                findings.refuse(self.path(key), "must be true or false");
                None
            }
        }
    }

    /// Takes a whole number.
    pub(super) fn number(&mut self, key: &'static str, findings: &mut Findings) -> Option<u64> {
        match self.take(key)? {
            Value::Number(number) if number.is_u64() => number.as_u64(),
            Value::Null => None,
            _ => {
                findings.refuse(self.path(key), "must be a whole number");
                None
            }
        }
    }

    /// Takes a time, as Go writes it (`1h30m`), or in nanoseconds.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        findings: &mut Findings,
    ) -> Option<Duration> {
        let parsed = match self.take(key)? {
            Value::Number(number) => number.as_u64().map(Duration::from_nanos),
            Value::String(text) => duration(&text),
            Value::Null => return None,
            _ => None,
        };
        if parsed.is_none() {
            findings.refuse(self.path(key), "must be a time such as 30s or 1h30m");
        }
        parsed
    }

    /// Takes a key, whatever it holds, that changes nothing here.
    pub(super) fn ignore(&mut self, key: &'static str, why: &str, findings: &mut Findings) {
        if self.take(key).is_some() {
            findings.note(&self.path(key), why);
        }
    }

    /// Takes a key that is not supported; nothing and `false` are as good as absent.
    pub(super) fn unsupported(&mut self, key: &'static str, why: &str, findings: &mut Findings) {
        let nothing = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if self.take(key).is_some_and(|value| !nothing(&value)) {
            findings.refuse(self.path(key), format!("is not supported: {why}"));
        }
    }

    /// Whether a key is there and was not taken.
    pub(super) fn has(&self, key: &str) -> bool {
        self.left.contains_key(key)
    }

    /// Refuses every key that no code asked for.
    pub(super) fn end(self, findings: &mut Findings) {
        for key in self.left.keys() {
            let near = self
                .known
                .iter()
                .map(|known| (distance(&key.to_ascii_lowercase(), known), known))
                .min()
                .filter(|(slips, known)| *slips <= 1 + known.len() / 4);
            let hint = near.map_or_else(String::new, |(_, known)| {
                format!(", did you mean {}?", self.path(known))
            });
            findings.refuse(self.path(key), format!("unknown key{hint}"));
        }
    }
}

fn texts(value: Option<Value>) -> Option<Vec<String>> {
    let text = |value: Value| match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    match value {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(items)) => items.into_iter().map(text).collect(),
        Some(value) => Some(vec![text(value)?]),
    }
}

/// Reads a time as Go writes it: `1h30m`, `1.5s`, `100ms`. `None` for what is none, and for
/// negative ones.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at_checked(digits)?;
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(end)?;
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let value: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(value * seconds).ok()?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

/// Puts what the environment says into the document: `REGISTRY_HTTP_ADDR` is `http.addr`, and the
/// value is YAML. What begins with none of `sections` is left alone: in Kubernetes a Service called
/// `registry` makes such variables.
pub(super) fn overlay(
    document: &mut Value,
    sections: &[&str],
    environment: impl IntoIterator<Item = (String, String)>,
    findings: &mut Findings,
) {
    let mut variables: Vec<_> = environment
        .into_iter()
        .filter_map(|(name, value)| {
            let path = name.strip_prefix("REGISTRY_")?.to_ascii_lowercase();
            Some((name, path, value))
        })
        .collect();
    // Shorter ones first: what is more precise wins.
    variables.sort_by_key(|(_, path, _)| (path.matches('_').count(), path.clone()));
    for (name, path, text) in variables {
        let steps: Vec<_> = path.split('_').collect();
        if !steps.first().is_some_and(|first| sections.contains(first)) {
            findings
                .notes
                .push(format!("{name} is no part of the configuration"));
            continue;
        }
        match crate::yaml::from_str::<Value>(&text) {
            Ok(value) => put(document, &steps, value),
            Err(_) => put(document, &steps, Value::String(text)),
        }
    }
}

fn put(at: &mut Value, steps: &[&str], value: Value) {
    let Some((first, rest)) = steps.split_first() else {
        *at = value;
        return;
    };
    if let (Value::Array(items), Ok(index)) = (&mut *at, first.parse::<usize>()) {
        if index == items.len() {
            items.push(Value::Null);
        }
        if let Some(item) = items.get_mut(index) {
            put(item, rest, value);
        }
        return;
    }
    if let Value::String(word) = at {
        *at = Value::Object(Map::from_iter([(std::mem::take(word), Value::Null)]));
    }
    if !at.is_object() {
        *at = Value::Object(Map::new());
    }
    if let Value::Object(map) = at {
        put(
            map.entry((*first).to_owned()).or_insert(Value::Null),
            rest,
            value,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_writes_them() {
        for (text, expect) in [
            ("10s", Some(10_000)),
            ("1h30m", Some(5_400_000)),
            ("1.5s", Some(1500)),
            ("250ms", Some(250)),
            ("0", Some(0)),
            ("", None),
            ("10", None),
            ("-5s", None),
            ("5 s", None),
            ("1d", None),
        ] {
            assert_eq!(
                duration(text).map(|time| time.as_millis()),
                expect,
                "{text}"
            );
        }
    }
}
