//! The confirmation before a command evicts, deletes or overwrites something.

#![allow(clippy::print_stderr, reason = "a question to the user")]

use std::io::IsTerminal as _;

use anyhow::bail;

use crate::exit_status::Usage;

/// Whether the command asks first.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ConfirmArgs {
    /// Does not ask before it changes something
    #[arg(short, long, help_heading = "Output")]
    yes: bool,
}

impl ConfirmArgs {
    /// Asks on a terminal. Without a terminal `--yes` is required, and its absence is wrong usage.
    pub fn ask(&self, what: &str) -> anyhow::Result<()> {
        if self.yes {
            return Ok(());
        }
        let (mut input, output) = (std::io::stdin(), std::io::stderr());
        if !input.is_terminal() || !output.is_terminal() {
            return Err(Usage(format!(
                "{what}: confirm with --yes, since there is no terminal to ask on"
            ))
            .into());
        }
        eprint!("{what}. Continue? [y/N] ");
        if !is_yes(&read_line(&mut input)?) {
            bail!("not confirmed; nothing was changed");
        }
        Ok(())
    }
}

fn read_line(input: &mut std::io::Stdin) -> anyhow::Result<String> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    Ok(line)
}

fn is_yes(answer: &str) -> bool {
    ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_explicit_yes_confirms() {
        for (answer, expect) in [
            ("y\n", true),
            ("YES\n", true),
            ("\n", false),
            ("no\n", false),
        ] {
            assert_eq!(is_yes(answer), expect, "{answer:?}");
        }
    }
}
