//! Tracks whether Artifacts wait for a place, so that a long fill gives its place up.

use std::time::Duration;
use tokio::sync::watch;

/// How long a long fill holds its place while other Artifacts wait for one. The registry goes on
/// copying; the next run joins that copy.
const CROWDED_FILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Tells running reconciles whether other Artifacts wait for a place.
#[derive(Debug)]
pub struct Crowd {
    others_wait: watch::Sender<bool>,
}

impl Default for Crowd {
    fn default() -> Self {
        Self {
            others_wait: watch::Sender::new(false),
        }
    }
}

impl Crowd {
    /// Sets whether other Artifacts wait.
    pub fn others_wait(&self, wait: bool) {
        self.others_wait
            .send_if_modified(|before| std::mem::replace(before, wait) != wait);
    }

    /// Ends when a fill that began now is to give its place up.
    pub async fn place_is_wanted(&self) {
        let mut others_wait = self.others_wait.subscribe();
        tokio::time::sleep(CROWDED_FILL_TIMEOUT).await;
        if others_wait.wait_for(|wait| *wait).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
