//! Which credentials the upstream of an image accepts for it. Each check asks the upstream; stored
//! content is no answer.

use holdfast_api::{
    access::{Access, AccessRequest},
    fill::Priority,
};

use super::{Fills, NamedImage, Result};

impl Fills {
    /// Asks the upstream. Opens nothing: the credentials serve this question and no pull. An
    /// upstream that the settings rule out is not asked.
    ///
    /// # Errors
    /// [`super::Error::Request`] when the source is malformed.
    pub async fn access(&self, request: &AccessRequest) -> Result<Access> {
        // Requests for waiting clients go first; this answer is for the next pod.
        let image = NamedImage::of(&request.source, &request.credentials, Priority::Prefetch)?;
        if self.permit(&image.source.host).is_err() {
            return Ok(Access::Unknown);
        }
        let target = image.target.to_string();
        Ok(self.inner.upstreams.access(&image.source, &target).await)
    }
}
