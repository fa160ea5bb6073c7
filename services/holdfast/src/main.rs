//! The one binary of Holdfast: every part is a subcommand, and so are the operator's commands.

mod answer;
mod cli;
mod cluster;
mod config_check;
mod diff;
mod doctor;
mod export;
mod fsck;
mod import;
mod ls;
mod preload;
mod restore;
mod serve;
mod standing;
mod status;
mod terminal;
mod uninstall;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    holdfast_runtime::tls::install_crypto_provider();
    cli::run(cli::Cli::parse())
}
