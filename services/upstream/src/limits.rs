//! Bounds of what upstreams may send and of what waits for them. `docs/LIMITS.md` lists them.

use std::time::Duration;

/// Bytes that one list of an upstream (tags, referrers) takes in memory.
pub const UPSTREAM_LIST_BYTES: usize = 2 << 20;

/// Bytes of annotations of one entry of a list of referrers of an upstream.
pub const REFERRER_ANNOTATION_BYTES: usize = 64 << 10;

/// Longest token that is taken from a token server.
pub const UPSTREAM_TOKEN_BYTES: usize = 16 << 10;

/// Bytes of the realm and the service that a registry asks for a token of, together.
pub const UPSTREAM_CHALLENGE_BYTES: usize = 2 << 10;

/// Bytes of all tokens of upstreams that are remembered, and as many of what requests were
/// authorised with.
pub const UPSTREAM_TOKENS_BYTES: usize = 8 << 20;

/// Requests that wait for the pace of one upstream host. When all places are taken, the client with
/// most of them makes room for another client, and of one client its repository with most.
pub const UPSTREAM_REQUESTS_WAITING: usize = 512;

/// Copies of blobs that wait for a slot. When all places are taken, the client with most of them
/// makes room for another one.
pub const COPIES_WAITING: usize = 4096;

/// Bytes of manifests that upstreams and other replicas are sending, all together.
pub const MANIFEST_MEMORY: u64 = 48 << 20;

/// Of these, bytes from one host.
pub const MANIFEST_MEMORY_PER_HOST: u64 = 16 << 20;

/// How long a manifest may arrive while one of another host, which holds less memory, waits.
pub const MANIFEST_CUT_AFTER: Duration = Duration::from_secs(2);

/// Log messages a minute that any client can cause; further ones are at level debug.
pub const MESSAGES_A_MINUTE: usize = 60;
