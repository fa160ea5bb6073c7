//! Chains of owners, and kinds that may not be read.

use super::*;
use serde_json::json;

#[test]
fn only_a_refusal_of_the_api_server_hides_a_kind() {
    let status = |code: u16| {
        Box::new(kube::core::Status {
            code,
            message: "no".to_owned(),
            ..kube::core::Status::default()
        })
    };
    for (code, expect) in [
        (403, true),
        (404, true),
        (405, true),
        (401, false),
        (410, false),
        (500, false),
    ] {
        let list = watcher::Error::InitialListFailed(kube::Error::Api(status(code)));
        assert_eq!(refusal(&list).is_some(), expect, "{code}");
        assert_eq!(
            refusal(&watcher::Error::WatchError(status(code))).is_some(),
            expect,
            "{code}"
        );
    }
    assert!(refusal(&watcher::Error::NoResourceVersion).is_none());
}

#[test]
fn an_owner_is_kept_without_unused_metadata() {
    let mut object = json!({"metadata": {"name": "web", "namespace": "apps"}});
    object["metadata"]["managedFields"] = json!([{"manager": "kubectl", "operation": "Update"}]);
    object["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": "{}"});
    let raw: Raw = serde_json::from_value(object).unwrap();
    assert_eq!(raw.metadata.name.as_deref(), Some("web"));
    let text = raw.object.to_string();
    assert!(
        !text.contains("managedFields") && !text.contains("annotations"),
        "{text}"
    );
    assert!(serde_json::from_value::<Raw>(json!({"metadata": "x"})).is_err());
}
