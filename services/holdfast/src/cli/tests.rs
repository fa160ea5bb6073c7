//! The conventions of the command line, held for every command of the tree.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Arg, Command as Tree};

use super::*;
use crate::complete;

/// Commands that run a service. They print no data and take no flags of an operator.
const SERVICES: [&str; 4] = ["registry", "webhook", "controller", "node-agent"];
/// Commands without data: `export` writes archives, `completion` a script.
const WITHOUT_DATA: [&str; 2] = ["export", "completion"];
/// Commands that read the cluster by the caller's kubeconfig.
const CLUSTER: [&str; 8] = [
    "status",
    "doctor",
    "diff offline",
    "preload",
    "rm",
    "restore",
    "uninstall",
    "version",
];
/// Flags of a service or command that have another meaning elsewhere, each for a reason.
const SECOND_MEANINGS: [(&str, &str); 2] = [
    // The archive, as in every tool that writes one.
    ("export", "output"),
    // One platform or many images: the command says which.
    ("export", "all"),
];

/// Every command that runs something, by its path below `holdfast`.
fn leaves(tree: &Tree) -> Vec<(String, Tree)> {
    fn walk(tree: &Tree, path: &str, found: &mut Vec<(String, Tree)>) {
        for command in tree.get_subcommands() {
            let path = format!("{path} {}", command.get_name()).trim().to_owned();
            if command.has_subcommands() {
                walk(command, &path, found);
            } else {
                found.push((path, command.clone()));
            }
        }
    }
    let mut found = Vec::new();
    walk(tree, "", &mut found);
    found
}

fn built() -> Tree {
    let mut tree = command("holdfast");
    tree.build();
    tree
}

/// The operator's commands without clap's own `help`.
fn operator_commands() -> Vec<(String, Tree)> {
    let mut found = leaves(&command("holdfast"));
    found.retain(|(path, _)| !SERVICES.contains(&path.as_str()) && !path.starts_with("docs "));
    found
}

fn visible(command: &Tree) -> impl Iterator<Item = &Arg> {
    let arguments = command.get_arguments();
    arguments.filter(|arg| !arg.is_hide_set() && arg.get_long() != Some("help"))
}

fn flags(command: &Tree) -> BTreeSet<String> {
    command
        .get_arguments()
        .filter_map(|arg| arg.get_long().map(str::to_owned))
        .collect()
}

/// The examples of a command, without what a shell does around them.
fn examples(command: &Tree) -> Vec<String> {
    let after = command.get_after_help().map(ToString::to_string);
    let after = after.unwrap_or_default();
    let lines = after
        .lines()
        .skip_while(|line| *line != "Examples:")
        .skip(1);
    lines
        .take_while(|line| !line.is_empty())
        .map(|line| {
            let line = line.rsplit("| ").next().unwrap_or_default();
            let words = line.split_whitespace();
            let words: Vec<_> = words
                .take_while(|word| !["<", ">"].contains(word))
                .collect();
            words.join(" ")
        })
        .collect()
}

fn parses(line: &str) -> Result<(), clap::Error> {
    let matches = command("holdfast").try_get_matches_from(line.split_whitespace())?;
    Cli::from_arg_matches(&matches).map(drop)
}

#[test]
fn the_tree_is_sound() {
    command("holdfast").debug_assert();
}

#[test]
fn a_flag_has_one_meaning() {
    let mut meanings: BTreeMap<String, (String, String)> = BTreeMap::new();
    for (path, command) in operator_commands() {
        for arg in visible(&command) {
            let Some(long) = arg.get_long() else { continue };
            if SECOND_MEANINGS.contains(&(path.as_str(), long)) {
                continue;
            }
            let meaning = format!("{:?} {:?}", arg.get_short(), arg.get_value_names());
            let (first, known) = meanings
                .entry(long.to_owned())
                .or_insert_with(|| (path.clone(), meaning.clone()));
            assert_eq!(*known, meaning, "--{long} of {first} and of {path}");
        }
    }
}

#[test]
fn a_short_flag_stands_for_one_long_flag() {
    let expect: BTreeMap<char, &str> = [
        ('n', "namespace"),
        ('A', "all-namespaces"),
        ('o', "output"),
        ('l', "selector"),
        ('w', "watch"),
        ('f', "file"),
        ('y', "yes"),
        ('q', "quiet"),
        ('v', "verbose"),
    ]
    .into();
    for (path, command) in operator_commands() {
        for arg in visible(&command) {
            if let Some(short) = arg.get_short() {
                let long = arg.get_long().unwrap();
                assert_eq!(expect.get(&short), Some(&long), "-{short} of {path}");
            }
        }
    }
}

#[test]
fn commands_that_print_data_take_every_format() {
    for (path, command) in operator_commands() {
        if WITHOUT_DATA.contains(&path.as_str()) {
            continue;
        }
        let flags = flags(&command);
        for flag in [
            "output",
            "no-headers",
            "quiet",
            "verbose",
            "color",
            "exit-zero",
        ] {
            assert!(flags.contains(flag), "{path} has no --{flag}");
        }
        let example = &examples(&command)[0];
        for format in [
            "table",
            "wide",
            "json",
            "jsonl",
            "yaml",
            "name",
            "jsonpath=.verdict",
        ] {
            let line = format!("{example} -o {format}");
            assert!(parses(&line).is_ok(), "{line}: {:?}", parses(&line).err());
        }
        assert!(parses(&format!("{example} -o xml")).is_err(), "{path}");
    }
}

#[test]
fn commands_of_the_cluster_take_the_flags_of_kubectl() {
    let commands: BTreeMap<_, _> = operator_commands().into_iter().collect();
    for path in CLUSTER {
        let flags = flags(&commands[path]);
        for flag in [
            "kubeconfig",
            "context",
            "cluster",
            "user",
            "as",
            "as-group",
            "request-timeout",
        ] {
            assert!(flags.contains(flag), "{path} has no --{flag}");
        }
        // `uninstall` reads its release from --config.
        let chooses = flags.contains("release-namespace");
        assert_eq!(chooses, path != "uninstall", "{path}");
    }
}

#[test]
fn lists_can_be_sorted_and_artifacts_selected() {
    let commands: BTreeMap<_, _> = operator_commands().into_iter().collect();
    for path in ["status", "diff offline", "ls"] {
        assert!(flags(&commands[path]).contains("sort-by"), "{path}");
    }
    assert!(flags(&commands["status"]).contains("selector"));
    assert!(parses("holdfast status --sort-by {.reason} -l team!=web").is_ok());
    assert!(parses("holdfast status --sort-by $[").is_err());
}

#[test]
fn commands_that_remove_something_ask() {
    let commands: BTreeMap<_, _> = operator_commands().into_iter().collect();
    for path in ["restore", "uninstall", "fsck", "export"] {
        assert!(
            flags(&commands[path]).contains("yes"),
            "{path} has no --yes"
        );
    }
}

#[test]
fn durations_have_units() {
    for line in [
        "holdfast status -w --interval 10s",
        "holdfast preload a:1 --wait --timeout 5m",
        "holdfast preload a:1 --wait --timeout 300",
        "holdfast restore -n a --timeout 1h30m",
        "holdfast uninstall --timeout 5m",
        "holdfast doctor --quick --timeout-seconds 5",
    ] {
        assert!(parses(line).is_ok(), "{line}");
    }
    assert!(parses("holdfast restore -n a --timeout soon").is_err());
}

#[test]
fn former_spellings_are_hidden_and_still_work() {
    for line in [
        "holdfast preload a:1 --into shop",
        "holdfast restore --all",
        "holdfast diff offline --all --json FILE",
        "holdfast uninstall --strict --timeout-seconds 5",
    ] {
        assert!(parses(line).is_ok(), "{line}");
    }
}

#[test]
fn a_wrong_command_line_is_told_apart_from_help() {
    for (path, _) in leaves(&built()) {
        if path.starts_with("help") || path.contains(" help") {
            continue;
        }
        let wrong = parses(&format!("holdfast {path} --no-such-flag"))
            .err()
            .unwrap();
        assert_eq!(
            status_of(wrong.kind()),
            ExitCode::from(WRONG_USAGE),
            "{path}"
        );
        let help = parses(&format!("holdfast {path} --help")).err().unwrap();
        assert_eq!(status_of(help.kind()), ExitCode::SUCCESS, "{path}");
    }
    for line in ["holdfast no-such-command", "holdfast", "holdfast diff"] {
        let wrong = parses(line).err().unwrap();
        assert_eq!(
            status_of(wrong.kind()),
            ExitCode::from(WRONG_USAGE),
            "{line}"
        );
    }
}

#[test]
fn help_is_wrapped_and_its_examples_parse() {
    for (path, mut command) in operator_commands() {
        let about = command.get_about().unwrap().to_string();
        assert!(
            about.chars().count() <= 72 && !about.ends_with('.'),
            "{path}: {about}"
        );
        let help = command.render_long_help().to_string();
        for line in help.lines() {
            assert!(line.chars().count() <= 100, "{path}: {line}");
        }
        let examples = examples(&command);
        assert!((2..=4).contains(&examples.len()), "{path}: {examples:?}");
        for line in examples {
            assert!(
                parses(&line).is_ok(),
                "{path}: {line}: {:?}",
                parses(&line).err()
            );
            assert!(line.contains(&format!("holdfast {path}")), "{path}: {line}");
        }
    }
}

#[test]
fn every_command_stands_in_a_group_of_the_help() {
    let grouped: Vec<&str> = help::GROUPS
        .iter()
        .flat_map(|(_, names)| *names)
        .copied()
        .collect();
    let mut known: Vec<String> = built()
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(|command| command.get_name().to_owned())
        .collect();
    known.sort();
    let mut sorted = grouped.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, known);
    let text = command("holdfast").render_help().to_string();
    let place = |name: &str| text.find(&format!("\n  {name} ")).unwrap();
    assert!(
        place("status") < place("ls") && place("ls") < place("registry"),
        "{text}"
    );
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "{text}"
    );
}

#[test]
fn as_a_plugin_of_kubectl_help_says_so() {
    for (program, expect) in [
        ("/usr/local/bin/kubectl-holdfast", "kubectl holdfast"),
        ("holdfast", "holdfast"),
        ("/usr/bin/holdfast", "holdfast"),
    ] {
        assert_eq!(called(&OsString::from(program)), expect);
    }
    let help = command("kubectl holdfast").render_help().to_string();
    assert!(help.contains("Usage: kubectl holdfast"), "{help}");
}

#[test]
fn completions_know_every_command() {
    for shell in [
        Shell::Bash,
        Shell::Zsh,
        Shell::Fish,
        Shell::PowerShell,
        Shell::Elvish,
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command("holdfast"), "holdfast", &mut script);
        let script = String::from_utf8(script).unwrap();
        assert!(
            script.contains("preload") && script.contains("offline"),
            "{shell}"
        );
    }
}

#[test]
fn kubectl_gets_completions_of_commands_flags_and_values() {
    for (words, first, directive) in [
        (&["stat"][..], "status\tShows whether", 4),
        (&["diff", ""], "offline\tLists", 4),
        (&["status", "--unt"], "--until\tWith --watch", 4),
        (&["status", "--until", ""], "yes\t", 4),
        (&["status", "-n", "diff", "--lim"], "--limit\t", 4),
        (&["status", "-n", ""], ":4", 4),
        (&["preload", "-f", ""], ":0", 0),
        (&["completion", "ba"], "bash\t", 4),
        (&["regis"], "registry\t", 4),
        (&["doc"], "doctor\t", 4),
        (&["no-such-command"], ":4", 4),
    ] {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let text = complete::answer(command("kubectl holdfast"), &words);
        assert!(text.starts_with(first), "{words:?}: {text}");
        assert!(
            text.ends_with(&format!(":{directive}\n")),
            "{words:?}: {text}"
        );
    }
    let line = |program: &str| {
        let arguments = [program, "status", ""].map(OsString::from);
        complete::words_to_complete(arguments.into_iter())
    };
    let words = Some(vec!["status".to_owned(), String::new()]);
    assert_eq!(line("/usr/bin/kubectl_complete-holdfast"), words);
    assert_eq!(line("kubectl-holdfast"), None);
}

#[test]
fn the_reference_has_the_help_of_every_command() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/cli.md");
    let reference = docs::reference(command("holdfast"));
    for (path, _) in leaves(&command("holdfast")) {
        let is_there = reference.contains(&format!("\n## holdfast {path}\n"));
        assert_eq!(is_there, !path.starts_with("docs "), "{path}");
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(written, reference, "run `cargo xtask generate`");
}

#[test]
fn every_command_has_a_man_page() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("man");
    docs::run(&Docs::Man { dir: dir.clone() }, command("holdfast")).unwrap();
    for page in ["holdfast.1", "holdfast-status.1", "holdfast-diff-offline.1"] {
        let text = std::fs::read_to_string(dir.join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
}
