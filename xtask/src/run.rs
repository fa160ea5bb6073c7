//! Starting other programs, from the repository's root, with one line of output a step.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use holdfast_cluster::progress::Step;

/// The repository's root folder.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// The same cargo that runs xtask, in the repository's root.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Runs `command` with its output on the terminal.
///
/// # Errors
/// When it cannot be started or does not end with 0; the message carries `step`.
pub(crate) fn status(step: &str, mut command: Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{step}: cannot start {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{step} failed ({status})");
    }
    Ok(())
}

/// As [`status`], for what is silent for minutes: says that it is under way, and how long it took.
///
/// # Errors
/// As [`status`].
pub(crate) fn quiet(step: &str, command: Command) -> anyhow::Result<()> {
    let _step = Step::start(step);
    status(step, command)
}

/// Runs `command` and returns what it printed on standard output.
///
/// # Errors
/// When it cannot be started, does not end with 0, or does not print UTF-8.
pub(crate) fn output(step: &str, mut command: Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("{step}: cannot start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{step} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{step}: output is not UTF-8"))
}

/// Builds programs of the repository, and returns the folder that they are in. The whole workspace
/// is selected, so that no dependency is built a second time with other features than the tests
/// use.
///
/// # Errors
/// When they do not compile.
pub(crate) fn build(step: &str, programs: &[&str], profile: &str) -> anyhow::Result<PathBuf> {
    let mut command = cargo(&["build", "--quiet", "--workspace", "--profile", profile]);
    for program in programs {
        command.args(["--bin", program]);
    }
    quiet(step, command)?;
    Ok(target_folder()?.join(folder_of(profile)))
}

/// Where below its target folder cargo puts what it builds in a profile.
pub(crate) fn folder_of(profile: &str) -> &str {
    if profile == "dev" { "debug" } else { profile }
}

/// The target folder, as cargo reports it.
///
/// # Errors
/// When cargo does not say it.
pub(crate) fn target_folder() -> anyhow::Result<PathBuf> {
    let metadata = output(
        "cargo metadata",
        cargo(&["metadata", "--no-deps", "--format-version", "1"]),
    )?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).context("read cargo metadata")?;
    metadata["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .context("cargo metadata names no target folder")
}
