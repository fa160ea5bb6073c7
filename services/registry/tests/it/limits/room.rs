//! The room on the volume: what is refused before its first byte, what is warned of, and what those
//! hear who may make room.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use holdfast_api::space::{self, Level};
use holdfast_fill::internal;
use holdfast_fill::{Fills, Peers, Settings};
use holdfast_runtime::CancellationToken;
use holdfast_store::{
    LockHolder, Space, Store,
    volume::{Disk, Entry, Metadata, Volume, VolumeFile},
};
use holdfast_upstream::{Timeouts, Upstreams};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Registry, Setup, code, header, noise, sha256};

// SPEC 74
#[tokio::test]
async fn a_blob_that_does_not_fit_is_refused_before_its_first_byte() {
    let registry = Registry::start().await;
    let begun = registry.send("POST", "/v2/a/blobs/uploads/", &[], "").await;
    let session = header(begun.headers(), "location").to_owned();
    let digest = sha256(b"x");
    for (method, target) in [
        ("POST", format!("/v2/a/blobs/uploads/?digest={digest}")),
        ("PATCH", session.clone()),
        ("PUT", format!("{session}&digest={digest}")),
    ] {
        let address = registry.url.strip_prefix("http://").unwrap();
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
            1_u64 << 60
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = stream.read(&mut answer);
        let count = tokio::time::timeout(Duration::from_secs(10), read)
            .await
            .unwrap()
            .unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 507"), "{method}: {answer}");
        assert!(answer.contains("DENIED"), "{method}: {answer}");
    }
}

#[tokio::test]
async fn an_upload_under_which_the_volume_becomes_full_gives_its_room_back() {
    let setup = Setup::default();
    let dir = Arc::clone(&setup.dir);
    let open = setup.start().await;
    let begun = open.send("POST", "/v2/a/blobs/uploads/", &[], "").await;
    let location = header(begun.headers(), "location").to_owned();
    // Room for the first look, not for the second.
    let volume = Small {
        disk: Disk::at(dir.path()),
        root: dir.path().to_owned(),
        bytes: 80 << 20,
    };
    let mut setup = Setup {
        dir,
        volume: Some(Arc::new(volume)),
        ..Setup::default()
    };
    setup.options.write_limits.reserve_bytes = 40 << 20;
    let nearly_full = setup.start().await;
    let pieces = (0..16).map(|_| Ok::<_, io::Error>(noise(8 << 20)));
    let pieces = futures::StreamExt::then(futures::stream::iter(pieces), |piece| async {
        // The volume is looked at once a second at most.
        tokio::time::sleep(Duration::from_millis(250)).await;
        piece
    });
    let answer = nearly_full
        .send("PATCH", &location, &[], reqwest::Body::wrap_stream(pieces))
        .await;
    assert_eq!(code(answer).await, (507, "DENIED".into()));
    let status = nearly_full.get(&location).await.status();
    assert_eq!(status, 404, "the upload is gone, and with it what it took");
}

/// A volume of a fixed number of bytes, whatever else fills its disk.
#[derive(Debug)]
struct Small {
    disk: Disk,
    root: PathBuf,
    bytes: u64,
}

/// Bytes of all files below a folder; what vanishes meanwhile has none.
fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => size(&entry.path()),
        found => found.map_or(0, |found| found.len()),
    });
    sizes.sum()
}

impl Volume for Small {
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        self.disk.open_read(path)
    }
    fn open_write(&self, path: &Path, create: bool) -> io::Result<Arc<dyn VolumeFile>> {
        self.disk.open_write(path, create)
    }
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        self.disk.create_new(path)
    }
    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.disk.metadata(path)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        self.disk.list(folder)
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.link(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }
    fn touch(&self, path: &Path) -> io::Result<()> {
        self.disk.touch(path)
    }
    fn space(&self, _: &Path) -> io::Result<Space> {
        Ok(Space {
            total_bytes: self.bytes,
            available_bytes: self.bytes.saturating_sub(size(&self.root)),
        })
    }
}

/// Where the internal API of a registry on this store is served.
pub(crate) async fn internal_url(store: Store) -> String {
    let upstreams = Upstreams::new(
        &[],
        &holdfast_config::Proxy::default(),
        &holdfast_config::Uplink::default(),
        Timeouts::default(),
    )
    .unwrap();
    let owner = LockHolder {
        address: String::new(),
        id: "test".to_owned(),
    };
    let fills = Fills::new(store, upstreams, owner, Peers::none(), Settings::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(internal::serve(
        listener,
        None,
        fills,
        CancellationToken::new(),
    ));
    url
}

#[tokio::test]
async fn the_watermarks_are_told_to_writers_and_to_those_who_may_make_room() {
    for (warn, reserve, level, status) in [
        (101, 0, Level::Enough, 202),
        (0, 0, Level::Filling, 202),
        (0, u64::MAX / 2, Level::Full, 507),
    ] {
        let mut setup = Setup::default();
        setup.options.write_limits.warn_used_percent = warn;
        setup.options.write_limits.reserve_bytes = reserve;
        let registry = setup.start().await;
        let answer = registry.send("POST", "/v2/a/blobs/uploads/", &[], "").await;
        assert_eq!(answer.status(), status, "{level:?}");
        let warned = header(answer.headers(), "warning").contains("% full");
        assert_eq!(warned, level == Level::Filling, "{level:?}");
        assert_eq!(
            registry.get("/v2/_catalog").await.status(),
            200,
            "reads never stop"
        );
        let url = internal_url(registry.store.clone()).await;
        let space: space::Space = reqwest::get(format!("{url}{}", space::PATH))
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        assert_eq!(space.level, level);
        assert!(space.used_percent <= 100 && space.available_bytes <= space.total_bytes);
    }
}
