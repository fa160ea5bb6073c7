//! Pins on a runtime that keeps labels.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::*;
use crate::cri::tests::{Fake, serve};

const OURS: &str = "ghcr.io/holdfast/holdfast:2";
const FORMER: &str = "ghcr.io/holdfast/holdfast:1";
const PAUSE: &str = "registry.k8s.io/pause:3.10";

fn own() -> Own {
    Own {
        namespace: "sys".to_owned(),
        pod: "agent-1".to_owned(),
        release: "sys.holdfast".to_owned(),
    }
}

fn runtime() -> (Runtime, Arc<Mutex<Fake>>, tempfile::TempDir) {
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
    (Runtime::new(socket), fake, folder)
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
async fn own_images_and_the_sandboxes_are_pinned_and_released() {
    let (runtime, fake, _folder) = runtime();
    let pinned = keep(&runtime, &own()).await.unwrap();
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
    keep(&runtime, &own()).await.unwrap();
    assert_eq!(fake.lock().unwrap().calls.len(), calls, "nothing to change");
    assert_eq!(release(&runtime, &own()).await.unwrap(), 2);
    assert_eq!(labels(&fake, OURS), [MANAGED]);
    assert_eq!(release(&runtime, &own()).await.unwrap(), 0);
}

#[tokio::test]
async fn an_upgrade_hands_the_pin_on() {
    let (runtime, fake, _folder) = runtime();
    fake.lock().unwrap().own = vec![PAUSE.to_owned(), FORMER.to_owned()];
    keep(&runtime, &own()).await.unwrap();
    fake.lock().unwrap().own = vec![PAUSE.to_owned(), OURS.to_owned()];
    keep(&runtime, &own()).await.unwrap();
    assert_eq!(labels(&fake, FORMER), [MANAGED]);
    assert_eq!(labels(&fake, OURS).len(), 3);
}

#[tokio::test]
async fn pins_of_others_are_theirs() {
    let (runtime, fake, _folder) = runtime();
    let pinned = ("io.cri-containerd.pinned".to_owned(), "pinned".to_owned());
    fake.lock()
        .unwrap()
        .records
        .get_mut(PAUSE)
        .unwrap()
        .extend([pinned]);
    keep(&runtime, &own()).await.unwrap();
    assert_eq!(release(&runtime, &own()).await.unwrap(), 1);
    assert_eq!(
        labels(&fake, PAUSE),
        [MANAGED, "io.cri-containerd.pinned=pinned"]
    );
}

#[tokio::test]
async fn a_pin_that_somebody_took_away_comes_back() {
    let (runtime, fake, _folder) = runtime();
    keep(&runtime, &own()).await.unwrap();
    fake.lock()
        .unwrap()
        .records
        .get_mut(OURS)
        .unwrap()
        .remove("io.cri-containerd.pinned");
    keep(&runtime, &own()).await.unwrap();
    assert_eq!(labels(&fake, OURS).len(), 3);
}

#[tokio::test]
async fn what_the_runtime_cannot_is_said() {
    type Trouble = fn(&mut Fake);
    let troubles: [(Trouble, &str); 4] = [
        (|fake| fake.plain = true, "no image service of containerd"),
        (
            |fake| fake.own.clear(),
            "no container of the agent's own pod",
        ),
        (
            |fake| drop(fake.records.remove(OURS)),
            "has no name in containerd",
        ),
        (|fake| fake.heedless = true, "does not heed the pin"),
    ];
    for (trouble, expect) in troubles {
        let (runtime, fake, _folder) = runtime();
        trouble(&mut fake.lock().unwrap());
        let error = keep(&runtime, &own()).await.unwrap_err();
        assert!(error.to_string().contains(expect), "{error}");
    }
    let (runtime, fake, _folder) = runtime();
    fake.lock().unwrap().plain = true;
    assert_eq!(
        release(&runtime, &own()).await.unwrap(),
        0,
        "nothing was ever pinned there"
    );
}
