//! Every limit of the distribution API as a client sees it, over a real listener. What one
//! connection may cost is tested with the listener itself (`services/runtime/tests/limits.rs`).

mod bodies;
mod internal;
mod lists;
mod names;
mod pages;
mod room;
mod uploads;
