//! Deletes on a full volume: they are what makes room, so they need none.

use std::sync::Arc;

use holdfast_core::reference::{RepositoryName, Tag};
use holdfast_simfs::{Faults, SimFs};
use holdfast_store::{Error, Options, Store};

use crate::program::{Manifest, World};

struct Scene {
    fs: SimFs,
    store: Store,
    world: World,
}

/// The first manifest in the first repository, under the first tag, on a volume that then fills up.
async fn scene(is_prepared: bool) -> Scene {
    let fs = SimFs::new(1, 1, Faults::default());
    let store = Store::open_on(Arc::new(fs.client(0)), "/r", Options::default())
        .await
        .unwrap();
    let world = World::new();
    for at in 0..2 {
        let Manifest { digest, bytes, .. } = &world.manifests[at];
        store
            .put_manifest(&world.repos[0], digest, bytes.clone())
            .await
            .unwrap();
        store
            .set_tag(&world.repos[0], &world.tags[at], digest)
            .await
            .unwrap();
    }
    if is_prepared {
        assert_eq!(store.finish_deletes().await.unwrap(), 0);
    }
    fs.set_faults(Faults {
        full: true,
        ..Faults::default()
    });
    Scene { fs, store, world }
}

impl Scene {
    fn repo(&self) -> &RepositoryName {
        &self.world.repos[0]
    }

    async fn delete(&self, manifest: usize) -> holdfast_store::Result<bool> {
        let digest = &self.world.manifests[manifest].digest;
        self.store.delete_manifest(self.repo(), digest).await
    }

    async fn tags(&self) -> Vec<Tag> {
        self.store.tags(self.repo()).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn a_manifest_can_be_deleted_from_a_full_volume_again_and_again() {
    let s = scene(true).await;
    for (manifest, left) in [(0, &s.world.tags[1..2]), (1, &[][..])] {
        assert!(s.delete(manifest).await.unwrap());
        assert_eq!(s.tags().await, left);
        assert_eq!(s.store.finish_deletes().await.unwrap(), 1);
        assert_eq!(s.tags().await, left);
    }
    let Manifest { digest, bytes, .. } = &s.world.manifests[2];
    let put = s.store.put_manifest(s.repo(), digest, bytes.clone()).await;
    assert!(matches!(put, Err(Error::NoSpace { .. })), "{put:?}");
}

#[tokio::test]
async fn a_delete_that_finds_no_room_at_all_does_nothing_and_says_so() {
    let s = scene(false).await;
    let before = s.fs.files();
    let deleted = s.delete(0).await;
    assert!(matches!(deleted, Err(Error::NoSpace { .. })), "{deleted:?}");
    assert_eq!(s.fs.files(), before);
    assert_eq!(s.tags().await, s.world.tags);
}
