//! Which images are wanted: read from lists, manifests and the objects of a namespace. Pure. What
//! cannot be read is refused with its place and never guessed.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::artifact::MAX_SOURCE_BYTES;
use holdfast_api::{Artifact, labels};
use holdfast_config::yaml;
use holdfast_core::meaning::{self, Meaning, meaning};
use holdfast_core::pod;
use holdfast_core::workload::{self, WorkloadKind, pod_template, text};
use serde::Serialize;
use serde_json::{Value, json};

/// Places of one image that are named.
const NAMED_PLACES: usize = 5;
/// Why an image with a long name is refused.
const TOO_LONG: &str = "is too long for the cluster's registry or an Artifact";

/// Everything that was read.
#[derive(Debug, Default)]
pub struct WantedImages {
    /// By namespace, where one is said, and canonical reference: where it is named.
    pub wanted: BTreeMap<(Option<String>, String), BTreeSet<String>>,
    /// What names no image that can be copied.
    pub refused: Vec<Refused>,
    /// What is left out on purpose.
    pub skipped: Vec<Refused>,
    /// Objects that may need images of which nothing is known: custom kinds without a pod's
    /// template, and images that a workflow sets when it runs.
    pub unknown: Vec<Refused>,
    /// The registry's own addresses: images there are read back to their upstream.
    addresses: Vec<String>,
}

/// A text that is no image to copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Where it stands: `images.txt:3`, `Deployment/web in app.yaml`.
    pub from: String,
    /// The text as it was written.
    pub text: String,
    /// Why it was refused or skipped.
    pub why: String,
}

impl WantedImages {
    /// Nothing was read yet; `addresses` are the registry's own.
    pub fn new(addresses: Vec<String>) -> Self {
        Self {
            addresses,
            ..Self::default()
        }
    }

    /// Takes one reference as it is written somewhere.
    pub fn image(&mut self, written: &str, namespace: Option<&str>, from: &str) {
        let meaning = meaning(written, None, &self.addresses);
        self.meant(written, &meaning, namespace, from);
    }

    fn meant(&mut self, written: &str, meaning: &Meaning, namespace: Option<&str>, from: &str) {
        let why = match meaning {
            Meaning::Unreadable(error) => format!("is no reference: {error}"),
            Meaning::Own { .. } => "names the cluster's own registry and no upstream".to_owned(),
            Meaning::TooLong { .. } => TOO_LONG.to_owned(),
            Meaning::Upstream { reference, .. }
            | Meaning::Placeholder { reference, .. }
            | Meaning::Restored { reference }
            | Meaning::Local { reference } => {
                let source = reference.to_string();
                if source.len() <= MAX_SOURCE_BYTES {
                    let places = self
                        .wanted
                        .entry((namespace.map(str::to_owned), source))
                        .or_default();
                    if places.len() < NAMED_PLACES {
                        places.insert(from.to_owned());
                    }
                    return;
                }
                TOO_LONG.to_owned()
            }
        };
        self.refused.push(Refused {
            from: from.to_owned(),
            text: written.chars().take(200).collect(),
            why,
        });
    }

    /// A list: one reference a line; what follows a `#` is a remark.
    pub fn list(&mut self, text: &str, name: &str) {
        for (index, line) in yaml::without_marks(text).lines().enumerate() {
            let line = line.split_once('#').map_or(line, |(before, _)| before);
            let line = line.trim();
            if !line.is_empty() {
                self.image(line, None, &format!("{name}:{}", index + 1));
            }
        }
    }

    /// Manifests: YAML or JSON, any number of documents, lists, and objects of unknown kinds that
    /// hold a pod's template somewhere.
    pub fn manifests(&mut self, text: &str, name: &str) {
        match yaml::documents(text) {
            Ok(documents) => {
                for document in &documents {
                    self.document(document, name);
                }
            }
            Err(error) => {
                let advice = if text.contains("{{") {
                    "; a Helm template must be rendered first: helm template … | holdfast preload --from-manifests -"
                } else {
                    ""
                };
                self.refused.push(Refused {
                    from: name.to_owned(),
                    text: String::new(),
                    why: format!("is no YAML: {error}{advice}"),
                });
            }
        }
    }

    fn document(&mut self, document: &Value, name: &str) {
        if let Some(items) = document.get("items").and_then(Value::as_array)
            && text(document, "/kind").ends_with("List")
        {
            for item in items {
                self.document(item, name);
            }
            return;
        }
        let namespace = Some(text(document, "/metadata/namespace")).filter(|name| !name.is_empty());
        self.object(
            text(document, "/kind"),
            document,
            namespace,
            &format!(" in {name}"),
        );
    }

    /// The images of one object, named `Kind/name` and `place`.
    pub fn object(&mut self, kind: &str, object: &Value, namespace: Option<&str>, place: &str) {
        let from = format!("{kind}/{}{place}", text(object, "/metadata/name"));
        let api_version = text(object, "/apiVersion");
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let is_workload = |known: &WorkloadKind| api_version.is_empty() || known.group == group;
        if workload::by_name(kind).is_some_and(is_workload) {
            if let Some(template) = pod_template(kind, object) {
                self.template(template, namespace, &from);
            }
        } else if kind != "CustomResourceDefinition" {
            let found =
                workload::custom_templates(api_version, kind, object).unwrap_or_else(|| {
                    let mut found = Vec::new();
                    templates_within(object, &mut found);
                    if found.is_empty() && !never_has_pods(group) {
                        self.unknown.push(Refused {
                            from: from.clone(),
                            text: api_version.to_owned(),
                            why: "is of a kind whose images are not known".to_owned(),
                        });
                    }
                    found
                });
            for template in found {
                self.template(&template, namespace, &from);
            }
        }
    }

    fn template(&mut self, template: &Value, namespace: Option<&str>, from: &str) {
        let of_pod = if labels::opts_out(template) {
            Some("its pods opt out of the registry")
        } else if pod::is_windows(template) {
            Some("its pods run on Windows nodes, which do not use the registry")
        } else {
            None
        };
        for found in meaning::of_pod(template, &self.addresses) {
            let (image, meaning) = (found.image, found.meaning);
            // Argo fills such parameters in.
            if image.image.contains("{{") {
                self.unknown.push(Refused {
                    from: from.to_owned(),
                    text: image.image,
                    why: "is known when it runs only".to_owned(),
                });
                continue;
            }
            let skip = if of_pod.is_some() {
                of_pod
            } else if image.pull_policy.as_deref() == Some("Never") {
                Some("imagePullPolicy is Never")
            } else if meaning.is_reserved_word() {
                Some("another webhook replaces this word by an image")
            } else {
                None
            };
            match skip {
                Some(why) => self.skipped.push(Refused {
                    from: from.to_owned(),
                    text: image.image,
                    why: why.to_owned(),
                }),
                None => self.meant(&image.image, &meaning, namespace, from),
            }
        }
    }
}

/// Whether no kind of this group has pods, except the workloads that are read: the groups of
/// Kubernetes and of its projects (`networking.k8s.io`), and Holdfast's own.
fn never_has_pods(group: &str) -> bool {
    !group.contains('.')
        || group.ends_with(".k8s.io")
        || group == <Artifact as kube::Resource>::group(&())
}

/// Everything within an object of an unknown kind that looks like a pod: containers with images.
fn templates_within(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(fields) => {
            if is_pod_spec(value) {
                found.push(json!({"spec": value}));
                return;
            }
            for (key, field) in fields {
                if key == "spec" && is_pod_spec(field) {
                    found.push(value.clone());
                } else {
                    templates_within(field, found);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                templates_within(item, found);
            }
        }
        _ => {}
    }
}

fn is_pod_spec(value: &Value) -> bool {
    ["containers", "initContainers"].into_iter().any(|list| {
        let containers = value.get(list).and_then(Value::as_array);
        containers
            .into_iter()
            .flatten()
            .any(|container| container.get("image").is_some_and(Value::is_string))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_images() -> WantedImages {
        WantedImages::new(vec!["10.96.0.50".to_owned()])
    }

    fn listed(wanted: &WantedImages) -> Vec<String> {
        wanted
            .wanted
            .iter()
            .map(|((namespace, source), from)| {
                let from: Vec<_> = from.iter().map(String::as_str).collect();
                let namespace = namespace.clone().unwrap_or_else(|| "-".to_owned());
                format!("{namespace} {source} <{}>", from.join(", "))
            })
            .collect()
    }

    #[test]
    fn a_list_names_each_image_once_and_bad_lines_by_their_number() {
        let mut wanted = no_images();
        let list = "# for the night shift\n nginx:1.27 # web\n\ndocker.io/library/nginx:1.27\n10.96.0.50/r.io/app:1\n10.96.0.50/holdfast/probe:1\nsome thing\nhttps://r.io/app:2\n";
        wanted.list(list, "images.txt");
        assert_eq!(
            listed(&wanted),
            [
                "- docker.io/library/nginx:1.27 <images.txt:2, images.txt:4>",
                "- r.io/app:1 <images.txt:5>",
                "- r.io/app:2 <images.txt:8>",
            ]
        );
        let refused: Vec<_> = wanted
            .refused
            .iter()
            .map(|refused| (refused.from.as_str(), refused.text.as_str()))
            .collect();
        assert_eq!(
            refused,
            [
                ("images.txt:6", "10.96.0.50/holdfast/probe:1"),
                ("images.txt:7", "some thing")
            ]
        );
    }

    #[test]
    fn manifests_of_every_shape_are_read() {
        let mut wanted = no_images();
        let manifests = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec: {template: {spec: {initContainers: [{name: i, image: init:1}], containers: [{name: c, image: web:1}]}}}
---
# nothing
---
apiVersion: v1
kind: List
items:
- kind: CronJob
  metadata: {name: night}
  spec: {suspend: true, jobTemplate: {spec: {template: {spec: {containers: [{name: c, image: night:1}]}}}}}
- kind: Pod
  metadata: {name: bare}
  spec: {containers: [{name: c, image: 'bad image'}], volumes: [{name: v, image: {reference: data:1}}]}
---
kind: Rollout
metadata: {name: canary}
spec: {template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: canary:1}]}}}
---
kind: Workflow
metadata: {name: steps}
spec: {templates: [{name: one, container: {image: ignored:1}}, {name: two, podSpec: {containers: [{name: c, image: step:1}]}}]}
---
kind: CustomResourceDefinition
metadata: {name: x}
spec: {containers: [{image: not-an-image:1}]}
---
kind: ConfigMap
metadata: {name: text}
data: {image: not-an-image:1}
";
        wanted.manifests(manifests, "app.yaml");
        assert_eq!(
            listed(&wanted),
            [
                "- docker.io/library/canary:1 <Rollout/canary in app.yaml>",
                "- docker.io/library/data:1 <Pod/bare in app.yaml>",
                "- docker.io/library/night:1 <CronJob/night in app.yaml>",
                "- docker.io/library/step:1 <Workflow/steps in app.yaml>",
                "shop docker.io/library/init:1 <Deployment/web in app.yaml>",
                "shop docker.io/library/web:1 <Deployment/web in app.yaml>",
            ]
        );
        assert_eq!(wanted.refused.len(), 1, "{:?}", wanted.refused);
        assert_eq!(wanted.refused[0].text, "bad image");
    }

    #[test]
    fn custom_kinds_are_read_or_named_as_unknown() {
        let mut wanted = no_images();
        let manifests = r"
apiVersion: batch.volcano.sh/v1alpha1
kind: Job
metadata: {name: train}
spec: {tasks: [{template: {spec: {containers: [{name: c, image: train:1}]}}}]}
---
apiVersion: argoproj.io/v1alpha1
kind: Workflow
metadata: {name: steps}
spec: {templates: [{name: a, container: {image: step:1}}, {name: b, script: {image: '{{inputs.parameters.image}}'}}]}
---
apiVersion: example.com/v1
kind: Database
metadata: {name: db}
spec: {version: 16}
---
apiVersion: example.com/v1
kind: Engine
metadata: {name: e}
spec: {template: {spec: {containers: [{name: c, image: engine:1}]}}}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}}
- {apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: i}}
- {apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: r}}
- {apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {name: h}}
- {apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: x}}
- {apiVersion: holdfast.dev/v1alpha1, kind: Artifact, metadata: {name: a}}
";
        wanted.manifests(manifests, "m");
        assert_eq!(
            listed(&wanted),
            [
                "- docker.io/library/engine:1 <Engine/e in m>",
                "- docker.io/library/step:1 <Workflow/steps in m>",
                "- docker.io/library/train:1 <Job/train in m>",
            ]
        );
        let unknown: Vec<_> = wanted.unknown.iter().map(|it| it.from.as_str()).collect();
        assert_eq!(unknown, ["Workflow/steps in m", "Database/db in m"]);
        assert!(wanted.refused.is_empty(), "{:?}", wanted.refused);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_list_or_a_manifest() {
        let mut wanted = no_images();
        wanted.list("\u{feff}a:1\n", "list");
        wanted.manifests(
            "\u{feff}kind: Pod\nmetadata: {name: p}\nspec: {containers: [{image: b:1}]}\n",
            "m",
        );
        wanted.manifests(
            "\u{feff}{\"kind\": \"Pod\", \"spec\": {\"containers\": [{\"image\": \"c:1\"}]}}",
            "j",
        );
        assert_eq!(listed(&wanted).len(), 3, "{wanted:?}");
        assert!(wanted.refused.is_empty(), "{:?}", wanted.refused);
    }

    #[test]
    fn json_is_read_as_well() {
        let mut wanted = no_images();
        wanted.manifests(
            r#"{"kind": "PodList", "items": [{"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "a:1"}]}}]}"#,
            "pods.json",
        );
        assert_eq!(
            listed(&wanted),
            ["- docker.io/library/a:1 <Pod/p in pods.json>"]
        );
    }

    #[test]
    fn what_never_pulls_or_opts_out_is_left_out_and_said() {
        let mut wanted = no_images();
        wanted.manifests(
            "kind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: a:1, imagePullPolicy: Never}]}\n---\n\
             kind: Pod\nmetadata: {name: q, labels: {holdfast.dev/rewrite: disabled}}\nspec: {containers: [{name: c, image: b:1}]}\n",
            "f",
        );
        assert!(wanted.wanted.is_empty());
        let why: Vec<_> = wanted
            .skipped
            .iter()
            .map(|skipped| skipped.why.as_str())
            .collect();
        assert_eq!(
            why,
            [
                "imagePullPolicy is Never",
                "its pods opt out of the registry"
            ]
        );
    }

    #[test]
    fn words_of_other_webhooks_and_windows_are_left_out_and_said() {
        let mut wanted = no_images();
        wanted.manifests(
            "kind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: auto}, {name: d, image: nginx}]}\n---\n\
             kind: Pod\nmetadata: {name: q}\nspec: {os: {name: windows}, containers: [{name: c, image: b:1}]}\n",
            "f",
        );
        assert_eq!(
            listed(&wanted),
            ["- docker.io/library/nginx:latest <Pod/p in f>"]
        );
        let skipped: Vec<_> = wanted
            .skipped
            .iter()
            .map(|skipped| skipped.text.as_str())
            .collect();
        assert_eq!(skipped, ["auto", "b:1"]);
    }

    #[test]
    fn a_template_that_was_not_rendered_says_what_to_do() {
        let mut wanted = no_images();
        wanted.manifests(
            "kind: Pod\nspec: {{ toYaml .Values.spec }}\n  x: [",
            "templates/pod.yaml",
        );
        assert!(
            wanted.refused[0].why.contains("helm template"),
            "{:?}",
            wanted.refused
        );
    }
}
