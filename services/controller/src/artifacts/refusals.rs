//! Artifacts that the API server refuses to create, for example because of a `ResourceQuota`: once
//! an hour an event on the namespace says so.

use std::collections::HashMap;
use std::time::Instant;

use super::EVENT_INTERVAL;

/// When each namespace was told last.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    told: HashMap<String, Instant>,
}

impl Refusals {
    /// The text of an event for this failure, where one is due. A namespace that is being deleted
    /// refuses new objects, too, and is not told.
    pub(super) fn note(
        &mut self,
        namespace: &str,
        error: &kube::Error,
        now: Instant,
    ) -> Option<String> {
        let kube::Error::Api(status) = error else {
            return None;
        };
        if status.code != 403 || status.message.contains("is being terminated") {
            return None;
        }
        self.told
            .retain(|_, at| now.duration_since(*at) < EVENT_INTERVAL);
        if self.told.contains_key(namespace) {
            return None;
        }
        self.told.insert(namespace.to_owned(), now);
        let remedy = if status.message.contains("quota") {
            "; raise count/artifacts.holdfast.dev in the ResourceQuota"
        } else {
            ""
        };
        Some(format!(
            "images are not copied, because the API server refuses their Artifacts: {}{remedy}",
            status.message
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;
    use std::time::Duration;

    fn refused(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Box::new(
            Status::failure(message, "Forbidden").with_code(code),
        ))
    }

    #[test]
    fn a_namespace_is_told_of_refused_artifacts_once_an_hour() {
        let mut refusals = Refusals::default();
        let begin = Instant::now();
        let quota = refused(403, "exceeded quota: team, used: 5, limited: 5");
        let note = refusals.note("apps", &quota, begin).unwrap();
        assert!(note.contains("exceeded quota: team"), "{note}");
        assert!(
            note.contains("raise count/artifacts.holdfast.dev"),
            "{note}"
        );
        assert_eq!(refusals.note("apps", &quota, begin), None);
        assert!(refusals.note("shop", &quota, begin).is_some());
        let later = begin + EVENT_INTERVAL + Duration::from_secs(1);
        assert!(refusals.note("apps", &quota, later).is_some());
    }

    #[test]
    fn failures_that_pass_are_not_told() {
        let mut refusals = Refusals::default();
        for error in [
            refused(
                403,
                "unable to create new content because it is being terminated",
            ),
            refused(404, "namespaces \"apps\" not found"),
            refused(500, "etcdserver: request timed out"),
        ] {
            assert_eq!(
                refusals.note("apps", &error, Instant::now()),
                None,
                "{error}"
            );
        }
    }
}
