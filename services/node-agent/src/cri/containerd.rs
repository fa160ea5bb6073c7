//! What the CRI cannot say and containerd's own services can, on the same socket: which images a
//! pod was made of, the labels of images, and which containerd it is that answers. Messages by the
//! field numbers of its protocol definition; fields that the agent does not use are not listed.

use std::collections::{BTreeMap, BTreeSet};

use super::Runtime;
use super::grpc::{self, Error};

/// An image as containerd records it: one record for each name of it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Image {
    /// Its name: a reference, or the digest of its configuration.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its labels.
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: BTreeMap<String, String>,
    /// What it names. Sent back with every change: containerd (seen with 2.4.2) dies of an image
    /// without it, whatever the mask says.
    #[prost(message, optional, tag = "3")]
    pub target: Option<Descriptor>,
}

/// The manifest or index that an image is.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Descriptor {
    /// Its media type.
    #[prost(string, tag = "1")]
    pub media_type: String,
    /// Its digest.
    #[prost(string, tag = "2")]
    pub digest: String,
    /// Its size in bytes.
    #[prost(int64, tag = "3")]
    pub size: i64,
    /// Its annotations.
    #[prost(btree_map = "string, string", tag = "5")]
    pub annotations: BTreeMap<String, String>,
}

/// `Images.Get`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GetImageRequest {
    /// The record's name.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// The answer to `Images.Get` and `Images.Update`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ImageResponse {
    /// The record.
    #[prost(message, optional, tag = "1")]
    pub image: Option<Image>,
}

/// `Images.Update`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct UpdateImageRequest {
    /// The record; of its fields only what the mask names is taken.
    #[prost(message, optional, tag = "1")]
    pub image: Option<Image>,
    /// What to change.
    #[prost(message, optional, tag = "2")]
    pub update_mask: Option<FieldMask>,
}

/// `google.protobuf.FieldMask`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FieldMask {
    /// Names of fields: `labels.NAME`.
    #[prost(string, repeated, tag = "1")]
    pub paths: Vec<String>,
}

/// `Images.List` and `Containers.List`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListRequest {
    /// What matches one of these is listed; the parts of one, separated by commas, must all hold.
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

/// The answer to `Images.List`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListImagesResponse {
    /// The records.
    #[prost(message, repeated, tag = "1")]
    pub images: Vec<Image>,
}

/// A container's record, the sandbox of a pod included.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Container {
    /// The name of the image that it was made of.
    #[prost(string, tag = "3")]
    pub image: String,
}

/// The answer to `Containers.List`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListContainersResponse {
    /// The records.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<Container>,
}

/// `google.protobuf.Empty`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Empty {}

/// The answer to `Introspection.Server`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ServerResponse {
    /// Made with containerd's data, and lost with it.
    #[prost(string, tag = "1")]
    pub uuid: String,
    /// The process.
    #[prost(uint64, tag = "2")]
    pub pid: u64,
}

impl Runtime {
    /// Which containerd answers: the identity of its data, and its process.
    pub async fn identity(&self) -> Result<(String, u64), Error> {
        let answer: ServerResponse = self
            .ask(
                "/containerd.services.introspection.v1.Introspection/Server",
                &Empty {},
            )
            .await?;
        Ok((answer.uuid, answer.pid))
    }

    /// The names of the images that a pod's containers and its sandbox were made of.
    pub async fn images_of_pod(
        &self,
        namespace: &str,
        pod: &str,
    ) -> Result<BTreeSet<String>, Error> {
        let filter = format!(
            "labels.\"io.kubernetes.pod.namespace\"==\"{namespace}\",labels.\"io.kubernetes.pod.name\"==\"{pod}\""
        );
        let answer: ListContainersResponse = self
            .ask(
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

    /// The record of an image; `None` where there is none.
    pub async fn image(&self, name: &str) -> Result<Option<Image>, Error> {
        let request = GetImageRequest {
            name: name.to_owned(),
        };
        match self
            .ask::<_, ImageResponse>("/containerd.services.images.v1.Images/Get", &request)
            .await
        {
            Err(Error::Status {
                code: grpc::CODE_NOT_FOUND,
                ..
            }) => Ok(None),
            result => Ok(result?.image),
        }
    }

    /// The records with this label and value.
    pub async fn images_labelled(&self, label: &str, value: &str) -> Result<Vec<Image>, Error> {
        let answer: ListImagesResponse = self
            .ask(
                "/containerd.services.images.v1.Images/List",
                &ListRequest {
                    filters: vec![format!("labels.\"{label}\"==\"{value}\"")],
                },
            )
            .await?;
        Ok(answer.images)
    }

    /// Sets labels of an image's record and leaves its others; an empty value takes a label away.
    /// `record` is as containerd gave it.
    pub async fn label_image(&self, record: &Image, labels: &[(&str, &str)]) -> Result<(), Error> {
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
            .ask("/containerd.services.images.v1.Images/Update", &request)
            .await?;
        Ok(())
    }
}
