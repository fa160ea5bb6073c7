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
pub struct WatchArgs {
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
    pub fn is_on(&self) -> bool {
        self.watch
    }

    /// Checks once and returns the result, or with `--watch` prints each one that differs.
    pub async fn run(
        &self,
        output: &OutputArgs,
        mut check: impl AsyncFnMut() -> anyhow::Result<Document>,
    ) -> anyhow::Result<Document> {
        if !self.watch {
            return check().await;
        }
        let mut shown = Shown::default();
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
                    if let Some(printed) = shown.next(output, &text, is_terminal) {
                        terminal::print(&printed);
                    }
                    output.write_file(&document)?;
                }
                Err(error) if exit_status::is_wrong_usage(&error) => return Err(error),
                Err(error) => {
                    shown.outage();
                    let since = *away_since.get_or_insert_with(Instant::now);
                    terminal::error(&outage(&error, since.elapsed()));
                }
            }
            tokio::time::sleep(self.interval).await;
        }
    }
}

/// The text that was printed last. It is forgotten in an outage, so that the first document after
/// it shows that the outage is over.
#[derive(Debug, Default)]
struct Shown {
    before: String,
}

impl Shown {
    /// What is printed of a check; nothing if its text is the one before.
    fn next(&mut self, output: &OutputArgs, text: &str, is_terminal: bool) -> Option<String> {
        let is_same = self.before == text;
        text.clone_into(&mut self.before);
        if output.is_table() && is_terminal {
            Some(format!("{CLEAR_SCREEN}{text}"))
        } else if is_same {
            None
        } else {
            Some(output.for_stdout(text, is_terminal).into_owned())
        }
    }

    /// The check failed.
    fn outage(&mut self) {
        self.before.clear();
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
            let mut shown = Shown::default();
            let printed = shown.next(&output, text, true);
            assert_eq!(printed.as_deref(), Some("a ]52;c \n"), "{format}");
            assert_eq!(shown.next(&output, text, true), None, "{format}");
            let piped = Shown::default().next(&output, text, false);
            assert_eq!(piped.as_deref(), Some(text), "{format}");
        }
    }

    #[test]
    fn a_table_replaces_the_one_before_on_a_terminal() {
        let output = Command::parse_from(["status"]).output;
        let mut shown = Shown::default();
        for _ in 0..2 {
            let printed = shown.next(&output, "a\n", true);
            assert_eq!(printed.as_deref(), Some("\u{1b}[2J\u{1b}[Ha\n"));
        }
        assert_eq!(shown.next(&output, "a\n", false), None);
    }

    #[test]
    fn the_first_document_after_an_outage_is_printed_although_it_is_the_same() {
        let output = Command::parse_from(["status", "-o", "jsonl"]).output;
        let mut shown = Shown::default();
        let print = |shown: &mut Shown| shown.next(&output, "{}\n", false).is_some();
        assert!(print(&mut shown));
        assert!(!print(&mut shown));
        shown.outage();
        assert!(print(&mut shown));
    }
}
