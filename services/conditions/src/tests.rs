//! The default expression and others over tables of pods (SPEC 9, 10), and what is refused, with
//! its place.

use super::*;
use holdfast_config::DEFAULT_MATCH_CONDITION;
use serde_json::json;

fn pod(namespace: &str, labels: serde_json::Value) -> serde_json::Value {
    let mut pod = json!({
        "metadata": { "name": "p", "namespace": namespace },
        "spec": { "priority": 5, "containers": [{ "name": "c", "image": "nginx" }] }
    });
    if !labels.is_null() {
        pod["metadata"]["labels"] = labels;
    }
    pod
}

fn check(expression: &str, pod: &serde_json::Value, expect: Result<bool, &str>) {
    let answer = evaluate(expression, pod, &Facts::of_pod(pod)).map_err(|error| error.to_string());
    match (&answer, expect) {
        (Ok(answer), Ok(expect)) => assert_eq!(*answer, expect, "{expression} for {pod}"),
        (Err(text), Err(part)) => assert!(text.contains(part), "{expression}: {text}"),
        _ => panic!("{expression} for {pod}: {answer:?}, expected {expect:?}"),
    }
}

// SPEC 9
#[test]
fn kube_system_is_left_out_but_for_three_labels() {
    for (namespace, labels, expect) in [
        ("default", json!(null), true),
        ("default", json!({"app": "x"}), true),
        ("kube-public", json!(null), true),
        ("kube-system-2", json!(null), true),
        ("kube-system", json!(null), false),
        ("kube-system", json!({}), false),
        ("kube-system", json!({"app": "coredns"}), false),
        ("kube-system", json!({"name": "coredns"}), false),
        ("kube-system", json!({"app": "commissioning"}), true),
        ("kube-system", json!({"app": "descheduler"}), true),
        ("kube-system", json!({"name": "cert-exporter"}), true),
        (
            "kube-system",
            json!({"app": "x", "name": "cert-exporter"}),
            true,
        ),
        ("kube-system", json!({"app": "cert-exporter"}), false),
        ("kube-system", json!({"name": "commissioning"}), false),
        ("kube-system", json!({"k8s-app": "descheduler"}), false),
    ] {
        check(DEFAULT_MATCH_CONDITION, &pod(namespace, labels), Ok(expect));
    }
}

// SPEC 10
#[test]
fn any_other_condition_is_evaluated() {
    let pod = pod("team", json!({"app": "web", "tier": "front"}));
    for (expression, expect) in [
        ("true", Ok(true)),
        ("!(object.metadata.namespace in ['a', 'team'])", Ok(false)),
        (
            "object.spec.containers.exists(c, c.image.startsWith('nginx'))",
            Ok(true),
        ),
        (
            "object.spec.containers.all(c, c.image.matches('^registry[.]'))",
            Ok(false),
        ),
        (
            "object.metadata.labels['app'] == 'web' && 'tier' in object.metadata.labels",
            Ok(true),
        ),
        ("has(object.metadata.annotations)", Ok(false)),
        ("object.spec.priority + 1 == 6", Ok(true)),
        ("object.spec.priority > 3 ? true : false", Ok(true)),
        ("size(object.spec.containers) == 1", Ok(true)),
        (
            "request.namespace == 'team' && request.operation == 'CREATE'",
            Ok(true),
        ),
        ("request.userInfo.username.startsWith('system:')", Ok(false)),
        ("request.resource.resource == 'pods'", Ok(true)),
        ("oldObject == null", Ok(true)),
        (
            "object.metadata.?annotations[?'x'].orValue('none') == 'none'",
            Ok(true),
        ),
        (
            "object.?metadata.?labels.?app.orValue('none') == 'web'",
            Ok(true),
        ),
        (
            "object.metadata.?annotations.orValue({}).size() == 0",
            Ok(true),
        ),
        ("'team'.upperAscii() == 'TEAM'", Ok(true)),
        (
            "object.metadata.annotations.x == 'y'",
            Err("cannot be evaluated"),
        ),
        ("object.metadata.namespace", Err("true or false")),
        (
            "authorizer.group('').resource('pods').check('create').allowed()",
            Err("authorizer"),
        ),
    ] {
        check(expression, &pod, expect);
    }
}

// SPEC 10
#[test]
fn what_is_no_condition_is_refused_with_its_position() {
    for (expression, part) in [
        ("", "empty"),
        ("   ", "empty"),
        ("object.metadata.namespace ==", "line 1, column "),
        ("(object.metadata.namespace != 'x'", "line 1, column "),
        ("true &&\n  && false", "line 2, column 3"),
        ("object.metadata.namespace = 'x'", "line 1, column 27"),
        ("true)", "line 1, column 5"),
        ("'unfinished", "line 1, column "),
        (
            "pod.metadata.namespace == 'x'",
            "undeclared variable \"pod\"",
        ),
        (
            "object.spec.containers.exists(c, d.image == 'x')",
            "undeclared variable \"d\"",
        ),
        ("1", "true or false"),
        ("'text'", "true or false"),
        ("[true]", "true or false"),
        ("{'a': true}", "true or false"),
        (&"a".repeat(MAX_EXPRESSION_BYTES + 1), "longer than"),
    ] {
        let error = Condition::parse(expression)
            .expect_err(expression)
            .to_string();
        assert!(error.contains(part), "{expression}: {error}");
    }
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    let deep = format!("{}true{}", "(".repeat(2000), ")".repeat(2000));
    assert!(Condition::parse(&deep).is_err());
}

#[test]
fn what_is_nested_too_deep_is_refused_before_it_is_parsed() {
    let nested = |levels: usize| format!("{}true{}", "(".repeat(levels), ")".repeat(levels));
    assert!(Condition::parse(&nested(60)).is_ok());
    assert_eq!(Condition::parse(&nested(97)).unwrap_err(), Error::TooDeep);
    let choices = "true ? true : ".repeat(97) + "true";
    assert_eq!(Condition::parse(&choices).unwrap_err(), Error::TooDeep);
    let brackets = format!("object.metadata.name != '{}'", "(".repeat(200));
    assert!(Condition::parse(&brackets).is_ok());
    let absent = "object.metadata.?name.orValue('a') != 'b' && ".repeat(80) + "true";
    assert!(!matches!(Condition::parse(&absent), Err(Error::TooDeep)));
}

// SPEC 10
#[test]
fn a_field_that_is_absent_at_creation_is_named() {
    let check = |expression: &str, expect: Option<&str>| {
        let found = Condition::parse(expression).unwrap().check_creation();
        let expect = expect.map(|path| Error::AbsentAtCreation(path.to_owned()));
        assert_eq!(found.err(), expect, "{expression}");
    };
    for (expression, path) in [
        ("object.metadata.name != 'skip'", "object.metadata.name"),
        (
            "!object.metadata.name.startsWith('x')",
            "object.metadata.name",
        ),
        ("object.metadata['name'] != 'skip'", "object.metadata.name"),
        ("object.metadata.uid != 'x'", "object.metadata.uid"),
        ("object.spec.nodeName != 'edge'", "object.spec.nodeName"),
        ("object.status.phase == 'Pending'", "object.status.phase"),
        (
            "object.metadata.namespace == 'team' && object.metadata.name != 'skip'",
            "object.metadata.name",
        ),
        (
            "object.metadata.namespace != 'team' || [object.metadata.name].exists(n, n == 'a')",
            "object.metadata.name",
        ),
    ] {
        check(expression, Some(path));
    }
    for expression in [
        DEFAULT_MATCH_CONDITION,
        "true",
        "has(object.metadata.name) && object.metadata.name != 'skip'",
        "!has(object.metadata.name) || object.metadata.name != 'skip'",
        "object.metadata.?name.orValue('') != 'skip'",
        "request.name != 'skip'",
        "object.metadata.generateName != 'skip'",
        // Nobody knows which labels the pods have.
        "object.metadata.labels.tier == 'front'",
        "object.metadata.labels['tier'] == 'front'",
        "object.metadata.annotations.note == 'x'",
        "authorizer.group('').resource('pods').check('create').allowed()",
        "futureFunction(object.metadata.name)",
    ] {
        check(expression, None);
    }
    let text = Condition::parse("object.metadata.generateName").unwrap();
    assert_eq!(text.check_creation(), Err(Error::NotACondition));
}
