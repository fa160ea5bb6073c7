//! The document of `GET /state` on the admin port: `{"state": "present" | "removed" | "failed",
//! "detail": …, "pins": …, "images": …}`. The uninstaller polls it until the state is `removed`.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

#[derive(Debug, Serialize)]
struct Document {
    state: &'static str,
    detail: String,
    /// Which images are pinned, or why they are not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pins: String,
    /// What the node holds, in one line.
    #[serde(skip_serializing_if = "String::is_empty")]
    images: String,
}

/// The state of the host. Clones share it.
#[derive(Debug, Clone)]
pub struct Status(Arc<Mutex<Document>>);

impl Default for Status {
    fn default() -> Self {
        let detail = "no state received from the controller yet".to_owned();
        Self(Arc::new(Mutex::new(Document {
            state: "failed",
            detail,
            pins: String::new(),
            images: String::new(),
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

    /// The last round failed; it is retried.
    pub fn failed(&self, detail: &str) {
        self.set("failed", detail);
    }

    /// Which images are pinned, or why they are not.
    pub fn pins(&self, text: &str) {
        let mut document = self.0.lock();
        text.clone_into(&mut document.pins);
    }

    /// What the node holds.
    pub fn report(&self, text: &str) {
        let mut document = self.0.lock();
        text.clone_into(&mut document.images);
    }

    /// The JSON document.
    pub fn json(&self) -> String {
        let document = self.0.lock();
        serde_json::to_string(&*document).unwrap_or_default()
    }

    fn set(&self, state: &'static str, detail: &str) {
        let detail = detail.to_owned();
        let mut document = self.0.lock();
        document.state = state;
        document.detail = detail;
    }
}
