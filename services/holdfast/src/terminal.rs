//! What a terminal is shown while a command works on a volume: sizes in units, and progress. Where standard error is no terminal nothing is drawn.

use indicatif::{ProgressBar, ProgressStyle};

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
