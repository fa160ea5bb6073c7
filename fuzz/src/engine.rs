//! Runs a target for a time: mutates inputs of the corpus, keeps those with a new kind of outcome,
//! and catches, shrinks and reports failures.

use std::{
    any::Any,
    cell::Cell,
    collections::HashSet,
    fs::File,
    os::unix::fs::FileExt as _,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Once,
    time::{Duration, Instant},
};

use fastrand::Rng;

use crate::{Target, mutation};

/// An input that takes longer is a finding: its sender could stop a server.
const SLOW: Duration = Duration::from_secs(3);
/// Inputs that are kept.
const KEPT: usize = 4_000;
/// Tries to shrink a finding.
const SHRINK_TRIES: usize = 3_000;

/// How to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For how long.
    pub time: Duration,
    /// Chooses the inputs.
    pub seed: u64,
    /// The most findings, one of each kind.
    pub findings: usize,
    /// Where the input under test is written, so that it is known when the process dies of it.
    pub current: Option<PathBuf>,
}

/// An input that breaks the target's promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The input, shrunk.
    pub input: Vec<u8>,
    /// What it breaks.
    pub broken: String,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Inputs tried.
    pub runs: u64,
    /// Kinds of outcomes seen.
    pub shapes: usize,
    /// Inputs that led to them and were not in the corpus.
    pub discovered: Vec<Vec<u8>>,
    /// What is broken.
    pub findings: Vec<Finding>,
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Panics under test are findings, not messages.
fn be_quiet_under_test() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                default(info);
            }
        }));
    });
}

/// Checks one input; a panic and a long time are failures, too.
///
/// # Errors
/// What is broken.
pub fn check(target: &Target, input: &[u8]) -> Result<u64, String> {
    be_quiet_under_test();
    let began = Instant::now();
    QUIET.set(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| (target.check)(input)));
    QUIET.set(false);
    let outcome = outcome.unwrap_or_else(|cause| Err(format!("panic: {}", message(&*cause))));
    let took = began.elapsed();
    match outcome {
        Ok(_) if took > SLOW => Err(format!("it takes {:.1} s", took.as_secs_f64())),
        outcome => outcome,
    }
}

fn message(cause: &(dyn Any + Send)) -> String {
    cause
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| cause.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}

/// What two findings of one kind have in common: the words without the input's own.
fn kind(broken: &str) -> String {
    let words = broken.split(['`', '"', ':']).next().unwrap_or_default();
    words.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// Runs a target over the corpus, then over inputs made from it.
pub fn run(target: &Target, corpus: &[Vec<u8>], plan: &Plan) -> Outcome {
    let mut outcome = Outcome::default();
    let mut random = Rng::with_seed(plan.seed);
    let mut shapes = HashSet::new();
    let mut kinds = HashSet::new();
    let mut pool: Vec<Vec<u8>> = vec![Vec::new()];
    let current = plan
        .current
        .as_deref()
        .and_then(|path| File::create(path).ok());
    let began = Instant::now();
    let mut waiting = corpus.to_vec();
    // The whole corpus is looked at, however short the time is.
    while !waiting.is_empty() || began.elapsed() < plan.time {
        let (input, is_new) = if let Some(input) = waiting.pop() {
            (input, false)
        } else {
            // New discoveries are where the next ones are near.
            let from = if random.usize(..3) == 0 {
                pool.len().saturating_sub(1 + random.usize(..32))
            } else {
                random.usize(..pool.len())
            };
            let mut input = pool.get(from).cloned().unwrap_or_default();
            let other = pool
                .get(random.usize(..pool.len()))
                .cloned()
                .unwrap_or_default();
            mutation::mutate(
                &mut input,
                &mut random,
                target.dictionary,
                &other,
                target.max_bytes,
            );
            (input, true)
        };
        note(current.as_ref(), &input);
        outcome.runs += 1;
        match check(target, &input) {
            Ok(shape) => {
                if shapes.insert(shape) && pool.len() < KEPT {
                    if is_new {
                        outcome.discovered.push(input.clone());
                    }
                    pool.push(input);
                }
            }
            Err(broken) => {
                if !kinds.insert(kind(&broken)) {
                    continue;
                }
                let same = |input: &[u8]| {
                    note(current.as_ref(), input);
                    check(target, input).is_err_and(|found| kind(&found) == kind(&broken))
                };
                let input = mutation::shrink(&input, same, SHRINK_TRIES);
                let broken = check(target, &input).err().unwrap_or(broken);
                outcome.findings.push(Finding { input, broken });
                if outcome.findings.len() >= plan.findings {
                    break;
                }
            }
        }
    }
    outcome.shapes = shapes.len();
    if let Some(path) = &plan.current {
        drop(std::fs::remove_file(path));
    }
    outcome
}

/// Writes down what is under test.
fn note(current: Option<&File>, input: &[u8]) {
    if let Some(file) = current {
        let length = (input.len() as u64).to_le_bytes();
        let bytes = [&length[..], input].concat();
        // Without it only the cause of a death of the process is unknown.
        drop(file.write_all_at(&bytes, 0));
    }
}

/// The input that was under test when a process died.
pub fn under_test(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    rest.get(..length).map(<[u8]>::to_vec)
}
