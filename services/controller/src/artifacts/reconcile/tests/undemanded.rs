//! Looks at what the webhook announced and nothing needs, and at what healing doubts.

use super::*;

/// As [`announced`], with the label that the webhook gives.
fn webhooks() -> Artifact {
    let mut object = announced();
    let label = (
        labels::MANAGED_BY.to_owned(),
        labels::MANAGED_BY_WEBHOOK.to_owned(),
    );
    object.metadata.labels = Some([label].into());
    object
}

/// A living pod without pull secrets.
fn of_a_pod() -> Demand {
    Demand {
        pull_secrets: std::collections::BTreeSet::new(),
        ..demand("none")
    }
}

#[tokio::test]
async fn what_the_webhook_announced_is_not_copied_without_demand_and_goes() {
    let mut looks = Looks::new().await;
    looks.look(&webhooks(), None).await;
    assert!(looks.calls.lock().unwrap().is_empty(), "it waits for a pod");
    looks.patience_ends();
    let outcome = looks.look(&webhooks(), Some(&owned_by(&["done"]))).await;
    assert_eq!(looks.last(), ("NoDemand".to_owned(), 1));
    let again = outcome.again.unwrap();
    assert!(
        Duration::from_secs(590) < again && again <= Duration::from_secs(600),
        "{again:?}"
    );
    // A pod comes, and goes before anything was copied: the time begins again.
    looks.answer(404, "NOT_FOUND");
    looks.look(&webhooks(), Some(&of_a_pod())).await;
    assert_eq!((looks.asked(), looks.last().0.as_str()), (1, "NotFound"));
    assert_eq!(looks.memory.undemanded, None);
    looks.look(&webhooks(), None).await;
    assert_eq!((looks.asked(), looks.last().0.as_str()), (1, "NoDemand"));
    let removed = |looks: &Looks| {
        let calls = looks.calls.lock().unwrap();
        calls.iter().any(|call| call.starts_with("DELETE"))
    };
    assert!(!removed(&looks));
    looks.memory.undemanded = Instant::now().checked_sub(Duration::from_secs(600));
    looks.look(&webhooks(), None).await;
    assert!(removed(&looks));
    assert_eq!(looks.asked(), 1, "and never copied");
    assert!(
        !looks
            .events
            .lock()
            .unwrap()
            .contains(&"NoDemand".to_owned())
    );
}

#[tokio::test]
async fn one_that_is_surplus_goes_at_once_unless_it_is_needed_or_kept() {
    let mut looks = Looks::new().await;
    looks.look(&webhooks(), Some(&of_a_pod())).await;
    assert_eq!(looks.last().0, "Copied");
    looks.memory.set_surplus(true);
    looks.patience_ends();
    let methods = |looks: &Looks| looks.calls.lock().unwrap().join(" ");
    looks.look(&webhooks(), Some(&of_a_pod())).await;
    let mut kept = webhooks();
    let label = (labels::KEEP.to_owned(), labels::KEEP_ASKED.to_owned());
    kept.metadata.labels.as_mut().unwrap().extend([label]);
    looks.look(&kept, None).await;
    looks.look(&announced(), None).await;
    assert!(
        !methods(&looks).contains("DELETE"),
        "what is needed, kept or made by hand stays"
    );
    looks.look(&webhooks(), None).await;
    assert!(methods(&looks).contains("DELETE"), "whether copied or not");
    let mut looks = Looks::new().await;
    looks.memory.set_surplus(true);
    looks.look(&webhooks(), None).await;
    assert!(!methods(&looks).contains("DELETE"), "its pod may come");
    looks.patience_ends();
    looks.look(&webhooks(), None).await;
    assert!(methods(&looks).contains("DELETE"));
    assert_eq!(looks.asked(), 0);
}

#[tokio::test]
async fn what_is_beyond_the_limits_is_not_copied_until_there_is_room() {
    let mut looks = Looks::new().await;
    assert!(looks.memory.set_beyond(true));
    for object in [webhooks(), announced(), artifact("u", 1)] {
        looks.look(&object, Some(&of_a_pod())).await;
        assert_eq!(
            (looks.asked(), looks.last().0.as_str()),
            (0, "TooManyArtifacts")
        );
    }
    assert!(looks.memory.set_beyond(false));
    looks.look(&webhooks(), Some(&of_a_pod())).await;
    assert_eq!((looks.asked(), looks.last().0.as_str()), (1, "Copied"));
    // What is held stays what it is.
    looks.memory.set_beyond(true);
    looks.time_passes();
    looks.look(&webhooks(), Some(&of_a_pod())).await;
    assert_eq!((looks.asked(), looks.last().0.as_str()), (2, "Copied"));
}

#[test]
fn what_was_announced_only_has_no_urgency() {
    let now = jiff::Timestamp::now();
    let mut object = webhooks();
    object.metadata.creation_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
    assert_eq!(priority(&object, None, now), Priority::Prefetch);
    assert_eq!(priority(&object, Some(&of_a_pod()), now), Priority::Running);
}

#[tokio::test]
async fn a_doubt_has_the_registry_asked_again_and_healing_hears_the_answer() {
    let mut looks = Looks::new().await;
    let (object, wanted) = (artifact("u", 1), of_a_pod());
    let key = ("apps".to_owned(), "app".to_owned());
    let confirmed = |looks: &Looks| {
        let healing = &looks.reconciler.context.healing;
        healing.is_confirmed(&key, Instant::now())
    };
    assert!(!confirmed(&looks));
    looks.look(&object, Some(&wanted)).await;
    looks.look(&object, Some(&wanted)).await;
    assert_eq!((looks.asked(), confirmed(&looks)), (1, true));
    looks.memory.request_confirmation();
    looks.answer(502, "UPSTREAM_UNAVAILABLE");
    looks.look(&object, Some(&wanted)).await;
    assert_eq!((looks.asked(), confirmed(&looks)), (2, false));
    assert_eq!(looks.last().0, "UpstreamUnavailable");
    looks.memory.end_pause();
    looks.look(&object, Some(&wanted)).await;
    assert_eq!(looks.asked(), 3, "what it said before holds no longer");
    let mut begun = looks.memory.begin();
    looks.memory.request_confirmation();
    assert!(
        !begun.needs_confirmation,
        "one that comes later is for the next look"
    );
    begun.failures = 7;
    looks.memory.merge(begun);
    assert!(looks.memory.needs_confirmation);
}
