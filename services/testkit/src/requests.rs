//! What was asked of an upstream: every request in order, and counts by method and path.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderMap, Method, Uri, header};
use parking_lot::Mutex;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `HEAD`, …
    pub method: Method,
    /// The path without its query.
    pub path: String,
    /// The query, empty when there was none.
    pub query: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The `Range` header.
    pub range: Option<String>,
}

/// The record of requests; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    list: Arc<Mutex<Vec<Request>>>,
}

impl Requests {
    /// Records a request.
    pub fn record(&self, method: &Method, uri: &Uri, headers: &HeaderMap) {
        let text = |name| {
            headers
                .get(name)
                .and_then(|v| v.to_str().ok())
                .map(str::to_owned)
        };
        self.list.lock().push(Request {
            method: method.clone(),
            path: uri.path().to_owned(),
            query: uri.query().unwrap_or_default().to_owned(),
            authorization: text(header::AUTHORIZATION),
            range: text(header::RANGE),
        });
    }

    /// All requests so far, in order.
    pub fn all(&self) -> Vec<Request> {
        self.list.lock().clone()
    }

    /// How many requests had this method and a path that ends so.
    pub fn count(&self, method: &Method, path_end: &str) -> usize {
        let list = self.list.lock();
        list.iter()
            .filter(|r| r.method == *method && r.path.ends_with(path_end))
            .count()
    }

    /// How many requests there were.
    pub fn len(&self) -> usize {
        self.list.lock().len()
    }

    /// True when there was no request.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts by `METHOD path`.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for request in self.all() {
            *counts
                .entry(format!("{} {}", request.method, request.path))
                .or_default() += 1;
        }
        counts
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.list.lock().clear();
    }
}
