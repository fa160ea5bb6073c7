//! On which nodes the scheduler may put a pod, as far as the pod and the node alone decide it:
//! taints, `nodeSelector` and the required node affinity. Pure.
//!
//! Taints that Kubernetes or Holdfast sets for a time do not count: after a power cut they are gone
//! or elsewhere.

use std::collections::BTreeMap;

use holdfast_api::labels::NOT_READY_TAINT;
use serde_json::Value;

use crate::judge::Known;

/// Taints of the state of a node; kubelets and controllers set and remove them.
const STATE_TAINTS: [&str; 2] = ["node.kubernetes.io/", "node.cloudprovider.kubernetes.io/"];

/// What the scheduler reads of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) name: String,
    labels: BTreeMap<String, String>,
    /// Key, value and effect.
    taints: Vec<(String, String, String)>,
}

impl Place {
    /// Reads a node.
    pub(crate) fn of(node: &Value) -> Self {
        let text = |value: &Value, key: &str| field(value, key).to_owned();
        let labels = node.pointer("/metadata/labels").and_then(Value::as_object);
        let labels = labels.into_iter().flatten();
        Self {
            name: node.pointer("/metadata/name").map_or("", string).to_owned(),
            labels: labels
                .map(|(key, value)| (key.clone(), string(value).to_owned()))
                .collect(),
            taints: list(node.pointer("/spec/taints"))
                .filter(|taint| matches!(field(taint, "effect"), "NoSchedule" | "NoExecute"))
                .map(|taint| {
                    (
                        text(taint, "key"),
                        text(taint, "value"),
                        text(taint, "effect"),
                    )
                })
                .filter(|(key, _, _)| {
                    key != NOT_READY_TAINT
                        && !STATE_TAINTS.iter().any(|prefix| key.starts_with(prefix))
                })
                .collect(),
        }
    }

    /// Whether the node takes the pod.
    pub(crate) fn admits(&self, pod: &Value) -> Known {
        let taints = self.taints.iter().map(|taint| tolerates(pod, taint));
        all(taints)
            .min(self.is_selected(pod))
            .min(self.has_affinity(pod))
    }

    fn is_selected(&self, pod: &Value) -> Known {
        let selector = pod.pointer("/spec/nodeSelector").and_then(Value::as_object);
        let mut selector = selector.into_iter().flatten();
        let is_equal = |(key, value): (&String, &Value)| {
            self.labels.get(key).map(String::as_str) == Some(string(value))
        };
        selector.all(is_equal).into()
    }

    fn has_affinity(&self, pod: &Value) -> Known {
        let required = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution";
        let Some(required) = pod.pointer(required).filter(|value| !value.is_null()) else {
            return Known::Yes;
        };
        let terms = list(required.get("nodeSelectorTerms")).map(|term| self.is_term(term));
        // One of the terms is enough.
        terms.max().unwrap_or(Known::No)
    }

    fn is_term(&self, term: &Value) -> Known {
        let name = Some(&self.name);
        let labels = list(term.get("matchExpressions")).map(|expression| {
            let label = self.labels.get(field(expression, "key"));
            matches_expression(expression, label)
        });
        let fields = list(term.get("matchFields")).map(|expression| {
            if field(expression, "key") == "metadata.name" {
                matches_expression(expression, name)
            } else {
                Known::Unknown
            }
        });
        let mut all_of = labels.chain(fields).peekable();
        if all_of.peek().is_none() {
            // A term without conditions selects nothing.
            return Known::No;
        }
        all(all_of)
    }
}

/// Whether the required affinity's condition holds for the value of a label.
fn matches_expression(expression: &Value, value: Option<&String>) -> Known {
    let values = || list(expression.get("values")).map(string);
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |is: fn(&i64, &i64) -> bool| {
        let Some(bound) = values().next().and_then(number) else {
            return Known::Unknown;
        };
        let value = value.and_then(|value| number(value));
        value.is_some_and(|value| is(&value, &bound)).into()
    };
    match field(expression, "operator") {
        "In" => value
            .is_some_and(|value| values().any(|it| it == value))
            .into(),
        "NotIn" => value
            .is_none_or(|value| values().all(|it| it != value))
            .into(),
        "Exists" => value.is_some().into(),
        "DoesNotExist" => value.is_none().into(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => Known::Unknown,
    }
}

/// Whether the pod tolerates a taint.
fn tolerates(pod: &Value, (key, value, effect): &(String, String, String)) -> Known {
    let tolerations = list(pod.pointer("/spec/tolerations"));
    let matching = tolerations
        .filter(|toleration| {
            let (of_key, of_effect) = (field(toleration, "key"), field(toleration, "effect"));
            let is_key = of_key == key || of_key.is_empty() && is_exists(toleration);
            is_key && (of_effect.is_empty() || of_effect == effect)
        })
        .map(|toleration| match field(toleration, "operator") {
            "Exists" => Known::Yes,
            "" | "Equal" => (field(toleration, "value") == value).into(),
            _ => Known::Unknown,
        });
    matching.max().unwrap_or(Known::No)
}

fn is_exists(toleration: &Value) -> bool {
    field(toleration, "operator") == "Exists"
}

/// What else decides where the scheduler puts a pod, and is not judged here; `None` if nothing.
pub(crate) fn other_constraint(pod: &Value) -> Option<&'static str> {
    let spec = pod.get("spec")?;
    let has = |pointer: &str| {
        let value = spec.pointer(pointer);
        value
            .and_then(Value::as_array)
            .is_some_and(|it| !it.is_empty())
    };
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let has_claim = list(spec.get("volumes")).any(|volume| {
        volume.get("persistentVolumeClaim").is_some() || volume.get("ephemeral").is_some()
    });
    let is_spread = list(spec.get("topologySpreadConstraints"))
        .any(|constraint| field(constraint, "whenUnsatisfiable") != "ScheduleAnyway");
    let scheduler = spec.get("schedulerName").map_or("", string);
    if has_claim {
        Some("its volumes")
    } else if has(&format!("/affinity/podAffinity/{required}"))
        || has(&format!("/affinity/podAntiAffinity/{required}"))
    {
        Some("its pod affinity")
    } else if is_spread {
        Some("its topology spread")
    } else if has("/resourceClaims") {
        Some("its resource claims")
    } else if !matches!(scheduler, "" | "default-scheduler") {
        Some("its scheduler")
    } else {
        None
    }
}

fn all(facts: impl Iterator<Item = Known>) -> Known {
    facts.min().unwrap_or(Known::Yes)
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn field<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).map_or("", string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Known::{No, Unknown, Yes};
    use serde_json::json;

    fn place() -> Place {
        Place::of(&json!({
            "metadata": {"name": "one", "labels": {"disk": "ssd", "cores": "8", "zone": "a"}},
            "spec": {"taints": [
                {"key": "dedicated", "value": "db", "effect": "NoSchedule"},
                {"key": "prefer", "effect": "PreferNoSchedule"},
                {"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"},
                {"key": "holdfast.dev/not-ready", "effect": "NoSchedule"},
            ]},
        }))
    }

    fn tolerating(spec: &Value) -> Value {
        let mut pod = json!({"spec": spec});
        pod["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
        pod
    }

    #[test]
    fn a_taint_needs_a_toleration() {
        for (toleration, expect) in [
            (json!({"key": "dedicated", "operator": "Exists"}), Yes),
            (json!({"key": "dedicated", "value": "db"}), Yes),
            (
                json!({"key": "dedicated", "operator": "Equal", "value": "db", "effect": "NoSchedule"}),
                Yes,
            ),
            (json!({"operator": "Exists"}), Yes),
            (json!({"key": "dedicated", "value": "web"}), No),
            (
                json!({"key": "dedicated", "operator": "Exists", "effect": "NoExecute"}),
                No,
            ),
            (json!({"key": "other", "operator": "Exists"}), No),
            (json!({"value": "db"}), No),
            (
                json!({"key": "dedicated", "operator": "Gt", "value": "1"}),
                Unknown,
            ),
        ] {
            let pod = json!({"spec": {"tolerations": [toleration]}});
            assert_eq!(place().admits(&pod), expect, "{toleration}");
        }
        assert_eq!(place().admits(&json!({"spec": {}})), No);
        assert_eq!(Place::default().admits(&json!({"spec": {}})), Yes);
    }

    #[test]
    fn a_selector_needs_all_its_labels() {
        for (selector, expect) in [
            (json!({"disk": "ssd", "zone": "a"}), Yes),
            (json!({"disk": "ssd", "zone": "b"}), No),
            (json!({"gpu": "yes"}), No),
            (json!({}), Yes),
        ] {
            let pod = tolerating(&json!({"nodeSelector": selector}));
            assert_eq!(place().admits(&pod), expect, "{selector}");
        }
    }

    #[test]
    fn a_required_affinity_needs_one_of_its_terms() {
        let label = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        let name = |operator: &str, node: &str| {
            json!({"matchFields": [
                {"key": "metadata.name", "operator": operator, "values": [node]},
            ]})
        };
        for (terms, expect) in [
            (json!([label("disk", "In", &["hdd", "ssd"])]), Yes),
            (json!([label("disk", "In", &["hdd"])]), No),
            (json!([label("gpu", "In", &["a"])]), No),
            (json!([label("disk", "NotIn", &["ssd"])]), No),
            (json!([label("gpu", "NotIn", &["a"])]), Yes),
            (json!([label("disk", "Exists", &[])]), Yes),
            (json!([label("gpu", "Exists", &[])]), No),
            (json!([label("gpu", "DoesNotExist", &[])]), Yes),
            (json!([label("cores", "Gt", &["4"])]), Yes),
            (json!([label("cores", "Gt", &["8"])]), No),
            (json!([label("cores", "Lt", &["9"])]), Yes),
            (json!([label("disk", "Lt", &["9"])]), No),
            (json!([label("cores", "Lt", &["nine"])]), Unknown),
            (json!([label("cores", "Near", &["9"])]), Unknown),
            (json!([name("In", "one")]), Yes),
            (json!([name("In", "two")]), No),
            (json!([name("NotIn", "two")]), Yes),
            (json!([label("gpu", "Exists", &[]), name("In", "one")]), Yes),
            (
                json!([label("gpu", "Exists", &[]), label("a", "Near", &[])]),
                Unknown,
            ),
            (json!([{}]), No),
            (json!([]), No),
        ] {
            let pod = tolerating(&json!({"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms},
            }}}));
            assert_eq!(place().admits(&pod), expect, "{terms}");
        }
        let both = json!({"matchExpressions": [
            {"key": "disk", "operator": "Exists"}, {"key": "gpu", "operator": "Exists"},
        ]});
        let pod = tolerating(&json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [both]},
        }}}));
        assert_eq!(place().admits(&pod), No);
    }

    #[test]
    fn what_is_not_judged_is_named() {
        let terms = json!({"requiredDuringSchedulingIgnoredDuringExecution": [{}]});
        for (spec, expect) in [
            (json!({"volumes": [{"emptyDir": {}}]}), None),
            (
                json!({"volumes": [{"persistentVolumeClaim": {"claimName": "a"}}]}),
                Some("its volumes"),
            ),
            (
                json!({"affinity": {"podAntiAffinity": terms}}),
                Some("its pod affinity"),
            ),
            (
                json!({"topologySpreadConstraints": [{"whenUnsatisfiable": "DoNotSchedule"}]}),
                Some("its topology spread"),
            ),
            (
                json!({"topologySpreadConstraints": [{"whenUnsatisfiable": "ScheduleAnyway"}]}),
                None,
            ),
            (json!({"resourceClaims": [{}]}), Some("its resource claims")),
            (json!({"schedulerName": "default-scheduler"}), None),
            (json!({"schedulerName": "volcano"}), Some("its scheduler")),
        ] {
            assert_eq!(other_constraint(&json!({"spec": spec})), expect, "{spec}");
        }
    }
}
