//! What the user sees while something slow runs: a spinner on a terminal, plain lines elsewhere.
//!
//! The only module that prints.

use std::io::IsTerminal;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Steps may run beside each other.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// A step under way; it reports its end when it is dropped.
pub struct Step {
    name: String,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    /// Announces a step and starts its clock.
    pub fn start(name: impl Into<String>) -> Self {
        let name = name.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = BARS.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar.set_message(name.clone());
            bar
        });
        if bar.is_none() {
            line(&format!("{name} …"));
        }
        Self {
            name,
            started: Instant::now(),
            bar,
        }
    }

    /// Says what the step is busy with; shown on a terminal only.
    pub fn note(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {what}", self.name));
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        line(&format!(
            "{}: {:.1} s",
            self.name,
            self.started.elapsed().as_secs_f64()
        ));
    }
}

#[expect(
    clippy::print_stderr,
    reason = "progress is for the person at the terminal"
)]
fn line(text: &str) {
    BARS.suspend(|| eprintln!("{text}"));
}
