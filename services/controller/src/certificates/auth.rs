//! The Secret `F-registry-auth`: the node credential and the secret that signs upload sessions, and
//! their rotation.
//!
//! Both are generated once. The annotation [`labels::ROTATE`] requests a rotation, which takes
//! three steps, because replicas and nodes receive a change at different times: the new secret is
//! accepted everywhere before it is used, and the old one is accepted for a while after that. Of a
//! file with several lines, the first is used and each is accepted.

use super::{Error, issue};
use crate::Context;
use holdfast_api::labels;
use holdfast_cluster_index::apply;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use std::collections::BTreeMap;

/// Seconds for which a new secret is only accepted: longer than a kubelet takes to update a mounted
/// Secret.
pub const ACCEPT_FIRST: i64 = 300;
/// Seconds for which the old secret is accepted after the new one is in use: many rounds of the
/// node agents, which apply [`holdfast_api::state::NodeState`] at once and check their files every
/// half minute.
pub const ACCEPT_OLD: i64 = 3600;

const UPLOAD_SECRET: &str = "upload-secret";
const USERNAME: &str = "node-username";
const PASSWORD: &str = "node-password";
/// What a rotation changes.
const ROTATED: [&str; 2] = [UPLOAD_SECRET, PASSWORD];

/// The phase of a rotation, and when it began, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The new secret is accepted, the old one is used.
    Accepted(i64),
    /// The new secret is used, the old one is accepted.
    Used(i64),
}

impl Phase {
    fn parse(text: &str) -> Option<Self> {
        let (phase, since) = text.split_once('@')?;
        let since = since.parse().ok()?;
        match phase {
            "accepted" => Some(Self::Accepted(since)),
            "used" => Some(Self::Used(since)),
            _ => None,
        }
    }

    fn text(self) -> String {
        match self {
            Self::Accepted(since) => format!("accepted@{since}"),
            Self::Used(since) => format!("used@{since}"),
        }
    }
}

/// The annotations and the data of the Secret that a rotation needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    data: BTreeMap<String, Vec<u8>>,
    /// Whether the annotation requests a rotation.
    asked: bool,
    phase: Option<Phase>,
}

impl Held {
    fn of(secret: Option<&Secret>) -> Self {
        let annotation = |key: &str| {
            let annotations = secret?.metadata.annotations.as_ref()?;
            annotations.get(key).map(String::as_str)
        };
        let data = secret.and_then(|secret| secret.data.clone());
        Self {
            data: data
                .unwrap_or_default()
                .into_iter()
                .map(|(key, value)| (key, value.0))
                .collect(),
            asked: annotation(labels::ROTATE).is_some(),
            phase: annotation(labels::ROTATION).and_then(Phase::parse),
        }
    }

    /// What the Secret must hold at `now`, and why it differs. `make` generates a secret.
    fn next(
        &self,
        now: i64,
        mut make: impl FnMut() -> Result<String, issue::Error>,
    ) -> Result<(Self, &'static str), issue::Error> {
        let mut next = self.clone();
        let mut reason = "";
        for key in [UPLOAD_SECRET, USERNAME, PASSWORD] {
            if next.lines(key).is_empty() {
                let value = match key {
                    USERNAME => "holdfast-node".to_owned(),
                    _ => make()?,
                };
                next.data.insert(key.to_owned(), value.into_bytes());
                reason = "a key was missing";
            }
        }
        match self.phase {
            None if self.asked => {
                for key in ROTATED {
                    let used = next.lines(key).into_iter().next().unwrap_or_default();
                    next.set(key, &[used, make()?]);
                }
                next.asked = false;
                next.phase = Some(Phase::Accepted(now));
                reason = "rotation started: the new credential is accepted";
            }
            Some(Phase::Accepted(since)) if is_over(since, ACCEPT_FIRST, now) => {
                for key in ROTATED {
                    let mut lines = next.lines(key);
                    lines.reverse();
                    next.set(key, &lines);
                }
                next.phase = Some(Phase::Used(now));
                reason = "rotation: the new credential is in use, the old one is still accepted";
            }
            Some(Phase::Used(since)) if is_over(since, ACCEPT_OLD, now) => {
                for key in ROTATED {
                    let lines = next.lines(key);
                    next.set(key, lines.get(..1).unwrap_or_default());
                }
                next.phase = None;
                reason = "rotation finished: the old credential is no longer accepted";
            }
            _ => {}
        }
        Ok((next, reason))
    }

    fn lines(&self, key: &str) -> Vec<String> {
        let bytes = self.data.get(key).map(Vec::as_slice).unwrap_or_default();
        String::from_utf8_lossy(bytes)
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect()
    }

    fn set(&mut self, key: &str, lines: &[String]) {
        self.data
            .insert(key.to_owned(), lines.join("\n").into_bytes());
    }
}

/// Whether `seconds` have passed since `since`. True for a time in the future, which was written
/// with a wrong clock.
fn is_over(since: i64, seconds: i64, now: i64) -> bool {
    now < since || now - since >= seconds
}

/// Generates missing secrets and advances a rotation. True if something was written.
pub(super) async fn ensure(context: &Context, now: i64) -> Result<bool, Error> {
    let names = &context.names;
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &names.namespace);
    let name = names.registry_auth();
    let existing = api.get_opt(&name).await?;
    let held = Held::of(existing.as_ref());
    let (next, reason) = held.next(now, issue::random_secret)?;
    if next == held {
        return Ok(false);
    }
    tracing::info!(reason, "rotating the node credential and the upload secret");
    let exists = existing.is_some();
    let mut secret = existing.unwrap_or_else(|| Secret {
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    });
    secret.data = Some(
        next.data
            .into_iter()
            .map(|(key, value)| (key, ByteString(value)))
            .collect(),
    );
    let annotations = secret.metadata.annotations.get_or_insert_default();
    if held.asked && !next.asked {
        annotations.remove(labels::ROTATE);
    }
    match next.phase {
        Some(phase) => annotations.insert(labels::ROTATION.to_owned(), phase.text()),
        None => annotations.remove(labels::ROTATION),
    };
    apply::write(&context.client, names, &name, exists, secret).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(upload: &str, password: &str, asked: bool, phase: Option<Phase>) -> Held {
        let data = [
            (UPLOAD_SECRET, upload),
            (USERNAME, "holdfast-node"),
            (PASSWORD, password),
        ];
        let data = data
            .map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()))
            .into();
        Held { data, asked, phase }
    }

    fn next(held: &Held, now: i64) -> Held {
        let mut made = 0;
        let make = || {
            made += 1;
            Ok(format!("new{made}"))
        };
        held.next(now, make).unwrap().0
    }

    #[test]
    fn secrets_stay_until_a_rotation_is_requested() {
        let there = held("u", "p", false, None);
        assert_eq!(next(&there, i64::MAX), there);
        let mut lost = there.clone();
        lost.data.remove(PASSWORD);
        assert_eq!(next(&lost, 0), held("u", "new1", false, None));
        assert_eq!(
            next(&Held::default(), 0),
            held("new1", "new2", false, None),
            "all of it is made at first"
        );
    }

    #[test]
    fn a_rotation_accepts_uses_and_then_drops_a_secret() {
        let asked = held("u", "p", true, None);
        let accepted = held("u\nnew1", "p\nnew2", false, Some(Phase::Accepted(1000)));
        assert_eq!(next(&asked, 1000), accepted);
        assert_eq!(next(&accepted, 1000 + ACCEPT_FIRST - 1), accepted);
        let at = 1000 + ACCEPT_FIRST;
        let used = held("new1\nu", "new2\np", false, Some(Phase::Used(at)));
        assert_eq!(next(&accepted, at), used);
        assert_eq!(next(&used, at + ACCEPT_OLD - 1), used);
        let done = held("new1", "new2", false, None);
        assert_eq!(next(&used, at + ACCEPT_OLD), done);
        assert_eq!(next(&done, i64::MAX), done);
    }

    #[test]
    fn a_second_request_waits_for_the_first_rotation() {
        let during = held("a\nb", "c\nd", true, Some(Phase::Accepted(0)));
        assert_eq!(next(&during, 1), during);
        let used = next(&during, ACCEPT_FIRST);
        assert!(used.asked && used.phase == Some(Phase::Used(ACCEPT_FIRST)));
        let done = next(&used, ACCEPT_FIRST + ACCEPT_OLD);
        assert_eq!(done, held("b", "d", true, None));
        let again = next(&done, 9000);
        assert_eq!(again.phase, Some(Phase::Accepted(9000)));
    }

    #[test]
    fn a_clock_that_was_ahead_does_not_delay_a_rotation() {
        let accepted = held("a\nb", "c\nd", false, Some(Phase::Accepted(5000)));
        assert_eq!(next(&accepted, 10).phase, Some(Phase::Used(10)));
    }

    #[test]
    fn a_phase_is_read_as_it_is_written() {
        for phase in [Phase::Accepted(5), Phase::Used(0)] {
            assert_eq!(Phase::parse(&phase.text()), Some(phase));
        }
        for text in ["", "used", "used@x", "other@1"] {
            assert_eq!(Phase::parse(text), None, "{text}");
        }
    }
}
