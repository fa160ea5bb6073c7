//! The one binary of Holdfast: every service is a subcommand, and so are the operator's commands.

mod cli;
mod help;
mod serve;

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast_runtime::tls::install_crypto_provider();
    match cli::parse(std::env::args_os()) {
        Ok(cli) => cli::run(cli),
        Err(status) => status,
    }
}
