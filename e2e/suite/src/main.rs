//! Tests against a real cluster, and the demo. Started by `cargo xtask e2e` and `cargo xtask demo`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for a terminal"
)]

mod command;
mod demo;
mod diagnostics;
mod harness;
mod http;
mod images;
mod kube;
mod objects;
mod release;
mod site;
mod tests;
mod tools;
mod upstream;
mod wait;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use harness::{Plan, Suite};
use tools::Tools;
use world::World;

/// Tests of Holdfast on a real cluster.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the tests
    Test {
        /// Which tests
        #[arg(long, value_enum, default_value = "full")]
        suite: Suite,
        /// Tests whose name contains this, whatever their suite; several, separated by commas
        #[arg(long)]
        filter: Option<String>,
        /// A context of your kubeconfig instead of a cluster of its own
        #[arg(long)]
        context: Option<String>,
        /// Leaves the cluster running
        #[arg(long)]
        keep: bool,
        /// Writes the results as JSON
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Lists the tests
    List,
    /// Runs the demo
    Demo {
        /// Leaves the cluster running
        #[arg(long)]
        keep: bool,
        /// Writes steps and numbers as JSON
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// One HTTP request from where this runs; used inside the cluster's network
    #[command(hide = true)]
    Http {
        /// GET, POST, DELETE
        method: String,
        /// http://HOST:PORT/PATH
        url: String,
        /// The request's body
        #[arg(default_value = "")]
        body: String,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Test {
            suite,
            filter,
            context,
            keep,
            json,
        } => {
            let world = World::new(Tools::from_environment()?, context, keep);
            let plan = Plan {
                suite,
                filter,
                json,
            };
            harness::run(world, &tests::all(), &plan)
        }
        Command::List => {
            for case in tests::all() {
                println!("{:?} {}", case.suite, case.name);
            }
            Ok(())
        }
        Command::Demo { keep, json } => {
            demo::run(&Tools::from_environment()?, keep, json.as_deref())
        }
        Command::Http { method, url, body } => {
            print!("{}", http::request(&method, &url, &body)?);
            Ok(())
        }
    }
}
