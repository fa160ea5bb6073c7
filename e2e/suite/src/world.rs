//! What tests run against: tools, and a site (a cluster with upstreams and Holdfast) that is made
//! when the first test asks for it.

use anyhow::{Context, Result};

use crate::site::Site;
use crate::tools::Tools;

/// Everything a case may use.
pub(crate) struct World {
    pub(crate) tools: Tools,
    /// A context of the user's kubeconfig to use instead of a cluster of our own.
    context: Option<String>,
    keep: bool,
    /// Whether every test is run.
    pub(crate) complete: bool,
    site: Option<Site>,
}

impl World {
    pub(crate) fn new(tools: Tools, context: Option<String>, keep: bool) -> Self {
        Self {
            tools,
            context,
            keep,
            complete: false,
            site: None,
        }
    }

    /// The site, made now if it is not there yet.
    pub(crate) fn site(&mut self) -> Result<&mut Site> {
        if self.site.is_none() {
            let site = match &self.context {
                Some(context) => Site::attach(&self.tools, context),
                None => Site::create(&self.tools, "e2e", self.keep),
            };
            self.site = Some(site.context("make the test site")?);
        }
        self.site.as_mut().context("the site was just made")
    }

    /// The site if a test has asked for it.
    pub(crate) fn existing_site(&self) -> Option<&Site> {
        self.site.as_ref()
    }

    /// After a failure: ends faults, so that the next case starts from a site that works.
    pub(crate) fn recover(&self) {
        if let Some(site) = &self.site
            && let Err(error) = site.recover()
        {
            println!("  the site could not be put back in order: {error:#}");
        }
    }

    /// Takes everything down, unless it is to be kept.
    pub(crate) fn end(self) -> Result<()> {
        self.site.map_or(Ok(()), Site::end)
    }
}
