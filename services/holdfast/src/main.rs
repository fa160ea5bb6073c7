//! The one binary of Holdfast: every service is a subcommand, and so are the operator's commands.

mod cli;
mod complete;
mod docs;
mod help;
mod serve;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(words) = complete::words_to_complete(std::env::args_os()) {
        let tree = cli::command("kubectl holdfast");
        holdfast_cli::print(&complete::answer(tree, &words));
        return ExitCode::SUCCESS;
    }
    holdfast_runtime::tls::install_crypto_provider();
    match cli::parse(std::env::args_os()) {
        Ok(cli) => cli::run(cli),
        Err(status) => status,
    }
}
