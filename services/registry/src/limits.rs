//! Every bound of the distribution API in one place; what operators may change comes from [`holdfast_config::Limits`].

use std::time::Duration;

use holdfast_config::RegistrySettings;

/// Longest pause between two pieces of a request's body.
pub const BODY_IDLE: Duration = Duration::from_secs(60);

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

/// Folders that a mount without `from` looks into for a repository that has the blob.
pub const MOUNT_FOLDERS: usize = 1000;

/// Repositories that have the blob, after which such a mount stops looking.
pub const MOUNT_REPOSITORIES: usize = 32;

/// Most descriptors of one manifest.
pub const MANIFEST_DESCRIPTORS: usize = 10_000;

/// Most tags that one manifest may be given in one request. Each comes back in a header, and some clients take 100 headers at most.
pub const MANIFEST_TAGS: usize = 50;

/// Highest cost of a bcrypt hash: a login takes about a second of a core there.
pub const BCRYPT_COST: u32 = 14;

/// Passwords that are checked at the same time; bcrypt takes a core each.
pub const PASSWORDS_AT_ONCE: usize = 2;

/// Logins that wait for their check, those under way included; further ones are told to come later.
pub const PASSWORDS_WAITING: usize = 256;

/// Passwords whose check is remembered, right and wrong ones each.
pub const PASSWORDS_REMEMBERED: usize = 1024;

/// How long the check of a password is remembered.
pub const PASSWORD_REMEMBERED: Duration = Duration::from_secs(60);

/// Longest token.
pub const TOKEN_BYTES: usize = 16 << 10;

/// How far the clocks of registry and authorization service may differ.
pub const TOKEN_LEEWAY: Duration = Duration::from_secs(60);

/// Most keys that tokens may be checked with.
pub const TOKEN_KEYS: usize = 32;

/// Deadline of the volume's answer for readiness.
pub const VOLUME_DEADLINE: Duration = Duration::from_secs(5);

/// After so long without an answer of the volume, requests are refused at once.
pub const VOLUME_HANG: Duration = Duration::from_secs(15);

/// How often the volume is asked for readiness, and its free bytes are measured.
pub const VOLUME_EVERY: Duration = Duration::from_secs(10);

/// Pause between two looks at whether an image became local while a pull is held.
pub const HOLD_EVERY: Duration = Duration::from_millis(250);

/// `Retry-After` of answers that say "not now".
pub const RETRY_AFTER_SECONDS: u64 = 5;

/// The used percentage from which on writers are warned, as the store wants it: 100 means never, which is 101 there.
pub(crate) fn warn_used_percent(setting: u8) -> u8 {
    if setting < 100 { setting } else { 101 }
}

/// The bounds that operators set.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest manifest that is taken, in bytes.
    pub manifest_bytes: u64,
    /// How long a pull of something that nothing allows to fetch yet may wait.
    pub hold: Duration,
    /// After so long an upload that nobody continues is removed.
    pub upload_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            hold: Duration::from_secs(20),
            upload_idle: Duration::from_secs(24 * 3600),
        }
    }
}

impl From<&RegistrySettings> for Limits {
    fn from(settings: &RegistrySettings) -> Self {
        Self {
            manifest_bytes: settings.limits.manifest_bytes.bytes(),
            hold: Duration::from_secs(settings.limits.hold_seconds.into()),
            upload_idle: Duration::from_secs(u64::from(settings.limits.upload_hours) * 3600),
        }
    }
}
