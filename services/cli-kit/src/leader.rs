//! Asks the leading controller, which listens on the loopback address of its pod: by a port-forward
//! with the caller's rights. If it cannot be asked, the text says which right or state is missing.

use std::time::Duration;

use holdfast_api::names::Names;
use holdfast_api::questions::held::{self, Sources};
use holdfast_api::questions::starts::{self, Starts};
use holdfast_api::questions::{Answers, MAX_BYTES, MAX_QUESTIONS, PORT};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Portforwarder;
use kube::{Api, Client};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::cluster::{self, error_message};

pub use holdfast_api::questions::Answer;
/// Whether a container of a pod starts on a node without a pull.
pub use holdfast_api::questions::starts::Container as Question;

/// How long the connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer, in bytes.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// Why the port or the path is missing.
const OLDER: &str = "the controller is older than this command";
/// Characters of a refusal that are shown.
const SHOWN_BODY: usize = 300;

/// How the leading controller is reached.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Cluster")]
pub struct LeaderArgs {
    /// Where the leading controller answers, if kubectl forwards its port 9091 [default: the
    /// command forwards it]
    #[arg(long, value_name = "HOST:PORT")]
    controller: Option<String>,
}

impl LeaderArgs {
    /// Connects to the leading controller. The error says what is missing.
    pub async fn connect(&self, client: &Client, names: &Names) -> Result<Leader, String> {
        let connecting = async {
            match &self.controller {
                Some(address) => Leader::at(address).await,
                None => Leader::forwarded(client, names).await,
            }
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .unwrap_or_else(|_| Err("the controller does not answer".to_owned()))
    }
}

/// A connection to the leading controller.
pub struct Leader {
    connection: SendRequest<Full<Bytes>>,
    /// The pod or the address, for messages.
    name: String,
}

impl Leader {
    async fn at(address: &str) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await;
        let stream = stream.map_err(|error| format!("{address}: {error}"))?;
        Self::over(stream, (), address.to_owned()).await
    }

    async fn forwarded(client: &Client, names: &Names) -> Result<Self, String> {
        let pod = leading_pod(client, names).await?;
        let mut forwarder = forward(client, &names.namespace, &pod).await?;
        let stream = forwarder.take_stream(PORT);
        let stream = stream.ok_or_else(|| format!("pod {pod}: no stream"))?;
        Self::over(stream, forwarder, format!("pod {pod}")).await
    }

    /// A connection over a stream; `kept` is dropped when it ends.
    async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        kept: impl Send + 'static,
        name: String,
    ) -> Result<Self, String> {
        let shaken = handshake(TokioIo::new(stream)).await;
        let (connection, driver) = shaken.map_err(|error| format!("{name}: {error}"))?;
        tokio::spawn(async move {
            driver.await.ok();
            drop(kept);
        });
        Ok(Self { connection, name })
    }

    /// Whether containers start on nodes without a pull: an answer to each question.
    pub async fn starts(&mut self, questions: &[Question]) -> Result<Vec<Answer>, String> {
        let body = |some: &[Question]| Starts {
            containers: some.to_vec(),
        };
        self.ask_all(starts::PATH, questions, body).await
    }

    /// Whether the registry holds these canonical references now: an answer to each.
    pub async fn held(&mut self, sources: &[String]) -> Result<Vec<Answer>, String> {
        let body = |some: &[String]| Sources {
            sources: some.to_vec(),
        };
        self.ask_all(held::PATH, sources, body).await
    }

    /// Asks in requests of at most [`MAX_QUESTIONS`] and [`MAX_BYTES`].
    async fn ask_all<Item, Body: Serialize>(
        &mut self,
        path: &str,
        mut questions: &[Item],
        body: impl Fn(&[Item]) -> Body,
    ) -> Result<Vec<Answer>, String> {
        let mut answers = Vec::with_capacity(questions.len());
        while !questions.is_empty() {
            let (some, bytes) = request(questions, &body)?;
            let answer: Answers = self.ask(path, bytes).await?;
            if answer.answers.len() != some {
                return Err(format!("{}: it did not answer all questions", self.name));
            }
            answers.extend(answer.answers);
            questions = questions.get(some..).unwrap_or_default();
        }
        Ok(answers)
    }

    /// Posts a question. The error says what is missing.
    async fn ask(&mut self, path: &str, question: Vec<u8>) -> Result<Answers, String> {
        let asking = exchange(&mut self.connection, path, question);
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, asking).await;
        let answer = answer.unwrap_or_else(|_| Err("it does not answer".to_owned()));
        let name = &self.name;
        let (status, body) = answer.map_err(|why| format!("{name}: {why}"))?;
        match status {
            StatusCode::OK => serde_json::from_slice(&body)
                .map_err(|_| format!("{name}: the controller has another version")),
            StatusCode::NOT_FOUND => Err(format!("{name}: {OLDER}")),
            _ => {
                let text = String::from_utf8_lossy(&body);
                let text: String = text.chars().take(SHOWN_BODY).collect();
                Err(format!("{name}: {status}: {}", text.trim()))
            }
        }
    }
}

/// The first questions that fit into one request: how many, and the request.
fn request<Item, Body: Serialize>(
    questions: &[Item],
    body: impl Fn(&[Item]) -> Body,
) -> Result<(usize, Vec<u8>), String> {
    let mut count = questions.len().min(MAX_QUESTIONS);
    loop {
        let some = questions.get(..count).unwrap_or(questions);
        let bytes = serde_json::to_vec(&body(some)).map_err(|error| error.to_string())?;
        if bytes.len() <= MAX_BYTES || count <= 1 {
            return Ok((count, bytes));
        }
        count /= 2;
    }
}

/// The pod that holds the lease.
async fn leading_pod(client: &Client, names: &Names) -> Result<String, String> {
    let (namespace, name) = (&names.namespace, names.controller());
    let leases = cluster::of("coordination.k8s.io", "leases").path(Some(namespace));
    let lease = match cluster::get(client, &format!("{leases}/{name}")).await {
        Ok(lease) => lease,
        Err(kube::Error::Api(status)) if status.code == 403 => {
            return Err(format!("leases in {namespace} may not be read"));
        }
        Err(error) => return Err(format!("lease {name}: {}", error_message(&error))),
    };
    let holder = lease.as_ref().and_then(|lease| {
        let holder = lease.pointer("/spec/holderIdentity")?.as_str()?;
        (!holder.is_empty()).then(|| holder.to_owned())
    });
    holder.ok_or_else(|| "no controller leads".to_owned())
}

async fn forward(client: &Client, namespace: &str, pod: &str) -> Result<Portforwarder, String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match pods.portforward(pod, &[PORT]).await {
        Ok(forwarder) => Ok(forwarder),
        Err(kube::Error::Api(status)) if status.code == 403 => Err(format!(
            "the rights get and create on pods/portforward in {namespace} are missing"
        )),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            Err("the controller that led is gone, and none leads yet".to_owned())
        }
        Err(error) => Err(format!("pod {pod}: {}", error_message(&error))),
    }
}

async fn exchange(
    connection: &mut SendRequest<Full<Bytes>>,
    path: &str,
    question: Vec<u8>,
) -> Result<(StatusCode, Bytes), String> {
    let request = Request::post(path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(question)))
        .map_err(|error| error.to_string())?;
    // A port that nothing listens on ends the stream.
    let refused = |_| OLDER.to_owned();
    connection.ready().await.map_err(refused)?;
    let response = connection.send_request(request).await.map_err(refused)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let body = body.collect().await.map_err(|error| error.to_string())?;
    Ok((status, body.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_as_many_questions_as_fit() {
        let body = |some: &[String]| Sources {
            sources: some.to_vec(),
        };
        let many = vec!["r.io/a:1".to_owned(); MAX_QUESTIONS + 1];
        assert_eq!(request(&many, body).unwrap().0, MAX_QUESTIONS);
        let long = vec!["a".repeat(MAX_BYTES / 10); 20];
        let (count, bytes) = request(&long, body).unwrap();
        assert!(count == 5 && bytes.len() <= MAX_BYTES, "{count}");
        let huge = vec!["a".repeat(MAX_BYTES)];
        assert_eq!(request(&huge, body).unwrap().0, 1);
    }

    async fn answered(status: &str, body: &str) -> Result<Vec<Answer>, String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let length = body.len();
        let text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
        tokio::spawn(async move {
            far.read_u8().await.ok();
            far.write_all(text.as_bytes()).await.ok();
        });
        let mut leader = Leader::over(near, (), "pod a".to_owned()).await?;
        leader.held(&["r.io/a:1".to_owned()]).await
    }

    #[tokio::test]
    async fn an_answer_is_whole_or_names_what_is_missing() {
        for (status, body, expect) in [
            ("200 OK", r#"{"answers":["yes"]}"#, Ok(vec![Answer::Yes])),
            ("200 OK", r#"{"answers":[]}"#, Err("did not answer all")),
            ("200 OK", "{}", Err("another version")),
            ("404 Not Found", "", Err("older than this command")),
            (
                "503 Service Unavailable",
                "it does not lead",
                Err("it does not lead"),
            ),
        ] {
            match (answered(status, body).await, expect) {
                (Ok(found), Ok(expect)) => assert_eq!(found, expect),
                (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
                (found, _) => panic!("{status} {body}: {found:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_port_that_nothing_listens_on_is_an_older_controller() {
        let (near, far) = tokio::io::duplex(64);
        drop(far);
        let leader = Leader::over(near, (), "pod a".to_owned()).await;
        let why = match leader {
            Ok(mut leader) => leader.held(&["r.io/a:1".to_owned()]).await.unwrap_err(),
            Err(why) => why,
        };
        assert!(why.contains("older than this command"), "{why}");
    }
}
