//! Keys of labels and annotations, and the values that Holdfast gives them.

/// Annotation on pods: a JSON object from `containers/NAME`, `initContainers/NAME` or `volumes/NAME` to the original reference.
pub const ORIGINAL_IMAGES: &str = "holdfast.dev/original-images";
/// Annotation on pods whose images were set back, healed or restored: [`crate::history::ImageHistory`] as JSON.
pub const IMAGE_HISTORY: &str = "holdfast.dev/image-history";
/// Label on pods and namespaces; the value [`REWRITE_DISABLED`] opts out.
pub const REWRITE: &str = "holdfast.dev/rewrite";
/// The value of [`REWRITE`] that opts out.
pub const REWRITE_DISABLED: &str = "disabled";

/// Label on Artifacts whose images are wanted though nothing that lives names them; its value says who wants them.
pub const KEEP: &str = "holdfast.dev/keep";
/// The value of [`KEEP`] where somebody asked for the image (`holdfast preload`).
pub const KEEP_ASKED: &str = "asked";
/// The value of [`KEEP`] where the values list the image (`preload.images`).
pub const KEEP_VALUES: &str = "values";

/// Who keeps an object up to date.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The release an object belongs to.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// The application's name; `holdfast` for everything of ours.
pub const NAME: &str = "app.kubernetes.io/name";
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
