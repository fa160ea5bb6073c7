//! Lists: every page of a repository's tags, held against the ledger.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::Value as Json;

use crate::{ledger::Value, reader::Shared};

impl Shared {
    /// All tags of a repository through a replica, page by page; `None` when a page did not come.
    pub(crate) async fn tags(&self, replica: usize, repo: &str) -> Option<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        let mut next = format!("/v2/{repo}/tags/list?n=7");
        loop {
            let request = self.client.request(replica, Method::GET, &next);
            let reply = self.client.send("list", replica, request).await.ok()?;
            match reply.status {
                200 if !reply.short => {}
                404 => return Some(found),
                _ => return None,
            }
            let page: Json = serde_json::from_slice(&reply.body).ok()?;
            for tag in page["tags"].as_array()? {
                found.insert(tag.as_str()?.to_owned());
            }
            let link = reply.header("link").to_owned();
            match link
                .split_once('<')
                .and_then(|(_, rest)| rest.split_once('>'))
            {
                Some((target, _)) => target.clone_into(&mut next),
                None => return Some(found),
            }
        }
    }

    /// Holds a list against what may be there. `only` says which tags no other client writes at the
    /// moment.
    pub(crate) async fn check_list(&self, replica: usize, repo: &str, only: impl Fn(&str) -> bool) {
        let before = self.ledger().tags(repo);
        let Some(found) = self.tags(replica, repo).await else {
            return;
        };
        let after = self.ledger().tags(repo);
        for (tag, possible) in before {
            // What changed in the meantime, by a reader's finding for instance, says nothing.
            if !only(&tag) || after.get(&tag) != Some(&possible) {
                continue;
            }
            let listed = found.contains(&tag);
            let fits = |value: &Value| value.is_some() == listed;
            if !possible.iter().any(fits) {
                self.client.report().violation(
                    "lists are right",
                    format!("{repo}:{tag} through replica {replica}: listed {listed}, must be of {possible:?}"),
                );
            }
        }
    }
}
