//! containerd's own services, on the socket of the CRI, for what the CRI cannot tell: the images
//! of a pod, the labels of images, and which containerd answers.
//!
//! The messages have the field numbers of containerd's protocol definition and list only the fields
//! that the agent uses.

use std::collections::{BTreeMap, BTreeSet};

use super::Containerd;
use crate::cri::grpc::{self, Error};

/// containerd's record of an image. An image has one record per name.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Image {
    /// Its name: a reference, or the digest of its configuration.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// Its labels.
    #[prost(btree_map = "string, string", tag = "2")]
    pub(crate) labels: BTreeMap<String, String>,
    /// What it names. Sent back with every update: containerd (seen with 2.4.2) crashes on an image
    /// without it, whatever the field mask is.
    #[prost(message, optional, tag = "3")]
    pub(crate) target: Option<Descriptor>,
}

/// The manifest or index that an image is.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Descriptor {
    /// Its media type.
    #[prost(string, tag = "1")]
    pub(crate) media_type: String,
    /// Its digest.
    #[prost(string, tag = "2")]
    pub(crate) digest: String,
    /// Its size in bytes.
    #[prost(int64, tag = "3")]
    pub(crate) size: i64,
    /// Its annotations.
    #[prost(btree_map = "string, string", tag = "5")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// `Images.Get`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct GetImageRequest {
    /// The record's name.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

/// The answer to `Images.Get` and `Images.Update`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ImageResponse {
    /// The record.
    #[prost(message, optional, tag = "1")]
    pub(crate) image: Option<Image>,
}

/// `Images.Update`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct UpdateImageRequest {
    /// The record; only the fields in the mask are applied.
    #[prost(message, optional, tag = "1")]
    pub(crate) image: Option<Image>,
    /// What to change.
    #[prost(message, optional, tag = "2")]
    pub(crate) update_mask: Option<FieldMask>,
}

/// `google.protobuf.FieldMask`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct FieldMask {
    /// Names of fields: `labels.NAME`.
    #[prost(string, repeated, tag = "1")]
    pub(crate) paths: Vec<String>,
}

/// `Images.List` and `Containers.List`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ListRequest {
    /// An object is listed if it matches one of these. The comma-separated parts of one filter must
    /// all match.
    #[prost(string, repeated, tag = "1")]
    pub(crate) filters: Vec<String>,
}

/// The answer to `Images.List`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ListImagesResponse {
    /// The records.
    #[prost(message, repeated, tag = "1")]
    pub(crate) images: Vec<Image>,
}

/// A container's record, the sandbox of a pod included.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Container {
    /// The name of its image.
    #[prost(string, tag = "3")]
    pub(crate) image: String,
}

/// The answer to `Containers.List`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ListContainersResponse {
    /// The records.
    #[prost(message, repeated, tag = "1")]
    pub(crate) containers: Vec<Container>,
}

/// `google.protobuf.Empty`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Empty {}

/// The answer to `Introspection.Server`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ServerResponse {
    /// Created and lost together with containerd's data.
    #[prost(string, tag = "1")]
    pub(crate) uuid: String,
    /// The process ID.
    #[prost(uint64, tag = "2")]
    pub(crate) pid: u64,
}

impl Containerd {
    /// Which containerd answers.
    pub(super) async fn server(&self) -> Result<ServerResponse, Error> {
        self.cri
            .call(
                "/containerd.services.introspection.v1.Introspection/Server",
                &Empty {},
            )
            .await
    }

    /// The names of the images of a pod's containers and of its sandbox.
    pub(super) async fn images_of_pod(
        &self,
        namespace: &str,
        pod: &str,
    ) -> Result<BTreeSet<String>, Error> {
        let filter = format!(
            "labels.\"io.kubernetes.pod.namespace\"==\"{namespace}\",labels.\"io.kubernetes.pod.name\"==\"{pod}\""
        );
        let answer: ListContainersResponse = self
            .cri
            .call(
                "/containerd.services.containers.v1.Containers/List",
                &ListRequest {
                    filters: vec![filter],
                },
            )
            .await?;
        Ok(answer
            .containers
            .into_iter()
            .map(|container| container.image)
            .filter(|image| !image.is_empty())
            .collect())
    }

    /// The record of an image; `None` if there is none.
    pub(super) async fn image(&self, name: &str) -> Result<Option<Image>, Error> {
        let request = GetImageRequest {
            name: name.to_owned(),
        };
        match self
            .cri
            .call::<_, ImageResponse>("/containerd.services.images.v1.Images/Get", &request)
            .await
        {
            Err(Error::Status {
                code: grpc::CODE_NOT_FOUND,
                ..
            }) => Ok(None),
            result => Ok(result?.image),
        }
    }

    /// The records of the images with this label and value.
    pub(super) async fn images_labelled(
        &self,
        label: &str,
        value: &str,
    ) -> Result<Vec<Image>, Error> {
        let answer: ListImagesResponse = self
            .cri
            .call(
                "/containerd.services.images.v1.Images/List",
                &ListRequest {
                    filters: vec![format!("labels.\"{label}\"==\"{value}\"")],
                },
            )
            .await?;
        Ok(answer.images)
    }

    /// Sets labels of an image's record and keeps its others; an empty value removes a label.
    /// `record` is as containerd returned it.
    pub(super) async fn label_image(
        &self,
        record: &Image,
        labels: &[(&str, &str)],
    ) -> Result<(), Error> {
        if record.target.is_none() {
            let what = format!("the image {} without a target", record.name);
            return Err(Error::Protocol(what));
        }
        let paths = labels.iter().map(|(key, _)| format!("labels.{key}"));
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let request = UpdateImageRequest {
            update_mask: Some(FieldMask {
                paths: paths.collect(),
            }),
            image: Some(Image {
                labels: labels.iter().map(own).collect(),
                ..record.clone()
            }),
        };
        let _: ImageResponse = self
            .cri
            .call("/containerd.services.images.v1.Images/Update", &request)
            .await?;
        Ok(())
    }
}
