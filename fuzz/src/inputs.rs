//! Inputs in files: one a line, escaped as in Rust's byte strings, so that they read, compare and
//! merge as text.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

/// The folder of this crate, with `corpus/` and `regressions/`.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// One input as a line.
pub fn escape(input: &[u8]) -> String {
    input.escape_ascii().to_string()
}

/// The input of a line.
///
/// # Errors
/// When an escape is none.
pub fn unescape(line: &str) -> anyhow::Result<Vec<u8>> {
    let mut input = Vec::with_capacity(line.len());
    let mut bytes = line.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            input.push(byte);
            continue;
        }
        input.push(match bytes.next() {
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(byte @ (b'\\' | b'"' | b'\'')) => byte,
            Some(b'x') => {
                let digits = [bytes.next(), bytes.next()];
                let digits: Vec<u8> = digits.into_iter().flatten().collect();
                ensure!(digits.len() == 2, "\\x without two digits in {line}");
                let digits = String::from_utf8_lossy(&digits).into_owned();
                u8::from_str_radix(&digits, 16).with_context(|| format!("\\x{digits} in {line}"))?
            }
            other => bail!("\\{other:?} in {line}"),
        });
    }
    Ok(input)
}

/// The inputs of `NAME.txt` in a folder; none when there is no such file. Lines that begin with `#
/// ` are remarks.
///
/// # Errors
/// When the file cannot be read or a line not be understood.
pub fn read(folder: &Path, name: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let path = folder.join(format!("{name}.txt"));
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with("# "))
        .map(unescape)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unescape(&escape(&all)).unwrap(), all);
        assert!(unescape("\\q").is_err());
        assert!(unescape("\\x4").is_err());
    }
}
