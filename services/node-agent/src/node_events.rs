//! Events on the Node object, for operators.
//!
//! A condition is reported once until it is cleared. Events wait for the API server in a short
//! queue and are written in the background, so no work on the host waits for them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use holdfast_runtime::supervise::Heartbeat;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::{Mutex, mpsc};

/// Events that wait for the API server at most; further ones are dropped.
const MAX_QUEUED_EVENTS: usize = 32;
/// Attempts to write one event, with pauses in between.
const MAX_ATTEMPTS: u32 = 20;
const RETRY_PAUSE: Duration = Duration::from_secs(15);
/// Longest text of an event that the API server accepts.
const MAX_NOTE_CHARS: usize = 1000;

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEvent {
    /// The event's reason.
    pub reason: &'static str,
    /// Whether it is a warning.
    pub warning: bool,
    /// The text.
    pub note: String,
}

/// Queues events, and remembers which conditions were reported.
#[derive(Debug)]
pub struct NodeEvents {
    sender: mpsc::Sender<NodeEvent>,
    reported: BTreeSet<(&'static str, String)>,
}

impl NodeEvents {
    /// An empty queue, and the end from which [`publish`] takes the events.
    pub fn new() -> (Self, mpsc::Receiver<NodeEvent>) {
        let (sender, receiver) = mpsc::channel(MAX_QUEUED_EVENTS);
        let reported = BTreeSet::new();
        (Self { sender, reported }, receiver)
    }

    /// Queues a warning, unless it was reported for this `subject` and not cleared since. Returns
    /// whether it is new.
    pub fn warn(&mut self, reason: &'static str, subject: &str, note: &str) -> bool {
        self.report(reason, subject, note, true)
    }

    /// Queues an event of type Normal, under the same rule as [`NodeEvents::warn`].
    pub fn inform(&mut self, reason: &'static str, subject: &str, note: &str) {
        let _: bool = self.report(reason, subject, note, false);
    }

    /// Ends the conditions that were reported with this reason: the next one is new again. Returns
    /// whether there were any.
    pub fn clear(&mut self, reason: &'static str) -> bool {
        let before = self.reported.len();
        self.reported.retain(|(reported, _)| *reported != reason);
        self.reported.len() != before
    }

    fn report(&mut self, reason: &'static str, subject: &str, note: &str, warning: bool) -> bool {
        if !self.reported.insert((reason, subject.to_owned())) {
            return false;
        }
        let event = NodeEvent {
            reason,
            warning,
            note: note.chars().take(MAX_NOTE_CHARS).collect(),
        };
        if self.sender.try_send(event).is_err() {
            tracing::debug!(
                event.reason = reason,
                "event dropped: too many wait for the API server"
            );
        }
        true
    }
}

/// Writes the queued events on the Node `node`, until the queue is closed.
pub async fn publish(
    node: String,
    events: Arc<Mutex<mpsc::Receiver<NodeEvent>>>,
    heartbeat: Heartbeat,
) -> Result<(), kube::Error> {
    let mut events = events.lock().await;
    let reporter = Reporter {
        controller: "holdfast-node-agent".to_owned(),
        instance: std::env::var("POD_NAME").ok(),
    };
    let recorder = Recorder::new(kube::Client::try_default().await?, reporter);
    let object = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.clone()),
        // As kubelets do, which do not know the UID of the object either.
        uid: Some(node),
        ..ObjectReference::default()
    };
    let mut tick = tokio::time::interval(Duration::from_secs(20));
    loop {
        tokio::select! {
            _ = tick.tick() => heartbeat.beat(),
            event = events.recv() => match event {
                None => return Ok(()),
                Some(event) => {
                    write(&recorder, &object, event, &heartbeat).await;
                    heartbeat.success();
                }
            },
        }
    }
}

async fn write(
    recorder: &Recorder,
    object: &ObjectReference,
    event: NodeEvent,
    heartbeat: &Heartbeat,
) {
    let event = Event {
        type_: if event.warning {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: event.reason.to_owned(),
        note: Some(event.note),
        action: "PrepareNode".to_owned(),
        secondary: None,
    };
    for _ in 0..MAX_ATTEMPTS {
        heartbeat.beat();
        match recorder.publish(&event, object).await {
            Ok(()) => return,
            // A retry would be refused, too.
            Err(kube::Error::Api(status)) if status.code == 403 => {
                tracing::warn!(error = %status, "not allowed to write events on this node");
                return;
            }
            Err(error) => {
                tracing::debug!(%error, "cannot write an event; retrying");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_reported_once_until_it_is_cleared() {
        let (mut events, mut queued) = NodeEvents::new();
        for _ in 0..3 {
            events.warn("PullFailed", "", "no route");
        }
        assert_eq!(queued.try_recv().unwrap().note, "no route");
        assert!(queued.try_recv().is_err());
        assert!(events.clear("PullFailed"));
        assert!(!events.clear("PullFailed"), "nothing queued since");
        events.warn("PullFailed", "", "again");
        assert_eq!(queued.try_recv().unwrap().note, "again");
    }

    #[test]
    fn a_queue_without_a_reader_stays_short() {
        let (mut events, mut queued) = NodeEvents::new();
        for number in 0..100 {
            events.warn("HostFilesRepaired", &number.to_string(), "a file");
        }
        let mut count = 0;
        while queued.try_recv().is_ok() {
            count += 1;
        }
        assert_eq!(count, MAX_QUEUED_EVENTS);
    }
}
