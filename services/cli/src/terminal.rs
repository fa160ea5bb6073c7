//! What a terminal is shown while a command works: sizes in units, tables, and progress. Where
//! standard error is no terminal nothing is drawn.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Bytes in the largest binary unit that leaves a number of at least one.
pub(crate) fn size(bytes: u64) -> String {
    let mut units = ["KiB", "MiB", "GiB", "TiB"].into_iter();
    let mut unit = "B";
    let mut amount = bytes as f64;
    while amount >= 1024.0 {
        let Some(larger) = units.next() else { break };
        (unit, amount) = (larger, amount / 1024.0);
    }
    if unit == "B" {
        format!("{bytes} B")
    } else {
        format!("{amount:.1} {unit}")
    }
}

/// `1 tag`, `2 tags`.
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A line that says what is looked at.
pub(crate) fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {wide_msg}");
    styled(ProgressBar::new_spinner(), style)
}

/// A bar over so many bytes.
pub(crate) fn bytes(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} {msg}",
    );
    styled(ProgressBar::new(total), style)
}

/// A bar over so many things.
pub(crate) fn things(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {eta} {msg}");
    styled(ProgressBar::new(total), style)
}

/// Columns under a head, each as wide as its widest text; the last one is not padded. Control
/// characters of others' texts are shown as blanks.
pub(crate) fn table<const COLUMNS: usize, Text: AsRef<str>>(
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
            let shown: String = cell
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect();
            write!(line, "{shown:<width$}  ").ok();
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = line(head);
    for row in rows {
        text.push_str(&line(row.each_ref().map(AsRef::as_ref)));
    }
    text
}

/// Writes what `--json` asks for.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn styled<E>(bar: ProgressBar, style: Result<ProgressStyle, E>) -> ProgressBar {
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
        assert_eq!(text, expect);
    }

    #[test]
    fn sizes_have_one_unit() {
        for (bytes, expect) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (3 << 20, "3.0 MiB"),
            (5 << 40, "5.0 TiB"),
            (5 << 50, "5120.0 TiB"),
        ] {
            assert_eq!(size(bytes), expect);
        }
    }
}
