//! Content that another replica replaces or moves aside while one looks at it: at each moment that
//! there is, which is before the first call of a request, before the second, and so on.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use holdfast_core::digest::Algorithm;
use holdfast_simfs::{Faults, SimFs};
use holdfast_store::{CarriedHash, Error, Options, Result, Store, volume::Volume as _};

use crate::{
    program::{Manifest, World},
    run::runtime,
    user::owner,
};

/// What one replica is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// A push in one request.
    Push,
    /// A push in two, the hash of the first travelling with the client.
    PushInChunks,
    PutManifest,
    /// A copy from an upstream.
    Copy,
    Open,
    Verify,
}

/// What another one does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    /// It ends a push that saw nothing there when it looked: the name is that of its file now.
    Replaces,
    /// It finds the content damaged.
    MovesAside,
    /// The same, and it puts sound content in its place.
    Mends,
}

const PUSHES: [Request; 4] = [
    Request::Push,
    Request::PushInChunks,
    Request::PutManifest,
    Request::Copy,
];

/// Calls that no request makes.
const MANY: u64 = 1_000;

/// Two replicas, and content that the second one put there.
struct Scene {
    fs: SimFs,
    one: Store,
    other: Store,
    world: World,
    is_sound: bool,
}

impl Scene {
    async fn new(is_sound: bool) -> Self {
        let faults = Faults {
            stale_ms: 60_000,
            ..Faults::default()
        };
        let fs = SimFs::new(1, 2, faults);
        let open = |client| Store::open_on(Arc::new(fs.client(client)), "/r", Options::default());
        let (one, other) = (open(0).await.unwrap(), open(1).await.unwrap());
        let scene = Self {
            fs,
            one,
            other,
            world: World::new(),
            is_sound,
        };
        let Manifest { digest, bytes, .. } = scene.content();
        scene.other.put_blob(digest, bytes.clone()).await.unwrap();
        if !is_sound {
            let damage = vec![b'x'; bytes.len()];
            let volume = scene.fs.client(1);
            let file = volume.open_write(&scene.path(), false).unwrap();
            file.write_all_at(&damage, 0).unwrap();
        }
        // The first one remembers the file under this name from now on.
        scene.one.stat_blob(digest).await.unwrap().unwrap();
        scene
    }

    /// Bytes that are a blob as well as a manifest.
    fn content(&self) -> &Manifest {
        &self.world.manifests[1]
    }

    fn path(&self) -> std::path::PathBuf {
        self.one.layout().blob(&self.content().digest)
    }

    async fn ask(&self, request: Request) -> Result<()> {
        let Manifest { digest, bytes, .. } = self.content();
        let (store, repo) = (&self.one, &self.world.repos[0]);
        match request {
            Request::Push => {
                let id = store.create_upload(repo, "2026-01-01T00:00:00Z").await?;
                let algorithm = Algorithm::Sha256;
                let mut writer = store.whole_upload_writer(repo, &id, algorithm).await?;
                writer.append(bytes.clone()).await?;
                writer.commit(digest).await.map(drop)
            }
            Request::PushInChunks => {
                let id = store.create_upload(repo, "2026-01-01T00:00:00Z").await?;
                let mut carried = CarriedHash::none(Algorithm::Sha256);
                let owner = owner(0);
                let mut writer = store.upload_writer(repo, &id, 0, carried, &owner).await?;
                writer.append(bytes.slice(..4)).await?;
                (_, carried) = writer.finish().await?;
                let mut writer = store.upload_writer(repo, &id, 4, carried, &owner).await?;
                writer.append(bytes.slice(4..)).await?;
                writer.commit(digest).await.map(drop)
            }
            Request::PutManifest => store.put_manifest(repo, digest, bytes.clone()).await,
            Request::Copy => {
                let mut incoming = store.ingest_blob(digest).await?;
                incoming.append(bytes.clone()).await?;
                incoming.commit().await.map(drop)
            }
            Request::Open => store.open_blob(digest).await.map(|found| {
                assert!(found.is_some(), "a false miss");
            }),
            Request::Verify => store.verify_blob(digest).await.map(drop),
        }
    }

    /// Lets the other replica act before the call with this number.
    fn interrupt(&self, other: Other, call: u64) {
        let Manifest { digest, bytes, .. } = self.content();
        let (fs, store, path) = (self.fs.clone(), self.other.clone(), self.path());
        let (digest, bytes) = (digest.clone(), bytes.clone());
        self.fs.before_call(call, move || {
            let act = async move {
                fs.note(|| format!("== {other:?}"));
                match other {
                    Other::Replaces => replace(&fs, &path, &bytes),
                    Other::MovesAside => drop(store.verify_blob(&digest).await),
                    Other::Mends => store.put_blob(&digest, bytes).await.unwrap(),
                }
            };
            // On a thread of its own: this one runs the request's runtime.
            let thread = std::thread::spawn(move || runtime().block_on(act));
            thread.join().unwrap();
        });
    }

    /// The content as both replicas serve it once nothing that they remember is older than it is.
    async fn is_served_by_both(&self) -> bool {
        self.fs.advance_ms(120_000);
        let Manifest { digest, bytes, .. } = self.content();
        for store in [&self.one, &self.other] {
            let blob = store.open_blob(digest).await.unwrap();
            match blob {
                Some(blob) if blob.read_at(0, MANY).await.unwrap() == *bytes => {}
                _ => return false,
            }
        }
        true
    }
}

fn replace(fs: &SimFs, path: &Path, bytes: &Bytes) {
    let volume = fs.client(1);
    let fresh = path.with_file_name("fresh");
    let file = volume.create_new(&fresh).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync().unwrap();
    volume.rename(&fresh, path).unwrap();
    volume.sync_dir(path.parent().unwrap()).unwrap();
}

/// Tries each moment; says how often a handle was stale.
fn at_each_moment(request: Request, is_sound: bool, other: Other) -> usize {
    let mut stale = 0;
    for call in 1..MANY {
        let was_interrupted = runtime().block_on(async {
            let scene = Scene::new(is_sound).await;
            let what = format!("{request:?}, {other:?} before call {call}, sound {is_sound}");
            scene.fs.start_trace();
            scene.interrupt(other, call);
            let asked = scene.ask(request).await;
            let acted = !scene.fs.cancel_before_call();
            let trace = scene.fs.trace();
            stale += trace.iter().filter(|line| is_stale(line)).count();
            check(&scene, (request, other), &asked, acted)
                .await
                .unwrap_or_else(|problem| panic!("{what}: {problem}: {asked:?}\n{trace:#?}"));
            acted
        });
        if !was_interrupted {
            assert!(1 < call, "the request makes no calls");
            return stale;
        }
    }
    panic!("{request:?} makes {MANY} calls");
}

fn is_stale(line: &str) -> bool {
    line.starts_with("client 0") && line.contains("os error 116")
}

/// What is wrong after a request.
async fn check(
    scene: &Scene,
    (request, other): (Request, Other),
    asked: &Result<()>,
    acted: bool,
) -> Result<(), &'static str> {
    let may_be_damaged = request == Request::Verify && !scene.is_sound;
    match asked {
        Ok(()) => {}
        Err(Error::Corrupt { .. }) if may_be_damaged => {}
        Err(_) => return Err("it failed"),
    }
    let puts = acted && other != Other::MovesAside;
    let is_put = PUSHES.contains(&request) || puts || scene.is_sound;
    if is_put && !scene.is_served_by_both().await {
        return Err("the content is gone, or it is wrong");
    }
    Ok(())
}

#[test]
fn a_push_is_acknowledged_whatever_becomes_of_the_content_that_is_there() {
    for request in PUSHES {
        let stale = at_each_moment(request, true, Other::Replaces);
        assert!(0 < stale, "{request:?} never met a stale handle");
        for other in [Other::Replaces, Other::MovesAside, Other::Mends] {
            at_each_moment(request, false, other);
        }
    }
}

#[test]
fn content_that_is_replaced_while_it_is_looked_for_is_found() {
    for request in [Request::Open, Request::Verify] {
        let stale = at_each_moment(request, true, Other::Replaces);
        assert!(0 < stale, "{request:?} never met a stale handle");
    }
}

#[test]
fn sound_content_that_replaces_damaged_content_is_not_quarantined() {
    for other in [Other::Replaces, Other::MovesAside, Other::Mends] {
        at_each_moment(Request::Verify, false, other);
    }
}
