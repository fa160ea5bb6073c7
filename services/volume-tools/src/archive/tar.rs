//! The tar format, as far as image layouts use it. Pure: blocks in, facts out. Only regular files
//! and folders exist; a link or a device in an archive is an attack or a mistake and refuses it.
//!
//! The crate `tar` reads and writes header blocks. Its `Archive` is not used: it reads names and
//! pax records of any size into memory, and skips what this module refuses.

use std::io;

use ::tar::EntryType;

use super::{Error, Result};

/// Everything in a tar file is a multiple of this.
pub(crate) const BLOCK: u64 = 512;

/// Longest pax record set or long name that is read: names in an image layout have 150 bytes.
const MAX_EXTENSION_BYTES: u64 = 64 << 10;

/// Largest size that fits into the octal field of a header.
const MAX_OCTAL_SIZE: u64 = (8 << 30) - 1;

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
    /// Records for the next entry (`path`, `size`); their size in bytes.
    Records(u64),
    /// The name of the next entry; its size in bytes.
    LongName(u64),
    /// Records for all entries, which are not needed; their size in bytes.
    Ignored(u64),
    /// What no image layout holds.
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
    let header = ::tar::Header::from_byte_slice(block);
    let mut summed = header.clone();
    summed.set_cksum();
    if header.cksum().map_err(garbage)? != summed.cksum().map_err(garbage)? {
        return Err(garbage(()));
    }
    let size = size_of(header)?;
    let name = String::from_utf8(header.path_bytes().into_owned()).map_err(garbage)?;
    let extension = |header: Header| {
        if size > MAX_EXTENSION_BYTES {
            Err(Error::refused(
                "a name in it is longer than any name needs to be",
            ))
        } else {
            Ok(header)
        }
    };
    match header.entry_type() {
        EntryType::Regular | EntryType::Continuous => Ok(Header::Entry {
            is_folder: name.ends_with('/'),
            name,
            size,
        }),
        EntryType::Directory => Ok(Header::Entry {
            name,
            size: 0,
            is_folder: true,
        }),
        EntryType::XHeader => extension(Header::Records(size)),
        EntryType::GNULongName => extension(Header::LongName(size)),
        EntryType::XGlobalHeader => extension(Header::Ignored(size)),
        kind @ (EntryType::Link | EntryType::Symlink | EntryType::GNULongLink) => {
            Ok(Header::Refused {
                why: format!("it holds a link ({name}), and images are files"),
                size: if kind == EntryType::GNULongLink {
                    size
                } else {
                    0
                },
            })
        }
        kind => Ok(Header::Refused {
            why: format!("it holds a special file ({name}), and images are plain files"),
            size: if matches!(kind, EntryType::Char | EntryType::Block | EntryType::Fifo) {
                0
            } else {
                size
            },
        }),
    }
}

/// The size field. The crate refuses an empty one, which means zero, and drops the upper bytes of a
/// number in base 256.
fn size_of(header: &::tar::Header) -> Result<u64> {
    let field = &header.as_old().size;
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Ok(0);
    }
    if field[0] & 0x80 != 0 && field[..4] != [0x80, 0, 0, 0] {
        return Err(garbage(()));
    }
    header.entry_size().map_err(garbage)
}

/// The `path` and `size` of pax records. Unlike `tar::PaxExtensions` it takes the length of a
/// record from the record, so that a value may hold a newline and nothing after an empty line is
/// skipped.
pub(crate) fn records(mut bytes: &[u8]) -> Result<(Option<String>, Option<u64>)> {
    let (mut path, mut size) = (None, None);
    while !bytes.is_empty() {
        let space = bytes
            .iter()
            .position(|byte| *byte == b' ')
            .ok_or_else(|| garbage(()))?;
        let (length, _) = bytes.split_at(space);
        let length: usize = std::str::from_utf8(length)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| garbage(()))?;
        let record = bytes.get(space + 1..length).ok_or_else(|| garbage(()))?;
        let record = record.strip_suffix(b"\n").ok_or_else(|| garbage(()))?;
        let record = std::str::from_utf8(record).map_err(garbage)?;
        match record.split_once('=').ok_or_else(|| garbage(()))? {
            ("path", value) => path = Some(value.to_owned()),
            ("size", value) => size = Some(value.parse().map_err(garbage)?),
            (name, _) if name.starts_with("GNU.sparse.") => {
                return Err(Error::refused("it holds a sparse file"));
            }
            _ => {}
        }
        bytes = bytes.get(length..).ok_or_else(|| garbage(()))?;
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

/// The header blocks of a file with this name and size. The same images give the same archive,
/// whenever it is made.
pub(crate) fn file(name: &str, size: u64) -> io::Result<Vec<u8>> {
    let mut blocks = Vec::new();
    let mut header = regular();
    if size > MAX_OCTAL_SIZE || header.set_path(name).is_err() {
        let mut records = ::tar::Builder::new(Vec::new());
        let text = size.to_string();
        records.append_pax_extensions([("size", text.as_bytes()), ("path", name.as_bytes())])?;
        blocks.clone_from(records.get_ref());
        // Readers take the name and the size from the records.
        header = regular();
        header.set_path("entry")?;
    }
    header.set_size(size.min(MAX_OCTAL_SIZE));
    header.set_cksum();
    blocks.extend(header.as_bytes());
    Ok(blocks)
}

fn regular() -> ::tar::Header {
    let mut header = ::tar::Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// The number of zeros after `size` bytes of content.
pub(crate) fn padding(size: u64) -> usize {
    usize::try_from((BLOCK - size % BLOCK) % BLOCK).unwrap_or_default()
}

fn garbage<E>(_: E) -> Error {
    Error::refused("it is no tar file, or a damaged one")
}
