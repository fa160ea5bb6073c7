//! What others do right before one call, so that a test can look at every moment that there is.

use std::fmt;

/// Work that is done before a call.
pub(super) struct Interruption {
    /// The number of the call.
    pub(super) at: u64,
    pub(super) work: Box<dyn FnOnce() + Send>,
}

impl fmt::Debug for Interruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interruption")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}
