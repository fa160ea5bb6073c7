//! The five-field crontab of the collection cadence: syntax only; who runs it computes times.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

const MONTHS: [&str; 12] = [
    "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
];
const DAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

/// A standard five-field Unix crontab line, or the empty string: off (SPEC 17).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Cron(String);

impl Cron {
    /// Reads a line; the error says which field is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(String::new()));
        }
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            return Err(format!(
                "`{text}`: expected five fields (minute hour day month weekday), or an empty string"
            ));
        };
        let checks = [
            ("minute", check(minute, 0, 59, &[])),
            ("hour", check(hour, 0, 23, &[])),
            ("day", check(day, 1, 31, &[])),
            ("month", check(month, 1, 12, &MONTHS)),
            ("weekday", check(weekday, 0, 7, &DAYS)),
        ];
        match checks.into_iter().find(|(_, valid)| !valid) {
            Some((field, _)) => Err(format!("`{text}`: the {field} field is not valid")),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// The line, `None` when switched off.
    pub fn as_str(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|line| !line.is_empty())
    }
}

fn check(field: &str, low: u8, high: u8, names: &[&str]) -> bool {
    field.split(',').all(|item| {
        let (range, step) = item
            .split_once('/')
            .map_or((item, None), |(range, step)| (range, Some(step)));
        let step_valid =
            step.is_none_or(|step| number(step).is_some_and(|step| (1..=99).contains(&step)));
        let value = |text: &str| {
            let named = names
                .iter()
                .position(|name| name.eq_ignore_ascii_case(text));
            let named = named
                .and_then(|index| u8::try_from(index).ok())
                .map(|index| index + low);
            number(text)
                .or(named)
                .filter(|value| (low..=high).contains(value))
        };
        let range_valid = range == "*"
            || match range.split_once('-') {
                Some((from, to)) => {
                    matches!((value(from), value(to)), (Some(from), Some(to)) if from <= to)
                }
                None => value(range).is_some(),
            };
        step_valid && range_valid
    })
}

fn number(text: &str) -> Option<u8> {
    let plain = (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// What the schema can say of a crontab line: everything but that a range must not run backwards.
pub fn pattern() -> String {
    let any_case = |name: &str| -> String {
        name.chars()
            .flat_map(|letter| ['[', letter, letter.to_ascii_lowercase(), ']'])
            .collect()
    };
    let names = |names: &[&str]| {
        names
            .iter()
            .flat_map(|name| ["|".to_owned(), any_case(name)])
            .collect::<String>()
    };
    let field = |value: String| {
        let item = format!("(\\*|({value})(-({value}))?)(/(0?[1-9]|[1-9][0-9]))?");
        format!("{item}(,{item})*")
    };
    let minute = field("[0-5]?[0-9]".to_owned());
    let hour = field("[01]?[0-9]|2[0-3]".to_owned());
    let day = field("0?[1-9]|[12][0-9]|3[01]".to_owned());
    let month = field(format!("0?[1-9]|1[0-2]{}", names(&MONTHS)));
    let weekday = field(format!("0?[0-7]{}", names(&DAYS)));
    format!("^$|^[ \\t]*{minute}[ \\t]+{hour}[ \\t]+{day}[ \\t]+{month}[ \\t]+{weekday}[ \\t]*$")
}

impl<'de> Deserialize<'de> for Cron {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl JsonSchema for Cron {
    fn schema_name() -> Cow<'static, str> {
        "Cron".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": pattern() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // SPEC 17
    #[test]
    fn five_fields_or_nothing() {
        let check =
            |text: &str, valid: bool| assert_eq!(Cron::parse(text).is_ok(), valid, "{text:?}");
        check("", true);
        check("0 0 * * *", true);
        check("*/15 0-6,22 1,15 jan-mar MON-FRI", true);
        check("0 0 * * 7", true);
        check("0 0 * *", false);
        check("0 0 * * * *", false);
        check("60 0 * * *", false);
        check("0 24 * * *", false);
        check("0 0 0 * *", false);
        check("0 0 * 13 *", false);
        check("0 0 * * 8", false);
        check("*/0 0 * * *", false);
        check("5-1 0 * * *", false);
        check("@daily", false);
        check(" ", false);
        assert_eq!(Cron::parse("").unwrap().as_str(), None);
    }
}
