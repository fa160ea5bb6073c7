//! Upstream with faults and builders for tests.
