//! The messages of the container runtime interface (`runtime.v1`) that the agent uses, with the
//! field numbers of the protocol definition. Only used fields are listed; protobuf skips others.

/// Names an image.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ImageSpec {
    /// The reference.
    #[prost(string, tag = "1")]
    pub image: String,
}

/// `ImageService.PullImage`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PullImageRequest {
    /// What to pull.
    #[prost(message, optional, tag = "1")]
    pub image: Option<ImageSpec>,
}

/// The answer to [`PullImageRequest`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PullImageResponse {
    /// The runtime's identifier of the image.
    #[prost(string, tag = "1")]
    pub image_ref: String,
}

/// `ImageService.ImageStatus`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ImageStatusRequest {
    /// What to look for.
    #[prost(message, optional, tag = "1")]
    pub image: Option<ImageSpec>,
}

/// The answer to [`ImageStatusRequest`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ImageStatusResponse {
    /// Absent when the runtime does not hold the image.
    #[prost(message, optional, tag = "1")]
    pub image: Option<Image>,
}

/// An image that the runtime holds.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Image {
    /// The runtime's identifier.
    #[prost(string, tag = "1")]
    pub id: String,
    /// References by tag.
    #[prost(string, repeated, tag = "2")]
    pub repo_tags: Vec<String>,
    /// References by digest.
    #[prost(string, repeated, tag = "3")]
    pub repo_digests: Vec<String>,
    /// Whether it is exempt from the kubelet's image garbage collection.
    #[prost(bool, tag = "8")]
    pub pinned: bool,
}

/// `ImageService.ListImages`: all images.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListImagesRequest {}

/// The answer to [`ListImagesRequest`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListImagesResponse {
    /// The images.
    #[prost(message, repeated, tag = "1")]
    pub images: Vec<Image>,
}

/// `ImageService.RemoveImage`; removing what is not there succeeds.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RemoveImageRequest {
    /// What to remove.
    #[prost(message, optional, tag = "1")]
    pub image: Option<ImageSpec>,
}

/// The answer to [`RemoveImageRequest`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RemoveImageResponse {}

/// `RuntimeService.Version`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VersionRequest {
    /// The version of the interface that the client speaks.
    #[prost(string, tag = "1")]
    pub version: String,
}

/// The answer to [`VersionRequest`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VersionResponse {
    /// For instance `containerd`.
    #[prost(string, tag = "2")]
    pub runtime_name: String,
    /// For instance `v2.1.4`.
    #[prost(string, tag = "3")]
    pub runtime_version: String,
}
