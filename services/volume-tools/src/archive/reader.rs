//! An image layout to read from: a tar file or a folder. Nothing is unpacked; names are checked
//! when the layout is opened, content when it is used.

use std::{
    collections::BTreeMap,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_store::{
    files,
    volume::{Disk, Metadata, VolumeFile},
};

use super::{
    Error, Result,
    tar::{self, Header},
};

/// Most entries of an archive.
const MAX_ENTRIES: usize = 200_000;

/// Files of an image layout by their names.
pub trait ArchiveReader {
    /// The size of a file; `None` if there is none.
    fn size(&mut self, name: &str) -> Result<Option<u64>>;

    /// At most `limit` bytes of a file at `offset`; empty at its end, and for a file that is not
    /// there.
    fn read_at(&mut self, name: &str, offset: u64, limit: usize) -> Result<Vec<u8>>;

    /// A whole small file; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is larger than `limit`.
    fn read(&mut self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(size) = self.size(name)? else {
            return Ok(None);
        };
        if size > limit {
            return Err(Error::refused(format!(
                "{name} has {size} bytes, at most {limit} are taken"
            )));
        }
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < size {
            let piece = self.read_at(name, bytes.len() as u64, 256 << 10)?;
            if piece.is_empty() {
                return Err(Error::refused(format!("{name} ends too early")));
            }
            bytes.extend(piece);
        }
        Ok(Some(bytes))
    }
}

/// A layout in a tar file.
#[derive(Debug)]
pub struct TarReader<R> {
    file: R,
    entries: BTreeMap<String, (u64, u64)>,
}

impl<R: Read + Seek> TarReader<R> {
    /// Looks through the headers of a tar file.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is no tar file, is truncated or compressed, or holds links, names
    /// that lead out of it, or one name twice.
    pub fn open(mut file: R) -> Result<Self> {
        let length = file.seek(SeekFrom::End(0)).map_err(Error::Read)?;
        let mut entries = BTreeMap::new();
        let mut at = 0_u64;
        let mut refused = None;
        let (mut next_name, mut next_size) = (None, None);
        while at + tar::BLOCK <= length {
            let block = read_exactly(&mut file, at, 512)?;
            let block: [u8; 512] = block
                .try_into()
                .map_err(|_| Error::refused("it is truncated"))?;
            if at == 0 {
                refuse_compressed(&block)?;
            }
            at += tar::BLOCK;
            let mut extension = |size: u64| {
                if size > length.saturating_sub(at) {
                    return Err(Error::refused("it is truncated"));
                }
                let bytes = read_exactly(&mut file, at, usize::try_from(size).unwrap_or_default())?;
                at += size + tar::padding(size) as u64;
                Ok(bytes)
            };
            match tar::header(&block)? {
                Header::End => break,
                Header::Refused { why, size } => {
                    refused.get_or_insert(why);
                    at = at
                        .saturating_add(size)
                        .saturating_add(tar::padding(size) as u64);
                }
                Header::Ignored(size) => drop(extension(size)?),
                Header::LongName(size) => {
                    let bytes = extension(size)?;
                    let text = String::from_utf8(bytes)
                        .map_err(|_| Error::refused("a name in it is no text"))?;
                    next_name = Some(text.trim_end_matches('\0').to_owned());
                }
                Header::Records(size) => {
                    let (name, size) = tar::records(&extension(size)?)?;
                    next_name = name.or(next_name);
                    next_size = size.or(next_size);
                }
                Header::Entry {
                    name,
                    size,
                    is_folder,
                } => {
                    let name = next_name.take().unwrap_or(name);
                    let size = next_size.take().unwrap_or(size);
                    let path = tar::path(&name)?;
                    if is_folder {
                        continue;
                    }
                    if size > length.saturating_sub(at) {
                        return Err(Error::refused(format!("it is truncated within {name}")));
                    }
                    let path = path.ok_or_else(|| Error::refused("a file in it has no name"))?;
                    if entries.insert(path, (at, size)).is_some() {
                        return Err(Error::refused(format!("it holds {name} twice")));
                    }
                    if entries.len() > MAX_ENTRIES {
                        return Err(Error::refused(format!(
                            "it holds more than {MAX_ENTRIES} files"
                        )));
                    }
                    at = at
                        .saturating_add(size)
                        .saturating_add(tar::padding(size) as u64);
                }
            }
        }
        // The old format of docker is full of links: it is told for what it is, not for them.
        let is_docker =
            entries.contains_key("manifest.json") && !entries.contains_key("oci-layout");
        if let Some(why) = refused.filter(|_| !is_docker) {
            return Err(Error::refused(why));
        }
        if length < tar::BLOCK {
            return Err(Error::refused("it is no tar file"));
        }
        Ok(Self { file, entries })
    }
}

fn refuse_compressed(block: &[u8]) -> Result<()> {
    let tools: [(&[u8], &str); 4] = [
        (&[0x1f, 0x8b], "gunzip"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "unzstd"),
        (&[0xfd, b'7', b'z', b'X', b'Z'], "unxz"),
        (b"BZh", "bunzip2"),
    ];
    match tools.iter().find(|(magic, _)| block.starts_with(magic)) {
        Some((_, tool)) => Err(Error::refused(format!(
            "it is compressed; unpack it with {tool} first"
        ))),
        None => Ok(()),
    }
}

fn read_exactly<R: Read + Seek>(file: &mut R, at: u64, size: usize) -> Result<Vec<u8>> {
    file.seek(SeekFrom::Start(at)).map_err(Error::Read)?;
    let mut bytes = Vec::new();
    file.take(size as u64)
        .read_to_end(&mut bytes)
        .map_err(Error::Read)?;
    if bytes.len() == size {
        Ok(bytes)
    } else {
        Err(Error::refused("it is truncated"))
    }
}

impl<R: Read + Seek> ArchiveReader for TarReader<R> {
    fn size(&mut self, name: &str) -> Result<Option<u64>> {
        Ok(self.entries.get(name).map(|(_, size)| *size))
    }

    fn read_at(&mut self, name: &str, offset: u64, limit: usize) -> Result<Vec<u8>> {
        let Some((at, size)) = self.entries.get(name).copied() else {
            return Ok(Vec::new());
        };
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        read_exactly(&mut self.file, at + offset, left.min(limit))
    }
}

/// A layout in a folder. Symbolic links in it are not followed.
#[derive(Debug)]
pub struct FolderReader {
    volume: Disk,
    root: PathBuf,
    open: Option<(String, Arc<dyn VolumeFile>)>,
}

impl FolderReader {
    /// The layout in `root`.
    pub fn open(root: &Path) -> Self {
        Self {
            volume: Disk::at(root),
            root: root.to_owned(),
            open: None,
        }
    }
}

impl ArchiveReader for FolderReader {
    fn size(&mut self, name: &str) -> Result<Option<u64>> {
        let found = files::metadata(&self.volume, &self.root.join(name))?;
        Ok(found.filter(Metadata::is_file).map(|found| found.len))
    }

    fn read_at(&mut self, name: &str, offset: u64, limit: usize) -> Result<Vec<u8>> {
        if self.open.as_ref().is_none_or(|(open, _)| open != name) {
            let file = files::open_read(&self.volume, &self.root.join(name))?;
            self.open = file.map(|file| (name.to_owned(), file));
        }
        let Some((_, file)) = &self.open else {
            return Ok(Vec::new());
        };
        let mut bytes = Vec::with_capacity(limit);
        files::read_some(&**file, &mut bytes, offset).map_err(Error::Read)?;
        Ok(bytes)
    }

    fn read(&mut self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let path = self.root.join(name);
        if self.size(name)?.is_some_and(|size| size > limit) {
            return Err(Error::refused(format!(
                "{name} is larger than the {limit} bytes that are taken"
            )));
        }
        Ok(files::read(&self.volume, &path, limit)?)
    }
}
