//! Hands on the host's files: looks, applies actions, keeps the journal and the last state. Decides nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};

use crate::hosts::Wanted;
use crate::journal::{Journal, Original};
use crate::plan::{Action, Found, Host, Plan, parents};

/// The agent's own folder beside the runtime's configuration; gone when everything is undone.
pub const OWN: &str = "holdfast";

/// A file of the host that is larger than this is not the agent's business: it is never read whole.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why the host could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The agent's own file is not readable any more; nothing is changed until somebody looks.
    #[error("{path} is damaged: {source}", path = path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What does not parse.
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

/// The runtime's configuration folder of the host, as it is mounted into the agent's container.
#[derive(Debug, Clone)]
pub struct Disk {
    root: PathBuf,
}

impl Disk {
    /// `root` is where the host's `/etc/containerd` is mounted.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The journal; an empty one when there is none.
    pub fn journal(&self) -> Result<Journal, Error> {
        Ok(self.load("journal.json")?.unwrap_or_default())
    }

    /// A document that was kept on the host by [`Disk::keep`].
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let path = self.root.join(OWN).join(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| Error::Damaged { path, source }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_error("read", &path)(e)),
        }
    }

    /// Puts a document that cannot be read out of the way, for people to look at.
    pub fn set_aside(&self, name: &str) -> Result<(), Error> {
        let path = self.root.join(OWN).join(name);
        let aside = path.with_file_name(format!("{name}.damaged"));
        fs::rename(&path, &aside).map_err(io_error("set aside", &path))?;
        sync_folder(&path)
    }

    /// Keeps a document on the host, readable by root only, unless it is there already.
    pub fn keep<T: Serialize>(&self, name: &str, document: &T) -> Result<(), Error> {
        let folder = self.root.join(OWN);
        let path = folder.join(name);
        let bytes = serde_json::to_vec_pretty(document).map_err(|source| Error::Damaged {
            path: path.clone(),
            source,
        })?;
        if fs::read(&path).is_ok_and(|old| old == bytes) {
            return Ok(());
        }
        match fs::create_dir(&folder) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("create", &folder)(e));
            }
            _ => fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
                .map_err(io_error("protect", &folder))?,
        }
        replace(&path, &bytes, 0o600, None)
    }

    /// Removes the agent's own folder, once there is nothing left to undo.
    pub fn forget(&self) -> Result<(), Error> {
        let folder = self.root.join(OWN);
        match fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &folder)(e)),
            _ => Ok(()),
        }
    }

    /// Looks at everything that a plan may touch.
    pub fn look<'a>(&self, paths: impl Iterator<Item = &'a String>) -> Host {
        let mut host = Host::default();
        for path in paths {
            host.files.insert(path.clone(), self.look_at(path));
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

    fn look_at(&self, path: &str) -> Found {
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

    /// Carries out a plan: the journal first, so that a crash after any step can be undone.
    pub fn apply(&self, plan: &Plan) -> Result<(), Error> {
        if !plan.journal_first.is_empty() {
            self.keep("journal.json", &plan.journal_first)?;
        }
        for action in &plan.actions {
            self.step(action)?;
        }
        if plan.journal_last == plan.journal_first || plan.journal_last.is_empty() {
            return Ok(());
        }
        self.keep("journal.json", &plan.journal_last)
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
            Action::Write(path, Wanted { bytes, mode }) => {
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
            Action::RemoveDirectory(path) => {
                let path = self.root.join(path);
                match fs::remove_dir(&path) {
                    // Somebody else keeps a file there now: the directory is theirs.
                    Err(e)
                        if matches!(
                            e.kind(),
                            io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                        ) =>
                    {
                        Ok(())
                    }
                    result => result.map_err(io_error("remove", &path)),
                }
            }
        }
    }

    /// The paths that a plan has to look at: what is wanted and what the journal knows.
    pub fn paths<'a>(
        journal: &'a Journal,
        wanted: impl Iterator<Item = &'a String>,
    ) -> BTreeSet<String> {
        journal.files.keys().chain(wanted).cloned().collect()
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

/// A reader sees the old bytes or the new ones, also after a power cut.
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
