//! A validating policy that allows only the original registries: pods start nevertheless, and
//! `holdfast doctor` names the policy.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::images::unique;
use crate::kube::{self, images};
use crate::objects::Pod;
use crate::site::{Namespace, PRIVATE, Pushed, START, Site};
use crate::tests::operator::{Ended, holdfast};
use crate::wait::eventually;
use crate::world::World;

/// Until owners' controllers have tried again often enough: their pauses grow.
const OWNER_RETRY_TIMEOUT: Duration = Duration::from_secs(120);
/// A policy that is gone is noticed after pauses of one, two, four minutes.
const POLICY_RETEST_TIMEOUT: Duration = Duration::from_secs(300);

/// A policy over the namespaces with this label that allows the upstreams' references only, and its
/// binding.
fn policy(site: &Site, name: &str) -> [Value; 2] {
    let allowed = format!(
        "object.spec.containers.all(c, c.image.startsWith('{}/') || c.image.startsWith('{PRIVATE}/'))",
        site.plain.host
    );
    let object = |kind: &str, spec: Value| json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    [
        object(
            "ValidatingAdmissionPolicy",
            json!({
                "failurePolicy": "Fail",
                "matchConstraints": {
                    "namespaceSelector": {"matchLabels": {"e2e.holdfast.dev/policy": name}},
                    "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["pods"]}],
                },
                "validations": [{"expression": allowed, "message": "only images of the original registries"}],
            }),
        ),
        object(
            "ValidatingAdmissionPolicyBinding",
            json!({"policyName": name, "validationActions": ["Deny"]}),
        ),
    ]
}

/// The policy, gone when this ends.
struct Policy<'a> {
    site: &'a Site,
    name: String,
}

impl<'a> Policy<'a> {
    fn make(site: &'a Site, test: &Namespace<'_>) -> Result<Self> {
        let name = format!("original-registries-{}", unique()?);
        let label = format!("e2e.holdfast.dev/policy={name}");
        site.kube.run(&["label", "namespace", &test.name, &label])?;
        site.kube.apply(&policy(site, &name))?;
        let policy = Self { site, name };
        let refused = Pod::new("probe", "registry.elsewhere.test/app:1").build(&test.name);
        eventually(START, || {
            ensure!(
                site.kube.dry_run(&refused).is_err(),
                "the policy does not hold yet"
            );
            Ok(())
        })?;
        Ok(policy)
    }

    fn delete(&self) -> Result<()> {
        for kind in [
            "validatingadmissionpolicybinding",
            "validatingadmissionpolicy",
        ] {
            self.site.kube.delete(&[kind, &self.name])?;
        }
        Ok(())
    }
}

impl Drop for Policy<'_> {
    fn drop(&mut self) {
        drop(self.delete());
    }
}

fn doctor(site: &Site, program: &PathBuf, namespace: &str) -> Result<Ended> {
    holdfast(site, program, &["doctor", "-n", namespace])
}

/// Whether the doctor finds this policy at fault.
fn names(answer: &Ended, policy: &str) -> bool {
    let findings = answer.json["findings"].as_array();
    findings.into_iter().flatten().any(|finding| {
        let what = finding["what"].as_str().unwrap_or_default();
        what.contains(policy) && what.contains("refuses")
    })
}

/// Waits until the pods of every owner run with the upstream's references.
fn all_run(site: &Site, test: &Namespace<'_>, owners: &[(&str, &Pushed, usize)]) -> Result<()> {
    for (name, image, count) in owners {
        let label = format!("app={name}");
        let pods = site
            .kube
            .wait_ready(&test.name, &label, *count, OWNER_RETRY_TIMEOUT)
            .with_context(|| format!("{name}, which the policy refused when it was rewritten"))?;
        for pod in pods {
            let found = images(&pod, "containers");
            ensure!(
                found == [image.reference.clone()],
                "{} has {found:?}",
                kube::name(&pod)
            );
        }
    }
    Ok(())
}

pub(super) fn a_policy_that_allows_only_original_registries_breaks_no_pod(
    world: &mut World,
) -> Result<()> {
    let program = world.tools.holdfast.clone();
    let site = world.site()?;
    site.needs_nodes()?;
    site.installed()?;
    let push = |name: &str| site.push(&site.plain, &format!("policy/{name}"), 1, 1000);
    let (web, set, daemon, job, late) = (
        push("web")?,
        push("set")?,
        push("daemon")?,
        push("job")?,
        push("late")?,
    );
    let (test, other) = (site.namespace()?, site.namespace()?);
    let pod = |name: &str, image: &Pushed| Pod::new(name, &image.reference);
    other.create(&pod("web", &web))?;
    site.kube.copied(&other.name, &web.reference, START)?;
    // Other tests may leave pods of Holdfast on their way.
    eventually(START, || {
        doctor(site, &program, &other.name)?.expect(0).map(drop)
    })
    .context("before there is a policy")?;

    let policy = Policy::make(site, &test)?;
    let nodes = site.workers()?.len();
    site.kube.apply(&[
        pod("web", &web).deployment(&test.name, 2),
        pod("set", &set).stateful_set(&test.name, 1),
        pod("daemon", &daemon).daemon_set(&test.name),
        pod("job", &job).job(&test.name, false),
    ])?;
    let owners = [
        ("web", &web, 2),
        ("set", &set, 1),
        ("daemon", &daemon, nodes),
        ("job", &job, 1),
    ];
    all_run(site, &test, &owners)?;
    // From now on also pods without an owner, which nothing recreates.
    test.create(&pod("late", &late))
        .context("a pod that nobody owns")?;
    site.kube.running(&test.name, "late", START)?;
    // They are copied, for the day on which the policy lets them pass; until then it is said that
    // they need the uplink.
    site.kube.copied(&test.name, &late.reference, START)?;
    let diff = holdfast(site, &program, &["diff", "offline", "-n", &test.name])?.expect(1)?;
    ensure!(
        diff.text.contains(&policy.name),
        "diff does not say why: {}",
        diff.text
    );
    let found = doctor(site, &program, &test.name)?.expect(1)?;
    ensure!(
        names(&found, &policy.name),
        "not named: {}\n{}",
        policy.name,
        found.text
    );
    let elsewhere = doctor(site, &program, &other.name)?;
    let rewritten = site.kube.dry_run(&pod("next", &web).build(&other.name))?;
    ensure!(
        images(&rewritten, "containers") == [site.local(&web.reference)?],
        "another namespace is not rewritten: {}",
        elsewhere.text
    );

    policy.delete()?;
    let local = site.local(&web.reference)?;
    eventually(POLICY_RETEST_TIMEOUT, || {
        let pod = site.kube.dry_run(&pod("next", &web).build(&test.name))?;
        let found = images(&pod, "containers");
        ensure!(found == [local.clone()], "it is not rewritten: {found:?}");
        Ok(())
    })
    .context("the policy is gone")?;
    eventually(START, || {
        let answer = doctor(site, &program, &test.name)?.expect(0)?;
        ensure!(!names(&answer, &policy.name), "{}", answer.text);
        Ok(())
    })
}
