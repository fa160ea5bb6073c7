//! The index of referrers: which manifests name a subject. It can be derived from the manifests,
//! and readers check its entries again.

use holdfast_core::{digest::Digest, reference::RepositoryName};

use crate::{Layout, Result, durable::DurableFs, links};

/// The referrers of all repositories.
#[derive(Clone, Debug)]
pub(crate) struct Referrers {
    files: DurableFs,
    layout: Layout,
}

impl Referrers {
    pub(crate) fn new(files: DurableFs, layout: Layout) -> Self {
        Self { files, layout }
    }

    pub(crate) fn add(
        &self,
        repo: &RepositoryName,
        subject: &Digest,
        referrer: &Digest,
    ) -> Result<()> {
        let link = self.layout.referrer_link(repo, subject, referrer);
        links::ensure(&self.files, &link, referrer)
    }

    pub(crate) fn remove(
        &self,
        repo: &RepositoryName,
        subject: &Digest,
        referrer: &Digest,
    ) -> Result<()> {
        let link = self.layout.referrer_link(repo, subject, referrer);
        self.files.remove_file(&link).map(drop)
    }

    /// The manifests that name `subject`, in order; some of them may be gone.
    pub(crate) fn list(&self, repo: &RepositoryName, subject: &Digest) -> Result<Vec<Digest>> {
        links::list(self.files.volume(), &self.layout.referrers(repo, subject))
    }
}
