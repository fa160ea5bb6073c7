//! Fuzz targets for every parser of foreign input, and the small engine that runs them on the
//! stable toolchain, as an ordinary test, too.
//!
//! A target is a function from bytes to a verdict: it calls the real parser and checks a promise
//! that holds for every input. The engine makes inputs out of a checked-in corpus and a dictionary,
//! keeps those with an outcome that is new and builds on them, shrinks what breaks a promise, and
//! writes it down. A target knows nothing of the engine.

pub mod engine;
pub mod inputs;
pub mod mutation;
pub mod targets;

use std::hash::{DefaultHasher, Hash, Hasher};

/// What came of an input that keeps all promises: a number that is the same for outcomes of the
/// same kind.
pub type Shape = u64;

/// One thing to fuzz.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name on the command line and of its files.
    pub name: &'static str,
    /// What must hold, one line.
    pub promise: &'static str,
    /// Checks one input; an error, or a panic, is a finding.
    pub check: fn(&[u8]) -> Result<Shape, String>,
    /// Words of its language.
    pub dictionary: &'static [&'static str],
    /// Longest input.
    pub max_bytes: usize,
}

/// The number of a kind of outcome.
pub fn shape(outcome: impl Hash) -> Shape {
    let mut hasher = DefaultHasher::new();
    outcome.hash(&mut hasher);
    hasher.finish()
}

/// A finding's text unless `holds`.
///
/// # Errors
/// `broken`, unless `holds`.
pub fn ensure(holds: bool, broken: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(broken()) }
}
