//! What the store may answer, as a pure function of what was asked of it and acknowledged. Knows
//! nothing of files.
//!
//! Every value is a register with the writes that were begun on it. A write that was acknowledged
//! replaces all that ended before it began; one that failed, or was cut off, may have happened or
//! not.

use std::collections::BTreeMap;

/// Ticks of the run: each beginning and end of an operation has its own.
pub(crate) type Time = u64;

pub(crate) const RUNNING: Time = Time::MAX;

#[derive(Debug)]
struct Write<V> {
    value: Option<V>,
    start: Time,
    end: Time,
    acknowledged: bool,
    /// Whether it happens for sure once acknowledged; else only if the value was a certain one.
    forced: bool,
}

/// One value and its history; absent at first.
#[derive(Debug)]
pub(crate) struct Register<V> {
    writes: Vec<Write<V>>,
    /// Acknowledged removals of one value: `(value, start, end)`.
    removals: Vec<(V, Time, Time)>,
}

impl<V> Default for Register<V> {
    fn default() -> Self {
        Self {
            writes: vec![Write {
                value: None,
                start: 0,
                end: 0,
                acknowledged: true,
                forced: true,
            }],
            removals: Vec::new(),
        }
    }
}

impl<V: Clone + PartialEq> Register<V> {
    /// A write begins; [`Register::end`] takes the number.
    pub(crate) fn begin(&mut self, value: Option<V>, now: Time, forced: bool) -> usize {
        self.writes.push(Write {
            value,
            start: now,
            end: RUNNING,
            acknowledged: false,
            forced,
        });
        self.writes.len() - 1
    }

    pub(crate) fn end(&mut self, write: usize, now: Time, acknowledged: bool) {
        self.writes[write].end = now;
        self.writes[write].acknowledged = acknowledged;
    }

    /// The answer to a write says that nothing happened.
    pub(crate) fn refused(&mut self, write: usize) {
        self.writes[write].start = RUNNING;
    }

    /// Whatever named `value` before `start` no longer does.
    pub(crate) fn removed(&mut self, value: V, start: Time, end: Time) {
        self.removals.push((value, start, end));
    }

    /// Whether a read from `start` to `end` may find `value`.
    pub(crate) fn allows(&self, value: Option<&V>, start: Time, end: Time) -> bool {
        self.writes
            .iter()
            .filter(|write| write.value.as_ref() == value && write.start < end)
            .any(|write| {
                let replaced = self.writes.iter().any(|later| {
                    later.acknowledged
                        && later.forced
                        && later.start > write.end
                        && later.end < start
                });
                let removed = self.removals.iter().any(|(gone, from, to)| {
                    Some(gone) == value && write.end < *from && *to < start
                });
                !replaced && !removed
            })
    }

    /// The values that a read may find.
    pub(crate) fn allowed(&self, start: Time, end: Time) -> Vec<Option<V>> {
        let mut values: Vec<Option<V>> = Vec::new();
        for write in &self.writes {
            if !values.contains(&write.value) && self.allows(write.value.as_ref(), start, end) {
                values.push(write.value.clone());
            }
        }
        values
    }
}

/// Everything that was asked of the store. Repositories, blobs, manifests and tags are numbers.
#[derive(Debug, Default)]
pub(crate) struct Model {
    now: Time,
    pub(crate) blobs: BTreeMap<(usize, usize), Register<()>>,
    pub(crate) manifests: BTreeMap<(usize, usize), Register<()>>,
    pub(crate) tags: BTreeMap<(usize, usize), Register<usize>>,
    /// When a manifest of the repository was first acknowledged.
    pub(crate) exists: BTreeMap<usize, Time>,
    pub(crate) violations: Vec<String>,
}

impl Model {
    pub(crate) fn tick(&mut self) -> Time {
        self.now += 1;
        self.now
    }

    pub(crate) fn blob(&mut self, repo: usize, blob: usize) -> &mut Register<()> {
        self.blobs.entry((repo, blob)).or_default()
    }

    pub(crate) fn manifest(&mut self, repo: usize, manifest: usize) -> &mut Register<()> {
        self.manifests.entry((repo, manifest)).or_default()
    }

    pub(crate) fn tag(&mut self, repo: usize, tag: usize) -> &mut Register<usize> {
        self.tags.entry((repo, tag)).or_default()
    }

    pub(crate) fn violation(&mut self, text: String) {
        self.violations.push(text);
    }
}

#[test]
fn an_acknowledged_value_stays_until_it_is_replaced() {
    let mut register = Register::<u8>::default();
    let first = register.begin(Some(1), 1, true);
    assert!(register.allows(None, 2, 3), "in flight: not yet");
    assert!(register.allows(Some(&1), 2, 3), "in flight: already");
    register.end(first, 4, true);
    assert!(!register.allows(None, 5, 6), "lost");
    assert!(register.allows(Some(&1), 5, 6));
    let failed = register.begin(Some(2), 7, true);
    register.end(failed, 8, false);
    assert_eq!(register.allowed(9, 10), [Some(1), Some(2)]);
    let refused = register.begin(None, 10, true);
    register.refused(refused);
    assert_eq!(register.allowed(9, 10), [Some(1), Some(2)]);
    let third = register.begin(None, 11, true);
    register.end(third, 12, true);
    assert_eq!(register.allowed(13, 14), [None]);
    assert!(register.allows(Some(&1), 10, 13), "the read began before");
}

#[test]
fn a_removal_of_one_value_touches_no_other() {
    let mut register = Register::<u8>::default();
    for (value, at) in [(1, 1), (2, 3)] {
        let write = register.begin(Some(value), at, true);
        register.end(write, at + 1, true);
    }
    register.removed(1, 5, 6);
    assert_eq!(register.allowed(7, 8), [Some(2)]);
    let maybe = register.begin(None, 9, false);
    register.end(maybe, 10, true);
    register.removed(2, 9, 10);
    assert_eq!(register.allowed(11, 12), [None]);
}
