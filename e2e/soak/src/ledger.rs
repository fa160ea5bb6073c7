//! The ledger of every write: what was acknowledged, what may have happened, what a reader may
//! see. Pure.
//!
//! A key is a blob, a manifest or a tag of one repository. A write that was acknowledged leaves one
//! possible value; a write whose answer was lost leaves two, until a reader saw one of them. A
//! request that a stopped replica took may still be carried out when the replica continues, so such
//! a key stays open until the end.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// A blob that a repository has.
    Blob,
    /// A manifest that a repository has.
    Manifest,
    /// A tag.
    Tag,
}

/// A blob, manifest or tag of a repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// What it is.
    pub(crate) kind: Kind,
    /// The repository.
    pub(crate) repo: String,
    /// A digest, or the tag's name.
    pub(crate) name: String,
}

impl Key {
    /// A key.
    pub(crate) fn new(kind: Kind, repo: &str, name: &str) -> Self {
        Self {
            kind,
            repo: repo.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}/{}", self.kind, self.repo, self.name)
    }
}

/// The digest under a key, or nothing.
pub(crate) type Value = Option<String>;

/// How a write ended, as far as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Acknowledged.
    Done,
    /// Refused before anything was written.
    Refused,
    /// The answer says that it failed in the middle: any part of it may have happened, and no
    /// further part will.
    Partial,
    /// No answer: it may have happened, or may still happen.
    Unknown,
}

#[derive(Debug)]
struct Entry {
    /// What a reader may see.
    possible: BTreeSet<Value>,
    version: u64,
    open: u32,
    /// What was possible before the writes that are under way, or were together with them.
    base: BTreeSet<Value>,
    /// What those of them that have ended may have left.
    left: BTreeSet<Value>,
    /// One of them was acknowledged: what was before is gone.
    overwritten: bool,
    /// Writes that may still happen, and when their clients gave up.
    late: Vec<(Value, u64)>,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            possible: BTreeSet::from([None]),
            version: 0,
            open: 0,
            base: BTreeSet::new(),
            left: BTreeSet::new(),
            overwritten: false,
            late: Vec::new(),
        }
    }
}

/// A write in progress.
#[derive(Debug)]
pub(crate) struct PendingWrite(Vec<(Key, Value)>);

/// The version of a key before it was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observed(u64);

/// What a reader's observation means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is a possible value.
    Consistent,
    /// A write came in between, so it proves nothing.
    Changed,
    /// It contradicts what was acknowledged: the values that were possible.
    Wrong(Vec<Value>),
}

/// All keys.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: HashMap<Key, Entry>,
    keys: Vec<Key>,
    /// Writes that were acknowledged.
    pub(crate) acknowledged: u64,
    /// Writes without an answer.
    pub(crate) unknown: u64,
}

impl Ledger {
    /// A write begins: from now on either value is possible.
    pub(crate) fn begin(&mut self, changes: Vec<(Key, Value)>) -> PendingWrite {
        let changes = changes.into_iter().map(|(key, value)| {
            let entry = self.entries.entry(key.clone()).or_insert_with(|| {
                self.keys.push(key.clone());
                Entry::default()
            });
            if entry.open == 0 {
                entry.base = entry.possible.clone();
                entry.left.clear();
                entry.overwritten = false;
            }
            entry.version += 1;
            entry.open += 1;
            entry.possible.insert(value.clone());
            (key, value)
        });
        PendingWrite(changes.collect())
    }

    /// A write ended, at this time. Of writes that were under way together any may have been the
    /// last one.
    pub(crate) fn settle(&mut self, pending: PendingWrite, outcome: Outcome, at: u64) {
        match outcome {
            Outcome::Done => self.acknowledged += pending.0.len() as u64,
            Outcome::Unknown => self.unknown += pending.0.len() as u64,
            Outcome::Refused | Outcome::Partial => {}
        }
        for (key, value) in pending.0 {
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            entry.version += 1;
            entry.open -= 1;
            if outcome != Outcome::Refused {
                entry.left.insert(value.clone());
            }
            if outcome == Outcome::Unknown {
                entry.late.push((value, at));
            }
            entry.overwritten |= outcome == Outcome::Done;
            if entry.open == 0 {
                entry.possible = std::mem::take(&mut entry.left);
                if !entry.overwritten {
                    entry.possible.append(&mut entry.base);
                }
                // What a lost request may still do stays possible.
                let late = entry.late.iter().map(|(value, _)| value.clone());
                entry.possible.extend(late);
            }
        }
    }

    /// The version of a key, if no write of it is in progress.
    pub(crate) fn observe(&self, key: &Key) -> Option<Observed> {
        let entry = self.entries.get(key)?;
        (entry.open == 0).then_some(Observed(entry.version))
    }

    /// Judges what a reader saw. Of several possible values the one that was seen remains, unless a
    /// lost request may still change it.
    pub(crate) fn judge(&mut self, key: &Key, observed: Observed, seen: &Value) -> Verdict {
        let Some(entry) = self.entries.get_mut(key) else {
            return Verdict::Changed;
        };
        if entry.open > 0 || entry.version != observed.0 {
            return Verdict::Changed;
        }
        if !entry.possible.contains(seen) {
            return Verdict::Wrong(entry.possible.iter().cloned().collect());
        }
        if entry.late.is_empty() && entry.possible.len() > 1 {
            entry.possible = BTreeSet::from([seen.clone()]);
            entry.version += 1;
        }
        Verdict::Consistent
    }

    /// Nothing that was given up before this time can happen any more: the replica that took it
    /// has ended, or was given time.
    pub(crate) fn close_late(&mut self, before: u64) {
        for entry in self.entries.values_mut() {
            entry.late.retain(|(_, at)| *at >= before);
        }
    }

    /// The one value of a key, if there is only one and nothing is under way.
    pub(crate) fn certain(&self, key: &Key) -> Option<Value> {
        let Some(entry) = self.entries.get(key) else {
            return Some(None);
        };
        if entry.open > 0 || !entry.late.is_empty() || entry.possible.len() != 1 {
            return None;
        }
        entry.possible.first().cloned()
    }

    /// A key that holds a certain value of this kind, found from a random number; `None` if
    /// no try finds one.
    pub(crate) fn present(&self, kind: Kind, random: u64) -> Option<(Key, String)> {
        let count = self.keys.len() as u64;
        (0..24).find_map(|step: u64| {
            let at = random.wrapping_add(step.wrapping_mul(7919)) % count.max(1);
            let key = self.keys.get(usize::try_from(at).ok()?)?;
            let value = (key.kind == kind).then(|| self.certain(key))???;
            Some((key.clone(), value))
        })
    }

    /// Any key without a write under way, with what is known of it.
    pub(crate) fn any(&self, random: u64) -> Option<(Key, Observed)> {
        let at = usize::try_from(random % (self.keys.len().max(1) as u64)).ok()?;
        let key = self.keys.get(at)?;
        Some((key.clone(), self.observe(key)?))
    }

    /// All keys, in the order of their first write.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.keys.clone()
    }

    /// The tags of a repository with what may be there.
    pub(crate) fn tags(&self, repo: &str) -> BTreeMap<String, BTreeSet<Value>> {
        self.entries
            .iter()
            .filter(|(key, _)| key.kind == Kind::Tag && key.repo == repo)
            .map(|(key, entry)| (key.name.clone(), entry.possible.clone()))
            .collect()
    }

    /// Tags of a repository that may name a digest.
    pub(crate) fn tags_of(&self, repo: &str, digest: &str) -> Vec<String> {
        let digest = Some(digest.to_owned());
        let tags = self.tags(repo).into_iter();
        tags.filter(|(_, possible)| possible.contains(&digest))
            .map(|(tag, _)| tag)
            .collect()
    }

    /// How many keys have one present value, none, or several possible ones.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let mut counts = (0, 0, 0);
        for entry in self.entries.values() {
            match (entry.possible.len(), entry.possible.first()) {
                (1, Some(Some(_))) => counts.0 += 1,
                (1, _) => counts.1 += 1,
                _ => counts.2 += 1,
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::new(Kind::Tag, "r", "t")
    }

    #[allow(clippy::unnecessary_wraps, reason = "a value as the ledger has it")]
    fn value(text: &str) -> Value {
        Some(text.to_owned())
    }

    fn write(ledger: &mut Ledger, to: Value, outcome: Outcome) {
        let pending = ledger.begin(vec![(key(), to)]);
        ledger.settle(pending, outcome, 1);
    }

    fn see(ledger: &mut Ledger, seen: &Value) -> Verdict {
        let observed = ledger.observe(&key()).unwrap();
        ledger.judge(&key(), observed, seen)
    }

    #[test]
    fn an_acknowledged_write_that_is_not_seen_is_wrong() {
        let mut ledger = Ledger::default();
        write(&mut ledger, value("a"), Outcome::Done);
        assert_eq!(see(&mut ledger, &value("a")), Verdict::Consistent);
        assert_eq!(see(&mut ledger, &None), Verdict::Wrong(vec![value("a")]));
        write(&mut ledger, value("b"), Outcome::Done);
        assert_eq!(
            see(&mut ledger, &value("a")),
            Verdict::Wrong(vec![value("b")])
        );
    }

    #[test]
    fn an_acknowledged_delete_that_comes_back_is_wrong() {
        let mut ledger = Ledger::default();
        write(&mut ledger, value("a"), Outcome::Done);
        write(&mut ledger, None, Outcome::Done);
        assert_eq!(see(&mut ledger, &value("a")), Verdict::Wrong(vec![None]));
    }

    #[test]
    fn a_lost_write_may_have_happened_and_may_happen_later() {
        let mut ledger = Ledger::default();
        write(&mut ledger, value("a"), Outcome::Done);
        write(&mut ledger, value("b"), Outcome::Unknown);
        assert_eq!(see(&mut ledger, &value("a")), Verdict::Consistent);
        assert_eq!(see(&mut ledger, &value("b")), Verdict::Consistent);
        assert!(matches!(
            see(&mut ledger, &value("c")),
            Verdict::Wrong(possible) if possible.len() == 2
        ));
        assert_eq!(ledger.certain(&key()), None);
        ledger.close_late(1);
        assert_eq!(ledger.certain(&key()), None);
        ledger.close_late(2);
        assert_eq!(see(&mut ledger, &value("b")), Verdict::Consistent);
        assert!(matches!(see(&mut ledger, &value("a")), Verdict::Wrong(_)));
    }

    #[test]
    fn a_write_that_failed_halfway_is_settled_by_the_first_reader() {
        let mut ledger = Ledger::default();
        write(&mut ledger, value("a"), Outcome::Partial);
        assert_eq!(see(&mut ledger, &None), Verdict::Consistent);
        assert!(matches!(see(&mut ledger, &value("a")), Verdict::Wrong(_)));
    }

    #[test]
    fn of_two_writes_at_a_time_either_may_be_the_last() {
        let mut ledger = Ledger::default();
        write(&mut ledger, value("a"), Outcome::Done);
        let first = ledger.begin(vec![(key(), value("b"))]);
        let second = ledger.begin(vec![(key(), None)]);
        ledger.settle(first, Outcome::Done, 1);
        ledger.settle(second, Outcome::Done, 1);
        assert!(matches!(see(&mut ledger, &value("a")), Verdict::Wrong(_)));
        assert_eq!(see(&mut ledger, &value("b")), Verdict::Consistent);
        assert!(matches!(see(&mut ledger, &None), Verdict::Wrong(_)));
    }

    #[test]
    fn a_refused_write_changes_nothing_and_one_in_between_excuses_readers() {
        let mut ledger = Ledger::default();
        write(&mut ledger, value("a"), Outcome::Done);
        write(&mut ledger, value("b"), Outcome::Refused);
        assert!(matches!(see(&mut ledger, &value("b")), Verdict::Wrong(_)));
        let observed = ledger.observe(&key()).unwrap();
        let pending = ledger.begin(vec![(key(), None)]);
        assert!(ledger.observe(&key()).is_none());
        assert_eq!(ledger.judge(&key(), observed, &None), Verdict::Changed);
        ledger.settle(pending, Outcome::Done, 1);
        assert_eq!(ledger.judge(&key(), observed, &None), Verdict::Changed);
        assert_eq!(see(&mut ledger, &None), Verdict::Consistent);
    }
}
