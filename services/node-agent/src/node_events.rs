//! What an operator is to hear of this node, as events on its Node object. A thing is told once,
//! until it is over; while the API server is away the latest things wait in a short queue, and
//! nobody on the host waits for them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use holdfast_runtime::supervise::Heartbeat;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::{Mutex, mpsc};

/// Things that wait for the API server at most; further ones are only in the log.
const MAX_QUEUED_EVENTS: usize = 32;
/// Tries to write one event, with pauses in between.
const MAX_ATTEMPTS: u32 = 20;
const RETRY_PAUSE: Duration = Duration::from_secs(15);
/// Longest text of an event that the API server takes.
const MAX_NOTE_CHARS: usize = 1000;

/// One thing to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEvent {
    /// The event's reason.
    pub reason: &'static str,
    /// Whether somebody should look.
    pub warning: bool,
    /// In words.
    pub note: String,
}

/// What is told, and what was.
#[derive(Debug)]
pub struct NodeEvents {
    sender: mpsc::Sender<NodeEvent>,
    told: BTreeSet<(&'static str, String)>,
}

impl NodeEvents {
    /// The teller, and what it told.
    pub fn new() -> (Self, mpsc::Receiver<NodeEvent>) {
        let (sender, receiver) = mpsc::channel(MAX_QUEUED_EVENTS);
        let told = BTreeSet::new();
        (Self { sender, told }, receiver)
    }

    /// Tells of something that should be looked at, once for a `subject` until it is over. Answers
    /// whether it was news.
    pub fn warn(&mut self, reason: &'static str, subject: &str, note: &str) -> bool {
        self.tell(reason, subject, note, true)
    }

    /// Tells of something that is as it should be.
    pub fn inform(&mut self, reason: &'static str, subject: &str, note: &str) {
        let _: bool = self.tell(reason, subject, note, false);
    }

    /// What was told under this reason is over: the next time it is news. Answers whether anything
    /// had been told.
    pub fn over(&mut self, reason: &'static str) -> bool {
        let before = self.told.len();
        self.told.retain(|(told, _)| *told != reason);
        self.told.len() != before
    }

    fn tell(&mut self, reason: &'static str, subject: &str, note: &str, warning: bool) -> bool {
        if !self.told.insert((reason, subject.to_owned())) {
            return false;
        }
        let event = NodeEvent {
            reason,
            warning,
            note: note.chars().take(MAX_NOTE_CHARS).collect(),
        };
        if self.sender.try_send(event).is_err() {
            tracing::debug!(event.reason = reason, "too many events wait already");
        }
        true
    }
}

/// Writes events on the Node `node` for ever.
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
        // As kubelets do, who do not know the object's either.
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
            // What is refused today is refused in a minute.
            Err(kube::Error::Api(status)) if status.code == 403 => {
                tracing::warn!(error = %status, "events on this node cannot be written");
                return;
            }
            Err(error) => {
                tracing::debug!(%error, "an event waits for the API server");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_told_once_until_it_is_over() {
        let (mut events, mut told) = NodeEvents::new();
        for _ in 0..3 {
            events.warn("PullFailed", "", "no route");
        }
        assert_eq!(told.try_recv().unwrap().note, "no route");
        assert!(told.try_recv().is_err());
        assert!(events.over("PullFailed"));
        assert!(!events.over("PullFailed"), "nothing told since");
        events.warn("PullFailed", "", "again");
        assert_eq!(told.try_recv().unwrap().note, "again");
    }

    #[test]
    fn a_queue_that_nobody_reads_stays_short() {
        let (mut events, mut told) = NodeEvents::new();
        for number in 0..100 {
            events.warn("HostFilesRepaired", &number.to_string(), "a file");
        }
        let mut count = 0;
        while told.try_recv().is_ok() {
            count += 1;
        }
        assert_eq!(count, MAX_QUEUED_EVENTS);
    }
}
