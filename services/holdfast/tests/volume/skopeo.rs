//! skopeo reads exported archives, and its own archives can be imported.

use super::*;

fn skopeo(arguments: &[&str]) -> Output {
    let Some(program) = std::env::var_os("HOLDFAST_SKOPEO") else {
        panic!(
            "HOLDFAST_SKOPEO is not set: name a skopeo, or run `cargo xtask test`, which finds or \
             fetches one"
        );
    };
    let mut command = Command::new(program);
    if let Some(libraries) = std::env::var_os("HOLDFAST_SKOPEO_LIBRARIES") {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let output = command
        .arg("--insecure-policy")
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "skopeo {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

#[tokio::test]
async fn skopeo_reads_what_went_out_and_its_own_archives_come_in() {
    let volume = Volume::filled().await;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let tar = at("images.tar");
    ends(
        0,
        &[
            "export",
            "--data",
            volume.path(),
            "--all",
            "-o",
            tar.to_str().unwrap(),
        ],
    );
    let source = format!("oci-archive:{}:docker.io/library/nginx:1.27", tar.display());
    let raw = skopeo(&["inspect", "--raw", &source]).stdout;
    assert_eq!(
        Hasher::digest(Algorithm::Sha256, &raw).to_string(),
        json_digest(&volume),
        "the index byte for byte"
    );
    // A whole copy through skopeo checks every digest; what it writes is an archive of another
    // tool.
    let copy = format!(
        "oci-archive:{}:docker.io/library/nginx:1.27",
        at("copy.tar").display()
    );
    skopeo(&["copy", "--all", &source, &copy]);
    let other = Volume::new().await;
    ends(
        0,
        &[
            "import",
            RESERVE,
            "--data",
            other.path(),
            at("copy.tar").to_str().unwrap(),
        ],
    );
    let text = ends(0, &["ls", "--data", other.path(), "--tags"]);
    assert!(text.contains("docker.io/library/nginx:1.27"), "{text}");
    ends(0, &["fsck", "--data", other.path(), "--deep"]);
    // The old format is refused with the fix.
    let single = format!("oci-archive:{}:team/app:1", tar.display());
    let old = format!("docker-archive:{}:team/app:1", at("old.tar").display());
    skopeo(&["copy", &single, &old]);
    let text = ends(
        2,
        &[
            "import",
            RESERVE,
            "--data",
            other.path(),
            at("old.tar").to_str().unwrap(),
        ],
    );
    assert!(text.contains("skopeo copy docker-archive"), "{text}");
}

/// The digest that `ls` gives for the image of two platforms.
fn json_digest(volume: &Volume) -> String {
    let list = volume.root.path().join("list.json");
    ends(
        0,
        &[
            "ls",
            "--data",
            volume.path(),
            "nginx",
            "--json",
            list.to_str().unwrap(),
        ],
    );
    json_of(&list)["items"][0]["tags"][0]["digest"]
        .as_str()
        .unwrap()
        .to_owned()
}
