//! Runs fuzz targets for a time. Started by `cargo xtask fuzz`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for a terminal"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use clap::Parser;
use holdfast_fuzz::{
    Target,
    engine::{self, Finding, Plan},
    inputs,
    targets::{self, ALL},
};

/// Fuzzes what parses.
#[derive(Parser)]
struct Cli {
    /// Lists the targets and what they promise
    #[arg(long)]
    list: bool,
    /// Only this target; several, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    target: Vec<String>,
    /// Seconds, divided among the targets
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Chooses the inputs; random when absent
    #[arg(long)]
    seed: Option<u64>,
    /// Folder of findings and of inputs that led to something new
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
    /// One target in this process: what the program starts for each, so that a death is a finding
    #[arg(long, hide = true)]
    alone: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(findings) => {
            println!("{findings} findings");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs; how many findings there are.
fn run(cli: &Cli) -> anyhow::Result<usize> {
    if cli.list {
        for target in ALL {
            println!("{:<14} {}", target.name, target.promise);
        }
        return Ok(0);
    }
    let chosen = chosen(&cli.target)?;
    let seed = cli.seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |now| now.as_secs())
    });
    let time = Duration::from_secs_f64(cli.seconds as f64 / chosen.len().max(1) as f64);
    fs::create_dir_all(&cli.folder).with_context(|| format!("make {}", cli.folder.display()))?;
    let mut findings = 0;
    for target in chosen {
        findings += if cli.alone {
            alone(&target, &cli.folder, time, seed)?
        } else {
            guarded(&target, &cli.folder, time, seed)?
        };
    }
    Ok(findings)
}

fn chosen(names: &[String]) -> anyhow::Result<Vec<Target>> {
    if names.is_empty() {
        return Ok(ALL.to_vec());
    }
    names
        .iter()
        .map(|name| {
            targets::named(name).with_context(|| format!("no target {name}; --list names them"))
        })
        .collect()
}

/// Runs a target in a process of its own: one that dies, or hangs, leaves the input that it died
/// of.
fn guarded(target: &Target, folder: &Path, time: Duration, seed: u64) -> anyhow::Result<usize> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([
            "--alone",
            "--target",
            target.name,
            "--seed",
            &seed.to_string(),
        ])
        .args(["--seconds", &time.as_secs().max(1).to_string()])
        .arg("--folder")
        .arg(folder)
        .spawn()?;
    // The corpus and the shrinking of findings take their time, too.
    let limit = Instant::now() + time + Duration::from_secs(120);
    let died = loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(0),
            Some(status) if status.code() == Some(1) => return Ok(1),
            Some(status) if status.code() == Some(2) => bail!("{} could not run", target.name),
            Some(status) => break format!("the process died: {status}"),
            None if limit < Instant::now() => {
                child.kill()?;
                child.wait()?;
                break "it hangs".to_owned();
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let input = engine::under_test(&current(folder, target)).unwrap_or_default();
    tell(
        target,
        folder,
        seed,
        &Finding {
            input,
            broken: died,
        },
    )?;
    Ok(1)
}

fn current(folder: &Path, target: &Target) -> PathBuf {
    folder.join(format!("{}.current", target.name))
}

/// Runs a target in this process.
fn alone(target: &Target, folder: &Path, time: Duration, seed: u64) -> anyhow::Result<usize> {
    let own = inputs::folder();
    let mut corpus = inputs::read(&own.join("corpus"), target.name)?;
    corpus.extend(inputs::read(&own.join("regressions"), target.name)?);
    let discovered = folder.join("discovered");
    corpus.extend(inputs::read(&discovered, target.name)?);
    let plan = Plan {
        time,
        seed,
        findings: 10,
        current: Some(current(folder, target)),
    };
    let began = Instant::now();
    let outcome = engine::run(target, &corpus, &plan);
    println!(
        "{:<14} {:>9} inputs ({:>6.0}/s), {:>4} kinds of outcomes, {} new, {} findings, seed {seed}",
        target.name,
        outcome.runs,
        outcome.runs as f64 / began.elapsed().as_secs_f64().max(0.001),
        outcome.shapes,
        outcome.discovered.len(),
        outcome.findings.len()
    );
    for finding in &outcome.findings {
        tell(target, folder, seed, finding)?;
    }
    if !outcome.discovered.is_empty() {
        fs::create_dir_all(&discovered)?;
        let lines: Vec<String> = inputs::read(&discovered, target.name)?
            .iter()
            .chain(&outcome.discovered)
            .map(|input| inputs::escape(input) + "\n")
            .collect();
        fs::write(
            discovered.join(format!("{}.txt", target.name)),
            lines.concat(),
        )?;
    }
    Ok(usize::from(!outcome.findings.is_empty()))
}

/// Prints a finding and adds it to the findings' file.
fn tell(target: &Target, folder: &Path, seed: u64, finding: &Finding) -> anyhow::Result<()> {
    use std::io::Write as _;
    let line = inputs::escape(&finding.input);
    let path = folder.join(format!("findings-{}.txt", target.name));
    let mut file = fs::File::options().create(true).append(true).open(&path)?;
    writeln!(
        file,
        "# {} (seed {seed})\n{line}",
        finding.broken.replace('\n', " ")
    )?;
    println!(
        "FINDING {}: {}\n  input: {line}\n  once mended, keep the line in fuzz/regressions/{}.txt; it is in {}",
        target.name,
        finding.broken,
        target.name,
        path.display()
    );
    Ok(())
}
