//! Bounds of copies and of what replicas ask each other. `docs/LIMITS.md` lists them.

use std::time::Duration;

/// Blobs that another replica copies and that are read from there once for all clients.
pub const SHARED_STREAMS: usize = 4;

/// Bytes of each of these that are kept for clients that come a little later.
pub const SHARED_STREAM_BYTES: usize = 6 << 20;

/// Bytes of all lists of tags of upstreams that are remembered, and as many of referrers.
pub const UPSTREAM_LISTS_BYTES: usize = 8 << 20;

/// Sources of the copy of one blob that are remembered while it runs.
pub const COPY_SOURCES: usize = 32;

/// Requests for manifests and blobs of one image that are under way at the same time.
pub const IMAGE_AT_ONCE: usize = 8;

/// Manifests on the volume that copies look into at the same time.
pub const MANIFESTS_READ: usize = 4;

/// Bytes of manifests that one pull of a blob makes copies read; the next one goes on from there.
pub const SEARCHED_BYTES: u64 = 256 << 20;

/// Manifests of a repository that one pull of a blob looks into.
pub const SEARCHED_MANIFESTS: usize = 5000;

/// Bytes of what is remembered of the names in manifests, so that they are read once.
pub const NAMES_BYTES: usize = 16 << 20;

/// Bytes of verified manifests that are kept in memory for pulls while their images are copied.
pub const ARRIVING_BYTES: usize = 16 << 20;

/// Largest request of the internal API, bytes: a source, some platforms, some credentials.
pub const INTERNAL_REQUEST_BYTES: u64 = 256 << 10;

/// Time for the body of such a request.
pub const INTERNAL_REQUEST_TIME: Duration = Duration::from_secs(30);

/// Requests of the internal API at a time that ask in bulk what is held.
pub const HELD_REQUESTS: usize = 2;

/// Images of such a request that are looked at together.
pub const HELD_AT_ONCE: usize = 2;

/// Time for such a request. What was not looked at by then is unknown.
pub const HELD_TIME: Duration = Duration::from_secs(20);

/// Time for one of its images, which is unknown after it.
pub const HELD_IMAGE_TIME: Duration = Duration::from_secs(2);

/// After this many bytes of an upload it is asked again whether the volume has room.
pub const SPACE_EVERY_BYTES: u64 = 32 << 20;
