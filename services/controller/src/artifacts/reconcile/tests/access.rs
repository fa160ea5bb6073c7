//! Looks at who may have an image, with `access.privateImages: namespace`.

use super::*;
use holdfast_api::access::Access;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// A living pod that brings these pull secrets.
fn bringing(secrets: &[&str]) -> Demand {
    Demand {
        pull_secrets: secrets.iter().map(|&name| name.to_owned()).collect(),
        ..demand("none")
    }
}

impl Looks {
    async fn by_namespace() -> Self {
        Self::with(&json!({"access": {"privateImages": "namespace"}})).await
    }

    fn upstream_says(&self, access: &'static str) {
        self.access.lock().unwrap().0 = access;
    }

    fn access_asked(&self) -> usize {
        self.access.lock().unwrap().1
    }

    /// What the status says that was written last.
    fn access_written(&self) -> Option<String> {
        let statuses = self.statuses.lock().unwrap();
        let answer = statuses.last()?.pointer("/access/answer")?.as_str()?;
        Some(answer.to_owned())
    }

    /// The answer in the status becomes so much older, and the registry is due to be asked.
    fn ages(&mut self, age: SignedDuration) {
        let status = self.memory.status.as_mut().unwrap();
        status.access.as_mut().unwrap().time = Time(Timestamp::now() - age);
        self.memory.access.rested();
        self.time_passes();
    }
}

#[tokio::test]
async fn by_default_nobody_is_asked_who_may_have_an_image() {
    let mut looks = Looks::new().await;
    looks.upstream_says("proved");
    looks.look(&artifact("u", 1), Some(&bringing(&[]))).await;
    assert_eq!((looks.asked(), looks.access_asked()), (1, 0));
    assert_eq!(looks.access_written(), None);
}

#[tokio::test]
async fn an_answer_is_written_and_stays_while_the_upstream_is_away() {
    let mut looks = Looks::by_namespace().await;
    let (object, demand) = (artifact("u", 1), bringing(&[]));
    looks.look(&object, Some(&demand)).await;
    assert_eq!((looks.access_asked(), looks.access_written()), (1, None));
    assert_eq!(looks.last().0, "Copied", "the copy is told all the same");
    looks.upstream_says("proved");
    looks.memory.access.rested();
    looks.time_passes();
    looks.look(&object, Some(&demand)).await;
    assert_eq!(looks.access_written().as_deref(), Some("proved"));
    // For a day it holds.
    looks.ages(SignedDuration::from_hours(23));
    looks.look(&object, Some(&demand)).await;
    assert_eq!(looks.access_asked(), 2);
    for (says, expect) in [
        ("unknown", "proved"),
        ("denied", "denied"),
        ("public", "public"),
    ] {
        looks.ages(SignedDuration::from_hours(25));
        looks.upstream_says(says);
        let asked = looks.access_asked();
        looks.look(&object, Some(&demand)).await;
        assert_eq!(looks.access_asked(), asked + 1, "{says}");
        let status = looks.memory.status.as_ref().unwrap();
        assert_eq!(status.access.as_ref().unwrap().answer.as_str(), expect);
    }
    assert_eq!(looks.access_written().as_deref(), Some("public"));
}

#[tokio::test]
async fn further_credentials_are_tried_at_once_though_the_image_is_local() {
    let mut looks = Looks::by_namespace().await;
    looks.upstream_says("denied");
    let object = artifact("u", 1);
    looks.look(&object, Some(&bringing(&[]))).await;
    assert_eq!(looks.access_written().as_deref(), Some("denied"));
    looks.look(&object, Some(&bringing(&[]))).await;
    assert_eq!((looks.asked(), looks.access_asked()), (1, 1));
    looks.upstream_says("proved");
    looks.look(&object, Some(&bringing(&["pull"]))).await;
    assert_eq!(looks.access_written().as_deref(), Some("proved"));
    assert_eq!(looks.asked(), 1, "the copy is not asked for again");
    // What was written is not taken back by the next look.
    looks.look(&object, Some(&bringing(&["pull"]))).await;
    assert_eq!(looks.access_asked(), 2);
    let status = looks.memory.status.as_ref().unwrap();
    assert_eq!(status.access.as_ref().unwrap().answer, Access::Proved);
    // A secret that is gone is another credential; it is seen when the registry is asked again.
    looks.upstream_says("denied");
    looks.time_passes();
    looks.look(&object, Some(&bringing(&[]))).await;
    assert_eq!(looks.access_written().as_deref(), Some("denied"));
}

#[tokio::test]
async fn a_refused_copy_has_the_last_answer_asked_for_again() {
    let mut looks = Looks::by_namespace().await;
    looks.upstream_says("proved");
    let (object, demand) = (artifact("u", 1), bringing(&[]));
    looks.look(&object, Some(&demand)).await;
    looks.time_passes();
    looks.answer(502, "UPSTREAM_UNAVAILABLE");
    looks.look(&object, Some(&demand)).await;
    assert_eq!(looks.access_asked(), 1, "an upstream that is away");
    looks.memory.end_pause();
    looks.answer(403, "UNAUTHORIZED");
    looks.upstream_says("denied");
    looks.look(&object, Some(&demand)).await;
    assert_eq!(looks.access_written().as_deref(), Some("denied"));
}
