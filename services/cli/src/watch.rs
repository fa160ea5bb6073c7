//! `--watch`: repeats the check until it is interrupted, also while the API server is away.

use std::io::IsTerminal as _;
use std::time::Duration;

use tokio::time::Instant;

use crate::exit_status::{self, Answer};
use crate::output::{Document, OutputArgs};
use crate::{duration, terminal};

/// Whether a command repeats its check, and until when.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct WatchArgs {
    /// Repeats the check until it is interrupted
    #[arg(short, long)]
    watch: bool,
    /// Time between two checks
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration::parse)]
    interval: Duration,
    /// With --watch, ends when this is the answer
    #[arg(long, value_name = "ANSWER", requires = "watch")]
    until: Option<Answer>,
}

impl WatchArgs {
    /// Whether the check is repeated.
    pub(crate) fn is_on(&self) -> bool {
        self.watch
    }

    /// Checks once and returns the result, or with `--watch` prints each one that differs.
    pub(crate) async fn run(
        &self,
        output: &OutputArgs,
        mut check: impl AsyncFnMut() -> anyhow::Result<Document>,
    ) -> anyhow::Result<Document> {
        if !self.watch {
            return check().await;
        }
        let mut before = String::new();
        let mut away_since = None;
        loop {
            match check().await {
                Ok(document) => {
                    away_since = None;
                    if Some(document.answer()) == self.until {
                        return Ok(document);
                    }
                    let text = output.render(&document)?;
                    if output.is_table() && std::io::stdout().is_terminal() {
                        // Clears the screen and goes to its first line.
                        terminal::print(&format!("\u{1b}[2J\u{1b}[H{text}"));
                    } else if text != before {
                        terminal::print(&text);
                    }
                    before = text;
                    output.write_file(&document)?;
                }
                Err(error) if exit_status::is_wrong_usage(&error) => return Err(error),
                Err(error) => {
                    let since = *away_since.get_or_insert_with(Instant::now);
                    terminal::error(&outage(&error, since.elapsed()));
                }
            }
            tokio::time::sleep(self.interval).await;
        }
    }
}

fn outage(error: &anyhow::Error, lasting: Duration) -> String {
    let message = exit_status::message(error);
    format!("cannot tell for {} s: {message}", lasting.as_secs())
}
