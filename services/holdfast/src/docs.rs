//! `holdfast docs`: the reference of the commands, and man pages. Both are made of the tree of
//! commands.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Command, Subcommand};

use crate::help;

/// Columns of the reference.
const COLUMNS: usize = 100;
const HEAD: &str = "\
# Reference of the commands

`cargo xtask generate` writes this page from the commands; do not edit it. It has the text of
`holdfast COMMAND --help`. [commands.md](../operate/commands.md) describes how to use the commands.
";

/// What to write.
#[derive(Subcommand)]
pub(crate) enum Docs {
    /// Prints docs/reference/cli.md
    Reference,
    /// Writes a man page for each command
    Man {
        /// Folder of the pages
        dir: PathBuf,
    },
}

/// Writes documents of this tree of commands.
pub(crate) fn run(docs: &Docs, tree: Command) -> anyhow::Result<ExitCode> {
    match docs {
        Docs::Reference => holdfast_cli::print(&reference(tree)),
        Docs::Man { dir } => {
            std::fs::create_dir_all(dir)
                .and_then(|()| clap_mangen::generate_to(tree, dir))
                .with_context(|| format!("cannot write to {}", dir.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The help of every command as one Markdown page.
pub(crate) fn reference(mut tree: Command) -> String {
    tree.build();
    let mut text = HEAD.to_owned();
    for (_, names) in help::GROUPS {
        for name in names.iter().filter(|name| **name != "help") {
            if let Some(command) = tree.find_subcommand(name) {
                section(command, &mut text);
            }
        }
    }
    text
}

fn section(command: &Command, text: &mut String) {
    let below = command
        .get_subcommands()
        .filter(|it| it.get_name() != "help");
    for command in below {
        section(command, text);
    }
    if command.has_subcommands() {
        return;
    }
    let name = command.get_bin_name().unwrap_or_default();
    let mut command = command.clone().term_width(COLUMNS);
    // What the environment of the writer says is no part of the reference.
    command = command.mut_args(|arg| arg.hide_env_values(true));
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    writeln!(text, "\n## {name}\n\n```text\n{}\n```", lines.join("\n")).ok();
}
