//! Keys of labels and annotations, their values, and checks of raw objects for them.

use serde_json::Value;

/// Annotation on pods: a JSON object from `containers/NAME`, `initContainers/NAME` or
/// `volumes/NAME` to the original reference.
pub const ORIGINAL_IMAGES: &str = holdfast_core::pod::ORIGINAL_IMAGES_ANNOTATION;
/// Annotation on pods whose images were healed or restored:
/// [`crate::history::ImageHistory`] as JSON.
pub const IMAGE_HISTORY: &str = "holdfast.dev/image-history";
/// Annotation on the registry's and the webhook's pods: when a mounted Secret last changed.
pub const SECRETS_CHANGED: &str = "holdfast.dev/secrets-changed";
/// Annotation on the Secret `F-registry-auth`, with any value: requests a rotation of the node
/// credential and the upload secret. The controller removes it when the rotation begins.
pub const ROTATE: &str = "holdfast.dev/rotate";
/// Annotation on that Secret while a rotation is under way: its phase and since when,
/// `accepted@SECONDS` or `used@SECONDS`.
pub const ROTATION: &str = "holdfast.dev/rotation";
/// Label on pods and namespaces; the value [`REWRITE_DISABLED`] opts out.
pub const REWRITE: &str = "holdfast.dev/rewrite";
/// The value of [`REWRITE`] that opts out.
pub const REWRITE_DISABLED: &str = "disabled";

/// Key of the startup taint, which keeps pods off a node until its agent completed a test pull.
pub const NOT_READY_TAINT: &str = "holdfast.dev/not-ready";

/// Label on Artifacts whose images are wanted even if no pod or workload names them; its value says
/// why.
pub const KEEP: &str = "holdfast.dev/keep";
/// The value of [`KEEP`] after a request for the image (`holdfast preload`).
pub const KEEP_ASKED: &str = "asked";
/// The value of [`KEEP`] for an image of the values (`preload.images`).
pub const KEEP_VALUES: &str = "values";

/// What manages an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The release an object belongs to.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// The application's name; `holdfast` for everything of ours.
pub const NAME: &str = "app.kubernetes.io/name";
/// The application that something is a part of.
pub const PART_OF: &str = "app.kubernetes.io/part-of";
/// The part of the application: one of the `COMPONENT_*` values.
pub const COMPONENT: &str = "app.kubernetes.io/component";

/// The value of [`NAME`].
pub const HOLDFAST: &str = "holdfast";
/// The value of [`MANAGED_BY`] on what the controller makes.
pub const MANAGED_BY_CONTROLLER: &str = "holdfast-controller";
/// The value of [`MANAGED_BY`] on an Artifact that the webhook announced.
pub const MANAGED_BY_WEBHOOK: &str = "holdfast-webhook";
/// The value of [`MANAGED_BY`] on an Artifact that `holdfast preload` made.
pub const MANAGED_BY_PRELOAD: &str = "holdfast-preload";
/// The registry.
pub const COMPONENT_REGISTRY: &str = "registry";
/// The webhook.
pub const COMPONENT_WEBHOOK: &str = "webhook";
/// The controller.
pub const COMPONENT_CONTROLLER: &str = "controller";
/// The node agent.
pub const COMPONENT_NODE_AGENT: &str = "node-agent";

/// Whether a pod, a pod's template or a namespace opts out of rewriting.
pub fn opts_out(object: &Value) -> bool {
    has(object, REWRITE, REWRITE_DISABLED)
}

/// Whether an object belongs to Holdfast itself.
pub fn is_holdfasts(object: &Value) -> bool {
    has(object, PART_OF, HOLDFAST) || has(object, NAME, HOLDFAST)
}

fn has(object: &Value, key: &str, value: &str) -> bool {
    object
        .pointer("/metadata/labels")
        .and_then(|labels| labels.get(key)?.as_str())
        == Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_opt_out_and_mark_objects_of_holdfast() {
        let labelled = |key: &str, value: &str| json!({"metadata": {"labels": {key: value}}});
        for (object, out, own) in [
            (json!({}), false, false),
            (json!({"metadata": {"labels": null}}), false, false),
            (labelled(REWRITE, "disabled"), true, false),
            (labelled(REWRITE, "enabled"), false, false),
            (labelled(PART_OF, "holdfast"), false, true),
            (labelled(NAME, "holdfast"), false, true),
            (labelled(NAME, "other"), false, false),
        ] {
            assert_eq!(
                (opts_out(&object), is_holdfasts(&object)),
                (out, own),
                "{object}"
            );
        }
    }
}
