//! Rules that concern several keys, and unknown keys below foreign types.

use serde_json::Value;

use crate::network::Home;
use crate::problem::{self, Problem};
use crate::{Error, Result, Values};

const EXTENSION: &str = "networkfunctionextension";

/// Checks a raw document with a schema before it is read into types. Paths in errors open with
/// `prefix`.
pub(crate) fn document(
    validator: &jsonschema::Validator,
    document: &Value,
    prefix: &str,
) -> Result<()> {
    let mut problems = misspelt(document, prefix);
    if problems.is_empty() {
        problems = problem::problems(validator, document, prefix);
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::Invalid(problems))
    }
}

/// Keys under `global` that are meant to be ours: the schema refuses them too, but gives no hint.
fn misspelt(document: &Value, prefix: &str) -> Vec<Problem> {
    let keys = document
        .get("global")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, _)| key);
    let hint = |key: &String| Problem {
        path: format!("{prefix}global.{key}"),
        message: format!("unknown key, did you mean global.{EXTENSION}?"),
    };
    keys.filter(|key| is_near_miss(key)).map(hint).collect()
}

impl Values {
    /// Checks what concerns several keys. Paths in errors open with `prefix`.
    pub fn validate(&self, prefix: &str) -> Result<()> {
        let mut problems = Vec::new();
        let mut refuse = |path: &str, message: String| {
            problems.push(Problem {
                path: format!("{prefix}{path}"),
                message,
            });
        };
        let extension = &self.global.networkfunctionextension;
        let registry = &extension.cluster_registry;
        let legacy = &self.network_function_extension;

        if extension.enable_early_loading && !self.cluster_registry_enabled() {
            refuse(
                "global.networkfunctionextension.enableEarlyLoading",
                "needs global.networkfunctionextension.enableClusterRegistry=true".to_owned(),
            );
        }
        if legacy.enable == Some(false) && extension.enable_cluster_registry {
            refuse(
                "networkFunctionExtension.EnableManagedInClusterEdgeRegistry",
                "contradicts global.networkfunctionextension.enableClusterRegistry=true; remove the older key".to_owned(),
            );
        }
        let default = crate::ClusterRegistry::default().storage_size;
        if registry.storage_size != default && self.storage_size() != registry.storage_size {
            refuse(
                "networkFunctionExtension.EdgeRegistrySizeInGB",
                format!(
                    "contradicts global.networkfunctionextension.clusterRegistry.storageSize={}; remove the older key",
                    registry.storage_size
                ),
            );
        }
        self.check_parts(&mut refuse);
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Error::Invalid(problems))
        }
    }
}

impl Values {
    fn check_parts(&self, refuse: &mut dyn FnMut(&str, String)) {
        for (part, replicas, ha) in [
            ("registry", self.registry.replicas, self.ha()),
            ("webhook", self.webhook.replicas, self.webhook_ha()),
        ] {
            if ha && replicas.is_some_and(|count| count < 3) {
                refuse(
                    &format!("{part}.replicas"),
                    "high availability needs three to five".to_owned(),
                );
            }
        }
        if !self.ha() && self.registry.replicas.is_some_and(|count| 1 < count) {
            refuse(
                "registry.replicas",
                "one without high availability".to_owned(),
            );
        }
        if self.only_listed_upstreams && self.upstreams.is_empty() {
            refuse(
                "onlyListedUpstreams",
                "needs upstreams; list the hosts that may be copied".to_owned(),
            );
        }
        Home::Release.check(&self.upstreams, refuse);
        self.registry.access.check("registry.access", refuse);
        self.registry.limits.check("registry.limits", refuse);
        if self.system_nodes.required && self.system_nodes.selector.is_empty() {
            refuse(
                "systemNodes.required",
                "needs systemNodes.selector".to_owned(),
            );
        }
        let folder = format!(
            "{}/",
            self.node_agent.host_folders.config.trim_end_matches('/')
        );
        let path = &self.node_agent.containerd_config_path;
        if !path.is_empty() && !path.starts_with(&folder) {
            refuse(
                "nodeAgent.containerdConfigPath",
                format!("must lie in nodeAgent.hostFolders.config ({folder})"),
            );
        }
    }
}

/// Whether a key under the open `global` is `networkfunctionextension` but for case, separators and
/// one slip.
fn is_near_miss(key: &str) -> bool {
    let plain: String = key
        .chars()
        .filter(|letter| !matches!(letter, '-' | '_' | '.'))
        .collect();
    key != EXTENSION && distance(&plain.to_ascii_lowercase(), EXTENSION) <= 1
}

/// The regular expression of keys that are refused, the right key included: what [`is_near_miss`]
/// says, for the schema and the chart.
pub fn global_key_pattern() -> String {
    let letters: Vec<String> = EXTENSION
        .chars()
        .map(|letter| format!("[{letter}{}][-_.]*", letter.to_ascii_uppercase()))
        .collect();
    let (any, none) = ("[^-_.][-_.]*", "");
    let joined = |range: &[String]| range.concat();
    let mut forms = vec![letters.concat()];
    for slip in 0..letters.len() {
        let (before, after) = letters.split_at(slip);
        let rest = after.get(1..).unwrap_or_default();
        forms.push(format!("{}{any}{}", joined(before), joined(after)));
        forms.push(format!("{}({any}|{none}){}", joined(before), joined(rest)));
    }
    forms.push(format!("{}{any}", letters.concat()));
    format!("^[-_.]*({})$", forms.join("|"))
}

/// The number of letters to insert, remove or replace to make `left` of `right`.
pub(crate) fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, letter) in left.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, other) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}
