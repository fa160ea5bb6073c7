//! What a terminal is shown: tables, sizes, messages and progress. Texts of others are made
//! harmless first. Where standard error is no terminal no progress is drawn.

#![allow(clippy::print_stderr, reason = "messages to the user")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use anstyle::{AnsiColor, Style};
use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Begins the head of a table, so that `--no-headers` finds it. Texts of others never hold it.
const HEAD: char = '\u{1e}';

/// Whether progress and hints are left out.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Leaves out progress and hints.
pub(crate) fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Prints data to standard output. A reader that went away (`| head`) is no error.
pub fn print(text: &str) {
    let mut out = anstream::stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .ok();
}

/// [`clean`] for a text of several lines.
pub(crate) fn clean_lines(text: &str) -> String {
    text.split('\n').map(clean).collect::<Vec<_>>().join("\n")
}

/// Prints an error to standard error.
pub fn error(message: &str) {
    let bad = bad();
    anstream::eprintln!("{bad}error:{bad:#} {}", clean(message));
}

/// Prints one cause of an error.
pub(crate) fn cause(message: &str) {
    anstream::eprintln!("  caused by: {}", clean(message));
}

/// Prints a hint to standard error.
pub fn note(message: &str) {
    if !is_quiet() {
        anstream::eprintln!("note: {}", clean(message));
    }
}

/// Prints a line of progress where no bar is drawn.
pub fn progress(message: &str) {
    use std::io::IsTerminal as _;
    if !is_quiet() && !std::io::stderr().is_terminal() {
        anstream::eprintln!("{}", clean(message));
    }
}

/// The style of what is wrong.
pub fn bad() -> Style {
    AnsiColor::Red.on_default().bold()
}

/// The style of what is as it should be.
pub fn good() -> Style {
    AnsiColor::Green.on_default()
}

/// The style of what needs attention.
pub fn warning() -> Style {
    AnsiColor::Yellow.on_default()
}

/// Bytes in the largest binary unit that leaves a number of at least one.
pub fn size(bytes: u64) -> String {
    BinaryBytes(bytes).to_string()
}

/// `1 tag`, `2 tags`.
pub fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A line that names what is being read.
pub fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {wide_msg}");
    styled(ProgressBar::new_spinner(), style)
}

/// A bar over this many bytes.
pub fn bytes(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} {msg}",
    );
    styled(ProgressBar::new(total), style)
}

/// A bar over this many items.
pub fn items(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {eta} {msg}");
    styled(ProgressBar::new(total), style)
}

/// Text of others in one line: control characters and those that reverse the direction of text
/// are shown as blanks.
pub fn clean(text: &str) -> String {
    let hides = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    text.chars()
        .map(|c| if hides(c) { ' ' } else { c })
        .collect()
}

/// Columns under a head, each as wide as its widest text; the last one is not padded.
pub fn table<const COLUMNS: usize, Text: AsRef<str>>(
    head: [&str; COLUMNS],
    rows: &[[Text; COLUMNS]],
) -> String {
    let mut widths = head.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.as_ref().chars().count());
        }
    }
    let line = |cells: [&str; COLUMNS]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            write!(line, "{:<width$}  ", clean(cell)).ok();
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = format!("{HEAD}{}", line(head));
    for row in rows {
        text.push_str(&line(row.each_ref().map(AsRef::as_ref)));
    }
    text
}

/// One text a line.
pub fn lines(texts: impl Iterator<Item = String>) -> String {
    texts.fold(String::new(), |mut lines, text| {
        lines.push_str(&clean(&text));
        lines.push('\n');
        lines
    })
}

/// The text with the heads of its tables.
pub(crate) fn with_heads(text: &str) -> String {
    text.replace(HEAD, "")
}

/// The text without the heads of its tables.
pub(crate) fn without_heads(text: &str) -> String {
    text.split_inclusive('\n')
        .filter(|line| !line.starts_with(HEAD))
        .collect()
}

fn styled<E>(bar: ProgressBar, style: Result<ProgressStyle, E>) -> ProgressBar {
    if is_quiet() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_text() {
        let rows = [["a", "bb"], ["longer than its head", "x\ny"]];
        let text = table(["ONE", "TWO"], &rows);
        let expect =
            "ONE                   TWO\na                     bb\nlonger than its head  x y\n";
        assert_eq!(with_heads(&text), expect);
        let expect = "a                     bb\nlonger than its head  x y\n";
        assert_eq!(without_heads(&text), expect);
    }

    #[test]
    fn texts_of_others_forge_no_line_and_control_no_terminal() {
        let texts = ["pod/a/x\npod/b/y", "\u{1b}]52;c\u{7}", "a\u{202e}b\u{9b}2J"];
        assert_eq!(
            lines(texts.map(str::to_owned).into_iter()),
            "pod/a/x pod/b/y\n ]52;c \na b 2J\n"
        );
        assert_eq!(clean_lines("{\n\"a\u{1b}[2J\"\n}\n"), "{\n\"a [2J\"\n}\n");
    }

    #[test]
    fn sizes_have_one_unit() {
        for (bytes, expect) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (3 << 20, "3.00 MiB"),
            (5 << 40, "5.00 TiB"),
            (5 << 50, "5.00 PiB"),
        ] {
            assert_eq!(size(bytes), expect);
        }
    }

    #[test]
    fn texts_of_others_cannot_reorder_a_line() {
        assert_eq!(clean("a\u{202e}b\u{1b}[2J\u{2066}c"), "a b [2J c");
    }
}
