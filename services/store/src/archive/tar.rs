//! The tar format, as far as image layouts use it. Pure: blocks in, facts out. Only regular files
//! and folders exist; a link or a device in an archive is an attack or a mistake and refuses it.
//!
//! Layout of a header: POSIX.1-1988 `ustar`; long names and sizes as pax records (POSIX.1-2001) or
//! GNU's `L` entries, and base-256 numbers.

use super::{Error, Result};

/// Everything in a tar file is a multiple of this.
pub(crate) const BLOCK: u64 = 512;

/// Longest pax record set or long name that is read: names in an image layout have 150 bytes.
const MAX_EXTENSION_BYTES: u64 = 64 << 10;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// A file or folder.
    Entry {
        /// Its name as written.
        name: String,
        /// Bytes of content.
        size: u64,
        /// Whether it is a folder.
        is_folder: bool,
    },
    /// Records for the next entry (`path`, `size`), of so many bytes.
    Records(u64),
    /// The next entry's name, of so many bytes.
    LongName(u64),
    /// Records for all entries, which we do not need, of so many bytes.
    Ignored(u64),
    /// What no image layout holds, with so many bytes of content.
    Refused {
        /// What it is.
        why: String,
        /// Bytes of content.
        size: u64,
    },
    /// A block of zeros: the end.
    End,
}

/// Reads a header block.
pub(crate) fn header(block: &[u8; 512]) -> Result<Header> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(Header::End);
    }
    let sum = number(field(block, 148, 8)).ok_or_else(garbage)?;
    let actual: u64 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                u64::from(*byte)
            }
        })
        .sum();
    if sum != actual {
        return Err(garbage());
    }
    let size = number(field(block, 124, 12)).ok_or_else(garbage)?;
    let mut name = text(field(block, 0, 100))?;
    if field(block, 257, 6) == b"ustar\0" {
        let prefix = text(field(block, 345, 155))?;
        if !prefix.is_empty() {
            name = format!("{prefix}/{name}");
        }
    }
    let extension = |header: Header| {
        if size > MAX_EXTENSION_BYTES {
            Err(Error::refused(
                "a name in it is longer than any name needs to be",
            ))
        } else {
            Ok(header)
        }
    };
    match block.get(156).copied().unwrap_or_default() {
        b'0' | 0 | b'7' => Ok(Header::Entry {
            is_folder: name.ends_with('/'),
            name,
            size,
        }),
        b'5' => Ok(Header::Entry {
            name,
            size: 0,
            is_folder: true,
        }),
        b'x' => extension(Header::Records(size)),
        b'L' => extension(Header::LongName(size)),
        b'g' => extension(Header::Ignored(size)),
        kind @ (b'1' | b'2' | b'K') => Ok(Header::Refused {
            why: format!("it holds a link ({name}), and images are files"),
            size: if kind == b'K' { size } else { 0 },
        }),
        kind => Ok(Header::Refused {
            why: format!("it holds a special file ({name}), and images are plain files"),
            size: if (b'3'..=b'6').contains(&kind) {
                0
            } else {
                size
            },
        }),
    }
}

/// The `path` and `size` of pax records.
pub(crate) fn records(mut bytes: &[u8]) -> Result<(Option<String>, Option<u64>)> {
    let (mut path, mut size) = (None, None);
    while !bytes.is_empty() {
        let space = bytes
            .iter()
            .position(|byte| *byte == b' ')
            .ok_or_else(garbage)?;
        let (length, _) = bytes.split_at(space);
        let length: usize = std::str::from_utf8(length)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(garbage)?;
        let record = bytes.get(space + 1..length).ok_or_else(garbage)?;
        let record = record.strip_suffix(b"\n").ok_or_else(garbage)?;
        let record = std::str::from_utf8(record).map_err(|_| garbage())?;
        match record.split_once('=').ok_or_else(garbage)? {
            ("path", value) => path = Some(value.to_owned()),
            ("size", value) => size = Some(value.parse().map_err(|_| garbage())?),
            (name, _) if name.starts_with("GNU.sparse.") => {
                return Err(Error::refused("it holds a sparse file"));
            }
            _ => {}
        }
        bytes = bytes.get(length..).ok_or_else(garbage)?;
    }
    Ok((path, size))
}

/// The name of an entry as a path in the layout; `None` for the layout's own folder.
pub(crate) fn path(name: &str) -> Result<Option<String>> {
    let hostile = || Error::refused(format!("the name {name:?} in it leads out of it"));
    if name.starts_with('/') || name.contains('\\') || name.contains('\0') {
        return Err(hostile());
    }
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(hostile()),
            part => parts.push(part),
        }
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

/// The header blocks of a file with this name (at most 255 bytes) and size.
pub(crate) fn file(name: &str, size: u64) -> Vec<u8> {
    let mut blocks = Vec::new();
    if size >= 8 << 30 || name.len() > 100 && split(name).is_none() {
        let mut records = record("size", &size.to_string());
        records.extend(record("path", name));
        let length = records.len() as u64;
        records.resize(records.len() + padding(length), 0);
        blocks.extend(block("PaxHeaders/entry", b'x', length));
        blocks.extend(records);
        // Readers take the name and the size from the records.
        let short = name.get(..name.len().min(100)).unwrap_or("entry");
        blocks.extend(block(short, b'0', size.min((8 << 30) - 1)));
    } else {
        blocks.extend(block(name, b'0', size));
    }
    blocks
}

/// Zeros after so many bytes of content.
pub(crate) fn padding(size: u64) -> usize {
    usize::try_from((BLOCK - size % BLOCK) % BLOCK).unwrap_or_default()
}

fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n").into_bytes()
}

/// Splits a long name at a slash, so that both parts fit their fields.
fn split(name: &str) -> Option<(&str, &str)> {
    name.match_indices('/')
        .map(|(at, _)| name.split_at(at))
        .map(|(prefix, rest)| (prefix, rest.trim_start_matches('/')))
        .find(|(prefix, rest)| prefix.len() <= 155 && rest.len() <= 100)
}

fn block(name: &str, kind: u8, size: u64) -> Vec<u8> {
    let mut block = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = block.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    if name.len() <= 100 {
        put(0, name.as_bytes());
    } else if let Some((prefix, rest)) = split(name) {
        put(345, prefix.as_bytes());
        put(0, rest.as_bytes());
    }
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    // The same images give the same archive, whenever it is made.
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    if let Some(field) = block.get_mut(148..156) {
        field.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    block
}

fn field(block: &[u8; 512], at: usize, length: usize) -> &[u8] {
    block.get(at..at + length).unwrap_or_default()
}

/// Octal digits, or GNU's base 256 where the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        return rest.iter().try_fold(u64::from(first & 0x7f), |sum, byte| {
            sum.checked_mul(256)?.checked_add(u64::from(*byte))
        });
    }
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_matches(|c| c == ' ' || c == '\0');
    if text.is_empty() {
        return Some(0);
    }
    u64::from_str_radix(text, 8).ok()
}

fn text(field: &[u8]) -> Result<String> {
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    let (text, _) = field.split_at(end);
    String::from_utf8(text.to_vec()).map_err(|_| garbage())
}

fn garbage() -> Error {
    Error::refused("it is no tar file, or a damaged one")
}
