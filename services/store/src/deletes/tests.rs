//! Deletes that stop half-way, for ever or for a moment, on the real file system.

use std::{fs, time::Duration};

use holdfast_core::{digest::Algorithm, reference::Tag};

use super::names::UNTAG;
use super::*;
use crate::{Hasher, Options, Store};

struct Scene {
    folder: tempfile::TempDir,
    store: Store,
    repo: RepositoryName,
    digest: Digest,
}

fn tag(name: &str) -> Tag {
    Tag::parse(name).unwrap()
}

/// `team/app` with one manifest under the tags `1` and `2`, and another one under `other`.
async fn scene() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Options::unlimited())
        .await
        .unwrap();
    let repo = RepositoryName::parse("team/app").unwrap();
    let digest = Hasher::digest(Algorithm::Sha256, b"one");
    let other = Hasher::digest(Algorithm::Sha256, b"other");
    for (digest, bytes, tags) in [
        (&digest, "one", &["1", "2"][..]),
        (&other, "other", &["other"]),
    ] {
        store
            .put_manifest(&repo, digest, bytes.into())
            .await
            .unwrap();
        for name in tags {
            store.set_tag(&repo, &tag(name), digest).await.unwrap();
        }
    }
    Scene {
        folder,
        store,
        repo,
        digest,
    }
}

impl Scene {
    fn deletes(&self) -> &Deletes {
        &self.store.parts.deletes
    }

    /// The untag intent of a process that is about to remove a tag.
    fn intent(&self) -> PathBuf {
        let name = format!("{}.{UNTAG}.x", repository_key(&self.repo));
        let intent = self.store.layout().deletes().join(name);
        self.deletes().create_dir_or_reserve(&intent).unwrap();
        intent
    }

    /// A delete whose process ended with the answer.
    fn delete(&self) {
        let deletes = self.deletes();
        assert!(deletes.delete_revision(&self.repo, &self.digest).unwrap());
    }

    async fn put(&self) {
        self.store
            .put_manifest(&self.repo, &self.digest, "one".into())
            .await
            .unwrap();
    }

    async fn tags(&self) -> Vec<String> {
        let tags = self.store.tags(&self.repo).await.unwrap().unwrap();
        tags.iter().map(ToString::to_string).collect()
    }

    async fn names(&self, name: &str) -> bool {
        let found = self.store.tagged_manifest(&self.repo, &tag(name)).await;
        found.unwrap().is_some()
    }

    fn tombstones(&self) -> usize {
        fs::read_dir(self.store.layout().deletes()).unwrap().count()
    }

    fn folders_of_tags(&self) -> usize {
        fs::read_dir(self.store.layout().tags(&self.repo))
            .unwrap()
            .count()
    }
}

#[tokio::test]
async fn tags_of_a_deleted_manifest_are_unknown_before_they_are_removed() {
    let s = scene().await;
    s.delete();
    assert_eq!(s.folders_of_tags(), 3, "they are still on the volume");
    assert_eq!(s.tags().await, ["other"]);
    let page = s.store.tags_page(&s.repo, None, 10).await.unwrap().unwrap();
    assert_eq!(page, (vec![tag("other")], false));
    assert!(!s.names("1").await);
    assert!(s.names("other").await);
    assert!(!s.store.delete_tag(&s.repo, &tag("1")).await.unwrap());
    assert!(s.store.delete_tag(&s.repo, &tag("other")).await.unwrap());
    assert!(!s.deletes().delete_revision(&s.repo, &s.digest).unwrap());
    assert_eq!(s.store.finish_deletes().await.unwrap(), 1);
    assert_eq!((s.folders_of_tags(), s.tombstones()), (0, 0));
    assert_eq!(s.store.finish_deletes().await.unwrap(), 0);
}

#[tokio::test]
async fn tools_beside_a_registry_leave_out_tags_of_deleted_manifests() {
    let s = scene().await;
    let view = crate::View::open(s.folder.path()).unwrap();
    let tags = || -> Vec<_> { view.tags(&s.repo).unwrap().into_keys().collect() };
    s.delete();
    assert_eq!(tags(), [tag("other")]);
    // Another registry pushes the manifest again.
    let link = s.store.layout().revision_link(&s.repo, &s.digest);
    fs::write(link, s.digest.to_string()).unwrap();
    assert_eq!(tags(), [tag("1"), tag("2"), tag("other")]);
}

#[tokio::test]
async fn the_longest_name_of_a_repository_can_be_deleted_from() {
    let s = scene().await;
    let long = format!("{}/{}", "a".repeat(127), "b".repeat(127));
    let repo = RepositoryName::parse(&long).unwrap();
    let (digest, one) = (s.digest.clone(), tag("1"));
    s.store
        .put_manifest(&repo, &digest, "one".into())
        .await
        .unwrap();
    s.store.set_tag(&repo, &one, &digest).await.unwrap();
    assert!(s.store.delete_manifest(&repo, &digest).await.unwrap());
    s.store.finish_deletes().await.unwrap();
    assert_eq!(s.store.tag(&repo, &one).await.unwrap(), None);
    assert_eq!(s.tombstones(), 0);
}

#[tokio::test]
async fn a_manifest_that_comes_back_brings_no_tag_back() {
    let s = scene().await;
    s.delete();
    s.put().await;
    assert_eq!((s.folders_of_tags(), s.tombstones()), (1, 0));
    assert_eq!(s.tags().await, ["other"]);
    assert!(!s.names("2").await);
}

#[tokio::test]
async fn a_tag_that_is_set_after_a_delete_stays() {
    let s = scene().await;
    let other = Hasher::digest(Algorithm::Sha256, b"other");
    s.delete();
    s.store.set_tag(&s.repo, &tag("1"), &other).await.unwrap();
    assert_eq!(s.tags().await, ["1", "other"]);
    s.store.finish_deletes().await.unwrap();
    assert_eq!(s.tags().await, ["1", "other"]);
    // And of a manifest that is pushed again.
    s.put().await;
    s.store
        .set_tag(&s.repo, &tag("2"), &s.digest)
        .await
        .unwrap();
    s.store.finish_deletes().await.unwrap();
    assert!(s.names("2").await);
}

#[tokio::test]
async fn a_tag_is_not_removed_because_of_a_read_before_it_was_set() {
    let s = scene().await;
    s.delete();
    let intent = s.intent();
    // They stall here; another process finishes, and the manifest and its tag come back.
    s.put().await;
    let one = tag("1");
    s.store.set_tag(&s.repo, &one, &s.digest).await.unwrap();
    let link = s.store.layout().tag_link(&s.repo, &one);
    assert!(!s.deletes().try_rename(&link, &intent.join("1")).unwrap());
    let mut late = Some(intent);
    s.deletes()
        .untag(&s.repo, &one, &s.digest, &mut late)
        .unwrap();
    assert!(s.names("1").await);
}

#[tokio::test]
async fn a_link_that_another_registry_set_meanwhile_is_put_back() {
    let s = scene().await;
    s.delete();
    let other = Hasher::digest(Algorithm::Sha256, b"other");
    let one = tag("1");
    let link = s.store.layout().tag_link(&s.repo, &one);
    let intent = s.intent();
    fs::write(&link, other.to_string()).unwrap();
    let aside = intent.join("1");
    assert!(s.deletes().try_rename(&link, &aside).unwrap());
    s.deletes()
        .finish_untag(&s.repo, &one, &s.digest, &aside)
        .unwrap();
    assert!(s.names("1").await);
    assert!(!aside.exists());
}

#[tokio::test]
async fn a_push_that_began_before_a_delete_looks_again() {
    let s = scene().await;
    let link = s.store.layout().revision_link(&s.repo, &s.digest);
    let files = &s.deletes().files;
    let pending = files
        .create_pending(&link, s.digest.to_string().as_bytes())
        .unwrap();
    s.deletes().finish_deletes_of(&s.repo, &s.digest).unwrap();
    s.delete();
    let placed = files.publish(pending);
    assert!(placed.unwrap_err().is_absent());
    assert!(!link.exists());
}

#[tokio::test]
async fn a_pending_tombstone_has_no_effect() {
    let s = scene().await;
    let name = format!("{}.sha256-{}.x", repository_key(&s.repo), s.digest.hex());
    let folder = s.store.layout().deletes().join(name);
    for push in [false, true] {
        fs::create_dir(&folder).unwrap();
        assert_eq!(s.tags().await, ["1", "2", "other"]);
        if push {
            // The link is damaged, so that it is written.
            let link = s.store.layout().revision_link(&s.repo, &s.digest);
            fs::write(link, "").unwrap();
            s.put().await;
        } else {
            assert_eq!(s.store.finish_deletes().await.unwrap(), 0);
        }
        assert_eq!(s.tombstones(), 0);
        assert_eq!(s.tags().await, ["1", "2", "other"]);
        assert!(s.names("1").await);
    }
}

#[tokio::test]
async fn what_another_registry_pushed_again_keeps_its_tags() {
    let s = scene().await;
    s.delete();
    let link = s.store.layout().revision_link(&s.repo, &s.digest);
    fs::write(link, s.digest.to_string()).unwrap();
    assert_eq!(s.tags().await, ["1", "2", "other"]);
    s.store.finish_deletes().await.unwrap();
    assert_eq!(s.tombstones(), 0);
    assert!(s.names("1").await);
}

#[tokio::test]
async fn tags_are_removed_after_the_answer_in_the_background() {
    let s = scene().await;
    assert!(s.store.delete_manifest(&s.repo, &s.digest).await.unwrap());
    assert_eq!(s.tags().await, ["other"]);
    for _ in 0..1_000 {
        if (s.folders_of_tags(), s.tombstones()) == (1, 0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!(
        "{} folders of tags, {} tombstones",
        s.folders_of_tags(),
        s.tombstones()
    );
}

#[tokio::test]
async fn finish_deletes_waits_for_the_background_thread() {
    let s = scene().await;
    for _ in 0..100 {
        assert!(s.store.delete_manifest(&s.repo, &s.digest).await.unwrap());
        s.store.finish_deletes().await.unwrap();
        assert_eq!((s.folders_of_tags(), s.tombstones()), (1, 0));
        s.put().await;
        for name in [tag("1"), tag("2")] {
            s.store.set_tag(&s.repo, &name, &s.digest).await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_untag_intent_that_a_crash_left_is_removed() {
    let s = scene().await;
    let intent = s
        .store
        .layout()
        .deletes()
        .join(format!("{}.{UNTAG}.x", repository_key(&s.repo)));
    fs::create_dir(&intent).unwrap();
    fs::write(intent.join("1"), s.digest.to_string()).unwrap();
    s.store.finish_deletes().await.unwrap();
    assert_eq!(s.tombstones(), 0);
    assert_eq!(s.tags().await, ["1", "2", "other"]);
}

#[test]
fn names_of_folders_say_what_they_are() {
    let digest = Hasher::digest(Algorithm::Sha512, b"x");
    let hex = digest.hex();
    for (name, expect) in [
        (
            format!("k.sha512-{hex}.u"),
            Some(("k", Name::Tombstone(digest.clone()))),
        ),
        ("k.untag.u".to_owned(), Some(("k", Name::UntagIntent))),
        (format!("k.sha256-{hex}.u"), None),
        (format!("k.sha512-{hex}"), None),
        (".nfs0001".to_owned(), None),
        ("k".to_owned(), None),
    ] {
        assert_eq!(parse(&name), expect, "{name}");
    }
    // The longest name that a folder gets, in a file system's 255.
    let longest = format!(
        "{}.sha512-{hex}.{}",
        repository_key(&RepositoryName::parse("a/b").unwrap()),
        Uuid::new_v4()
    );
    assert!(longest.len() <= 255, "{}", longest.len());
    let repo = RepositoryName::parse("a-b/c.d/e_f").unwrap();
    assert_eq!(decode_repository(&encode_repository(&repo)), Some(repo));
}
