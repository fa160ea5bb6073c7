//! The command line: services beside the operator's commands. `docs/operate/commands.md` lists the
//! conventions, and the tests of this module hold them for every command.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;
use holdfast_cli::{ConfigArgs, WRONG_USAGE, block_on};

use crate::docs::{self, Docs};
use crate::{help, serve};

/// Keeps a Kubernetes cluster running when its uplink is gone.
#[derive(Parser)]
#[command(
    name = "holdfast",
    version,
    max_term_width = 100,
    infer_long_args = false
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one, for as long as the process runs"
)]
enum Command {
    #[command(flatten)]
    Operator(holdfast_cli::Command),
    /// Prints a completion script for a shell
    Completion(CompletionArgs),
    /// Writes the reference of the commands, or man pages
    #[command(subcommand, hide = true)]
    Docs(Docs),
    /// Runs the registry; with --data alone, without Kubernetes
    Registry(serve::RegistryArgs),
    /// Runs the webhook that rewrites the images of pods
    Webhook(serve::WebhookArgs),
    /// Runs the controller of Artifacts, certificates and the shared state
    Controller(serve::ControllerArgs),
    /// Runs the agent that prepares the container runtime of a node
    NodeAgent(ConfigArgs),
}

/// Arguments of `completion`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  holdfast completion bash > /etc/bash_completion.d/holdfast
  holdfast completion fish")]
struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// The name under which people call the program: kubectl finds plugins as `kubectl-NAME`.
fn called(program: &OsString) -> &'static str {
    let name = Path::new(program).file_stem();
    if name.is_some_and(|name| name == "kubectl-holdfast") {
        "kubectl holdfast"
    } else {
        "holdfast"
    }
}

/// The tree of commands, with the help of the root grouped.
pub(crate) fn command(called: &'static str) -> clap::Command {
    help::grouped(Cli::command().bin_name(called).display_name(called))
}

/// Parses a command line. Otherwise returns the exit status: 0 for help and the version, 64 for a
/// wrong command line.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Cli, ExitCode> {
    let arguments: Vec<OsString> = arguments.collect();
    let called = arguments.first().map_or("holdfast", called);
    let matches = command(called).try_get_matches_from(arguments);
    matches
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .map_err(|error| {
            error.print().ok();
            status_of(error.kind())
        })
}

fn status_of(kind: ErrorKind) -> ExitCode {
    match kind {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(WRONG_USAGE),
    }
}

/// Runs the command.
pub(crate) fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Operator(command) => return holdfast_cli::run(command),
        Command::Completion(args) => {
            let mut command = command("holdfast");
            clap_complete::generate(args.shell, &mut command, "holdfast", &mut std::io::stdout());
            return ExitCode::SUCCESS;
        }
        Command::Docs(docs) => docs::run(&docs, command("holdfast")),
        Command::Registry(args) => block_on(serve::registry(args)),
        Command::Webhook(args) => block_on(serve::webhook(args)),
        Command::Controller(args) => block_on(serve::controller(args)),
        Command::NodeAgent(args) => block_on(serve::node_agent(args)),
    };
    result.unwrap_or_else(|error| holdfast_cli::service_failed(&error))
}

#[cfg(test)]
mod tests;
