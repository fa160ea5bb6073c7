//! Pod mutating webhook.
