//! File name patterns of containerd's `imports`: Go's `filepath.Glob` and `filepath.Match`.

use std::path::{Component, Path, PathBuf};

use super::Files;

/// Patterns longer than this match nothing. Bounds the work of a comparison.
const MAX_PATTERN_BYTES: usize = 4096;

/// The files that `pattern` matches, by folder and then by name, as Go's `filepath.Glob` lists
/// them. A malformed pattern, which keeps containerd from starting, matches nothing.
pub(super) fn glob(files: &dyn Files, pattern: &Path) -> Vec<PathBuf> {
    if pattern.as_os_str().len() > MAX_PATTERN_BYTES {
        return Vec::new();
    }
    let mut found = vec![PathBuf::new()];
    let mut special = false;
    for component in pattern.components() {
        let name = component.as_os_str();
        let text = name.to_str().filter(|_| component != Component::RootDir);
        special |= text.is_some_and(|text| text.contains(['*', '?', '[', '\\']));
        let Some(text) = text.filter(|_| special) else {
            for path in &mut found {
                path.push(name);
            }
            continue;
        };
        let Some(text) = parse(text) else {
            return Vec::new();
        };
        let inside = |folder: &PathBuf| {
            let mut names = files.list(folder);
            names.retain(|name| matches(&text, name));
            names.sort();
            names.into_iter().map(|name| folder.join(name)).collect()
        };
        found = found.iter().flat_map::<Vec<_>, _>(inside).collect();
    }
    found
}

/// An element of a pattern.
#[derive(Debug, PartialEq, Eq)]
enum Element {
    /// `*`: any number of characters.
    Any,
    /// `?`: one character.
    One,
    /// A character.
    Literal(char),
    /// `[a-z]` or, negated, `[^a-z]`.
    Class(bool, Vec<(char, char)>),
}

/// The elements of a pattern; `None` if it is malformed.
fn parse(pattern: &str) -> Option<Vec<Element>> {
    let mut rest = pattern.chars().peekable();
    let mut elements = Vec::new();
    while let Some(c) = rest.next() {
        elements.push(match c {
            '*' => Element::Any,
            '?' => Element::One,
            '\\' => Element::Literal(rest.next()?),
            '[' => {
                let negated = rest.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                while ranges.is_empty() || rest.next_if_eq(&']').is_none() {
                    let low = bound(&mut rest)?;
                    let high = match rest.next_if_eq(&'-') {
                        Some(_) => bound(&mut rest)?,
                        None => low,
                    };
                    ranges.push((low, high));
                }
                Element::Class(negated, ranges)
            }
            c => Element::Literal(c),
        });
    }
    Some(elements)
}

/// A bound of a range in a class.
fn bound(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<char> {
    match rest.next()? {
        '-' | ']' => None,
        '\\' => rest.next(),
        c => Some(c),
    }
}

/// Whether the elements match the whole name.
fn matches(pattern: &[Element], name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    // Where to go on after a mismatch: one character later in what the last `*` matches.
    let (mut p, mut n, mut star) = (0, 0, None);
    loop {
        let fits = match (pattern.get(p), name.get(n)) {
            (None, None) => return true,
            (Some(Element::Any), _) => {
                star = Some((p, n));
                p += 1;
                continue;
            }
            (Some(Element::One), Some(_)) => true,
            (Some(Element::Literal(wanted)), Some(c)) => wanted == c,
            (Some(Element::Class(negated, ranges)), Some(c)) => {
                ranges.iter().any(|(low, high)| low <= c && c <= high) != *negated
            }
            _ => false,
        };
        if fits {
            p += 1;
            n += 1;
            continue;
        }
        match star.as_mut() {
            Some((at, from)) if *from < name.len() => {
                *from += 1;
                p = *at + 1;
                n = *from;
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, name: &str) -> Option<bool> {
        parse(pattern).map(|pattern| matches(&pattern, name))
    }

    /// Rows of the table of Go's `TestMatch`.
    #[test]
    fn patterns_match_as_in_go() {
        for (pattern, name, expect) in [
            ("abc", "abc", Some(true)),
            ("*", "abc", Some(true)),
            ("*c", "abc", Some(true)),
            ("a*", "a", Some(true)),
            ("a*b*c*d*e*", "axbxcxdxe", Some(true)),
            ("a*b*c*d*e*", "axbxcxdxexxx", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzx", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzy", Some(false)),
            ("ab[c]", "abc", Some(true)),
            ("ab[b-d]", "abc", Some(true)),
            ("ab[e-g]", "abc", Some(false)),
            ("ab[^c]", "abc", Some(false)),
            ("ab[^b-d]", "abc", Some(false)),
            ("ab[^e-g]", "abc", Some(true)),
            ("a\\*b", "a*b", Some(true)),
            ("a\\*b", "ab", Some(false)),
            ("a?b", "a☺b", Some(true)),
            ("a[^a]b", "a☺b", Some(true)),
            ("a???b", "a☺b", Some(false)),
            ("[a-ζ]*", "α", Some(true)),
            ("*[a-ζ]", "A", Some(false)),
            ("[\\]a]", "]", Some(true)),
            ("[\\-]", "-", Some(true)),
            ("[x\\-]", "x", Some(true)),
            ("[x\\-]", "z", Some(false)),
            ("[\\-x]", "-", Some(true)),
            ("[]a]", "]", None),
            ("[-]", "-", None),
            ("[x-]", "x", None),
            ("[-x]", "-", None),
            ("[a-b-c]", "a", None),
            ("[", "a", None),
            ("[^", "a", None),
            ("[^bc", "a", None),
            ("a[", "ab", None),
            ("\\", "a", None),
            ("*x", "xxx", Some(true)),
            ("", "", Some(true)),
            ("", "a", Some(false)),
        ] {
            assert_eq!(check(pattern, name), expect, "{pattern:?} on {name:?}");
        }
    }
}
