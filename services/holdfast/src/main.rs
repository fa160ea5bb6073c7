//! The one binary of Holdfast: every service is a subcommand, and so are the operator's commands.

mod cli;
mod serve;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    holdfast_runtime::tls::install_crypto_provider();
    cli::run(cli::Cli::parse())
}
