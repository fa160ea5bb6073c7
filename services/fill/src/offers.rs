//! Sources for a copy that another replica makes. A replica whose clients wait for that copy sends
//! its own sources to the replica that copies, which treats them as sources of its own clients: it
//! continues from another source only if the running one fails or is slow. So a slow host does not
//! delay pulls on a replica that has a faster source, and the copy keeps its one writer.
//!
//! Credentials are sent along, over mutual TLS as in the controller's requests, and are kept until
//! the copy ends.

use holdfast_api::fill::FillRequest;
use holdfast_core::Digest;
use holdfast_store::LockHolder;
use holdfast_upstream::Login;
use tokio::time::Instant;

use super::{
    candidates::{BEGIN_WITHIN, Candidate},
    entry::Entry,
    peers::Peers,
};

/// The offers to one replica, in the process that waits for it.
#[derive(Debug)]
pub(super) struct Offers {
    to: LockHolder,
    /// When the next one is due. A copy that ends soon needs none.
    due: Instant,
}

impl Offers {
    /// Offers to `to`, beginning soon.
    pub(super) fn new(to: LockHolder) -> Self {
        Self {
            to,
            due: Instant::now() + BEGIN_WITHIN,
        }
    }

    /// Whether they are for this replica.
    pub(super) fn are_for(&self, owner: &LockHolder) -> bool {
        self.to == *owner
    }

    /// Makes the next offer, if one is due. What is not taken is offered again later: the other
    /// replica may be about to begin.
    pub(super) async fn make(&mut self, peers: &Peers, digest: &Digest, entry: &Entry) {
        if Instant::now() < self.due || self.to.address.is_empty() {
            return;
        }
        let Some(candidate) = entry.candidates.to_offer(&self.to.id) else {
            return;
        };
        let claim = candidate.claim;
        let request = request(&candidate, digest);
        if peers.offer(&self.to.address, digest, claim, &request).await {
            candidate.offered(&self.to.id);
        } else {
            self.due = Instant::now() + BEGIN_WITHIN;
        }
    }
}

/// What a candidate is as a request of the internal API.
fn request(candidate: &Candidate, digest: &Digest) -> FillRequest {
    let source = &candidate.source;
    FillRequest {
        source: format!("{}/{}@{digest}", source.host, source.repository),
        credentials: source.logins.iter().map(Login::to_credential).collect(),
        priority: source.priority.level(),
        ..FillRequest::default()
    }
}
