//! `cargo xtask image`: the one container image of all parts, made without a container engine: the
//! binary, the loader and libraries that it needs, and the few files that programs expect of a
//! system. The same binary gives the same bytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use holdfast_cluster::oci::{ImageBuilder, Layer};
use serde::Serialize;

use crate::run;

/// The repository, equal to `image.repository` of the chart's values.
const REPOSITORY: &str = "ghcr.io/holdfast/holdfast";
/// The user that the image names; the chart's security contexts name it too.
const USER: &str = "65532:65532";
/// Where Debian, Ubuntu, Alpine and Arch keep the trusted certificates, then Fedora.
const CERTIFICATES: [&str; 2] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
];
/// Loaded by name at run time where the C library does not have them built in, so `ldd` does not
/// list them.
const NAME_SERVICES: [&str; 2] = ["libnss_dns.so.2", "libnss_files.so.2"];

/// Arguments of `image`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Cargo's profile; dev builds faster and runs slower
    #[arg(long, value_name = "PROFILE", default_value = "release")]
    profile: String,
    /// Writes reference, digest and archive as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// An image that was built.
#[derive(Debug, Serialize)]
pub(crate) struct Image {
    /// Its reference, as the chart's values name it.
    pub(crate) reference: String,
    /// Digest of its manifest.
    pub(crate) digest: String,
    /// The archive to load onto nodes.
    pub(crate) archive: PathBuf,
}

/// Builds the image; cargo builds only what changed.
///
/// # Errors
/// When the program cannot be built or a file not be read or written.
pub(crate) fn build() -> anyhow::Result<Image> {
    build_profile("release")
}

fn build_profile(profile: &str) -> anyhow::Result<Image> {
    let arguments = [
        "build",
        "--quiet",
        "--package",
        "holdfast",
        "--bin",
        "holdfast",
        "--profile",
        profile,
    ];
    run::quiet(
        &format!("building holdfast ({profile})"),
        run::cargo(&arguments),
    )?;
    let target = run::target_folder()?;
    let folder = if profile == "dev" { "debug" } else { profile };
    let (image, reference) = image_of(&target.join(folder).join("holdfast"))?;
    let archive = target.join("image/holdfast.tar");
    std::fs::create_dir_all(target.join("image")).context("cannot make the folder of the image")?;
    // A reader of the archive sees the old one or the new one.
    let unfinished = archive.with_extension("tar.unfinished");
    let digest = image.write(&unfinished)?;
    std::fs::rename(&unfinished, &archive).context("cannot put the archive in its place")?;
    Ok(Image {
        reference,
        digest,
        archive,
    })
}

/// Runs the command.
///
/// # Errors
/// As [`build`].
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let image = build_profile(&args.profile)?;
    println!(
        "{} {} in {}",
        image.reference,
        image.digest,
        image.archive.display()
    );
    crate::report::write(args.json.as_deref(), &image)
}

/// The image of a binary, and its reference.
fn image_of(binary: &Path) -> anyhow::Result<(ImageBuilder, String)> {
    let version = env!("CARGO_PKG_VERSION");
    let reference = format!("{REPOSITORY}:{version}");
    let mut system = Layer::new().directory("tmp", 0o1777);
    for (path, content) in system_files(binary)? {
        // The loader and libraries are executable, the rest is read.
        let mode = if path.contains(".so") { 0o755 } else { 0o644 };
        system = system.file(&path, mode, content);
    }
    let program =
        std::fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let image = ImageBuilder::new()
        .layer(system)
        .layer(Layer::new().file("holdfast", 0o755, program))
        .entrypoint(&["/holdfast"])
        .user(USER)
        .variable("SSL_CERT_FILE", CERTIFICATES[0])
        .label("org.opencontainers.image.title", "holdfast")
        .label("org.opencontainers.image.version", version)
        .label("org.opencontainers.image.licenses", "Apache-2.0")
        .compressed()
        .tag(&reference);
    Ok((image, reference))
}

/// Everything beside the binary, by path.
fn system_files(binary: &Path) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let mut command = Command::new("ldd");
    command.arg(binary).env("LC_ALL", "C");
    let listed = run::output("image: ldd", command)?;
    let libraries = libraries(&listed)?;
    let mut files = BTreeMap::new();
    for path in &libraries {
        files.insert(
            path.clone(),
            std::fs::read(path).with_context(|| format!("cannot read {path}"))?,
        );
        if path.ends_with("/libc.so.6") {
            for name in NAME_SERVICES {
                let beside = Path::new(path).with_file_name(name);
                if let Ok(bytes) = std::fs::read(&beside) {
                    files.insert(beside.to_string_lossy().into_owned(), bytes);
                }
            }
        }
    }
    let certificates = CERTIFICATES
        .iter()
        .find_map(|path| std::fs::read(path).ok());
    let Some(certificates) = certificates else {
        bail!("no trusted certificates on this machine: install the package ca-certificates");
    };
    files.insert(CERTIFICATES[0].to_owned(), certificates);
    let users = "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n";
    files.insert("/etc/passwd".to_owned(), users.into());
    files.insert(
        "/etc/group".to_owned(),
        b"root:x:0:\nnonroot:x:65532:\n".to_vec(),
    );
    files.insert(
        "/etc/nsswitch.conf".to_owned(),
        b"hosts: files dns\n".to_vec(),
    );
    Ok(files)
}

/// The files that `ldd` names. The kernel's own `linux-vdso` has none; a library that is not found
/// is an error.
fn libraries(listed: &str) -> anyhow::Result<Vec<String>> {
    if listed.contains("statically linked") || listed.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for line in listed.lines().map(str::trim) {
        if let Some(name) = line.strip_suffix("=> not found") {
            bail!(
                "the binary needs {} which this machine does not have",
                name.trim()
            );
        }
        let path = line.split_once("=>").map_or(line, |(_, path)| path).trim();
        let path = path.split_once(" (").map_or(path, |(path, _)| path);
        if path.starts_with('/') {
            found.push(path.to_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LDD: &str = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f1)\n\t\
        libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f2)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f3)\n";

    #[test]
    fn the_closure_is_what_ldd_names() {
        let expect = [
            "/lib/x86_64-linux-gnu/libgcc_s.so.1",
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(libraries(LDD).unwrap(), expect);
        assert_eq!(libraries("\tstatically linked\n").unwrap(), [""; 0]);
        let error = libraries("\tlibz.so.1 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libz.so.1"), "{error}");
    }

    #[test]
    fn two_builds_of_one_binary_are_equal_and_hold_what_it_needs() {
        // This test's own program is as dynamic as the real one.
        let binary = std::env::current_exe().unwrap();
        let [first, second] = [image_of(&binary).unwrap(), image_of(&binary).unwrap()]
            .map(|(image, _)| image.build().unwrap());
        assert_eq!(first, second);
        let files = system_files(&binary).unwrap();
        for path in [
            "/etc/passwd",
            "/etc/nsswitch.conf",
            "/etc/ssl/certs/ca-certificates.crt",
        ] {
            assert!(files.contains_key(path), "{path} is missing");
        }
        for part in ["/libc.so.6", "/ld-linux"] {
            assert!(
                files.keys().any(|path| path.contains(part)),
                "{part} is missing in {:?}",
                files.keys()
            );
        }
        let config = first
            .blobs
            .iter()
            .find(|blob| blob.media_type.contains("config"))
            .unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config.bytes).unwrap();
        assert_eq!(
            config["config"]["Entrypoint"],
            serde_json::json!(["/holdfast"])
        );
        assert_eq!(config["config"]["User"], "65532:65532");
    }

    #[test]
    fn the_chart_names_the_same_repository() {
        let values = std::fs::read_to_string(run::root().join("chart/values.yaml")).unwrap();
        assert!(values.contains(&format!("repository: {REPOSITORY}\n")));
    }
}
