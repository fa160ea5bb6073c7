//! Sizes as Kubernetes writes them.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

const SUFFIXES: [&str; 8] = ["Ti", "Gi", "Mi", "Ki", "T", "G", "M", "k"];
const UNITS: [(&str, u64); 4] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
];

/// A number of bytes, written as a whole number with an optional Kubernetes unit: `4Mi`, `10M`,
/// `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ByteSize(u64);

impl ByteSize {
    /// What the schema allows as text.
    pub const PATTERN: &'static str = "^[0-9]{1,12}(Ki|Mi|Gi|Ti|k|M|G|T)?$";

    /// The size of this many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Reads `4Mi`, `10M`, `4096`; `None` for anything else or for more than 64 bits hold.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = SUFFIXES
            .iter()
            .find_map(|suffix| text.strip_suffix(suffix))
            .unwrap_or(text);
        let plain =
            (1..=12).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain
            .then(|| holdfast_core::quantity::parse_bytes(text).ok())
            .flatten()
            .map(Self)
    }
}

impl std::fmt::Display for ByteSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match UNITS
            .iter()
            .take(4)
            .find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor))
        {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    /// What Helm makes of a number: `1e+07`.
    Float(f64),
    Text(String),
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "expected a size in bytes such as 4096, 4Mi or 10M";
        match NumberOrText::deserialize(deserializer).map_err(|_| D::Error::custom(expected))? {
            NumberOrText::Number(bytes) => Ok(Self(bytes)),
            NumberOrText::Float(bytes) => {
                Self::parse(&bytes.to_string()).ok_or_else(|| D::Error::custom(expected))
            }
            NumberOrText::Text(text) => {
                Self::parse(&text).ok_or_else(|| D::Error::custom(format!("`{text}`: {expected}")))
            }
        }
    }
}

/// The schema of a size of at least one and at most `most` bytes.
pub(crate) fn at_most(most: u64) -> Schema {
    let forms = [
        ("", 1),
        ("k", 1000),
        ("Ki", 1 << 10),
        ("M", 1_000_000),
        ("Mi", 1 << 20),
    ];
    let forms = forms.into_iter().filter(|(_, unit)| *unit <= most);
    let forms: Vec<_> = forms
        .map(|(suffix, unit)| format!("({}){suffix}", numbers_up_to(most / unit)))
        .collect();
    let pattern = format!("^({})$", forms.join("|"));
    json_schema!({
        "type": ["string", "integer"], "pattern": pattern, "minimum": 1, "maximum": most
    })
}

/// A regular expression for the whole numbers from 1 to `most`, without leading zeros.
fn numbers_up_to(most: u64) -> String {
    let digits: Vec<u8> = most.to_string().bytes().collect();
    let rest = |count: usize| match count {
        0 => String::new(),
        count => format!("[0-9]{{{count}}}"),
    };
    let mut forms = vec![most.to_string()];
    if digits.len() > 1 {
        forms.push(format!("[1-9][0-9]{{0,{}}}", digits.len() - 2));
    }
    for (at, digit) in digits.iter().enumerate() {
        let first = if at == 0 { b'1' } else { b'0' };
        if *digit > first {
            let before = String::from_utf8_lossy(&digits[..at]);
            let (first, last) = (char::from(first), char::from(digit - 1));
            forms.push(format!(
                "{before}[{first}-{last}]{}",
                rest(digits.len() - at - 1)
            ));
        }
    }
    forms.join("|")
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"], "pattern": Self::PATTERN, "minimum": 0 })
    }
}

/// The size of the registry's volume: a whole number of `Gi` or `Ti` and nothing else (SPEC 15).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StorageSize(ByteSize);

impl StorageSize {
    /// What the schema allows.
    pub const PATTERN: &'static str = "^[1-9][0-9]{0,6}(Gi|Ti)$";

    /// This many gibibytes.
    pub const fn gibibytes(count: u64) -> Self {
        Self(ByteSize::from_bytes(count << 30))
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0.bytes()
    }

    /// Reads `100Gi` or `2Ti`; `None` for every other unit or form.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text
            .strip_suffix("Gi")
            .or_else(|| text.strip_suffix("Ti"))?;
        let sensible = digits.len() <= 7 && !digits.starts_with('0');
        sensible.then(|| ByteSize::parse(text)).flatten().map(Self)
    }
}

impl std::fmt::Display for StorageSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for StorageSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StorageSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            D::Error::custom(format!(
                "`{text}`: expected a whole number of Gi or Ti, such as 100Gi"
            ))
        })
    }
}

impl JsonSchema for StorageSize {
    fn schema_name() -> Cow<'static, str> {
        "StorageSize".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": Self::PATTERN })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_in_their_largest_binary_unit() {
        let check = |text: &str, bytes: Option<u64>| {
            assert_eq!(ByteSize::parse(text).map(ByteSize::bytes), bytes, "{text}");
        };
        check("4Mi", Some(4 << 20));
        check("10M", Some(10_000_000));
        check("4096", Some(4096));
        check("", None);
        check("Mi", None);
        check("1.5Mi", None);
        check("-1", None);
        check("999999999999Ti", None);
        assert_eq!(ByteSize::from_bytes(48 << 20).to_string(), "48Mi");
        assert_eq!(ByteSize::from_bytes(0).to_string(), "0");
    }

    #[test]
    fn a_bounded_size_is_bounded_in_every_unit() {
        let schema = at_most(16 << 20);
        let validator = jsonschema::validator_for(schema.as_value()).unwrap();
        let mut texts: Vec<String> = (0..20_000).map(|number| format!("{number}Ki")).collect();
        for unit in ["", "k", "Ki", "M", "Mi", "Gi", "T"] {
            for number in [0, 1, 9, 10, 15, 16, 17, 99, 4095, 16_384, 16_777, 16_778] {
                texts.push(format!("{number}{unit}"));
            }
        }
        texts.extend([16_777_215, 16_777_216, 16_777_217, 20_000_000].map(|n: u64| n.to_string()));
        for text in texts {
            let bytes = ByteSize::parse(&text).unwrap().bytes();
            let expect = (1..=16 << 20).contains(&bytes);
            assert_eq!(validator.is_valid(&text.as_str().into()), expect, "{text}");
        }
        for (number, expect) in [
            (0, false),
            (1, true),
            (16 << 20, true),
            (1 + (16 << 20), false),
        ] {
            assert_eq!(validator.is_valid(&number.into()), expect, "{number}");
        }
    }

    // SPEC 15
    #[test]
    fn storage_size_takes_gi_and_ti_only() {
        let check = |text: &str, bytes: Option<u64>| {
            assert_eq!(
                StorageSize::parse(text).map(StorageSize::bytes),
                bytes,
                "{text}"
            );
        };
        check("100Gi", Some(100 << 30));
        check("2Ti", Some(2 << 40));
        for refused in ["100", "100G", "100Mi", "0Gi", "Gi", "1.5Ti", "-1Gi", " 1Gi"] {
            check(refused, None);
        }
    }
}
