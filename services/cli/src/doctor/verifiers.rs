//! Policies that verify signatures by the name of an image, and whether their patterns match
//! rewritten names. One whose patterns do not match verifies nothing, without an error.
//!
//! Known are Kyverno (`ClusterPolicy`, `Policy`, `ImageValidatingPolicy` and its namespaced twin)
//! and the policy controller of sigstore (`ClusterImagePolicy`). Other verifiers keep their
//! patterns in their own configuration, which cannot be listed. Patterns that are not globs are
//! reported without a judgement.

use std::collections::BTreeMap;

use holdfast_api::labels;
use holdfast_cli_kit::cluster::{self, Listed, Resource};
use holdfast_cli_kit::finding::Code;
use holdfast_core::workload::text;
use holdfast_core::{Reference, rewrite};
use kube::Client;
use serde_json::Value;

use super::api::Fetched;
use super::report::Report;
use super::upstreams::prefix;

/// A kind of policy that verifies images.
#[derive(Debug)]
struct Kind {
    group: &'static str,
    /// The versions in which it was ever served, the newest first.
    versions: &'static [&'static str],
    plural: &'static str,
    /// What people call it.
    called: &'static str,
    form: Form,
}

/// Where a policy has its patterns, and what is special in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `verifyImages` of rules.
    Rules,
    /// `matchImageReferences`: globs, and expressions of CEL.
    References,
    /// `images` of sigstore. A `*` stops at a slash.
    Images,
}

const KINDS: &[Kind] = &[
    Kind {
        group: "kyverno.io",
        versions: &["v1", "v2beta1"],
        plural: "clusterpolicies",
        called: "Kyverno ClusterPolicy",
        form: Form::Rules,
    },
    Kind {
        group: "kyverno.io",
        versions: &["v1", "v2beta1"],
        plural: "policies",
        called: "Kyverno Policy",
        form: Form::Rules,
    },
    Kind {
        group: "policies.kyverno.io",
        versions: &["v1", "v1beta1", "v1alpha1"],
        plural: "imagevalidatingpolicies",
        called: "Kyverno ImageValidatingPolicy",
        form: Form::References,
    },
    Kind {
        group: "policies.kyverno.io",
        versions: &["v1", "v1beta1"],
        plural: "namespacedimagevalidatingpolicies",
        called: "Kyverno NamespacedImageValidatingPolicy",
        form: Form::References,
    },
    Kind {
        group: "policy.sigstore.dev",
        versions: &["v1beta1", "v1alpha1"],
        plural: "clusterimagepolicies",
        called: "sigstore ClusterImagePolicy",
        form: Form::Images,
    },
];

/// Images, and patterns that are not understood, shown of one policy.
const SHOWN: usize = 3;
/// Characters shown of a pattern that is not understood.
const PATTERN_SHOWN: usize = 80;

/// What one part of a policy verifies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Scope {
    /// Globs of the images.
    patterns: Vec<String>,
    /// Globs of those that are left out again.
    skips: Vec<String>,
}

/// A policy and the images that it verifies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Verifier {
    /// Its kind and name.
    name: String,
    /// The namespace whose pods it is for; empty: all.
    namespace: String,
    scopes: Vec<Scope>,
    /// Patterns that are not understood here, as the policy writes them.
    unread: Vec<String>,
    /// Whether some of these tell what it does not verify.
    unread_skips: bool,
    /// Whether `*` stops at a slash.
    by_path: bool,
}

/// Every policy that verifies images. A kind that the cluster does not have is no policy.
pub(super) async fn fetch(client: &Client) -> Fetched<Vec<Verifier>> {
    let mut found = Vec::new();
    for kind in KINDS {
        match list(client, kind).await {
            Ok(Listed::Items(items)) => {
                found.extend(items.iter().filter_map(|item| verifier(item, kind)));
            }
            Ok(Listed::Unknown) => {}
            Ok(Listed::Forbidden) => return Err(format!("{} may not be listed", kind.plural)),
            Err(error) => return Err(format!("{error:#}")),
        }
    }
    Ok(found)
}

/// All policies of a kind, in the newest version that the cluster serves.
async fn list(client: &Client, kind: &Kind) -> anyhow::Result<Listed> {
    for version in kind.versions {
        let resource = Resource {
            group: kind.group,
            version,
            plural: kind.plural,
        };
        match cluster::list(client, resource, None).await? {
            Listed::Unknown => {}
            known => return Ok(known),
        }
    }
    Ok(Listed::Unknown)
}

fn verifier(policy: &Value, kind: &Kind) -> Option<Verifier> {
    let mut verifier = Verifier {
        namespace: text(policy, "/metadata/namespace").to_owned(),
        by_path: kind.form == Form::Images,
        ..Verifier::default()
    };
    match kind.form {
        Form::Rules => {
            for rule in list_at(policy, "/spec/rules") {
                for verify in list_at(rule, "/verifyImages") {
                    verifier.read_rule(verify);
                }
            }
        }
        Form::References => verifier.read(list_at(policy, "/spec/matchImageReferences"), kind.form),
        Form::Images => verifier.read(list_at(policy, "/spec/images"), kind.form),
    }
    if verifier.scopes.is_empty() && verifier.unread.is_empty() {
        return None;
    }
    let (called, name) = (kind.called, text(policy, "/metadata/name"));
    verifier.name = if verifier.namespace.is_empty() {
        format!("{called} {name}")
    } else {
        format!("{called} {}/{name}", verifier.namespace)
    };
    Some(verifier)
}

fn list_at<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

/// Whether a pattern is a glob of the kind that is known here.
fn is_glob(pattern: &str, form: Form) -> bool {
    match form {
        // Variables are filled in at each admission.
        Form::Rules => !pattern.contains("{{"),
        // Sets of characters and alternatives.
        Form::References => !pattern.contains(['[', '{', '\\']),
        Form::Images => pattern
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_:/*.".contains(c)),
    }
}

/// A glob as sigstore reads it: these two are short for images of Docker Hub.
fn glob_of_images(glob: &str) -> String {
    match glob {
        "*" => "index.docker.io/library/*".to_owned(),
        "*/*" => "index.docker.io/*/*".to_owned(),
        other => other.to_owned(),
    }
}

impl Verifier {
    /// Reads an entry of `verifyImages`.
    fn read_rule(&mut self, verify: &Value) {
        let mut scope = Scope::default();
        for (key, into) in [
            ("/imageReferences", &mut scope.patterns),
            ("/skipImageReferences", &mut scope.skips),
        ] {
            for pattern in list_at(verify, key) {
                match pattern.as_str() {
                    Some(glob) if is_glob(glob, Form::Rules) => into.push(glob.to_owned()),
                    _ => {
                        self.unread.push(pattern.to_string());
                        self.unread_skips |= key == "/skipImageReferences";
                    }
                }
            }
        }
        // The older spelling, for one image.
        let image = text(verify, "/image");
        if !image.is_empty() {
            scope.patterns.push(image.to_owned());
        }
        if !scope.patterns.is_empty() {
            self.scopes.push(scope);
        }
    }

    /// Reads a list of patterns that each say of what form they are.
    fn read(&mut self, images: &[Value], form: Form) {
        let mut scope = Scope::default();
        for image in images {
            match text(image, "/glob") {
                "" => self.unread.push(image.to_string()),
                glob if !is_glob(glob, form) => self.unread.push(glob.to_owned()),
                glob if form == Form::Images => scope.patterns.push(glob_of_images(glob)),
                glob => scope.patterns.push(glob.to_owned()),
            }
        }
        if !scope.patterns.is_empty() {
            self.scopes.push(scope);
        }
    }

    /// Whether it verifies an image that is written in any of these ways, by the patterns that are
    /// understood.
    fn verifies(&self, spellings: &[String]) -> bool {
        let fit = |patterns: &[String]| {
            let mut patterns = patterns.iter();
            patterns.any(|pattern| self.fits(pattern, spellings))
        };
        let mut scopes = self.scopes.iter();
        scopes.any(|scope| fit(&scope.patterns) && !fit(&scope.skips))
    }

    fn fits(&self, pattern: &str, spellings: &[String]) -> bool {
        let pattern: Vec<char> = pattern.chars().collect();
        spellings.iter().any(|spelling| {
            let spelling: Vec<char> = spelling.chars().collect();
            matches(&pattern, &spelling, self.by_path)
        })
    }

    /// Its patterns, for people.
    fn patterns(&self) -> String {
        let scopes = self.scopes.iter();
        let all: Vec<&str> = scopes
            .flat_map(|scope| &scope.patterns)
            .map(String::as_str)
            .collect();
        all.join(", ")
    }
}

/// Glob: `?` is one character, `*` any number of them; with `by_path` `*` stops at a slash and `**`
/// does not.
fn matches(pattern: &[char], text: &[char], by_path: bool) -> bool {
    // Whether the pattern up to here matches the text up to each place.
    let mut row = vec![false; text.len() + 1];
    row[0] = true;
    let mut rest = pattern;
    while let [first, tail @ ..] = rest {
        let (wide, tail) = match (first, tail) {
            ('*', ['*', tail @ ..]) => (true, tail),
            _ => (!by_path, tail),
        };
        let mut next = vec![false; text.len() + 1];
        for at in 0..=text.len() {
            let before = at.checked_sub(1).and_then(|before| text.get(before));
            next[at] = match (first, before) {
                ('*', Some(letter)) => row[at] || (next[at - 1] && (wide || *letter != '/')),
                ('*', None) => row[at],
                ('?', Some(_)) => row[at - 1],
                (wanted, Some(letter)) => row[at - 1] && wanted == letter,
                (_, None) => false,
            };
        }
        (row, rest) = (next, tail);
    }
    row.last().copied().unwrap_or_default()
}

/// How an image of an upstream may be written: policies differ in what they make of short names.
fn spellings(source: &Reference) -> Vec<String> {
    let full = source.to_string();
    let mut found = vec![full.clone()];
    if let Some(path) = full.strip_prefix("docker.io/") {
        found.extend([path.to_owned(), format!("index.docker.io/{path}")]);
        if let Some(name) = path.strip_prefix("library/") {
            found.extend([name.to_owned(), format!("docker.io/{name}")]);
        }
    }
    without_suffix(&mut found, &source.suffix());
    found
}

fn without_suffix(found: &mut Vec<String>, suffix: &str) {
    let bare: Vec<String> = found
        .iter()
        .filter_map(|name| name.strip_suffix(suffix).map(str::to_owned))
        .collect();
    found.extend(bare);
}

/// One finding for each policy that verified images of wanted upstreams and does not match their
/// rewritten names. `sources` are images with the namespaces that want them.
pub(super) fn diagnose<'a>(
    verifiers: &Fetched<Vec<Verifier>>,
    sources: impl Iterator<Item = (&'a str, &'a str)> + Clone,
    address: &str,
    report: &mut Report,
) {
    let verifiers = match verifiers {
        Ok(verifiers) => verifiers,
        Err(why) => {
            let what = "whether policies that verify images match rewritten names";
            return report.unknown.push(format!("{what}: {why}"));
        }
    };
    for verifier in verifiers {
        let applies_to =
            |namespace: &str| verifier.namespace.is_empty() || verifier.namespace == namespace;
        // By prefix: the images that slipped out.
        let mut missed: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut undecided = Vec::new();
        for (namespace, source) in sources.clone() {
            let Ok(source) = Reference::parse(source) else {
                continue;
            };
            let Some(rewritten) = rewrite::rewrite(&source, address) else {
                continue;
            };
            let mut local = vec![rewritten];
            without_suffix(&mut local, &source.suffix());
            if !applies_to(namespace) {
                continue;
            }
            if verifier.verifies(&local) && !verifier.unread_skips {
                continue;
            }
            if !verifier.unread.is_empty() {
                undecided.push(source.to_string());
            } else if verifier.verifies(&spellings(&source))
                && let Some(prefix) = prefix(&source, address)
            {
                missed.entry(prefix).or_default().push(source.to_string());
            }
        }
        if !undecided.is_empty() {
            report.unknown.push(unread_message(verifier, &undecided));
        }
        if !missed.is_empty() {
            report_missed(verifier, &missed, report);
        }
    }
}

/// The first of them.
fn first(images: &[String]) -> String {
    let shown = images.get(..SHOWN).unwrap_or(images).join(", ");
    let more = if images.len() > SHOWN { ", …" } else { "" };
    format!("{shown}{more}")
}

fn unread_message(verifier: &Verifier, images: &[String]) -> String {
    let short = |pattern: &String| -> String { pattern.chars().take(PATTERN_SHOWN).collect() };
    let unread: Vec<String> = verifier.unread.iter().map(short).collect();
    format!(
        "whether {} matches the names that pods have after rewriting ({}): it has patterns that \
         are not understood here, {}",
        verifier.name,
        first(images),
        first(&unread)
    )
}

fn report_missed(verifier: &Verifier, missed: &BTreeMap<String, Vec<String>>, report: &mut Report) {
    let images: Vec<String> = missed.values().flatten().cloned().collect();
    let prefixes: Vec<String> = missed.keys().map(|prefix| format!("{prefix}**")).collect();
    report.find(
        Code::VerifierMissesNames,
        format!(
            "{} verifies {} and does not match the names that pods have after rewriting ({}): \
             they may run unverified",
            verifier.name,
            verifier.patterns(),
            first(&images)
        ),
        format!(
            "add {} to its patterns, with credentials and the CA of the registry where the \
             verifier asks it for signatures, or opt such namespaces out (label {}={}); \
             docs/operate/policies.md says more",
            prefixes.join(", "),
            labels::REWRITE,
            labels::REWRITE_DISABLED
        ),
    );
}

#[cfg(test)]
mod tests;
