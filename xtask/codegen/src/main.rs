//! `holdfast-codegen generate [--check]`: writes, or checks, the files that are made from types.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Makes the JSON schema, the chart's defaults, the custom resource definitions and the references
/// from the types.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write every generated file.
    Generate {
        /// Write nothing; fail when a file is not what it would be.
        #[arg(long)]
        check: bool,
        /// The folder of the workspace.
        #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))]
        root: PathBuf,
    },
}

fn main() -> Result<()> {
    let Command::Generate { check, root } = Arguments::parse().command;
    if check {
        holdfast_codegen::check(&root)
    } else {
        holdfast_codegen::generate(&root)
    }
}
