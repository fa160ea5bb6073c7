//! `--sort-by`: sorts lists by a field of their JSON.

use std::cmp::Ordering;
use std::sync::Once;

use serde::Serialize;
use serde_json::Value;

use crate::json_path::JsonPath;
use crate::terminal;

/// With `--watch`, the note is printed once.
static NOTE: Once = Once::new();

/// How a list is sorted.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SortArgs {
    /// Sorts the items by a field that -o json shows, for example .namespace (ls: .name)
    #[arg(long, value_name = "EXPRESSION")]
    sort_by: Option<JsonPath>,
}

impl SortArgs {
    /// Sorts the items. Those without the field come last, and equal ones keep their order. A note
    /// says once if no item has the field.
    pub fn sort<T: Serialize>(&self, items: &mut Vec<T>) -> anyhow::Result<()> {
        self.sort_with(items, |_| None::<&mut Vec<T>>)
    }

    /// As [`Self::sort`], also for the items within each item: each list by itself.
    pub fn sort_with<T: Serialize, U: Serialize>(
        &self,
        items: &mut Vec<T>,
        within: impl Fn(&mut T) -> Option<&mut Vec<U>>,
    ) -> anyhow::Result<()> {
        let Some(path) = &self.sort_by else {
            return Ok(());
        };
        let mut has_field = items.is_empty() | sort_list(path, items)?;
        for inner in items.iter_mut().filter_map(within) {
            has_field |= sort_list(path, inner)?;
        }
        if !has_field {
            NOTE.call_once(|| terminal::note("--sort-by: no item has this field"));
        }
        Ok(())
    }
}

/// Sorts a list. Returns whether an item has the field.
fn sort_list<T: Serialize>(path: &JsonPath, items: &mut Vec<T>) -> anyhow::Result<bool> {
    let mut has_field = false;
    let mut keyed = Vec::with_capacity(items.len());
    for item in items.drain(..) {
        let value = serde_json::to_value(&item)?;
        let key = path.select(&value)?.first().copied().cloned();
        has_field |= key.is_some();
        keyed.push((key.unwrap_or_default(), item));
    }
    keyed.sort_by(|(one, _), (other, _)| compare(one, other));
    items.extend(keyed.into_iter().map(|(_, item)| item));
    Ok(has_field)
}

fn compare(one: &Value, other: &Value) -> Ordering {
    match (one, other) {
        (Value::Null, _) | (_, Value::Null) => one.is_null().cmp(&other.is_null()),
        (Value::Number(one), Value::Number(other)) => {
            let (one, other) = (one.as_f64(), other.as_f64());
            one.partial_cmp(&other).unwrap_or(Ordering::Equal)
        }
        (Value::String(one), Value::String(other)) => one.cmp(other),
        _ => one.to_string().cmp(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sorted(expression: &str, items: Value) -> Value {
        let sort_by = Some(expression.parse().unwrap());
        let mut items = items.as_array().unwrap().clone();
        SortArgs { sort_by }.sort(&mut items).unwrap();
        Value::Array(items)
    }

    #[test]
    fn numbers_are_sorted_as_numbers_and_what_lacks_the_field_comes_last() {
        let items = json!([{"n": 1}, {"a": 10}, {"a": 9}, {"a": null}, {"a": 9, "n": 2}]);
        let expect = json!([{"a": 9}, {"a": 9, "n": 2}, {"a": 10}, {"n": 1}, {"a": null}]);
        for expression in [".a", "a", "{.a}", "$.a"] {
            assert_eq!(sorted(expression, items.clone()), expect, "{expression}");
        }
        let items = json!([{"a": {"b": "y"}}, {"a": {"b": "x"}}]);
        let expect = json!([{"a": {"b": "x"}}, {"a": {"b": "y"}}]);
        assert_eq!(sorted(".a.b", items), expect);
    }

    #[test]
    fn lists_within_items_are_sorted_each_by_itself() {
        let mut items = vec![
            vec![json!({"a": 2}), json!({"a": 1})],
            vec![json!({"a": 0})],
        ];
        let sort_by = Some(".a".parse().unwrap());
        SortArgs { sort_by }
            .sort_with(&mut items, |item| Some(item))
            .unwrap();
        assert_eq!(json!(items), json!([[{"a": 1}, {"a": 2}], [{"a": 0}]]));
    }
}
