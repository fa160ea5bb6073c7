//! Waiting until a check holds, and skipping tests that a cluster does not support.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Why a case cannot be run against this cluster. It is neither passed nor failed.
#[derive(Debug)]
pub(crate) struct Skipped(pub(crate) &'static str);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Skipped {}

/// Tries `attempt` until it succeeds.
///
/// # Errors
/// The last error, when `limit` has passed.
pub(crate) fn eventually<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("still not so after {} s", limit.as_secs())));
            }
            Err(_) => thread::sleep(Duration::from_millis(300)),
        }
    }
}

/// Checks over `time` that `check` holds at each look.
///
/// # Errors
/// The first error.
pub(crate) fn throughout(time: Duration, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        check()?;
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn eventually_returns_the_last_error() {
        let mut tries = 0;
        assert_eq!(
            eventually(Duration::from_secs(5), || {
                tries += 1;
                if tries == 3 {
                    Ok(tries)
                } else {
                    bail!("not yet")
                }
            })
            .expect("third"),
            3
        );
        assert!(eventually(Duration::ZERO, || -> Result<()> { bail!("never") }).is_err());
    }
}
