//! All bounds of the distribution API; those that operators may change come from
//! [`holdfast_config::Limits`]. `docs/LIMITS.md` lists them with what a client sees, and a test
//! compares the two.

pub(crate) mod uploads;

use std::time::Duration;

use holdfast_config::RegistrySettings;
pub use holdfast_core::oci::{
    IMAGE_DEPTH, IMAGE_MANIFEST_BYTES, IMAGE_MANIFESTS, JSON_DEPTH, MANIFEST_DESCRIPTORS,
};
pub use holdfast_fill::limits::SPACE_EVERY_BYTES;
use holdfast_runtime::server;

/// Bytes of a request's headers.
pub const HEADER_BYTES: usize = 32 << 10;

/// Headers of a request.
pub const HEADERS: usize = 100;

/// Time for a TLS handshake and the headers of a connection's first request, and for the headers of
/// each later one.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection is closed after this time without a request.
pub const KEEP_ALIVE: Duration = Duration::from_secs(120);

/// Streams of one HTTP/2 connection at the same time.
pub const HTTP2_STREAMS: u32 = 128;

/// Streams of one HTTP/2 connection that the client reset before they were looked at.
pub const HTTP2_RESETS: usize = 20;

/// The time over which the speed of a client is measured.
pub const RATE_WINDOW: Duration = Duration::from_secs(60);

/// Bytes of a refused request's body that are read over HTTP/2 and discarded, so that the client
/// reads the answer.
pub const DISCARD_BYTES: usize = 8 << 20;

/// The longest time for which such a body is read.
pub const DISCARD_FOR: Duration = Duration::from_secs(5);

/// Bytes of the cache of content types of large manifests.
pub const CONTENT_TYPES_BYTES: usize = 1 << 20;

/// Bytes of manifests that are read for one page of referrers, whatever its filter leaves of them;
/// each counts 8 KiB at least.
pub const REFERRERS_PAGE_READ_BYTES: u64 = 16 << 20;

/// Longest query string.
pub const QUERY_BYTES: usize = 16 << 10;

/// Repositories of one page of the catalog when the client names no number, and at most.
pub const CATALOG_PAGE: usize = 1000;

/// Tags of one page at most; a client that names no number gets them all up to here.
pub const TAGS_PAGE: usize = 10_000;

/// Referrers of one page.
pub const REFERRERS_PAGE: usize = 100;

/// Bytes of the descriptors of one page of referrers; clients bound what they read of an index.
pub const REFERRERS_PAGE_BYTES: usize = 4 << 20;

/// Bytes of lists that are made or were not taken by their clients yet, all together.
pub const LIST_MEMORY: u64 = 32 << 20;

/// Of these, bytes of lists for one address (IPv6: one /64).
pub const LIST_MEMORY_PER_ADDRESS: u64 = 4 << 20;

/// How long a list waits for its share of them.
pub const LIST_WAIT: Duration = Duration::from_secs(5);

/// A request that ends a session and brings all of its bytes is written apart from the session up
/// to this length: it needs no lock then, and when it breaks off nobody can go on with it.
pub const WHOLE_UPLOAD_BYTES: u64 = 16 << 20;

/// Folders that a mount without `from` looks into for a repository that has the blob.
pub const MOUNT_FOLDERS: usize = 1000;

/// Repositories with the blob after which such a mount stops its search.
pub const MOUNT_REPOSITORIES: usize = 32;

/// Bytes of manifests that clients push, all together; of those that announce more than
/// [`SMALL_MANIFEST_BYTES`], or nothing.
pub const PUSH_MEMORY: u64 = 48 << 20;

/// Of these, bytes from one address (IPv6: one /64).
pub const PUSH_MEMORY_PER_ADDRESS: u64 = 16 << 20;

/// Bytes of a manifest that counts as small, as nearly all do.
pub const SMALL_MANIFEST_BYTES: u64 = 128 << 10;

/// Bytes of small manifests that clients push, all together.
pub const SMALL_PUSH_MEMORY: u64 = 16 << 20;

/// Of these, bytes from one address (IPv6: one /64).
pub const SMALL_PUSH_MEMORY_PER_ADDRESS: u64 = 4 << 20;

/// How long a push of a manifest waits for memory.
pub const PUSH_MEMORY_WAIT: Duration = Duration::from_secs(10);

/// Most tags that one manifest may be given in one request. Each comes back in a header, and some
/// clients take 100 headers at most.
pub const MANIFEST_TAGS: usize = 50;

/// Highest cost of a bcrypt hash: a login takes about a second of a core there.
pub const BCRYPT_COST: u32 = 14;

/// Passwords that are checked at the same time; bcrypt takes a core each.
pub const PASSWORDS_AT_ONCE: usize = 2;

/// Logins that wait for their check or are being checked; further ones are answered with 429.
pub const PASSWORDS_WAITING: usize = 256;

/// Passwords whose check is remembered, right and wrong ones each.
pub const PASSWORDS_REMEMBERED: usize = 1024;

/// How long the check of a password is remembered.
pub const PASSWORD_REMEMBERED: Duration = Duration::from_secs(60);

/// How long it is remembered, beyond that, that a password was right: its checks go before all
/// others.
pub const PASSWORD_PROVEN: Duration = Duration::from_secs(24 * 3600);

/// Failed logins of one user from one address in [`LOGIN_WINDOW`], those under way included.
pub const LOGIN_FAILURES_OF_USER: usize = 5;

/// Failed logins from one address (IPv6: one /64) in [`LOGIN_WINDOW`], those under way included.
pub const LOGIN_FAILURES_OF_ADDRESS: usize = 20;

/// The time over which failed logins are counted.
pub const LOGIN_WINDOW: Duration = Duration::from_secs(60);

/// Addresses, and users of an address, whose failed logins are remembered.
pub const LOGIN_ADDRESSES: usize = 4096;

/// Longest token.
pub const TOKEN_BYTES: usize = 16 << 10;

/// How far the clocks of registry and authorization service may differ.
pub const TOKEN_LEEWAY: Duration = Duration::from_secs(60);

/// Most keys that tokens may be checked with.
pub const TOKEN_KEYS: usize = 32;

/// Deadline of the volume's answer for readiness.
pub const VOLUME_DEADLINE: Duration = Duration::from_secs(5);

/// Requests are refused at once after this time without an answer of the volume.
pub const VOLUME_HANG: Duration = Duration::from_secs(15);

/// How often the volume is asked for readiness, and its free bytes are measured.
pub const VOLUME_EVERY: Duration = Duration::from_secs(10);

/// Interval of checks whether an image became local while a pull is held.
pub const HOLD_EVERY: Duration = Duration::from_millis(250);

/// `Retry-After` of answers with 429, 502 and 503, unless an upstream asks for another time.
pub const RETRY_AFTER_SECONDS: u64 = 5;

/// The used percentage from which on writers are warned, as the store wants it: 100 means never,
/// which is 101 there.
pub(crate) fn warn_used_percent(setting: u8) -> u8 {
    if setting < 100 { setting } else { 101 }
}

/// The bounds that operators set.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest manifest that is accepted, in bytes.
    pub manifest_bytes: u64,
    /// How long a pull of something that nothing allows to fetch yet may wait.
    pub hold: Duration,
    /// An upload that no client continues is removed after this time.
    pub upload_idle: Duration,
    /// Uploads under way that were begun on this replica.
    pub uploads: usize,
    /// Of these, uploads to one repository.
    pub uploads_per_repository: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self::from(&holdfast_config::Limits::default())
    }
}

impl From<&RegistrySettings> for Limits {
    fn from(settings: &RegistrySettings) -> Self {
        Self::from(&settings.limits)
    }
}

impl From<&holdfast_config::Limits> for Limits {
    fn from(limits: &holdfast_config::Limits) -> Self {
        Self {
            manifest_bytes: limits.manifest_bytes.bytes(),
            hold: Duration::from_secs(limits.hold_seconds.into()),
            upload_idle: Duration::from_secs(u64::from(limits.upload_hours) * 3600),
            uploads: size(limits.uploads),
            uploads_per_repository: size(limits.uploads_per_repository),
        }
    }
}

/// The limits of one connection.
pub fn connection(limits: &holdfast_config::Limits) -> server::Limits {
    server::Limits {
        connections: size(limits.connections),
        connections_per_address: size(limits.connections_per_address),
        header_bytes: HEADER_BYTES,
        headers: HEADERS,
        header_timeout: HEADER_TIMEOUT,
        keep_alive: KEEP_ALIVE,
        idle: Duration::from_secs(limits.idle_seconds.into()),
        min_bytes_per_second: limits.min_bytes_per_second.bytes(),
        window: RATE_WINDOW,
        streams: HTTP2_STREAMS,
        resets: HTTP2_RESETS,
        ..server::Limits::default()
    }
}

fn size(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
