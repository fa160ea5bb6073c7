//! The files on the host: reads them, carries out a plan, and stores the journal and the last
//! state. Decides nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};

use holdfast_api::report::MAX_FOREIGN_HOSTS;

use crate::journal::{Journal, Original};
use crate::plan::{Action, Found, Host, HostFile, MARKER, Plan, parents};

/// The folder for the agents' own files, with one folder per release. It lies in the only folder
/// that agents may write to. The runtime looks for folders named after registry hosts, and no host
/// name begins with a dot. Removed when everything is undone.
pub const OWN: &str = ".holdfast";

/// The folder of former versions, in the runtime's configuration folder.
const FORMER: &str = "holdfast";

const JOURNAL: &str = "journal.json";

/// Larger files on the host are treated as foreign and never read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The host's folders and where they are mounted.
#[derive(Debug, Clone, Default)]
pub struct Folders {
    /// The runtime's configuration folder as mounted here, read-only: `/host/etc/containerd`.
    pub etc: PathBuf,
    /// The folder of registry hosts as mounted here: `/host/certs.d`. The only folder that the
    /// agent may write to.
    pub hosts: PathBuf,
    /// The folder of the runtime's socket as mounted here: `/host/run/containerd`.
    pub run: PathBuf,
    /// The kubelet's folder of pull records as mounted here, read-only: `/host/image_manager`.
    pub image_manager: PathBuf,
    /// The path of `etc` on the host: `/etc/containerd`.
    pub etc_on_host: PathBuf,
    /// The path of `hosts` on the host: `/etc/containerd/certs.d`.
    pub hosts_on_host: PathBuf,
    /// Whether the operator configured `hosts_on_host`. Otherwise the runtime's configuration must
    /// name it.
    pub hosts_are_given: bool,
}

/// Why the host could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// The operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// A file of the agent does not parse.
    #[error("{path} is damaged: {source}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The error of the parser.
        #[source]
        source: serde_json::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}

/// The folder of registry hosts on the host, and the agent's own folder in it.
#[derive(Debug, Clone)]
pub struct Disk {
    root: PathBuf,
    /// The agent's own folder.
    own: PathBuf,
    former: Former,
}

/// The journal of a former version, which the agent may read but not remove.
#[derive(Debug, Clone)]
struct Former {
    /// Its folder as mounted here.
    folder: PathBuf,
    /// Its folder on the host.
    on_host: PathBuf,
    /// The name of the folder of registry hosts in it: `certs.d`.
    hosts: PathBuf,
}

impl Disk {
    /// The files of the agent of a release (`NAMESPACE.FULLNAME`) on the host of `folders`.
    pub fn new(folders: &Folders, release: &str) -> Self {
        let hosts = folders.hosts_on_host.strip_prefix(&folders.etc_on_host);
        Self {
            root: folders.hosts.clone(),
            own: folders.hosts.join(OWN).join(release),
            former: Former {
                folder: folders.etc.join(FORMER),
                on_host: folders.etc_on_host.join(FORMER),
                hosts: hosts.map_or_else(|_| PathBuf::new(), Path::to_owned),
            },
        }
    }

    /// The journal; if there is none, the one of a former version; otherwise an empty one.
    pub fn journal(&self) -> Result<Journal, Error> {
        Ok(self.load(JOURNAL)?.unwrap_or_else(|| self.former_journal()))
    }

    /// The entries of a former version's journal whose files are unchanged. That journal stays on
    /// the host forever, so it is no evidence about files that changed since.
    fn former_journal(&self) -> Journal {
        let bytes = fs::read(self.former.folder.join(JOURNAL)).unwrap_or_default();
        let Ok(former) = serde_json::from_slice::<Journal>(&bytes) else {
            return Journal::default();
        };
        let relative = |path: &String| {
            let below = Path::new(path).strip_prefix(&self.former.hosts).ok()?;
            below
                .to_str()
                .filter(|path| !path.is_empty())
                .map(str::to_owned)
        };
        let mut journal = Journal::default();
        for (path, entry) in former.files {
            if let Some(path) = relative(&path)
                && let Found::Known(Original::File { content, .. }) = self.inspect_path(&path)
                && entry.wrote(&content)
            {
                journal.files.insert(path, entry);
            }
        }
        let made = former.directories.iter().filter_map(relative);
        let needed = |directory: &String| {
            let below = format!("{directory}/");
            journal.files.keys().any(|path| path.starts_with(&below))
        };
        journal.directories = made.filter(needed).collect();
        journal
    }

    /// Names what a former version left on the host and this one may not remove.
    pub fn left_by_former(&self) -> Option<String> {
        self.former.folder.exists().then(|| {
            format!(
                "{} is left: a former version of the agent stored its journal there, and this \
                 version may not remove it; remove it by hand",
                self.former.on_host.display()
            )
        })
    }

    /// Registry hosts that other programs configured: those with a folder that is not the agent's.
    /// The folder of `HOST:PORT` may be called `HOST_PORT_`; `_default` is for every other host.
    pub fn foreign_hosts(&self) -> BTreeSet<String> {
        let journal = self.journal().unwrap_or_default();
        let is_own = |name: &str| {
            let below = format!("{name}/");
            let marked = || {
                let text = fs::read(self.root.join(name).join("hosts.toml"));
                text.is_ok_and(|text| text.starts_with(MARKER.as_bytes()))
            };
            journal.files.keys().any(|path| path.starts_with(&below)) || marked()
        };
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.path().is_dir());
        let names = folders.filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter(|name| !name.starts_with('.') && !is_own(name))
            .take(MAX_FOREIGN_HOSTS + 1)
            .map(|name| {
                let port = name
                    .strip_suffix('_')
                    .and_then(|name| name.rsplit_once('_'));
                match port {
                    Some((host, port)) if port.parse::<u16>().is_ok() => format!("{host}:{port}"),
                    _ => name,
                }
            })
            .collect()
    }

    /// Reads a document that [`Disk::store`] stored; `None` if there is none.
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let path = self.own.join(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| Error::Damaged { path, source }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_error("read", &path)(e)),
        }
    }

    /// Renames an unreadable document to `NAME.damaged`, for people to inspect.
    pub fn set_aside(&self, name: &str) -> Result<(), Error> {
        let path = self.own.join(name);
        let aside = path.with_file_name(format!("{name}.damaged"));
        fs::rename(&path, &aside).map_err(io_error("set aside", &path))?;
        sync_folder(&path)
    }

    /// Stores a document on the host, readable by root only. Writes nothing if it is unchanged.
    pub fn store<T: Serialize>(&self, name: &str, document: &T) -> Result<(), Error> {
        let path = self.own.join(name);
        let bytes = serde_json::to_vec_pretty(document).map_err(|source| Error::Damaged {
            path: path.clone(),
            source,
        })?;
        if fs::read(&path).is_ok_and(|old| old == bytes) {
            return Ok(());
        }
        for folder in [&self.root.join(OWN), &self.own] {
            match fs::create_dir(folder) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(io_error("create", folder)(e));
                }
                _ => fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
                    .map_err(io_error("protect", folder))?,
            }
        }
        replace(&path, &bytes, 0o600, None)
    }

    /// Removes the agent's own folder. Call it when nothing is left to undo.
    pub fn remove_own_folder(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.own) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &self.own)(e));
            }
            _ => {}
        }
        remove_empty(&self.root.join(OWN))
    }

    /// Reads everything that a plan may touch.
    pub fn inspect<'a>(&self, paths: impl Iterator<Item = &'a String>) -> Host {
        let mut host = Host::default();
        for path in paths {
            host.files.insert(path.clone(), self.inspect_path(path));
            for above in parents(path) {
                match fs::symlink_metadata(self.root.join(above)) {
                    Ok(metadata) if metadata.is_dir() => host.directories.insert(above.to_owned()),
                    Ok(_) => host.obstructed.insert(above.to_owned()),
                    Err(_) => false,
                };
            }
        }
        host
    }

    fn inspect_path(&self, path: &str) -> Found {
        let path = self.root.join(path);
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Found::Known(Original::Absent);
            }
            Err(_) => return Found::Foreign,
        };
        if metadata.is_symlink() {
            return match fs::read_link(&path).map(|target| target.into_os_string().into_string()) {
                Ok(Ok(target)) => Found::Known(Original::Link { target }),
                _ => Found::Foreign,
            };
        }
        if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
            return Found::Foreign;
        }
        fs::read(&path).map_or(Found::Foreign, |content| {
            let mode = metadata.mode() & 0o7777;
            Found::Known(Original::File {
                content,
                mode,
                uid: metadata.uid(),
                gid: metadata.gid(),
            })
        })
    }

    /// Carries out a plan. The journal is written first, so everything can be undone after a crash
    /// at any point.
    pub fn apply(&self, plan: &Plan) -> Result<(), Error> {
        if !plan.journal_first.is_empty() {
            self.store(JOURNAL, &plan.journal_first)?;
        }
        for action in &plan.actions {
            self.step(action)?;
        }
        if plan.journal_last == plan.journal_first || plan.journal_last.is_empty() {
            return Ok(());
        }
        self.store(JOURNAL, &plan.journal_last)
    }

    fn step(&self, action: &Action) -> Result<(), Error> {
        match action {
            Action::CreateDirectory(path) => {
                let path = self.root.join(path);
                match fs::create_dir(&path) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                        Err(io_error("create", &path)(e))
                    }
                    _ => fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
                        .map_err(io_error("protect", &path)),
                }
            }
            Action::Write(path, HostFile { bytes, mode }) => {
                replace(&self.root.join(path), bytes, *mode, None)
            }
            Action::Restore(path, Original::Absent) => {
                let path = self.root.join(path);
                discard(&temporary(&path))?;
                discard(&path)
            }
            Action::Restore(
                path,
                Original::File {
                    content,
                    mode,
                    uid,
                    gid,
                },
            ) => replace(&self.root.join(path), content, *mode, Some((*uid, *gid))),
            Action::Restore(path, Original::Link { target }) => {
                let path = self.root.join(path);
                let temporary = temporary(&path);
                discard(&temporary)?;
                std::os::unix::fs::symlink(target, &temporary)
                    .map_err(io_error("link", &temporary))?;
                fs::rename(&temporary, &path).map_err(io_error("replace", &path))?;
                sync_folder(&path)
            }
            Action::RemoveDirectory(path) => remove_empty(&self.root.join(path)),
        }
    }

    /// The paths that a plan needs to see: the wanted ones and those in the journal.
    pub fn paths<'a>(
        journal: &'a Journal,
        wanted: impl Iterator<Item = &'a String>,
    ) -> BTreeSet<String> {
        journal.files.keys().chain(wanted).cloned().collect()
    }
}

/// Removes a folder if it is empty. Otherwise another program uses it now.
fn remove_empty(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Ok(())
        }
        result => result.map_err(io_error("remove", path)),
    }
}

fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.holdfast.tmp"))
}

fn discard(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e)
            if !matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Err(io_error("remove", path)(e))
        }
        _ => Ok(()),
    }
}

/// Replaces a file atomically and durably.
fn replace(path: &Path, bytes: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<(), Error> {
    let temporary = temporary(path);
    discard(&temporary)?;
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io_error("create", &temporary))?;
    let write = |file: &mut fs::File| {
        file.write_all(bytes)?;
        if let Some((uid, gid)) = owner {
            let now = file.metadata()?;
            if (now.uid(), now.gid()) != (uid, gid) {
                std::os::unix::fs::fchown(&*file, Some(uid), Some(gid))?;
            }
        }
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()
    };
    write(&mut file).map_err(io_error("write", &temporary))?;
    fs::rename(&temporary, path).map_err(io_error("replace", path))?;
    sync_folder(path)
}

fn sync_folder(path: &Path) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(path);
    fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io_error("sync", folder))
}
