//! `cargo xtask fuzz`: builds the fuzz targets with the stable toolchain and runs them.

use std::path::PathBuf;

use crate::run;

/// Arguments of `fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Lists the targets and what they promise
    #[arg(long)]
    list: bool,
    /// Only this target; several, separated by commas
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Seconds, divided among the targets
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Chooses the inputs; printed, random when absent
    #[arg(long)]
    seed: Option<u64>,
    /// Cargo's profile; release is several times faster and does not check its arithmetic
    #[arg(long, value_name = "PROFILE", default_value = "dev")]
    profile: String,
    /// Folder of findings and of discovered inputs; below cargo's target folder when absent
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// Runs the targets.
///
/// # Errors
/// When they cannot be built, or there is a finding.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let step = "building the fuzz targets";
    let programs = run::build(step, &["holdfast-fuzz"], &args.profile)?;
    let found = match &args.folder {
        Some(folder) => folder.clone(),
        None => run::target_folder()?.join("fuzz"),
    };
    let mut fuzz = std::process::Command::new(programs.join("holdfast-fuzz"));
    fuzz.args(["--seconds", &args.seconds.to_string()])
        .arg("--folder")
        .arg(found);
    if args.list {
        fuzz.arg("--list");
    }
    if let Some(names) = &args.target {
        fuzz.args(["--target", names]);
    }
    if let Some(seed) = args.seed {
        fuzz.args(["--seed", &seed.to_string()]);
    }
    run::status("fuzz", fuzz)
}
