//! What the controller answers decides, and which questions it is asked.

use super::*;
use holdfast_cli_kit::leader::Question;

/// Answers questions about nodes, and holds the copy of `r.io/local:1`.
fn asked(mut inventory: Inventory, answer: impl Fn(&Question) -> Known) -> Inventory {
    inventory.basis = Basis::Asked;
    let questions = questions(&inventory).into_iter();
    inventory.answers.starts = questions
        .map(|question| {
            let known = answer(&question);
            (question, known)
        })
        .collect();
    inventory
}

fn held(mut inventory: Inventory, known: Known) -> Inventory {
    for artifact in &inventory.artifacts {
        let source = artifact.spec.source_artifact.clone();
        let is_local = source.starts_with("r.io/local");
        let known = if is_local { known } else { Known::No };
        inventory.answers.held.insert(source, known);
    }
    inventory.basis = Basis::Asked;
    inventory
}

const SOME: Option<&str> = Some("IfNotPresent");

#[test]
fn the_registry_is_asked_and_not_the_artifact() {
    let web = || cluster(vec![deployment("shop", "web", &spec("r.io/local:1", SOME))]);
    for (known, expect) in [
        (Known::Yes, Start::Starts),
        (Known::Unknown, Start::Unknown),
        (Known::No, Start::WouldNot),
    ] {
        let mut inventory = held(web(), known);
        inventory.account_secrets = Some(BTreeMap::new());
        let inventory = asked(inventory, |_| Known::No);
        let image = only(&inventory);
        assert_eq!(image.start, expect, "{image:?}");
    }
}

#[test]
fn a_node_is_asked_with_the_credentials_of_the_pod() {
    let mut pod = bound("r.io/here:1", "one");
    pod["spec"]["imagePullSecrets"] = json!([{"name": "pull"}]);
    pod["spec"]["serviceAccountName"] = json!("web");
    let inventory = cluster(vec![("Pod", pod)]);
    let questions: Vec<_> = questions(&inventory).into_iter().collect();
    let question = |image: &str| Question {
        node: "one".to_owned(),
        image: image.to_owned(),
        namespace: "shop".to_owned(),
        secrets: vec!["pull".to_owned()],
        service_account: "web".to_owned(),
    };
    let names = ["10.96.0.50/r.io/here:1", "r.io/here:1"];
    assert_eq!(questions, names.map(question));
    // The answer wins over the status of the node, also where that is a hint only.
    for (known, expect) in [
        (Known::Yes, Start::Starts),
        (Known::No, Start::WouldNot),
        // The node's agent did not report: its status counts.
        (Known::Unknown, Start::Starts),
    ] {
        let pod = bound("r.io/here:1", "one");
        let inventory = asked(cluster(vec![("Pod", pod)]), |_| known);
        assert_eq!(only(&inventory).start, expect, "{known:?}");
    }
}

#[test]
fn a_new_pod_has_the_secrets_of_its_service_account() {
    let web = || cluster(vec![deployment("out", "web", &spec("r.io/here:1", SOME))]);
    let with_secret = |question: &Question| Known::from(question.secrets == ["pull"]);
    // It is not known which secrets it has.
    let image = only(&asked(web(), with_secret));
    assert_eq!(image.start, Start::Unknown, "{image:?}");
    let mut inventory = web();
    let key = ("out".to_owned(), "default".to_owned());
    inventory.account_secrets = Some([(key, vec!["pull".to_owned()])].into());
    assert_eq!(only(&asked(inventory, with_secret)).start, Start::Starts);
    let mut inventory = web();
    inventory.account_secrets = Some(BTreeMap::new());
    assert_eq!(only(&asked(inventory, with_secret)).start, Start::WouldNot);
}

#[test]
fn only_nodes_that_take_the_pod_are_asked() {
    let mut tainted = spec("r.io/here:1", SOME);
    let inventory = |spec: &Value| {
        let mut inventory = cluster(vec![deployment("out", "web", spec)]);
        let nodes = inventory.nodes.as_mut().unwrap();
        nodes[1]["spec"] = json!({"taints": [{"key": "db", "effect": "NoSchedule"}]});
        inventory.account_secrets = Some(BTreeMap::new());
        asked(inventory, |question| Known::from(question.node == "one"))
    };
    let found = inventory(&tainted);
    assert!(found.answers.starts.keys().all(|it| it.node == "one"));
    assert_eq!(only(&found).start, Start::Starts);
    tainted["tolerations"] = json!([{"key": "db", "operator": "Exists"}]);
    let image = only(&inventory(&tainted));
    assert_eq!(image.start, Start::OnlyOn);
    // Its volume may keep it off the node that lacks the image.
    tainted["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "v"}}]);
    let image = only(&inventory(&tainted));
    assert_eq!(image.start, Start::Unknown);
    assert!(image.why.contains("its volumes may lead it"), "{image:?}");
}

#[test]
fn a_rewritten_pod_is_restored_to_an_original_that_its_node_has() {
    let pod = || bound("10.96.0.50/r.io/unknown:1", "one");
    let has_original = |question: &Question| Known::from(question.image == "r.io/unknown:1");
    let image = only(&asked(cluster(vec![("Pod", pod())]), has_original));
    assert_eq!(
        (image.start, image.verdict),
        (Start::StartsHealed, Verdict::OnNodes)
    );
    // Healing leaves pods alone that opt out.
    let mut out = pod();
    out["metadata"]["labels"] = json!({"holdfast.dev/rewrite": "disabled"});
    let image = only(&asked(cluster(vec![("Pod", out)]), has_original));
    assert_eq!(image.start, Start::WouldNot);
    let mut off = cluster(vec![("Pod", pod())]);
    off.own.controller = Known::No;
    assert_eq!(only(&asked(off, has_original)).start, Start::WouldNot);
}

#[test]
fn a_new_pod_gets_the_name_that_the_webhook_chooses() {
    let spec = spec("r.io/unknown:1", SOME);
    let new = || cluster(vec![deployment("shop", "web", &spec)]);
    let original = |question: &Question| Known::from(question.image == "r.io/unknown:1");
    let local = |question: &Question| Known::from(question.image != "r.io/unknown:1");
    let mut inventory = new();
    inventory.account_secrets = Some(BTreeMap::new());
    inventory.healing.mode = HealingMode::None;
    inventory.failure_policy = FailurePolicy::Fail;
    // The webhook does not know yet that the upstream is away.
    let image = only(&asked(inventory, original));
    assert_eq!(image.start, Start::Unknown);
    assert!(image.why.contains("depends on whether"), "{image:?}");
    let mut inventory = new();
    inventory.account_secrets = Some(BTreeMap::new());
    inventory.healing.mode = HealingMode::None;
    let mut known = delivery(&[]);
    known.on_all_nodes = ["r.io/unknown:1"].into_iter().collect();
    inventory.delivery = Some(known);
    // It does not rewrite images that nodes have.
    assert_eq!(only(&asked(inventory, original)).start, Start::Starts);
    let mut inventory = new();
    inventory.account_secrets = Some(BTreeMap::new());
    assert_eq!(only(&asked(inventory, local)).start, Start::StartsHealed);
}

#[test]
fn nothing_is_local_if_the_registry_does_not_start() {
    let mut inventory = cluster(vec![("Pod", bound("10.96.0.50/r.io/local:1", "one"))]);
    assert_eq!(only(&inventory).start, Start::Starts);
    inventory.own.registry = Known::No;
    let image = only(&inventory);
    assert_eq!(image.start, Start::WouldNot);
    assert!(image.why.contains("registry itself"), "{image:?}");
}

#[test]
fn a_lost_node_is_replaced_by_an_empty_one() {
    let here = |image: &str, node: &str| {
        let mut pod = bound(image, node);
        pod["metadata"]["ownerReferences"] = owned("Deployment", "web");
        pod
    };
    let site = |image: &str, node: &str| {
        let owner = deployment("shop", "web", &spec(image, SOME));
        let mut bare = bound("r.io/refused:1", "one");
        bare["metadata"]["uid"] = json!("bare");
        let mut inventory = cluster(vec![owner, ("Pod", here(image, node)), ("Pod", bare)]);
        inventory.lost = Some("one".to_owned());
        inventory.account_secrets = Some(BTreeMap::new());
        inventory
    };
    // Each node has it, but the new one is empty.
    let inventory = asked(site("r.io/everywhere:1", "one"), |_| Known::Yes);
    assert!(inventory.answers.starts.keys().all(|it| it.node != "one"));
    let image = only(&inventory);
    assert_eq!(image.start, Start::OnlyOn, "{image:?}");
    let inventory = asked(held(site("r.io/local:1", "one"), Known::Yes), |_| Known::No);
    assert!(only(&inventory).start >= Start::StartsHealed);
    // What runs elsewhere goes on.
    let elsewhere = asked(site("r.io/everywhere:1", "two"), |_| Known::No);
    assert!(decide(&elsewhere).owners.is_empty());
}
