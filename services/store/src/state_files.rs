//! The state of the scrubber and of other parts, as small files in Holdfast's own folder.

use crate::{Error, Layout, Result, durable::DurableFs, files};

/// Largest state file that is read.
const MAX_STATE_FILE_BYTES: usize = 64 << 10;

/// The file `name`; `None` if there is none.
pub(crate) fn read(files: &DurableFs, layout: &Layout, name: &str) -> Result<Option<Vec<u8>>> {
    let path = layout.own().join(name);
    match files::open_read(files.volume(), &path)? {
        Some(file) => files::read_up_to(&*file, MAX_STATE_FILE_BYTES)
            .map(Some)
            .map_err(Error::io("read", path)),
        None => Ok(None),
    }
}

/// Replaces the file `name`.
pub(crate) fn write(files: &DurableFs, layout: &Layout, name: &str, bytes: &[u8]) -> Result<()> {
    files.write_file(&layout.own().join(name), bytes)
}
