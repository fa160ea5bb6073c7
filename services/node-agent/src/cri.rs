//! The container runtime, by its interface (CRI v1): is it there, which version is it, and can it
//! pull from the registry?

pub mod containerd;
pub mod grpc;
pub mod wire;

use std::path::PathBuf;
use std::time::Duration;

use grpc::Error;
use prost::Message;
use wire::{
    ImageSpec, ImageStatusRequest, ImageStatusResponse, PullImageRequest, PullImageResponse,
    RemoveImageRequest, RemoveImageResponse, VersionRequest, VersionResponse,
};

/// Short questions.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// One pull of one small image, the runtime's own retries included.
const PULL_TIMEOUT: Duration = Duration::from_secs(120);

/// The runtime behind a unix socket.
#[derive(Debug, Clone)]
pub struct Runtime {
    socket: PathBuf,
}

/// What a failed pull says of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The node does not trust, is not trusted, or does not use the host configuration: pods would
    /// not start here.
    Node,
    /// The registry did not answer or not well: says nothing about the node's configuration.
    Registry,
    /// The runtime itself did not answer.
    Runtime,
}

impl Runtime {
    /// A runtime that listens on `socket`; nothing is connected yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// A short question.
    async fn ask<Q: Message, A: Message + Default>(
        &self,
        path: &'static str,
        question: &Q,
    ) -> Result<A, Error> {
        grpc::call(&self.socket, path, question, CALL_TIMEOUT).await
    }

    /// Name and version, for instance `("containerd", "v2.1.4")`.
    pub async fn version(&self) -> Result<(String, String), Error> {
        let request = VersionRequest {
            version: "v1".to_owned(),
        };
        let answer: VersionResponse = self
            .ask("/runtime.v1.RuntimeService/Version", &request)
            .await?;
        Ok((answer.runtime_name, answer.runtime_version))
    }

    /// Whether the kubelet's collection of images has to leave an image; `None` where the runtime
    /// does not hold it.
    pub async fn is_pinned(&self, reference: &str) -> Result<Option<bool>, Error> {
        let request = ImageStatusRequest {
            image: Some(ImageSpec {
                image: reference.to_owned(),
            }),
        };
        let status: ImageStatusResponse = self
            .ask("/runtime.v1.ImageService/ImageStatus", &request)
            .await?;
        Ok(status.image.map(|image| image.pinned))
    }

    /// Pulls `reference` for real: what the runtime holds of it is removed before, and the image
    /// must be there after.
    pub async fn prove_pull(&self, reference: &str) -> Result<(), Error> {
        let image = Some(ImageSpec {
            image: reference.to_owned(),
        });
        self.remove(reference).await?;
        let request = PullImageRequest {
            image: image.clone(),
        };
        let _: PullImageResponse = grpc::call(
            &self.socket,
            "/runtime.v1.ImageService/PullImage",
            &request,
            PULL_TIMEOUT,
        )
        .await?;
        let request = ImageStatusRequest { image };
        let status: ImageStatusResponse = self
            .ask("/runtime.v1.ImageService/ImageStatus", &request)
            .await?;
        match status.image {
            Some(image) if !image.id.is_empty() => Ok(()),
            _ => Err(Error::Protocol(format!(
                "{reference} was pulled, but the runtime does not hold it"
            ))),
        }
    }

    /// Removes an image; one that is not there is no error.
    pub async fn remove(&self, reference: &str) -> Result<(), Error> {
        let request = RemoveImageRequest {
            image: Some(ImageSpec {
                image: reference.to_owned(),
            }),
        };
        match self
            .ask::<_, RemoveImageResponse>("/runtime.v1.ImageService/RemoveImage", &request)
            .await
        {
            Err(Error::Status {
                code: grpc::CODE_NOT_FOUND,
                ..
            }) => Ok(()),
            result => result.map(|_| ()),
        }
    }
}

/// Reads the runtime's words: which side is at fault. Unknown words count against the node, since a
/// pod would meet the same.
pub fn fault(error: &Error) -> Fault {
    const REGISTRY: [&str; 12] = [
        "connection refused",
        "i/o timeout",
        "deadline exceeded",
        "no route to host",
        "network is unreachable",
        "connection reset",
        "unexpected eof",
        "tls handshake timeout",
        "500 internal",
        "502 bad gateway",
        "503 service unavailable",
        "504 gateway timeout",
    ];
    match error {
        Error::Connect(..) => Fault::Runtime,
        Error::Protocol(_) => Fault::Node,
        Error::Timeout(_) => Fault::Registry,
        Error::Status { message, .. } => {
            let message = message.to_ascii_lowercase();
            if REGISTRY.iter().any(|word| message.contains(word)) {
                Fault::Registry
            } else {
                Fault::Node
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
