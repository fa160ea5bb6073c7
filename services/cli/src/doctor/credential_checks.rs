//! Checks of Kubernetes that have no effect on rewritten images, because nodes pull local images
//! with their own credential. They are notes: there is nothing to repair.

use super::policy_dry_run::DryRun;
use super::report::Report;

/// The kubelet's policy under which it verifies pull secrets of images that a node has.
const NEVER: &str = "NeverVerify";

/// The notes. `kubelet` is the policy of a kubelet that could be asked. `by_namespace`: pods are
/// sent to the registry only where their namespace may have the image.
pub(super) fn diagnose(
    dry_runs: &[DryRun],
    kubelet: Option<&str>,
    by_namespace: bool,
    report: &mut Report,
) {
    let read_more = "docs/operate/policies.md says what that means";
    if by_namespace {
        if dry_runs.iter().any(|dry_run| dry_run.pulls_always) {
            report.notes.push(format!(
                "for rewritten images the credential of the namespace decides (access.privateImages=namespace), not the \
                 pull secrets of the single pod as with AlwaysPullImages alone; {read_more}"
            ));
        }
        return;
    }
    if dry_runs.iter().any(|dry_run| dry_run.pulls_always) {
        report.notes.push(format!(
            "the admission plug-in AlwaysPullImages checks nothing for rewritten images: every node may pull every \
             local image, also private ones of other namespaces; {read_more}"
        ));
    }
    match kubelet {
        Some(policy) if !policy.is_empty() && policy != NEVER => report.notes.push(format!(
            "the kubelets' imagePullCredentialsVerificationPolicy is {policy}: for rewritten images it verifies the \
             nodes' own credential, not the pods' pull secrets; {read_more}"
        )),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy_dry_run::Outcome;
    use super::*;

    #[test]
    fn checks_without_effect_are_notes_and_no_problem() {
        let dry_run = |pulls_always| DryRun {
            namespace: "a".to_owned(),
            source: "r.io/a:1".to_owned(),
            outcome: Outcome::Passes,
            pulls_always,
        };
        for (always, policy, notes) in [
            (false, None, 0),
            (false, Some(""), 0),
            (false, Some("NeverVerify"), 0),
            (true, None, 1),
            (true, Some("NeverVerifyPreloadedImages"), 2),
        ] {
            let mut report = Report::default();
            let dry_runs = [dry_run(always), dry_run(always)];
            diagnose(&dry_runs, policy, false, &mut report);
            assert_eq!(report.notes.len(), notes, "{always} {policy:?}");
            assert_eq!(report.answer(), holdfast_cli_kit::exit_status::Answer::Yes);
            let mut report = Report::default();
            diagnose(&dry_runs, policy, true, &mut report);
            assert_eq!(report.notes.len(), usize::from(always), "{policy:?}");
        }
    }
}
