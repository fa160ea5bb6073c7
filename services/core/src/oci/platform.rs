//! Platforms of images.

use std::fmt;

use serde::Deserialize;

use super::manifest::nullable;

/// The platform of an image, as in an index or in the configuration of the image.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Platform {
    /// Operating system.
    #[serde(default, deserialize_with = "nullable")]
    pub os: String,
    /// Architecture.
    #[serde(default, deserialize_with = "nullable")]
    pub architecture: String,
    /// Variant of the architecture; empty if there is none.
    #[serde(default, deserialize_with = "nullable")]
    pub variant: String,
}

impl Platform {
    /// Parses `os/architecture[/variant]`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/').map(str::to_owned);
        let platform = Self {
            os: parts.next()?,
            architecture: parts.next()?,
            variant: parts.next().unwrap_or_default(),
        };
        let whole = !platform.os.is_empty() && !platform.architecture.is_empty();
        (whole && parts.next().is_none()).then_some(platform)
    }

    /// Whether an image for `self` matches `wanted`. The variant is ignored if `wanted` has none.
    pub fn answers(&self, wanted: &Self) -> bool {
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && (wanted.variant.is_empty() || self.variant == wanted.variant)
    }

    /// Whether a node of the platform `node` may run an image for `self`. An image without a
    /// variant fits all variants.
    pub fn fits(&self, node: &Self) -> bool {
        self.answers(node)
            || (self.variant.is_empty()
                && self.os == node.os
                && self.architecture == node.architecture)
    }

    /// Whether it is `unknown`, as in entries for attestations.
    pub fn is_unknown(&self) -> bool {
        self.os.is_empty() || self.os == "unknown"
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_asked_for_with_or_without_a_variant() {
        for (has, wanted, answers, fits) in [
            ("linux/amd64", "linux/amd64", true, true),
            ("linux/arm64/v8", "linux/arm64", true, true),
            ("linux/arm/v7", "linux/arm/v6", false, false),
            ("linux/arm64", "linux/arm64/v8", false, true),
            ("windows/amd64", "linux/amd64", false, false),
            ("unknown/unknown", "linux/amd64", false, false),
        ] {
            let (of, to) = (
                Platform::parse(has).unwrap(),
                Platform::parse(wanted).unwrap(),
            );
            assert_eq!(of.answers(&to), answers, "{has} for {wanted}");
            assert_eq!(of.fits(&to), fits, "{has} on {wanted}");
        }
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d"] {
            assert_eq!(Platform::parse(text), None, "{text}");
        }
    }
}
