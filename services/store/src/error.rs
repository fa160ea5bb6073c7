//! What can go wrong on the volume, in terms that a caller can act on.

use std::{io, path::PathBuf};

use holdfast_core::digest::Digest;

/// Result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the store. "Absent" is not an error: look-ups return `Option`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume answered with an error.
    #[error("{action} {path}")]
    Io {
        /// What was attempted, a verb.
        action: &'static str,
        /// The path on the volume; for logs, never for clients.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The volume is too full for a write; reads go on.
    #[error("the volume has {available_bytes} bytes left, writes need more")]
    NoSpace {
        /// Bytes that are still free.
        available_bytes: u64,
    },
    /// Every slot of the volume's pool was busy for too long: the volume hangs or is overloaded.
    #[error("the volume does not answer")]
    Busy,
    /// The content's digest is not the expected one.
    #[error("content has digest {actual}, expected {expected}")]
    DigestMismatch {
        /// What was asked for.
        expected: Digest,
        /// What the bytes hash to.
        actual: Digest,
    },
    /// The content's size is not the expected one.
    #[error("content has {actual} bytes, expected {expected}")]
    SizeMismatch {
        /// Bytes asked for.
        expected: u64,
        /// Bytes found.
        actual: u64,
    },
    /// There is no such upload session.
    #[error("upload session is unknown")]
    UploadUnknown,
    /// Another request writes to this upload session at the moment.
    #[error("upload session is in use")]
    UploadInUse,
    /// A chunk does not start where the session ends.
    #[error("upload session holds {size} bytes, chunk starts at {offset}")]
    OffsetMismatch {
        /// Bytes the session holds.
        size: u64,
        /// Where the chunk starts.
        offset: u64,
    },
    /// Stored content is damaged; it was moved aside and can be filled again.
    #[error("stored content of {digest} is damaged")]
    Corrupt {
        /// The content's name.
        digest: Digest,
    },
    /// A manifest is larger than what is read into memory
    /// ([`MAX_MANIFEST_BYTES`](crate::MAX_MANIFEST_BYTES)); it is not damaged.
    #[error(
        "manifest {digest} has {size} bytes, more than the {} that are read",
        crate::MAX_MANIFEST_BYTES
    )]
    ManifestTooLarge {
        /// The manifest's name.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// A hash state does not parse.
    #[error("hash state is invalid")]
    HashState,
    /// A lock on the volume was lost to another owner.
    #[error("lock was lost to another owner")]
    LockLost,
}

impl Error {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.raw_os_error() {
            Some(code)
                if code == rustix::io::Errno::NOSPC.raw_os_error()
                    || code == rustix::io::Errno::DQUOT.raw_os_error() =>
            {
                Self::NoSpace { available_bytes: 0 }
            }
            _ => Self::Io {
                action,
                path,
                source,
            },
        }
    }

    /// Whether something on the way was not there.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether an open file was removed by another machine.
    pub(crate) fn is_stale(&self) -> bool {
        use io::ErrorKind::StaleNetworkFileHandle;
        matches!(self, Self::Io { source, .. } if source.kind() == StaleNetworkFileHandle)
    }

    /// Bounded name of the failure for metrics and logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::NoSpace { .. } => "no_space",
            Self::Busy => "busy",
            Self::DigestMismatch { .. } => "digest_mismatch",
            Self::SizeMismatch { .. } => "size_mismatch",
            Self::UploadUnknown => "upload_unknown",
            Self::UploadInUse => "upload_in_use",
            Self::OffsetMismatch { .. } => "offset_mismatch",
            Self::Corrupt { .. } => "corrupt",
            Self::ManifestTooLarge { .. } => "manifest_too_large",
            Self::HashState => "hash_state",
            Self::LockLost => "lock_lost",
        }
    }
}

/// Turns "not found" into `None`; a path component that is a file counts as absent too.
pub(crate) fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
