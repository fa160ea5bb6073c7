//! Pins on a runtime that keeps labels.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::*;
use crate::cri::tests::{Fake, containerd_at, serve};

const OURS: &str = "ghcr.io/holdfast/holdfast:2";
const FORMER: &str = "ghcr.io/holdfast/holdfast:1";
const PAUSE: &str = "registry.k8s.io/pause:3.10";

fn pod() -> AgentPod {
    AgentPod {
        namespace: "sys".to_owned(),
        name: "agent-1".to_owned(),
        release: "sys.holdfast".to_owned(),
    }
}

fn runtime() -> (Containerd, Arc<Mutex<Fake>>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("containerd.sock");
    let fake = serve(&socket);
    {
        let mut fake = fake.lock().unwrap();
        fake.own = vec![PAUSE.to_owned(), OURS.to_owned()];
        for name in [PAUSE, OURS, FORMER] {
            let managed = ("io.cri-containerd.image".to_owned(), "managed".to_owned());
            fake.records
                .insert(name.to_owned(), BTreeMap::from([managed]));
        }
    }
    (containerd_at(folder.path()), fake, folder)
}

fn labels(fake: &Mutex<Fake>, name: &str) -> Vec<String> {
    let fake = fake.lock().unwrap();
    let labels = fake.records[name].iter();
    labels
        .map(|(key, value)| format!("{key}={value}"))
        .collect()
}

const MANAGED: &str = "io.cri-containerd.image=managed";

#[tokio::test]
async fn own_images_and_the_sandbox_are_pinned_and_unpinned() {
    let (runtime, fake, _folder) = runtime();
    let pinned = pin(&runtime, &pod()).await.unwrap();
    assert_eq!(pinned, BTreeSet::from([OURS.to_owned(), PAUSE.to_owned()]));
    let ours = [
        "holdfast.dev/pinned-by=sys.holdfast",
        MANAGED,
        "io.cri-containerd.pinned=pinned",
    ];
    assert_eq!(labels(&fake, OURS), ours);
    assert_eq!(labels(&fake, PAUSE), ours);
    assert_eq!(labels(&fake, FORMER), [MANAGED]);
    let calls = fake.lock().unwrap().calls.len();
    pin(&runtime, &pod()).await.unwrap();
    assert_eq!(fake.lock().unwrap().calls.len(), calls, "nothing to change");
    assert_eq!(unpin(&runtime, &pod()).await.unwrap(), 2);
    assert_eq!(labels(&fake, OURS), [MANAGED]);
    assert_eq!(unpin(&runtime, &pod()).await.unwrap(), 0);
}

#[tokio::test]
async fn an_upgrade_moves_the_pin() {
    let (runtime, fake, _folder) = runtime();
    fake.lock().unwrap().own = vec![PAUSE.to_owned(), FORMER.to_owned()];
    pin(&runtime, &pod()).await.unwrap();
    fake.lock().unwrap().own = vec![PAUSE.to_owned(), OURS.to_owned()];
    pin(&runtime, &pod()).await.unwrap();
    assert_eq!(labels(&fake, FORMER), [MANAGED]);
    assert_eq!(labels(&fake, OURS).len(), 3);
}

#[tokio::test]
async fn pins_of_others_are_not_changed() {
    let (runtime, fake, _folder) = runtime();
    let pinned = ("io.cri-containerd.pinned".to_owned(), "pinned".to_owned());
    fake.lock()
        .unwrap()
        .records
        .get_mut(PAUSE)
        .unwrap()
        .extend([pinned]);
    pin(&runtime, &pod()).await.unwrap();
    assert_eq!(unpin(&runtime, &pod()).await.unwrap(), 1);
    assert_eq!(
        labels(&fake, PAUSE),
        [MANAGED, "io.cri-containerd.pinned=pinned"]
    );
}

#[tokio::test]
async fn a_removed_pin_is_set_again() {
    let (runtime, fake, _folder) = runtime();
    pin(&runtime, &pod()).await.unwrap();
    fake.lock()
        .unwrap()
        .records
        .get_mut(OURS)
        .unwrap()
        .remove("io.cri-containerd.pinned");
    pin(&runtime, &pod()).await.unwrap();
    assert_eq!(labels(&fake, OURS).len(), 3);
}

#[tokio::test]
async fn what_the_runtime_cannot_do_is_reported() {
    type Trouble = fn(&mut Fake);
    let troubles: [(Trouble, &str); 4] = [
        (
            |fake| fake.cri_only = true,
            "no image service of containerd",
        ),
        (
            |fake| fake.own.clear(),
            "no container of the agent's own pod",
        ),
        (
            |fake| drop(fake.records.remove(OURS)),
            "no longer has a name in containerd",
        ),
        (|fake| fake.ignores_labels = true, "ignores the pin"),
    ];
    for (trouble, expect) in troubles {
        let (runtime, fake, _folder) = runtime();
        trouble(&mut fake.lock().unwrap());
        let error = pin(&runtime, &pod()).await.unwrap_err();
        assert!(error.to_string().contains(expect), "{error}");
    }
    let (runtime, fake, _folder) = runtime();
    fake.lock().unwrap().cri_only = true;
    assert_eq!(
        unpin(&runtime, &pod()).await.unwrap(),
        0,
        "nothing was ever pinned there"
    );
}
