//! Tags under two writers at a time, each a store of its own on the same folder.

use holdfast_core::{Algorithm, RepositoryName, Tag};
use holdfast_store::{Hasher, Options, Store};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_that_moves_while_its_old_manifest_is_deleted_names_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::unlimited();
    let [one, other] = [
        Store::open(folder.path(), options).await.unwrap(),
        Store::open(folder.path(), options).await.unwrap(),
    ];
    let repo = RepositoryName::parse("a/b").unwrap();
    let tag = Tag::parse("t").unwrap();
    let new = Hasher::digest(Algorithm::Sha256, b"new");
    one.put_manifest(&repo, &new, "new".into()).await.unwrap();
    for round in 0..60_u64 {
        let bytes = format!("old {round}");
        let old = Hasher::digest(Algorithm::Sha256, bytes.as_bytes());
        one.put_manifest(&repo, &old, bytes.into()).await.unwrap();
        one.set_tag(&repo, &tag, &old).await.unwrap();
        let pause = std::time::Duration::from_micros(round * 37 % 900);
        let (moved, deleted) = tokio::join!(
            tokio::spawn({
                let (store, repo, tag, new) = (one.clone(), repo.clone(), tag.clone(), new.clone());
                async move { store.set_tag(&repo, &tag, &new).await }
            }),
            tokio::spawn({
                let (store, repo, old) = (other.clone(), repo.clone(), old.clone());
                async move {
                    tokio::time::sleep(pause).await;
                    store.delete_manifest(&repo, &old).await
                }
            }),
        );
        moved.unwrap().unwrap();
        assert!(deleted.unwrap().unwrap());
        assert_eq!(
            one.tag(&repo, &tag).await.unwrap().as_ref(),
            Some(&new),
            "round {round}"
        );
        // And a delete of the new one finds the tag.
        if round % 10 == 9 {
            one.delete_manifest(&repo, &new).await.unwrap();
            let found = one.tagged_manifest(&repo, &tag).await.unwrap();
            assert_eq!(found, None, "round {round}");
            assert_eq!(
                one.tags(&repo).await.unwrap(),
                Some(vec![]),
                "round {round}"
            );
            one.put_manifest(&repo, &new, "new".into()).await.unwrap();
            // Which does not bring the tag back.
            assert_eq!(one.tag(&repo, &tag).await.unwrap(), None, "round {round}");
        }
    }
}
