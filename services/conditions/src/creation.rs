//! Whether a condition needs a field that a pod does not have when it is created.
//!
//! The API server asks for a pod of an owner before it generates the name, and before it sets UID,
//! node and status. A condition that reads such a field fails for these pods, and the failure
//! policy then leaves their images alone. Labels and other fields of users may be absent, too; a
//! condition on them is no mistake.

use kube_cel::cel::common::ast::operators::INDEX;
use kube_cel::cel::common::ast::{Expr, LiteralValue};
use kube_cel::cel::parser::Expression;
use serde_json::{Value, json};

use crate::{Condition, Error, Facts, check};

/// Namespaces of the sample, besides the first: texts of the expression, so that what it says about
/// one namespace is evaluated.
const MAX_NAMESPACES: usize = 32;

impl Condition {
    /// Evaluates the condition for samples of a pod that an owner creates. An error names the field
    /// that is absent then, or says that the condition is not boolean.
    pub fn check_creation(&self) -> Result<(), Error> {
        let mut texts = vec!["default".to_owned()];
        check::visit(&self.expression, &mut |part| {
            if let Expr::Literal(LiteralValue::String(text)) = &part.expr
                && texts.len() < MAX_NAMESPACES
            {
                texts.push(text.inner().to_owned());
            }
        });
        for namespace in texts {
            let (created, stored) = (created(&namespace), stored(&namespace));
            let matches = |pod: &Value| self.matches(pod, &Facts::of_pod(pod));
            match (matches(&created), matches(&stored)) {
                (Err(Error::Evaluation(_)), Ok(_)) => {
                    let field = self.absent_field(&created, &stored);
                    return Err(Error::AbsentAtCreation(field));
                }
                (Err(Error::NotACondition), _) => return Err(Error::NotACondition),
                _ => {}
            }
        }
        Ok(())
    }

    /// The first field of the expression that only the stored pod has.
    fn absent_field(&self, created: &Value, stored: &Value) -> String {
        let mut found = None;
        check::visit(&self.expression, &mut |part| {
            if let Some(path) = path(part)
                && let pointer = format!("/{}", path.join("/"))
                && created.pointer(&pointer).is_none()
                && stored.pointer(&pointer).is_some()
            {
                found.get_or_insert_with(|| format!("object.{}", path.join(".")));
            }
        });
        found.unwrap_or_else(|| "object.metadata.name".to_owned())
    }
}

/// The path of a field below `object`: `object.metadata.name`, `object.metadata['name']`.
fn path(part: &Expression) -> Option<Vec<&str>> {
    let (operand, field) = match &part.expr {
        Expr::Ident(name) => return (name == "object").then(Vec::new),
        Expr::Select(select) if !select.test => (select.operand.as_ref(), select.field.as_str()),
        Expr::Call(call) if call.func_name == INDEX => match call.args.as_slice() {
            [
                operand,
                Expression {
                    expr: Expr::Literal(LiteralValue::String(key)),
                    ..
                },
            ] => (operand, key.inner()),
            _ => return None,
        },
        _ => return None,
    };
    let mut path = path(operand)?;
    path.push(field);
    Some(path)
}

/// A pod as a ReplicaSet creates it, with what the API server sets before it asks webhooks.
fn created(namespace: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "web-5d9c7b8f6-",
            "namespace": namespace,
            "labels": {"app": "web", "pod-template-hash": "5d9c7b8f6"},
            "annotations": {},
            "ownerReferences": [{
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": "web-5d9c7b8f6",
                "uid": "5b2a1c2e-0000-4000-8000-000000000001",
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        },
        "spec": {
            "containers": [{
                "name": "web",
                "image": "registry.example/team/web:1",
                "imagePullPolicy": "IfNotPresent",
                "resources": {},
            }],
            "restartPolicy": "Always",
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default",
            "serviceAccount": "default",
            "schedulerName": "default-scheduler",
            "securityContext": {},
            "terminationGracePeriodSeconds": 30,
            "enableServiceLinks": true,
            "preemptionPolicy": "PreemptLowerPriority",
            "priority": 0,
            "tolerations": [],
            "volumes": [],
        },
        "status": {},
    })
}

/// The same pod once it is stored and runs.
fn stored(namespace: &str) -> Value {
    let mut pod = created(namespace);
    let later = [
        ("/metadata", "name", json!("web-5d9c7b8f6-x2x7k")),
        (
            "/metadata",
            "uid",
            json!("5b2a1c2e-0000-4000-8000-000000000002"),
        ),
        ("/metadata", "resourceVersion", json!("1")),
        (
            "/metadata",
            "creationTimestamp",
            json!("2026-01-01T00:00:00Z"),
        ),
        ("/spec", "nodeName", json!("node-1")),
        ("/status", "phase", json!("Running")),
        ("/status", "podIP", json!("10.0.0.1")),
        ("/status", "hostIP", json!("192.0.2.1")),
        ("/status", "qosClass", json!("BestEffort")),
    ];
    for (parent, key, value) in later {
        if let Some(fields) = pod.pointer_mut(parent).and_then(Value::as_object_mut) {
            fields.insert(key.to_owned(), value);
        }
    }
    pod
}
