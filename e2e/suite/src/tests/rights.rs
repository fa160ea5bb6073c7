//! The requests of all parts to the API server in the tests before, by its audit log, compared with
//! their rights.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::wait::Skipped;
use crate::world::World;

/// The table that the chart's tests hold against the rendered roles.
const TABLE: &str = include_str!("../../../../xtask/codegen/rights.json");

/// A row of the table: what a part may do, and which call needs it.
/// `xtask/codegen/tests/chart/rights.rs` says what the fields mean.
#[derive(Deserialize)]
struct Row {
    part: String,
    on: String,
    verbs: String,
    call: String,
    /// Why a run need not show it.
    unseen: Option<String>,
}

/// One verb of a row.
struct Grant<'a> {
    row: &'a Row,
    verb: &'a str,
    /// `cluster`, `own` or `default`.
    place: &'a str,
    /// With the subresource: `pods/eviction`.
    resource: &'a str,
    /// Names that it is held to, without the release's prefix; empty: any.
    names: Vec<&'a str>,
}

/// A release, as its objects are called.
struct Names<'a> {
    namespace: &'a str,
    /// `FULLNAME-`.
    prefix: &'a str,
}

/// What a part asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Request {
    part: String,
    verb: String,
    resource: String,
    namespace: String,
    name: String,
}

/// What follows from table and log, in words.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// Granted, not used, and no reason given.
    unused: Vec<String>,
    /// Not used, with the reason that the table gives.
    excused: Vec<String>,
    /// Used though no row grants it.
    unknown: BTreeSet<String>,
}

pub(super) fn every_granted_verb_is_used_and_no_other(world: &mut World) -> Result<()> {
    let complete = world.complete;
    let site = world.site()?;
    site.needs_own_cluster()?;
    let log = site.cluster.audit_log()?;
    if log.is_empty() {
        return Err(Skipped("the API server of this cluster keeps no audit log").into());
    }
    let prefix = site.release.object("");
    let names = Names {
        namespace: site.release.namespace(),
        prefix: &prefix,
    };
    let rows: Vec<Row> = serde_json::from_str(TABLE).context("the table of rights")?;
    let (allowed, refused) = requests(&log, &names)?;
    for request in &refused {
        println!("  refused: {}", describe(request));
    }
    let verdict = judge(&rows, &allowed, &names);
    for line in verdict.unused.iter().chain(&verdict.excused) {
        println!("  not used: {line}");
    }
    ensure!(
        verdict.unknown.is_empty(),
        "used and in no row of xtask/codegen/rights.json: {:#?}",
        verdict.unknown
    );
    ensure!(
        !complete || verdict.unused.is_empty(),
        "granted and not used by all tests: {:#?}",
        verdict.unused
    );
    Ok(())
}

/// Takes the requests of the release's parts out of an audit log: those that were let through, and
/// those that were refused.
fn requests(log: &str, names: &Names) -> Result<(BTreeSet<Request>, BTreeSet<Request>)> {
    let account = format!("system:serviceaccount:{}:{}", names.namespace, names.prefix);
    let (mut allowed, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).context("a line of the audit log")?;
        let user = event["user"]["username"].as_str().unwrap_or_default();
        let Some(part) = user.strip_prefix(&account) else {
            continue;
        };
        let object = &event["objectRef"];
        // Without one it is not a resource but the version or a discovery document.
        if object.is_null() {
            continue;
        }
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let resource = match object["subresource"].as_str() {
            Some(below) => format!("{}/{below}", text("resource")),
            None => text("resource"),
        };
        let request = Request {
            part: part.to_owned(),
            verb: event["verb"].as_str().unwrap_or_default().to_owned(),
            resource,
            namespace: text("namespace"),
            name: text("name"),
        };
        let decision = &event["annotations"]["authorization.k8s.io/decision"];
        if decision == "allow" {
            allowed.insert(request);
        } else if decision == "forbid" {
            refused.insert(request);
        }
    }
    Ok((allowed, refused))
}

impl<'a> Grant<'a> {
    /// The grants of a row, one a verb.
    fn of(row: &'a Row) -> impl Iterator<Item = Self> {
        let (place, what) = row.on.split_once(": ").unwrap_or(("", &row.on));
        let (resource, names) = what.split_once('[').unwrap_or((what, ""));
        let names = names.trim_end_matches(']');
        row.verbs.split(',').map(move |verb| Self {
            row,
            verb,
            place,
            resource,
            names: names.split(',').filter(|name| !name.is_empty()).collect(),
        })
    }

    fn covers(&self, request: &Request, names: &Names) -> bool {
        let place = match self.place {
            "own" => request.namespace == names.namespace,
            "default" => request.namespace == "default",
            _ => true,
        };
        let name = request.name.strip_prefix(names.prefix);
        place
            && self.row.part == request.part
            && self.verb == request.verb
            && self.resource == request.resource
            && (self.names.is_empty() || name.is_some_and(|name| self.names.contains(&name)))
    }

    /// How little it grants: a request counts for the narrowest grant that covers it.
    fn narrowness(&self) -> (bool, bool) {
        (!self.names.is_empty(), self.place != "cluster")
    }
}

fn judge(rows: &[Row], requests: &BTreeSet<Request>, names: &Names) -> Verdict {
    let mut grants: Vec<Grant> = rows.iter().flat_map(Grant::of).collect();
    grants.sort_by_key(|grant| std::cmp::Reverse(grant.narrowness()));
    let mut used = vec![false; grants.len()];
    let mut verdict = Verdict::default();
    for request in requests {
        let covers = |grant: &Grant| grant.covers(request, names);
        match grants.iter().position(covers) {
            // Two values may add the same grant.
            Some(first) => {
                let width = grants.get(first).map(Grant::narrowness);
                for (grant, used) in grants.iter().zip(&mut used) {
                    *used |= Some(grant.narrowness()) == width && covers(grant);
                }
            }
            None => {
                verdict.unknown.insert(describe(request));
            }
        }
    }
    for (grant, used) in grants.iter().zip(used) {
        let Row { part, on, call, .. } = grant.row;
        let line = format!("{part}, {on} {} ({call})", grant.verb);
        match &grant.row.unseen {
            _ if used => {}
            None => verdict.unused.push(line),
            Some(reason) => verdict.excused.push(format!("{line}: {reason}")),
        }
    }
    verdict
}

fn describe(request: &Request) -> String {
    let Request {
        part,
        verb,
        resource,
        namespace,
        name,
    } = request;
    format!("{part}, {verb} {resource} {namespace}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Names = Names {
        namespace: "sys",
        prefix: "edge-",
    };

    fn row(on: &str, verbs: &str, unseen: Option<&str>) -> Row {
        Row {
            part: "controller".to_owned(),
            on: on.to_owned(),
            verbs: verbs.to_owned(),
            call: "a.rs b".to_owned(),
            unseen: unseen.map(str::to_owned),
        }
    }

    fn event(user: &str, verb: &str, object: &str, decision: &str) -> String {
        format!(
            r#"{{"user":{{"username":"system:serviceaccount:{user}"}},"verb":"{verb}","objectRef":{object},"annotations":{{"authorization.k8s.io/decision":"{decision}"}}}}"#
        )
    }

    fn verdict(rows: &[Row], events: &[String]) -> Verdict {
        let (allowed, _) = requests(&events.join("\n"), &NAMES).expect("a log");
        judge(rows, &allowed, &NAMES)
    }

    #[test]
    fn a_verb_that_nobody_used_is_told_unless_the_table_says_why() {
        let get = r#"{"resource":"secrets","namespace":"a","name":"pull"}"#;
        let events = [event("sys:edge-controller", "get", get, "allow")];
        let rows = [
            row("cluster: secrets", "get,list", None),
            row("cluster: nodes", "patch", Some("no node joins")),
        ];
        let verdict = verdict(&rows, &events);
        assert_eq!(
            verdict.unused,
            ["controller, cluster: secrets list (a.rs b)"]
        );
        assert_eq!(verdict.excused.len(), 1);
        assert!(verdict.unknown.is_empty());
    }

    #[test]
    fn a_request_that_no_row_grants_is_told() {
        let evict = r#"{"resource":"pods","subresource":"eviction","namespace":"a","name":"p"}"#;
        let own = r#"{"resource":"leases","namespace":"sys","name":"edge-other"}"#;
        let elsewhere = r#"{"resource":"leases","namespace":"a","name":"edge-controller"}"#;
        let events = [
            event("sys:edge-controller", "create", evict, "allow"),
            event("sys:edge-controller", "get", own, "allow"),
            event("sys:edge-controller", "get", elsewhere, "allow"),
            // Of somebody else, refused, and no resource.
            event("a:edge-controller", "list", own, "allow"),
            event("sys:edge-controller", "list", own, "forbid"),
            event("sys:edge-controller", "get", "null", "allow"),
        ];
        let rows = [
            row("cluster: pods", "create", Some("a pod is none of its own")),
            row("own: leases[controller]", "get", Some("so is a lease")),
        ];
        let unknown: Vec<_> = verdict(&rows, &events).unknown.into_iter().collect();
        assert_eq!(
            unknown,
            [
                "controller, create pods/eviction a/p",
                "controller, get leases a/edge-controller",
                "controller, get leases sys/edge-other",
            ]
        );
    }

    #[test]
    fn a_request_counts_for_the_narrowest_grant_that_covers_it() {
        let ca = r#"{"resource":"secrets","namespace":"sys","name":"edge-ca"}"#;
        let events = [event("sys:edge-controller", "get", ca, "allow")];
        let rows = [
            row("cluster: secrets", "get", None),
            row("own: secrets[ca,node]", "get", None),
        ];
        let unused = verdict(&rows, &events).unused;
        assert_eq!(unused, ["controller, cluster: secrets get (a.rs b)"]);
    }

    #[test]
    fn the_table_can_be_read() {
        let rows: Vec<Row> = serde_json::from_str(TABLE).expect("JSON");
        let mut grants = rows.iter().flat_map(Grant::of);
        assert!(grants.all(|grant| {
            ["cluster", "own", "default"].contains(&grant.place) && !grant.resource.contains('[')
        }));
    }
}
