//! Node trust and mirrors.
