//! When an upstream is asked who may have an image, what its answer changes, and the list that
//! follows.

use super::*;
use holdfast_api::secret::SecretString;
use kube::ResourceExt as _;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn answer(answer: Access, second: i64) -> ArtifactAccess {
    ArtifactAccess {
        answer,
        time: Time(at(second)),
    }
}

#[test]
fn an_answer_is_renewed_daily_and_a_refusal_hourly() {
    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;
    let instant = Instant::now();
    let known = Asked {
        credentials: Some(1),
        ..Asked::default()
    };
    let check = |last: Option<(Access, i64)>, asked: &Asked, refused, expect: bool| {
        let last = last.map(|(access, age)| answer(access, 10 * DAY - age));
        let due = is_due(
            last.as_ref(),
            asked,
            Some(1),
            refused,
            (at(10 * DAY), instant),
        );
        assert_eq!(due, expect, "{last:?} {asked:?} {refused}");
    };
    for access in [Access::Public, Access::Configured, Access::Proved] {
        check(Some((access, DAY - 1)), &known, false, false);
        check(Some((access, DAY)), &known, false, true);
        // After a start the last answer stands.
        check(Some((access, DAY - 1)), &Asked::default(), false, false);
        // The registry was just refused the image.
        check(Some((access, 1)), &known, true, true);
        // The clock was wrong when it was written.
        check(Some((access, -1)), &known, false, true);
    }
    check(Some((Access::Denied, HOUR - 1)), &known, false, false);
    check(Some((Access::Denied, HOUR - 1)), &known, true, false);
    check(Some((Access::Denied, HOUR)), &known, false, true);
    check(Some((Access::Denied, 1)), &Asked::default(), false, true);
    check(None, &Asked::default(), false, true);
    let changed = Asked {
        credentials: Some(2),
        ..Asked::default()
    };
    let further = Asked {
        further: true,
        ..known.clone()
    };
    for asked in [changed, further] {
        check(Some((Access::Proved, 1)), &asked, false, true);
        check(Some((Access::Denied, 1)), &asked, false, true);
    }
    // What nothing names at the moment brings no credential to ask with.
    for (access, age, expect) in [
        (Access::Proved, DAY, false),
        (Access::Proved, 7 * DAY, true),
        (Access::Public, DAY, true),
        (Access::Denied, 1, false),
    ] {
        let last = answer(access, 10 * DAY - age);
        for asked in [&known, &Asked::default()] {
            let due = is_due(Some(&last), asked, None, false, (at(10 * DAY), instant));
            assert_eq!(due, expect, "{access:?} {age} {asked:?}");
        }
    }
    // An upstream that does not answer is not asked at every look.
    let unanswered = Asked {
        at: Some(instant),
        ..known
    };
    check(None, &unanswered, false, false);
    check(Some((Access::Proved, 2 * DAY)), &unanswered, false, false);
}

#[test]
fn an_upstream_that_does_not_answer_changes_nothing() {
    let status = |access| ArtifactStatus {
        access,
        ..ArtifactStatus::default()
    };
    let now = Timestamp::new(50, 7).unwrap();
    for (before, said, expect) in [
        (None, Access::Unknown, None),
        (None, Access::Proved, Some((Access::Proved, 50))),
        (
            Some((Access::Proved, 1)),
            Access::Unknown,
            Some((Access::Proved, 1)),
        ),
        (
            Some((Access::Proved, 1)),
            Access::Denied,
            Some((Access::Denied, 50)),
        ),
        (
            Some((Access::Denied, 1)),
            Access::Public,
            Some((Access::Public, 50)),
        ),
    ] {
        let of = |it: Option<(Access, i64)>| status(it.map(|(access, at)| answer(access, at)));
        assert_eq!(
            answered(of(before), said, now),
            of(expect),
            "{before:?} {said:?}"
        );
    }
}

#[test]
fn another_password_is_another_credential() {
    let credential = |password: &str| Credential {
        username: "u".to_owned(),
        password: SecretString::from(password),
        identity_token: false,
    };
    assert_eq!(hash(&[credential("a")]), hash(&[credential("a")]));
    assert_ne!(hash(&[credential("a")]), hash(&[credential("b")]));
    assert_ne!(hash(&[credential("a")]), hash(&[]));
}

/// Artifacts by namespace, source and what the upstream answered.
fn listed<'a>(
    artifacts: impl IntoIterator<Item = (&'a str, String, Access)>,
) -> (AccessList, usize) {
    let all: Vec<(Key, Arc<Artifact>)> = artifacts
        .into_iter()
        .map(|(namespace, source, access)| {
            let mut artifact = Artifact::of_source(&source);
            artifact.status = Some(ArtifactStatus {
                access: (access != Access::Unknown).then(|| answer(access, 1)),
                ..ArtifactStatus::default()
            });
            let key = (namespace.to_owned(), artifact.name_any());
            (key, Arc::new(artifact))
        })
        .collect();
    list(all.iter().map(|(key, artifact)| (key, artifact)))
}

#[test]
fn only_what_an_upstream_gave_is_listed() {
    let (list, refused) = listed([
        ("a", "nginx".to_owned(), Access::Public),
        ("b", "docker.io/library/nginx:2".to_owned(), Access::Public),
        ("a", "r.io/ours/base:1".to_owned(), Access::Configured),
        ("a", "r.io/a/app:1".to_owned(), Access::Proved),
        ("a", "r.io/a/app:2".to_owned(), Access::Denied),
        ("b", "r.io/a/app:1".to_owned(), Access::Denied),
        ("b", "r.io/b/app:1".to_owned(), Access::Unknown),
        ("b", "r.io/ours/base:1".to_owned(), Access::Proved),
        ("b", "not an image".to_owned(), Access::Public),
    ]);
    let everybody = ["docker.io/library/nginx", "r.io/ours/base"];
    assert_eq!(list.everybody, everybody.map(str::to_owned).into());
    let a = ("a".to_owned(), ["r.io/a/app".to_owned()].into());
    assert_eq!((list.namespaces, refused), ([a].into(), 0));
}

#[test]
fn the_bytes_of_a_list_are_bounded_by_namespace_and_in_total() {
    let name = |namespace: &str, number: usize| format!("r.io/{namespace}/{number:0>150}:1");
    let of = |namespace: &'static str, count, access| {
        (0..count).map(move |number| (namespace, name(namespace, number), access))
    };
    // One namespace with far too many of both kinds: another one's two stay.
    let loud = of("loud", 900, Access::Proved).chain(of("public", 900, Access::Public));
    let (list, refused) = listed(loud.chain(of("quiet", 2, Access::Proved)));
    assert_eq!(list.namespaces["quiet"].len(), 2);
    let bytes = |list: &AccessList| serde_json::to_string(list).unwrap().len();
    let own = list.namespaces["loud"].len();
    assert!(own > 150 && own < 900, "{own}");
    let one = AccessList {
        namespaces: [("loud".to_owned(), list.namespaces["loud"].clone())].into(),
        ..AccessList::default()
    };
    // Beside the names there are the keys of the document.
    assert!(bytes(&one) <= MAX_LIST_BYTES_OF_NAMESPACE + 40);
    assert_eq!(refused, 1802 - own - list.everybody.len() - 2);

    // All namespaces together: everybody has nearly the same share.
    let names: Vec<String> = (0..40).map(|number| format!("n{number:02}")).collect();
    let all = names
        .iter()
        .flat_map(|namespace| (0..100).map(move |number| (namespace, number)))
        .map(|(namespace, number)| (namespace.as_str(), name(namespace, number), Access::Proved));
    let (list, refused) = listed(all);
    let shares: BTreeSet<usize> = list.namespaces.values().map(BTreeSet::len).collect();
    assert_eq!(list.namespaces.len(), 40);
    let (least, most) = (shares.first().unwrap(), shares.last().unwrap());
    assert!(most - least <= 1 && *most < 100, "{shares:?}");
    assert!(refused > 0 && bytes(&list) <= MAX_LIST_BYTES + 40);
}
