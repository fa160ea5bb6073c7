//! CNCF distribution as a process on 127.0.0.1.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

/// Signs upload sessions of every registry in these tests.
pub(crate) const SECRET: &str = "adoption-secret";

/// The generations of distribution that Holdfast trades volumes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Generation {
    /// Distribution 3.
    Three,
    /// Distribution 2.8, as Debian packages it.
    Two,
}

pub(crate) const GENERATIONS: [Generation; 2] = [Generation::Three, Generation::Two];

impl Generation {
    fn program(self) -> PathBuf {
        let (variable, what) = match self {
            Self::Three => (
                "HOLDFAST_DISTRIBUTION",
                "the program `registry` of distribution 3",
            ),
            Self::Two => (
                "HOLDFAST_DOCKER_REGISTRY",
                "the program `docker-registry` of Debian's package of that name",
            ),
        };
        let Some(program) = std::env::var_os(variable) else {
            panic!(
                "{variable} is not set: name {what}, or run `cargo xtask test`, which fetches it and sets the variable"
            );
        };
        program.into()
    }

    fn command(self, arguments: &[&str], config: &Path) -> Command {
        let mut command = Command::new(self.program());
        command
            .args(arguments)
            .arg(config)
            // Version 3 would send traces to a collector that is not there.
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null());
        command
    }

    /// Serves the volume until dropped.
    pub(crate) fn serve(self, root: &Path) -> Theirs {
        let config = config(root);
        let mut child = self
            .command(&["serve"], config.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", self.program().display()));
        let log = BufReader::new(child.stderr.take().unwrap());
        let (found, address) = mpsc::channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("listening on ") {
                    let end = rest.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit());
                    let (address, _) = rest.split_at(end.unwrap_or(rest.len()));
                    drop(found.send(address.to_owned()));
                }
            }
        });
        let mut theirs = Theirs {
            child,
            url: String::new(),
            _config: config,
        };
        let address = address
            .recv_timeout(Duration::from_secs(30))
            .unwrap_or_else(|_| panic!("{self:?} did not say where it listens"));
        theirs.url = format!("http://{address}");
        theirs
    }

    /// Runs the collector over the volume and returns what it printed.
    pub(crate) fn collect(self, root: &Path, dry_run: bool) -> String {
        let config = config(root);
        let arguments: &[&str] = if dry_run {
            &["garbage-collect", "--dry-run"]
        } else {
            &["garbage-collect"]
        };
        let output = self.command(arguments, config.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{self:?} {arguments:?}: {text}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }
}

/// A running registry; it ends with the value.
pub(crate) struct Theirs {
    child: Child,
    pub(crate) url: String,
    _config: tempfile::NamedTempFile,
}

impl Drop for Theirs {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn config(root: &Path) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::with_suffix(".yml").unwrap();
    let text = format!(
        "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: '{}'}}, delete: {{enabled: true}}, maintenance: {{uploadpurging: {{enabled: false}}}}}}\nhttp: {{addr: '127.0.0.1:0', secret: {SECRET}}}\n",
        root.display()
    );
    std::fs::write(file.path(), text).unwrap();
    file
}
