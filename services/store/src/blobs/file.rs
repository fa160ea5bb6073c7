//! An open blob. Reads run in place where the kernel has the bytes in memory, else on the pool.

use std::{io, sync::Arc};

use bytes::Bytes;
use holdfast_core::digest::Digest;

use crate::{
    Error, Pool, Result,
    buffers::{Buffer, Buffers},
    volume::{Metadata, VolumeFile},
};

/// An open blob. Stays readable while it is moved or removed.
#[derive(Clone, Debug)]
pub struct BlobFile {
    pub(super) digest: Digest,
    pub(super) file: Arc<dyn VolumeFile>,
    pub(super) metadata: Metadata,
    pub(super) pool: Pool,
    pub(super) buffers: Buffers,
    pub(super) verified: bool,
}

impl BlobFile {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.metadata.len
    }

    /// The blob's name.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Whether this very file was hashed and found sound not long ago.
    pub fn is_verified(&self) -> bool {
        self.verified
    }

    /// [`BlobFile::read_at`], but only what the kernel has in memory; `None` when the volume has to
    /// be waited for.
    pub fn read_nonblocking(&self, offset: u64, limit: u64) -> Option<Result<Bytes>> {
        if limit == 0 {
            return Some(Ok(Bytes::new()));
        }
        read_nonblocking(&self.buffers, &*self.file, offset, limit).ok()
    }

    /// Reads up to `limit` bytes at `offset`; fewer when buffers are short; empty only at the end.
    pub async fn read_at(&self, offset: u64, limit: u64) -> Result<Bytes> {
        read_at(&self.pool, &self.buffers, &self.file, offset, limit).await
    }
}

/// Reads up to `limit` bytes of a file at `offset`, here and now where the kernel has them in
/// memory, else on the pool.
pub(crate) async fn read_at(
    pool: &Pool,
    buffers: &Buffers,
    file: &Arc<dyn VolumeFile>,
    offset: u64,
    limit: u64,
) -> Result<Bytes> {
    if limit == 0 {
        return Ok(Bytes::new());
    }
    let mut buffer = match read_nonblocking(buffers, &**file, offset, limit) {
        Ok(read) => return read,
        Err(buffer) => buffer,
    };
    let file = Arc::clone(file);
    pool.run(move || {
        let filled =
            read_into(&*file, buffer.room(), offset, true).map_err(Error::io("read", "blob"))?;
        Ok(buffer.into_bytes(filled))
    })
    .await
}

/// Reads without waiting for the volume; gives the buffer back when that cannot be.
fn read_nonblocking(
    buffers: &Buffers,
    file: &dyn VolumeFile,
    offset: u64,
    limit: u64,
) -> std::result::Result<Result<Bytes>, Buffer> {
    let mut buffer = buffers.take(limit);
    match read_into(file, buffer.room(), offset, false) {
        Ok(filled) => Ok(Ok(buffer.into_bytes(filled))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(buffer),
        Err(error) => Ok(Err(Error::io("read", "blob")(error))),
    }
}

fn read_into(file: &dyn VolumeFile, room: &mut [u8], offset: u64, wait: bool) -> io::Result<usize> {
    loop {
        match file.read_into(room, offset, wait) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
