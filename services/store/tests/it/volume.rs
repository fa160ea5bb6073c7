//! All I/O of the store goes through its trait: what goes past it would be invisible to the
//! simulator and to the recorder.

use std::{fs, path::Path};

/// What must not be named outside the real implementation.
const FORBIDDEN: [&str; 4] = ["std::fs", "fs::", "File::open", "OpenOptions"];

#[test]
fn only_the_real_volume_names_the_file_system() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut pending = vec![src.clone()];
    let mut seen = 0;
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            if path.ends_with("volume/disk.rs")
                || path.ends_with("volume/disk/nonblocking.rs")
                || path.ends_with("tests.rs")
            {
                continue;
            }
            seen += 1;
            let text = fs::read_to_string(&path).unwrap();
            // Tests come last in a file, and may prepare a volume as they like.
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (number, line) in code.lines().enumerate() {
                for word in FORBIDDEN {
                    assert!(
                        line.trim_start().starts_with("//") || !line.contains(word),
                        "{}:{}: `{word}` outside services/store/src/volume/disk.rs; use the volume",
                        path.display(),
                        number + 1
                    );
                }
            }
        }
    }
    assert!(seen > 10, "{} has no sources", src.display());
}
