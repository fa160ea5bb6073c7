//! `--watch`: repeats the check until it is interrupted, also while the API server is away.

use std::io::IsTerminal as _;
use std::time::Duration;

use tokio::time::Instant;

use crate::exit_status::{self, Answer};
use crate::output::{Document, OutputArgs};
use crate::{duration, terminal};

/// Clears the terminal and goes to its first line.
const CLEAR_SCREEN: &str = "\u{1b}[2J\u{1b}[H";

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
                    let is_terminal = std::io::stdout().is_terminal();
                    if let Some(printed) = printed(output, &text, &before, is_terminal) {
                        terminal::print(&printed);
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

/// What is printed of a check; nothing if its text is the one before.
fn printed(output: &OutputArgs, text: &str, before: &str, is_terminal: bool) -> Option<String> {
    if output.is_table() && is_terminal {
        Some(format!("{CLEAR_SCREEN}{text}"))
    } else if text == before {
        None
    } else {
        Some(output.for_stdout(text, is_terminal).into_owned())
    }
}

fn outage(error: &anyhow::Error, lasting: Duration) -> String {
    let message = exit_status::message(error);
    format!("cannot tell for {} s: {message}", lasting.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        output: OutputArgs,
    }

    #[test]
    fn a_terminal_gets_no_control_characters_of_others() {
        let text = "a\u{1b}]52;c\u{7}\n";
        for format in ["json", "jsonl", "yaml", "name", "jsonpath=$"] {
            let output = Command::parse_from(["status", "-o", format]).output;
            let shown = printed(&output, text, "", true);
            assert_eq!(shown.as_deref(), Some("a ]52;c \n"), "{format}");
            let piped = printed(&output, text, "", false);
            assert_eq!(piped.as_deref(), Some(text), "{format}");
            assert_eq!(printed(&output, text, text, true), None, "{format}");
        }
    }

    #[test]
    fn a_table_replaces_the_one_before_on_a_terminal() {
        let output = Command::parse_from(["status"]).output;
        let shown = printed(&output, "a\n", "a\n", true);
        assert_eq!(shown.as_deref(), Some("\u{1b}[2J\u{1b}[Ha\n"));
        assert_eq!(printed(&output, "a\n", "a\n", false), None);
    }
}
