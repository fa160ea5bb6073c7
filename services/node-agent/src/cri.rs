//! A client of the container runtime interface (CRI v1): the runtime's version, and the list, pulls
//! and removals of images.

pub mod grpc;
pub mod wire;

use std::path::PathBuf;
use std::time::Duration;

use grpc::Error;
use prost::Message;
use wire::{
    Image, ImageSpec, ImageStatusRequest, ImageStatusResponse, ListImagesRequest,
    ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest,
    RemoveImageResponse, VersionRequest, VersionResponse,
};

/// Time for a call that does no work in the runtime.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a pull of one small image, including the retries of the runtime.
const PULL_TIMEOUT: Duration = Duration::from_secs(120);

/// A client of the runtime at a unix socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// Which side a failed pull blames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The node: it does not trust the registry, is not trusted, or ignores the host configuration.
    /// Pods cannot start here.
    Node,
    /// The registry: it did not answer, or answered with a server error. This says nothing about
    /// the configuration of the node.
    Registry,
    /// The runtime: it did not answer, or has not started yet.
    Runtime,
}

impl Client {
    /// A client of the runtime that listens on `socket`; nothing is connected yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Makes a call that takes little time: to the CRI, or to another service on the same socket.
    pub(crate) async fn call<Q: Message, A: Message + Default>(
        &self,
        path: &'static str,
        request: &Q,
    ) -> Result<A, Error> {
        grpc::call(&self.socket, path, request, CALL_TIMEOUT).await
    }

    /// Name and version, for instance `("containerd", "v2.1.4")`.
    pub async fn version(&self) -> Result<(String, String), Error> {
        let request = VersionRequest {
            version: "v1".to_owned(),
        };
        let answer: VersionResponse = self
            .call("/runtime.v1.RuntimeService/Version", &request)
            .await?;
        Ok((answer.runtime_name, answer.runtime_version))
    }

    /// The images that the runtime holds.
    pub async fn images(&self) -> Result<Vec<Image>, Error> {
        let answer: ListImagesResponse = self
            .call("/runtime.v1.ImageService/ListImages", &ListImagesRequest {})
            .await?;
        Ok(answer.images)
    }

    /// Whether an image is exempt from the kubelet's image garbage collection; `None` if the
    /// runtime does not hold it.
    pub async fn is_pinned(&self, reference: &str) -> Result<Option<bool>, Error> {
        let request = ImageStatusRequest {
            image: Some(ImageSpec {
                image: reference.to_owned(),
            }),
        };
        let status: ImageStatusResponse = self
            .call("/runtime.v1.ImageService/ImageStatus", &request)
            .await?;
        Ok(status.image.map(|image| image.pinned))
    }

    /// Proves that the runtime can pull `reference`: removes the image, pulls it, and checks that
    /// the runtime holds it.
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
            .call("/runtime.v1.ImageService/ImageStatus", &request)
            .await?;
        match status.image {
            Some(image) if !image.id.is_empty() => Ok(()),
            _ => Err(Error::Protocol(format!(
                "{reference} was pulled, but the runtime does not hold it"
            ))),
        }
    }

    /// Removes an image; a missing one is not an error.
    pub async fn remove(&self, reference: &str) -> Result<(), Error> {
        let request = RemoveImageRequest {
            image: Some(ImageSpec {
                image: reference.to_owned(),
            }),
        };
        match self
            .call::<_, RemoveImageResponse>("/runtime.v1.ImageService/RemoveImage", &request)
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

/// Which side is at fault. An unknown error blames the node, because the pull of a pod would fail
/// the same way.
pub fn fault(error: &Error) -> Fault {
    match error {
        Error::Connect(..) => Fault::Runtime,
        Error::Protocol(_) => Fault::Node,
        Error::Timeout(_) => Fault::Registry,
        Error::Status { code, message } => match *code {
            // containerd refuses every call with this code until it is initialized.
            grpc::CODE_UNAVAILABLE => Fault::Runtime,
            grpc::CODE_DEADLINE_EXCEEDED => Fault::Registry,
            // The runtime rejects the request, or a server answered that the node may not pull or
            // that the image does not exist: it does not trust the node, or it is not the registry.
            grpc::CODE_INVALID_ARGUMENT
            | grpc::CODE_NOT_FOUND
            | grpc::CODE_PERMISSION_DENIED
            | grpc::CODE_FAILED_PRECONDITION
            | grpc::CODE_UNIMPLEMENTED
            | grpc::CODE_UNAUTHENTICATED => Fault::Node,
            _ => fault_by_text(message),
        },
    }
}

/// Which side is at fault, from an error text. containerd maps errors to gRPC codes by their Go
/// type (`errgrpc.ToGRPC`), and those of dialing, of TLS and of unexpected HTTP statuses have no
/// code of their own: a refused connection, a 401, a 503 and an unknown authority are all
/// `UNKNOWN`. Only the text distinguishes them.
fn fault_by_text(message: &str) -> Fault {
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
    let message = message.to_ascii_lowercase();
    if REGISTRY.iter().any(|text| message.contains(text)) {
        Fault::Registry
    } else {
        Fault::Node
    }
}

#[cfg(test)]
pub(crate) mod tests;
