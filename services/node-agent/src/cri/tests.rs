//! A fake runtime on a unix socket, with a list of images, and the tests of the client.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixListener;

use super::*;
use crate::cri::wire::Image;

/// What the fake runtime knows and was asked.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) images: BTreeSet<String>,
    /// The answer to a list of images.
    pub(crate) listed: Vec<Image>,
    pub(crate) calls: Vec<String>,
    /// The gRPC code and the text with which every pull fails.
    pub(crate) refuse: Option<(u32, String)>,
    /// Pulls succeed, but the image is not stored.
    pub(crate) keeps_nothing: bool,
    /// containerd's records of images: labels by name.
    pub(crate) records: BTreeMap<String, BTreeMap<String, String>>,
    /// Images of the agent's own pod.
    pub(crate) own: Vec<String>,
    /// Not containerd: the runtime has the CRI only.
    pub(crate) cri_only: bool,
    /// The runtime crashes on an update of labels.
    pub(crate) crashes_on_update: bool,
    /// The CRI ignores labels.
    pub(crate) ignores_labels: bool,
    /// Its process.
    pub(crate) process: u64,
    /// The identity of containerd's data.
    pub(crate) uuid: String,
    /// The version that it reports.
    pub(crate) version: Option<String>,
}

type Shared = Arc<Mutex<Fake>>;

/// Serves on `socket` until the test ends.
pub(crate) fn serve(socket: &Path) -> Shared {
    let shared = Shared::default();
    let listener = UnixListener::bind(socket).unwrap();
    let state = Arc::clone(&shared);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let state = Arc::clone(&state);
            let service =
                hyper::service::service_fn(move |request| answer(Arc::clone(&state), request));
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    shared
}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn answer(state: Shared, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    assert_eq!(request.headers()["content-type"], "application/grpc");
    let request_path = request.uri().path().to_owned();
    let method = request_path.rsplit('/').next().unwrap().to_owned();
    assert_eq!(request.headers()["containerd-namespace"], "k8s.io");
    let body = request
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes()
        .slice(5..);
    let mut fake = state.lock().unwrap();
    let named = |image: Option<ImageSpec>| image.unwrap().image;
    let path = request_path;
    if path.ends_with("Images/Update") && fake.crashes_on_update {
        fake.calls.push("update".to_owned());
        drop(fake);
        panic!("the fake runtime crashes on an update");
    }
    if path.starts_with("/containerd.") {
        let outcome = containerd(&mut fake, &path, body);
        return Ok(reply(outcome));
    }
    let outcome = match method.as_str() {
        "Version" => Ok(VersionResponse {
            runtime_name: "containerd".to_owned(),
            runtime_version: fake.version.clone().unwrap_or_else(|| "v2.1.4".to_owned()),
        }
        .encode_to_vec()),
        "ListImages" => Ok(ListImagesResponse {
            images: fake.listed.clone(),
        }
        .encode_to_vec()),
        "PullImage" => {
            let image = named(PullImageRequest::decode(body).unwrap().image);
            fake.calls.push(format!("pull {image}"));
            if !fake.keeps_nothing && fake.refuse.is_none() {
                fake.images.insert(image.clone());
            }
            fake.refuse.clone().map_or_else(
                || Ok(PullImageResponse { image_ref: image }.encode_to_vec()),
                Err,
            )
        }
        "RemoveImage" => {
            let image = named(RemoveImageRequest::decode(body).unwrap().image);
            fake.calls.push(format!("remove {image}"));
            fake.images.remove(&image);
            Ok(RemoveImageResponse {}.encode_to_vec())
        }
        "ImageStatus" => {
            let image = named(ImageStatusRequest::decode(body).unwrap().image);
            let record = fake.records.get(&image);
            let pinned = record.is_some_and(|labels| {
                labels.get("io.cri-containerd.pinned").map(String::as_str) == Some("pinned")
            }) && !fake.ignores_labels;
            let held = (fake.images.contains(&image) || record.is_some()).then(|| Image {
                id: "sha256:1".to_owned(),
                repo_tags: vec![image],
                pinned,
                ..Image::default()
            });
            Ok(ImageStatusResponse { image: held }.encode_to_vec())
        }
        other => panic!("{other} is not asked"),
    };
    Ok(reply(outcome))
}

/// The services that only containerd has.
fn containerd(fake: &mut Fake, path: &str, body: Bytes) -> Result<Vec<u8>, (u32, String)> {
    use crate::runtimes::containerd::services as wire;
    if fake.cri_only {
        return Err((grpc::CODE_UNIMPLEMENTED, "unknown service".to_owned()));
    }
    let record = |name: &str, labels: &BTreeMap<String, String>| wire::Image {
        name: name.to_owned(),
        labels: labels.clone(),
        target: Some(wire::Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: format!("sha256:{}", "ab".repeat(32)),
            size: 1234,
            ..wire::Descriptor::default()
        }),
    };
    Ok(match path.rsplit("services.").next().unwrap() {
        "introspection.v1.Introspection/Server" => wire::ServerResponse {
            uuid: fake.uuid.clone(),
            pid: fake.process,
        }
        .encode_to_vec(),
        "containers.v1.Containers/List" => {
            let filters = wire::ListRequest::decode(body).unwrap().filters;
            assert_eq!(
                filters,
                [
                    r#"labels."io.kubernetes.pod.namespace"=="sys",labels."io.kubernetes.pod.name"=="agent-1""#
                ]
            );
            let containers = fake.own.iter().map(|image| wire::Container {
                image: image.clone(),
            });
            wire::ListContainersResponse {
                containers: containers.collect(),
            }
            .encode_to_vec()
        }
        "images.v1.Images/Get" => {
            let name = wire::GetImageRequest::decode(body).unwrap().name;
            let labels = fake.records.get(&name);
            let labels =
                labels.ok_or_else(|| (grpc::CODE_NOT_FOUND, format!("image {name}: not found")))?;
            wire::ImageResponse {
                image: Some(record(&name, labels)),
            }
            .encode_to_vec()
        }
        "images.v1.Images/List" => {
            let filters = wire::ListRequest::decode(body).unwrap().filters;
            assert_eq!(
                filters,
                [r#"labels."holdfast.dev/pinned-by"=="sys.holdfast""#]
            );
            let ours = fake.records.iter().filter(|(_, labels)| {
                labels.get("holdfast.dev/pinned-by").map(String::as_str) == Some("sys.holdfast")
            });
            wire::ListImagesResponse {
                images: ours.map(|(name, labels)| record(name, labels)).collect(),
            }
            .encode_to_vec()
        }
        "images.v1.Images/Update" => {
            let request = wire::UpdateImageRequest::decode(body).unwrap();
            let image = request.image.unwrap();
            // containerd crashes without it.
            assert_eq!(image.target, record("", &BTreeMap::new()).target);
            fake.calls.push(format!("label {}", image.name));
            let labels = fake.records.get_mut(&image.name).unwrap();
            for path in request.update_mask.unwrap().paths {
                let key = path.strip_prefix("labels.").unwrap();
                match image.labels.get(key).filter(|value| !value.is_empty()) {
                    Some(value) => labels.insert(key.to_owned(), value.clone()),
                    None => labels.remove(key),
                };
            }
            wire::ImageResponse { image: None }.encode_to_vec()
        }
        other => panic!("{other} is not asked"),
    })
}

fn reply(outcome: Result<Vec<u8>, (u32, String)>) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    let mut frames: Vec<Result<Frame<Bytes>, Infallible>> = Vec::new();
    match outcome {
        Ok(message) => {
            let mut bytes = BytesMut::new();
            bytes.put_u8(0);
            bytes.put_u32(u32::try_from(message.len()).unwrap());
            bytes.extend_from_slice(&message);
            frames.push(Ok(Frame::data(bytes.freeze())));
            trailers.insert("grpc-status", "0".parse().unwrap());
        }
        Err((code, text)) => {
            trailers.insert("grpc-status", code.into());
            trailers.insert("grpc-message", text.replace(' ', "%20").parse().unwrap());
        }
    }
    frames.push(Ok(Frame::trailers(trailers)));
    let body = StreamBody::new(futures::stream::iter(frames)).boxed();
    Response::builder()
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap()
}

/// A containerd whose socket is in `folder`.
pub(crate) fn containerd_at(folder: &Path) -> crate::runtimes::containerd::Containerd {
    crate::runtimes::containerd::Containerd::new(crate::host::Folders {
        run: folder.to_owned(),
        ..crate::host::Folders::default()
    })
}

/// The gRPC code of most errors of containerd.
pub(crate) const CODE_UNKNOWN: u32 = 2;

const PROBE: &str = "10.96.0.50/holdfast/probe:1";

fn runtime() -> (Client, Shared, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("containerd.sock");
    let fake = serve(&socket);
    (Client::new(socket), fake, folder)
}

#[tokio::test]
async fn a_present_image_is_removed_and_pulled_again() {
    let (runtime, fake, _folder) = runtime();
    fake.lock().unwrap().images.insert(PROBE.to_owned());
    runtime.prove_pull(PROBE).await.unwrap();
    let fake = fake.lock().unwrap();
    assert_eq!(
        fake.calls,
        [format!("remove {PROBE}"), format!("pull {PROBE}")]
    );
    assert!(fake.images.contains(PROBE));
}

#[tokio::test]
async fn a_pull_that_leaves_no_image_proves_nothing() {
    let (runtime, fake, _folder) = runtime();
    fake.lock().unwrap().keeps_nothing = true;
    let error = runtime.prove_pull(PROBE).await.unwrap_err();
    assert!(error.to_string().contains("does not hold it"), "{error}");
}

#[tokio::test]
async fn the_runtimes_error_arrives_and_names_the_side_at_fault() {
    let (runtime, fake, _folder) = runtime();
    for (text, expect) in [
        (
            "failed to pull: x509: certificate signed by unknown authority",
            Fault::Node,
        ),
        ("pull access denied, 401 Unauthorized", Fault::Node),
        (
            "dial tcp 10.96.0.50:443: connect: connection refused",
            Fault::Registry,
        ),
        (
            "unexpected status from HEAD request: 503 Service Unavailable",
            Fault::Registry,
        ),
    ] {
        fake.lock().unwrap().refuse = Some((CODE_UNKNOWN, text.to_owned()));
        let error = runtime.prove_pull(PROBE).await.unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(fault(&error), expect, "{text}");
    }
}

#[tokio::test]
async fn a_decisive_code_overrides_the_text_of_an_error() {
    let (runtime, fake, _folder) = runtime();
    for (code, text, expect) in [
        (
            grpc::CODE_UNAVAILABLE,
            "server is not initialized yet",
            Fault::Runtime,
        ),
        (grpc::CODE_DEADLINE_EXCEEDED, "", Fault::Registry),
        (grpc::CODE_INVALID_ARGUMENT, "i/o timeout", Fault::Node),
        (grpc::CODE_NOT_FOUND, "i/o timeout", Fault::Node),
        (grpc::CODE_PERMISSION_DENIED, "i/o timeout", Fault::Node),
        (grpc::CODE_FAILED_PRECONDITION, "i/o timeout", Fault::Node),
        (grpc::CODE_UNIMPLEMENTED, "i/o timeout", Fault::Node),
        (grpc::CODE_UNAUTHENTICATED, "i/o timeout", Fault::Node),
        // INTERNAL, as UNKNOWN, leaves it to the text.
        (13, "i/o timeout", Fault::Registry),
        (13, "", Fault::Node),
    ] {
        fake.lock().unwrap().refuse = Some((code, text.to_owned()));
        let error = runtime.prove_pull(PROBE).await.unwrap_err();
        assert_eq!(fault(&error), expect, "{code} {text}");
    }
}

#[tokio::test]
async fn a_runtime_tells_its_version_and_a_missing_socket_is_no_panic() {
    let (runtime, _fake, folder) = runtime();
    assert_eq!(
        runtime.version().await.unwrap(),
        ("containerd".to_owned(), "v2.1.4".to_owned())
    );
    let missing = Client::new(folder.path().join("no.sock"));
    let error = missing.prove_pull(PROBE).await.unwrap_err();
    assert_eq!(fault(&error), Fault::Runtime);
    assert!(error.to_string().contains("no.sock"), "{error}");
}
