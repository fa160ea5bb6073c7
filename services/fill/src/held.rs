//! Answers in bulk whether images are on the volume. No upstream is asked, and nothing is copied.

use std::sync::Arc;

use futures::{StreamExt, stream};
use holdfast_api::{
    fill::Priority,
    questions::{Answer, Answers, held::Image},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use super::{
    image_fills::{ImageFills, Presence},
    request::NamedImage,
};
use crate::limits::{HELD_AT_ONCE, HELD_IMAGE_TIME, HELD_REQUESTS, HELD_TIME};

/// The checks whether images are held.
pub(super) struct HeldChecks {
    images: Arc<ImageFills>,
    requests: Semaphore,
}

impl HeldChecks {
    pub(super) fn new(images: Arc<ImageFills>) -> Self {
        Self {
            images,
            requests: Semaphore::new(HELD_REQUESTS),
        }
    }

    /// The answers about these images, in their order. `None`: too many requests run.
    pub(super) async fn answers(&self, images: Vec<Image>) -> Option<Answers> {
        let _running = self.requests.try_acquire().ok()?;
        let end = Instant::now() + HELD_TIME;
        let answers = stream::iter(images)
            .map(|image| self.answer(image, end))
            .buffered(HELD_AT_ONCE)
            .collect()
            .await;
        Some(Answers { answers })
    }

    async fn answer(&self, image: Image, end: Instant) -> Answer {
        let named = NamedImage::of(&image.source, &[], Priority::Prefetch);
        let Ok(NamedImage { repo, target, .. }) = named else {
            return Answer::Unknown;
        };
        let end = end.min(Instant::now() + HELD_IMAGE_TIME);
        let presence = self.images.presence(&repo, &target, &image.platforms);
        match timeout_at(end, presence).await {
            Ok(Ok(Presence::Whole(_))) => Answer::Yes,
            Ok(Ok(Presence::Lacking)) => Answer::No,
            Ok(Ok(Presence::Unsure)) | Err(_) => Answer::Unknown,
            Ok(Err(error)) => {
                tracing::debug!(
                    image.source = image.source, %error, "cannot see whether an image is local"
                );
                Answer::Unknown
            }
        }
    }
}
