//! Ends long fills while other Artifacts wait for a place.

use std::time::Duration;
use tokio::sync::watch;

/// How long a fill keeps its place while other Artifacts wait for one. The registry continues the
/// copy, and the next run joins it.
const CROWDED_FILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether other Artifacts wait for a place; shared with the running fills.
#[derive(Debug)]
pub struct Preemption {
    others_wait: watch::Sender<bool>,
}

impl Default for Preemption {
    fn default() -> Self {
        Self {
            others_wait: watch::Sender::new(false),
        }
    }
}

impl Preemption {
    /// Sets whether other Artifacts wait.
    pub fn set_others_wait(&self, wait: bool) {
        self.others_wait
            .send_if_modified(|before| std::mem::replace(before, wait) != wait);
    }

    /// Returns when a fill that starts now must give up its place.
    pub async fn requested(&self) {
        let mut others_wait = self.others_wait.subscribe();
        tokio::time::sleep(CROWDED_FILL_TIMEOUT).await;
        if others_wait.wait_for(|wait| *wait).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
