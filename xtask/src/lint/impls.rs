//! In how many files a type is implemented. A type whose methods are spread over many files has
//! parts that deserve types of their own.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Finding,
    language::{before_tests, is_test},
};

/// Files that may hold `impl` blocks of one type; tests do not count.
const MAX_FILES: usize = 3;

/// The files with `impl` blocks of each type, by crate and name of the type.
#[derive(Default)]
pub(super) struct Impls {
    files: BTreeMap<(String, String), BTreeSet<String>>,
}

impl Impls {
    /// Adds the `impl` blocks of one formatted file.
    pub(super) fn add(&mut self, path: &str, text: &str) {
        let Some((of_crate, _)) = path.split_once("/src/") else {
            return;
        };
        if is_test(path) {
            return;
        }
        for name in implemented(before_tests(text)) {
            let key = (of_crate.to_owned(), name);
            self.files.entry(key).or_default().insert(path.to_owned());
        }
    }

    /// One finding for each type that is implemented in too many files.
    pub(super) fn check(&self) -> Vec<Finding> {
        let too_many = self
            .files
            .iter()
            .filter(|(_, files)| files.len() > MAX_FILES);
        too_many
            .map(|((of_crate, name), files)| {
                let files: Vec<&str> = files.iter().map(String::as_str).collect();
                let message = format!(
                    "{name} has impl blocks in {} files; {MAX_FILES} is the limit: {}",
                    files.len(),
                    files.join(", ")
                );
                Finding::new(of_crate, message)
            })
            .collect()
    }
}

/// The names of the types that the `impl` blocks of a text are for, without type parameters of a
/// block.
fn implemented(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut names = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let code = code.strip_prefix("unsafe ").unwrap_or(code);
        if !code.starts_with("impl ") && !code.starts_with("impl<") {
            continue;
        }
        let rest = lines.get(number + 1..).unwrap_or_default();
        let text = format!("{code} {}", rest.join(" "));
        let Some((header, _)) = text.split_once('{') else {
            continue;
        };
        // A type in a signature, not a block.
        if !header.contains(';')
            && let Some(name) = type_of(header)
        {
            names.push(name);
        }
    }
    names
}

/// The name of the type in the header of an `impl` block, such as
/// `impl<T> Trait for path::Type<T> where …`.
fn type_of(header: &str) -> Option<String> {
    let header = header.strip_prefix("impl")?;
    let (parameters, rest) = split_parameters(header);
    let rest = rest.split(" where ").next().unwrap_or_default();
    let of_trait = rest.match_indices(" for ").find(|(at, _)| {
        let before = rest.get(..*at).unwrap_or_default();
        before.matches('<').count() == before.replace("->", "").matches('>').count()
    });
    let of_type = match of_trait {
        Some((at, found)) => rest.get(at + found.len()..)?,
        None => rest,
    };
    let path = of_type
        .split('<')
        .next()
        .unwrap_or_default()
        .trim()
        .trim_start_matches('&');
    let name = path.rsplit("::").next().unwrap_or_default();
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let is_parameter = parameters
        .split(|c: char| !is_name(c))
        .any(|parameter| parameter == name);
    (!name.is_empty() && name.chars().all(is_name) && !is_parameter).then(|| name.to_owned())
}

/// The type parameters at the beginning of a text, and what follows them.
fn split_parameters(text: &str) -> (&str, &str) {
    if !text.starts_with('<') {
        return ("", text);
    }
    let (mut depth, mut before) = (0_usize, ' ');
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if before != '-' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return text.split_at(at + 1);
        }
        before = c;
    }
    (text, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_of_a_block_is_read_from_its_header() {
        for (text, expect) in [
            ("impl A {\n}\n", Some("A")),
            ("impl<'a> A<'a> {\n}\n", Some("A")),
            ("impl fmt::Debug for A {\n}\n", Some("A")),
            ("impl From<A> for B {}\n", Some("B")),
            (
                "impl<T> From<path::A<T>>\n    for path::B<T>\nwhere\n    T: for<'a> C<'a>,\n{\n}\n",
                Some("B"),
            ),
            ("impl<F: Fn(u8) -> u8> A for B<F> {\n}\n", Some("B")),
            ("impl C<fn(u8) -> u8> for B {\n}\n", Some("B")),
            ("unsafe impl A for B {}\n", Some("B")),
            ("    impl A for B {\n    }\n", Some("B")),
            ("impl<T: B> A for T {\n}\n", None),
            ("impl A for (B, C) {\n}\n", None),
            ("impl A for &B {\n}\n", Some("B")),
            ("// impl A {\n", None),
            ("fn f() -> impl A {\n}\n", None),
            ("implement! {\n}\n", None),
        ] {
            assert_eq!(
                implemented(text).first().map(String::as_str),
                expect,
                "{text}"
            );
        }
    }

    #[test]
    fn a_type_is_implemented_in_three_files_of_a_crate_at_most() {
        let check = |paths: &[&str]| {
            let mut impls = Impls::default();
            for path in paths {
                impls.add(path, "impl A {\n}\nimpl B for A {\n}\n");
            }
            impls.check()
        };
        let three = ["a/src/a.rs", "a/src/b.rs", "a/src/b/c.rs"];
        assert_eq!(check(&three), []);
        for more in [
            "b/src/d.rs",
            "a/src/tests.rs",
            "a/src/tests/d.rs",
            "a/tests/d.rs",
        ] {
            assert_eq!(check(&[&three[..], &[more]].concat()), [], "{more}");
        }
        let message = "A has impl blocks in 4 files; 3 is the limit: a/src/a.rs, a/src/b.rs, \
            a/src/b/c.rs, a/src/d.rs";
        assert_eq!(
            check(&[&three[..], &["a/src/d.rs"]].concat()),
            [Finding::new("a", message)]
        );
    }

    #[test]
    fn blocks_of_tests_do_not_count() {
        let mut impls = Impls::default();
        for name in ["a", "b", "c", "d"] {
            let text = "struct A;\n\n#[cfg(test)]\nmod tests {\n    impl A {\n    }\n}\n";
            impls.add(&format!("a/src/{name}.rs"), text);
        }
        assert_eq!(impls.check(), []);
    }
}
