//! What `GET /state` on the admin port says: `{"state": "present" | "removed" | "failed", "detail":
//! …, "pins": …}`. The uninstaller asks it until the host is as it was.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

#[derive(Debug, Serialize)]
struct Document {
    state: &'static str,
    detail: String,
    /// Which images are pinned, or why they are not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pins: String,
}

/// A shared word on the host's state.
#[derive(Debug, Clone)]
pub struct Status(Arc<Mutex<Document>>);

impl Default for Status {
    fn default() -> Self {
        let detail = "the controller has not said yet what this host is to hold".to_owned();
        Self(Arc::new(Mutex::new(Document {
            state: "failed",
            detail,
            pins: String::new(),
        })))
    }
}

impl Status {
    /// The host configuration is in place.
    pub fn present(&self, detail: &str) {
        self.set("present", detail);
    }

    /// The host is as it was before the agent.
    pub fn removed(&self, detail: &str) {
        self.set("removed", detail);
    }

    /// What is wanted could not be done; it is tried again.
    pub fn failed(&self, detail: &str) {
        self.set("failed", detail);
    }

    /// Which images are pinned, or why they are not.
    pub fn pins(&self, words: &str) {
        let mut document = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        words.clone_into(&mut document.pins);
    }

    /// The JSON document.
    pub fn json(&self) -> String {
        let document = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::to_string(&*document).unwrap_or_default()
    }

    fn set(&self, state: &'static str, detail: &str) {
        let detail = detail.to_owned();
        let mut document = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        document.state = state;
        document.detail = detail;
    }
}
