//! The list of excluded owners.

use crate::exclusions::{Room, room};
use holdfast_api::state::{MAX_EXCLUDED_OWNERS, MAX_EXCLUDED_OWNERS_OF_NAMESPACE, OwnerExclusion};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::BTreeMap;

/// The first exclusion of an owner, in seconds. Each further one is twice as long as the last.
pub const FIRST_EXCLUSION_SECONDS: i64 = 24 * 3600;
/// The longest exclusion of an owner, in seconds.
pub const MAX_EXCLUSION_SECONDS: i64 = 30 * 24 * 3600;

/// Excludes an owner, and returns the entry. `None` if it is excluded already, or if the list has
/// no room for its namespace.
pub fn add(
    list: &mut Vec<OwnerExclusion>,
    namespace: &str,
    kind: &str,
    name: &str,
    now: Timestamp,
) -> Option<OwnerExclusion> {
    let earlier = list
        .iter()
        .position(|entry| is_of(entry, namespace, kind, name));
    let mut seconds = FIRST_EXCLUSION_SECONDS;
    if let Some(earlier) = earlier {
        if !list.get(earlier)?.ended {
            return None;
        }
        let ended = list.remove(earlier);
        seconds = length(&ended)
            .saturating_mul(2)
            .clamp(FIRST_EXCLUSION_SECONDS, MAX_EXCLUSION_SECONDS);
    }
    if !make_room(list, namespace) {
        return None;
    }
    // Whole seconds, as in the API, so that the written entry equals this one.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let entry = OwnerExclusion {
        namespace: namespace.to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        since: Time(now),
        until: Time(now + SignedDuration::from_secs(seconds)),
        ended: false,
    };
    list.push(entry.clone());
    Some(entry)
}

/// Ends the exclusions whose time is over, and returns them. An ended entry stays as long as it
/// lasted, so that a further exclusion of the owner is longer. Entries of namespaces that do not
/// exist are removed.
pub fn expire(
    list: &mut Vec<OwnerExclusion>,
    exists: impl Fn(&str) -> bool,
    now: Timestamp,
) -> Vec<OwnerExclusion> {
    list.retain(|entry| {
        let forgotten = entry.until.0 + SignedDuration::from_secs(length(entry));
        now < forgotten && exists(&entry.namespace)
    });
    let mut ended = Vec::new();
    for entry in list
        .iter_mut()
        .filter(|entry| !entry.ended && entry.until.0 <= now)
    {
        entry.ended = true;
        ended.push(entry.clone());
    }
    ended
}

/// Whether an owner is excluded.
pub fn is_excluded(list: &[OwnerExclusion], namespace: &str, kind: &str, name: &str) -> bool {
    list.iter()
        .any(|entry| !entry.ended && is_of(entry, namespace, kind, name))
}

fn is_of(entry: &OwnerExclusion, namespace: &str, kind: &str, name: &str) -> bool {
    entry.namespace == namespace && entry.kind == kind && entry.name == name
}

/// How long an exclusion lasts, in seconds.
fn length(entry: &OwnerExclusion) -> i64 {
    (entry.until.0.as_second() - entry.since.0.as_second()).clamp(0, MAX_EXCLUSION_SECONDS)
}

/// Makes room for one more entry of a namespace. False if that is not possible.
fn make_room(list: &mut Vec<OwnerExclusion>, namespace: &str) -> bool {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in list.iter() {
        *counts.entry(&entry.namespace).or_default() += 1;
    }
    let limits = (MAX_EXCLUDED_OWNERS_OF_NAMESPACE, MAX_EXCLUDED_OWNERS);
    let giver = match room(&counts, namespace, limits) {
        Room::Free => return true,
        Room::Of(giver) => giver,
        Room::None => return false,
    };
    let of_giver = |entry: &&OwnerExclusion| entry.namespace == giver;
    // What has ended goes first, then the oldest.
    let leaving = list
        .iter()
        .position(|entry| of_giver(&entry) && entry.ended)
        .or_else(|| list.iter().position(|entry| of_giver(&entry)));
    if let Some(leaving) = leaving {
        list.remove(leaving);
    }
    leaving.is_some()
}

#[cfg(test)]
mod tests;
