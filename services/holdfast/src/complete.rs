//! `kubectl_complete-holdfast`: what kubectl runs to complete `kubectl holdfast …`. It prints one
//! candidate a line, with its description after a tab, and last `:` and a directive, as cobra does.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, Command};

/// The name under which kubectl looks for the program.
const PROGRAM: &str = "kubectl_complete-holdfast";
/// The directive under which shells complete names of files.
const FILES: u8 = 0;
/// The directive under which they do not (`ShellCompDirectiveNoFileComp`).
const NO_FILES: u8 = 4;

/// The words to complete, if the program was called by that name.
pub(crate) fn words_to_complete(
    mut arguments: impl Iterator<Item = OsString>,
) -> Option<Vec<String>> {
    let program = arguments.next()?;
    let is_asked = Path::new(&program).file_stem()? == PROGRAM;
    let words = arguments.map(|word| word.to_string_lossy().into_owned());
    is_asked.then(|| words.collect())
}

/// The answer for a command line. The last word is the one to complete and may be empty.
pub(crate) fn answer(mut tree: Command, words: &[String]) -> String {
    tree.build();
    let (typed, before) = match words.split_last() {
        Some((typed, before)) => (typed.as_str(), before),
        None => ("", words),
    };
    let mut command = &tree;
    let mut value_of: Option<&Arg> = None;
    for word in before {
        if value_of.take().is_some() {
            continue;
        }
        if word.starts_with('-') {
            value_of = flag(command, word).filter(|flag| flag.get_action().takes_values());
        } else if let Some(found) = command.find_subcommand(word) {
            command = found;
        }
    }
    let (candidates, directive) = match value_of {
        Some(flag) => values(flag),
        None if typed.starts_with('-') => (flags(command), NO_FILES),
        None if command.has_subcommands() => (subcommands(command), NO_FILES),
        None => match command.get_positionals().next() {
            Some(positional) => values(positional),
            None => (Vec::new(), NO_FILES),
        },
    };
    let mut text = String::new();
    for (name, help) in candidates {
        if name.starts_with(typed) {
            writeln!(text, "{name}\t{help}").ok();
        }
    }
    format!("{text}:{directive}\n")
}

/// The flag of a word like `--namespace` or `-n`; nothing where the word has the value, too.
fn flag<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let mut arguments = command.get_arguments();
    arguments.find(|arg| {
        let long = arg.get_long().map(|long| format!("--{long}"));
        let short = arg.get_short().map(|short| format!("-{short}"));
        [long, short].iter().flatten().any(|name| name == word)
    })
}

fn flags(command: &Command) -> Vec<(String, String)> {
    let visible = command.get_arguments().filter(|arg| !arg.is_hide_set());
    visible
        .filter_map(|arg| {
            let help = arg.get_help().map(ToString::to_string);
            Some((format!("--{}", arg.get_long()?), help.unwrap_or_default()))
        })
        .collect()
}

fn subcommands(command: &Command) -> Vec<(String, String)> {
    let visible = command.get_subcommands().filter(|it| !it.is_hide_set());
    visible
        .map(|it| {
            let about = it.get_about().map(ToString::to_string);
            (it.get_name().to_owned(), about.unwrap_or_default())
        })
        .collect()
}

/// The values of an argument, and whether names of files are some, too.
fn values(arg: &Arg) -> (Vec<(String, String)>, u8) {
    let names = arg.get_value_names().unwrap_or_default();
    let is_path = names
        .iter()
        .any(|name| ["FILE", "DIR"].contains(&name.as_str()));
    let possible = arg.get_possible_values();
    let possible = possible.iter().filter(|value| !value.is_hide_set());
    let values = possible.map(|value| {
        let help = value.get_help().map(ToString::to_string);
        (value.get_name().to_owned(), help.unwrap_or_default())
    });
    (values.collect(), if is_path { FILES } else { NO_FILES })
}
