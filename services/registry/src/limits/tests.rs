//! `docs/LIMITS.md` says what the code does.

use std::collections::BTreeMap;

use holdfast_fill::{internal, limits::*};
use holdfast_runtime::{admin, descriptors::Share};
use holdfast_upstream::limits::*;

use super::*;

/// The limits by their names in the table.
fn code() -> BTreeMap<&'static str, String> {
    let values = holdfast_config::Limits::default();
    let seconds = |time: Duration| time.as_secs().to_string();
    BTreeMap::from([
        ("manifestBytes", values.manifest_bytes.to_string()),
        ("connections", values.connections.to_string()),
        (
            "connectionsPerAddress",
            values.connections_per_address.to_string(),
        ),
        ("idleSeconds", values.idle_seconds.to_string()),
        ("minBytesPerSecond", values.min_bytes_per_second.to_string()),
        ("uploads", values.uploads.to_string()),
        (
            "uploadsPerRepository",
            values.uploads_per_repository.to_string(),
        ),
        ("uploadHours", values.upload_hours.to_string()),
        ("warnUsedPercent", values.warn_used_percent.to_string()),
        ("reservePercent", values.reserve_percent.to_string()),
        ("streamBufferBytes", values.stream_buffer_bytes.to_string()),
        ("holdSeconds", values.hold_seconds.to_string()),
        ("MANIFEST_DESCRIPTORS", MANIFEST_DESCRIPTORS.to_string()),
        ("JSON_DEPTH", JSON_DEPTH.to_string()),
        ("IMAGE_DEPTH", IMAGE_DEPTH.to_string()),
        ("IMAGE_MANIFESTS", IMAGE_MANIFESTS.to_string()),
        ("IMAGE_MANIFEST_BYTES", IMAGE_MANIFEST_BYTES.to_string()),
        ("IMAGE_AT_ONCE", IMAGE_AT_ONCE.to_string()),
        ("MANIFEST_MEMORY", MANIFEST_MEMORY.to_string()),
        (
            "MANIFEST_MEMORY_PER_HOST",
            MANIFEST_MEMORY_PER_HOST.to_string(),
        ),
        ("MANIFEST_CUT_AFTER", seconds(MANIFEST_CUT_AFTER)),
        ("PUSH_MEMORY", PUSH_MEMORY.to_string()),
        (
            "PUSH_MEMORY_PER_ADDRESS",
            PUSH_MEMORY_PER_ADDRESS.to_string(),
        ),
        ("SMALL_MANIFEST_BYTES", SMALL_MANIFEST_BYTES.to_string()),
        ("SMALL_PUSH_MEMORY", SMALL_PUSH_MEMORY.to_string()),
        (
            "SMALL_PUSH_MEMORY_PER_ADDRESS",
            SMALL_PUSH_MEMORY_PER_ADDRESS.to_string(),
        ),
        ("PUSH_MEMORY_WAIT", seconds(PUSH_MEMORY_WAIT)),
        ("MANIFESTS_READ", MANIFESTS_READ.to_string()),
        ("SEARCHED_BYTES", SEARCHED_BYTES.to_string()),
        ("SEARCHED_MANIFESTS", SEARCHED_MANIFESTS.to_string()),
        ("NAMES_BYTES", NAMES_BYTES.to_string()),
        ("ARRIVING_BYTES", ARRIVING_BYTES.to_string()),
        ("MANIFEST_TAGS", MANIFEST_TAGS.to_string()),
        ("HEADER_BYTES", HEADER_BYTES.to_string()),
        ("HEADERS", HEADERS.to_string()),
        ("QUERY_BYTES", QUERY_BYTES.to_string()),
        ("SHARED_STREAMS", SHARED_STREAMS.to_string()),
        ("SHARED_STREAM_BYTES", SHARED_STREAM_BYTES.to_string()),
        ("MESSAGES_A_MINUTE", MESSAGES_A_MINUTE.to_string()),
        ("UPSTREAM_TOKEN_BYTES", UPSTREAM_TOKEN_BYTES.to_string()),
        (
            "UPSTREAM_CHALLENGE_BYTES",
            UPSTREAM_CHALLENGE_BYTES.to_string(),
        ),
        ("UPSTREAM_TOKENS_BYTES", UPSTREAM_TOKENS_BYTES.to_string()),
        ("UPSTREAM_LIST_BYTES", UPSTREAM_LIST_BYTES.to_string()),
        ("UPSTREAM_LISTS_BYTES", UPSTREAM_LISTS_BYTES.to_string()),
        (
            "REFERRER_ANNOTATION_BYTES",
            REFERRER_ANNOTATION_BYTES.to_string(),
        ),
        (
            "UPSTREAM_REQUESTS_WAITING",
            UPSTREAM_REQUESTS_WAITING.to_string(),
        ),
        ("COPIES_WAITING", COPIES_WAITING.to_string()),
        ("COPY_SOURCES", COPY_SOURCES.to_string()),
        ("DISCARD_BYTES", DISCARD_BYTES.to_string()),
        ("DISCARD_FOR", seconds(DISCARD_FOR)),
        ("HEADER_TIMEOUT", seconds(HEADER_TIMEOUT)),
        ("KEEP_ALIVE", seconds(KEEP_ALIVE)),
        ("HTTP2_STREAMS", HTTP2_STREAMS.to_string()),
        ("HTTP2_RESETS", HTTP2_RESETS.to_string()),
        ("RATE_WINDOW", seconds(RATE_WINDOW)),
        ("SPACE_EVERY_BYTES", SPACE_EVERY_BYTES.to_string()),
        ("CATALOG_PAGE", CATALOG_PAGE.to_string()),
        ("TAGS_PAGE", TAGS_PAGE.to_string()),
        ("REFERRERS_PAGE", REFERRERS_PAGE.to_string()),
        ("REFERRERS_PAGE_BYTES", REFERRERS_PAGE_BYTES.to_string()),
        ("CONTENT_TYPES_BYTES", CONTENT_TYPES_BYTES.to_string()),
        (
            "REFERRERS_PAGE_READ_BYTES",
            REFERRERS_PAGE_READ_BYTES.to_string(),
        ),
        ("LIST_MEMORY", LIST_MEMORY.to_string()),
        (
            "LIST_MEMORY_PER_ADDRESS",
            LIST_MEMORY_PER_ADDRESS.to_string(),
        ),
        ("LIST_WAIT", seconds(LIST_WAIT)),
        ("WHOLE_UPLOAD_BYTES", WHOLE_UPLOAD_BYTES.to_string()),
        ("MOUNT_FOLDERS", MOUNT_FOLDERS.to_string()),
        ("MOUNT_REPOSITORIES", MOUNT_REPOSITORIES.to_string()),
        ("BCRYPT_COST", BCRYPT_COST.to_string()),
        ("PASSWORDS_AT_ONCE", PASSWORDS_AT_ONCE.to_string()),
        ("PASSWORDS_WAITING", PASSWORDS_WAITING.to_string()),
        ("PASSWORDS_REMEMBERED", PASSWORDS_REMEMBERED.to_string()),
        ("PASSWORD_REMEMBERED", seconds(PASSWORD_REMEMBERED)),
        ("PASSWORD_PROVEN", seconds(PASSWORD_PROVEN)),
        ("LOGIN_FAILURES_OF_USER", LOGIN_FAILURES_OF_USER.to_string()),
        (
            "LOGIN_FAILURES_OF_ADDRESS",
            LOGIN_FAILURES_OF_ADDRESS.to_string(),
        ),
        ("LOGIN_WINDOW", seconds(LOGIN_WINDOW)),
        ("LOGIN_ADDRESSES", LOGIN_ADDRESSES.to_string()),
        ("TOKEN_BYTES", TOKEN_BYTES.to_string()),
        ("TOKEN_LEEWAY", seconds(TOKEN_LEEWAY)),
        ("TOKEN_KEYS", TOKEN_KEYS.to_string()),
        ("INTERNAL_REQUEST_BYTES", INTERNAL_REQUEST_BYTES.to_string()),
        ("INTERNAL_REQUEST_TIME", seconds(INTERNAL_REQUEST_TIME)),
        ("HELD_REQUESTS", HELD_REQUESTS.to_string()),
        ("HELD_AT_ONCE", HELD_AT_ONCE.to_string()),
        ("HELD_TIME", seconds(HELD_TIME)),
        ("HELD_IMAGE_TIME", seconds(HELD_IMAGE_TIME)),
        ("VOLUME_DEADLINE", seconds(VOLUME_DEADLINE)),
        ("VOLUME_HANG", seconds(VOLUME_HANG)),
        ("RETRY_AFTER_SECONDS", RETRY_AFTER_SECONDS.to_string()),
    ])
}

/// The second and the third column of the first table: the others are about other parts.
fn document() -> BTreeMap<String, String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/LIMITS.md");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            (cells[2].trim_matches('`').to_owned(), cells[3].to_owned())
        })
        .collect()
}

#[test]
fn the_document_lists_every_limit_with_its_default() {
    let code: BTreeMap<_, _> = code()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    assert_eq!(document(), code);
}

#[test]
fn every_limit_that_operators_set_is_listed() {
    let values = serde_json::to_value(holdfast_config::Limits::default()).unwrap();
    let listed = document();
    for key in values.as_object().unwrap().keys() {
        assert!(listed.contains_key(key), "docs/LIMITS.md lacks {key}");
    }
}

#[test]
fn what_operators_set_reaches_the_listener() {
    let values = holdfast_config::Limits {
        connections: 100,
        connections_per_address: 10,
        idle_seconds: 7,
        min_bytes_per_second: holdfast_config::ByteSize::from_bytes(5000),
        ..holdfast_config::Limits::default()
    };
    let limits = connection(&values);
    assert_eq!(
        (limits.connections, limits.connections_per_address),
        (100, 10)
    );
    assert_eq!(limits.idle, Duration::from_secs(7));
    assert_eq!(limits.min_bytes_per_second, 5000);
    assert_eq!((warn_used_percent(85), warn_used_percent(100)), (85, 101));
}

#[test]
fn what_the_document_says_of_a_connection_reaches_the_listener() {
    let limits = connection(&holdfast_config::Limits::default());
    assert_eq!(
        (limits.headers, limits.header_bytes),
        (HEADERS, HEADER_BYTES)
    );
    assert_eq!(limits.header_timeout, HEADER_TIMEOUT);
    assert_eq!(limits.keep_alive, KEEP_ALIVE);
    assert_eq!(limits.window, RATE_WINDOW);
    assert_eq!(
        (limits.streams, limits.resets),
        (HTTP2_STREAMS, HTTP2_RESETS)
    );
}

#[test]
fn all_listeners_leave_a_third_of_the_files_to_volume_and_upstreams() {
    let config = |connections| holdfast_config::Limits {
        connections,
        ..holdfast_config::Limits::default()
    };
    for files in [64, 256, 1024, 4096, 65_536, 524_288, 1 << 30] {
        for connections in [16, 4096, 65_535] {
            let public = connection(&config(connections));
            let listeners = [public, internal::limits(), admin::limits()];
            let shares = listeners.map(|limits| Share::of(&limits, Some(files)));
            let taken: usize = shares.iter().map(Share::files).sum();
            assert!(3 * taken as u64 <= 2 * files, "{files}: {shares:?}");
            let is_served = shares.iter().all(|share| 8 <= share.connections);
            assert!(is_served, "{files}: {shares:?}");
        }
    }
}
