//! Running programs: output, time-outs, and messages that say what was run.

use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A program that takes longer than this hangs.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(600);

/// Runs `command` and returns its standard output.
///
/// # Errors
/// When it cannot be started, does not end with 0 or hangs; the message holds the command and what
/// it printed on standard error.
pub(crate) fn run(command: Command) -> Result<String> {
    run_with(command, "", COMMAND_TIMEOUT)
}

/// As [`run`], with `input` on standard input.
///
/// # Errors
/// As [`run`].
pub(crate) fn feed(command: Command, input: &str) -> Result<String> {
    run_with(command, input, COMMAND_TIMEOUT)
}

/// As [`run`] with a time limit of its own.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_within(command: Command, limit: Duration) -> Result<String> {
    run_with(command, "", limit)
}

fn run_with(command: Command, input: &str, limit: Duration) -> Result<String> {
    let text = describe(&command);
    let output = finish(command, input, limit)?;
    if !output.status.success() {
        bail!(
            "`{text}` failed ({}): {}{}",
            output.status,
            tail(&output.stderr),
            tail(&output.stdout)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command`, which must fail, and returns everything it printed.
///
/// # Errors
/// When it succeeds, cannot be started or hangs.
pub(crate) fn refused(command: Command) -> Result<String> {
    let text = describe(&command);
    let output = finish(command, "", COMMAND_TIMEOUT)?;
    let printed = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if output.status.success() {
        bail!("`{text}` succeeded and should have been refused: {printed}");
    }
    Ok(printed)
}

fn finish(mut command: Command, input: &str, limit: Duration) -> Result<Output> {
    let text = describe(&command);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start `{text}`"))?;
    let mut stdin = child.stdin.take().context("standard input")?;
    let input = input.to_owned();
    let writer = thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let stdout = drain(child.stdout.take().context("standard output")?);
    let stderr = drain(child.stderr.take().context("standard error")?);
    let status = wait(&mut child, limit).with_context(|| format!("`{text}`"))?;
    drop(writer.join());
    Ok(Output {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        drop(from.read_to_end(&mut bytes));
        bytes
    })
}

fn wait(child: &mut Child, limit: Duration) -> Result<std::process::ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().context("wait")? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            drop(child.kill());
            drop(child.wait());
            bail!("did not end within {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn describe(command: &Command) -> String {
    let words: Vec<_> = command
        .get_args()
        .map(|word| word.to_string_lossy().chars().take(160).collect::<String>())
        .collect();
    format!(
        "{} {}",
        command.get_program().to_string_lossy(),
        words.join(" ")
    )
}

fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
