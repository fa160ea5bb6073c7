//! Every target for a short time, all former findings, and planted bugs that the engine must find.

use std::time::Duration;

use holdfast_fuzz::{
    Target,
    engine::{self, Plan},
    inputs, shape,
    targets::ALL,
};

/// Time of one target. Two run at a time on two processors.
const EACH: Duration = Duration::from_millis(1500);

fn plan(seconds: f64) -> Plan {
    Plan {
        time: Duration::from_secs_f64(seconds),
        seed: 1,
        findings: 3,
        current: None,
    }
}

#[test]
fn everything_that_was_found_stays_mended() {
    let folder = inputs::folder().join("regressions");
    for target in ALL {
        for input in inputs::read(&folder, target.name).unwrap() {
            let outcome = engine::check(&target, &input);
            assert!(
                outcome.is_ok(),
                "{} {}: {outcome:?}",
                target.name,
                inputs::escape(&input)
            );
        }
    }
}

#[test]
fn files_of_inputs_belong_to_targets_and_every_target_has_a_corpus() {
    for folder in ["corpus", "regressions"] {
        for entry in std::fs::read_dir(inputs::folder().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let known = |target: &Target| name == format!("{}.txt", target.name);
            assert!(
                ALL.iter().any(known),
                "{folder}/{name} belongs to no target"
            );
        }
    }
    for target in ALL {
        let corpus = inputs::read(&inputs::folder().join("corpus"), target.name).unwrap();
        assert!(
            corpus.len() >= 3,
            "{} has {} inputs",
            target.name,
            corpus.len()
        );
    }
}

#[test]
fn no_target_breaks_its_promise_within_a_short_time() {
    let corpus = |target: &Target| {
        let mut corpus = inputs::read(&inputs::folder().join("corpus"), target.name).unwrap();
        corpus.extend(inputs::read(&inputs::folder().join("regressions"), target.name).unwrap());
        corpus
    };
    let broken = std::sync::Mutex::new(Vec::new());
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(target) =
                    ALL.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    let outcome = engine::run(target, &corpus(target), &plan(EACH.as_secs_f64()));
                    assert!(outcome.shapes > 1, "{} sees one outcome only", target.name);
                    for finding in outcome.findings {
                        broken.lock().unwrap().push(format!(
                            "{}: {} by {}",
                            target.name,
                            finding.broken,
                            inputs::escape(&finding.input)
                        ));
                    }
                }
            });
        }
    });
    let broken = broken.into_inner().unwrap();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Panics where a text has `a` before `@` and a number above 4000000000 behind it.
#[allow(clippy::unnecessary_wraps, reason = "a target has this form")]
fn panics(input: &[u8]) -> Result<u64, String> {
    let text = String::from_utf8_lossy(input);
    let Some((name, number)) = text.split_once('@') else {
        return Ok(0);
    };
    let number: u64 = number.parse().map_err(|_| ()).unwrap_or(0);
    assert!(!(name.contains('a') && number > 4_000_000_000), "planted");
    Ok(shape((name.contains('a'), number > 0)))
}

/// Breaks its promise where a text opens twelve brackets.
fn answers_wrongly(input: &[u8]) -> Result<u64, String> {
    let depth = String::from_utf8_lossy(input).matches('[').count();
    if depth >= 12 {
        return Err(format!("depth {depth} is taken"));
    }
    Ok(shape(depth))
}

#[test]
fn planted_bugs_are_found_and_shrunk() {
    let planted = |name, check| Target {
        name,
        promise: "broken on purpose",
        check,
        dictionary: &["@"],
        max_bytes: 100,
    };
    let outcome = engine::run(&planted("panics", panics), &[b"b@1".to_vec()], &plan(20.0));
    let finding = outcome.findings.first().expect("the panic is found");
    assert!(finding.broken.contains("planted"), "{finding:?}");
    assert!(finding.input.len() <= 24, "{finding:?}");

    let corpus = [b"[x]".to_vec()];
    let outcome = engine::run(&planted("wrong", answers_wrongly), &corpus, &plan(5.0));
    let finding = outcome.findings.first().expect("the wrong answer is found");
    assert_eq!(finding.input, b"[".repeat(12));
}

#[test]
fn what_a_dead_process_was_at_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("current");
    // The file is there while an input is under test, and gone after a run that survived.
    static PATH: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();
    PATH.set(path.clone()).unwrap();
    #[allow(clippy::unnecessary_wraps, reason = "a target has this form")]
    fn look(input: &[u8]) -> Result<u64, String> {
        let under_test = PATH.get().and_then(|path| engine::under_test(path));
        assert_eq!(under_test.as_deref(), Some(input));
        Ok(0)
    }
    let target = Target {
        name: "look",
        promise: "",
        check: look,
        dictionary: &[],
        max_bytes: 50,
    };
    let outcome = engine::run(
        &target,
        &[b"one".to_vec(), b"another".to_vec()],
        &Plan {
            current: Some(path.clone()),
            ..plan(0.2)
        },
    );
    assert!(outcome.findings.is_empty(), "{:?}", outcome.findings);
    assert!(!path.exists());
}
