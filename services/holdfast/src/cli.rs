//! The command line: services beside the operator's commands. Exit status 0: done; 1: failed;
//! 64: the configuration or the command line is wrong. Commands that answer a question say no by 1
//! and cannot tell by 2.
#![allow(clippy::print_stdout, reason = "what a command prints is its result")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use holdfast_cli::{ConfigArgs, block_on};

use crate::serve;

/// Keeps a Kubernetes cluster running when its uplink is gone.
#[derive(Parser)]
#[command(name = "holdfast", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The registry; with --data it runs alone, without Kubernetes
    Registry(serve::RegistryArgs),
    /// The webhook that rewrites the images of pods
    Webhook(serve::WebhookArgs),
    /// The controller of Artifacts, certificates and the shared state
    Controller(serve::ControllerArgs),
    /// The agent that prepares a node's container runtime
    NodeAgent(ConfigArgs),
    #[command(flatten)]
    Operator(holdfast_cli::Command),
    /// Prints the version
    Version,
}

/// Runs the command.
pub(crate) fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Registry(args) => block_on(serve::registry(args)),
        Command::Webhook(args) => block_on(serve::webhook(args)),
        Command::Controller(args) => block_on(serve::controller(args)),
        Command::NodeAgent(args) => block_on(serve::node_agent(args)),
        Command::Operator(command) => Ok(holdfast_cli::run(command)),
        Command::Version => {
            println!("holdfast {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| holdfast_cli::failed(&error))
}
