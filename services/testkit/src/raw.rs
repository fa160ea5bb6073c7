//! A server that sends a test's bytes as they are: for answers that no HTTP library would send.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Longest head of a request that is read, bytes.
const MAX_HEAD: usize = 64 << 10;

/// What to send for a request; the connection is closed behind it.
#[derive(Debug, Clone)]
pub enum Reply {
    /// These bytes.
    Bytes(Vec<u8>),
    /// The first bytes at once, the others one at a time.
    Trickle {
        /// What comes at once.
        head: Vec<u8>,
        /// What comes one byte after the other.
        body: Vec<u8>,
        /// The pause between two bytes.
        every: Duration,
    },
    /// The first bytes, then the others again and again until the client leaves.
    Endless {
        /// What comes once.
        head: Vec<u8>,
        /// What is repeated.
        piece: Vec<u8>,
    },
    /// Nothing, and the connection stays open.
    Silence,
}

impl Reply {
    /// An answer with a status line's end (`200 OK`), headers and a body of the right length.
    pub fn http(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut head = head(status, headers);
        head.extend(format!("content-length: {}\r\n\r\n", body.len()).bytes());
        head.extend(body);
        Self::Bytes(head)
    }
}

/// The head of an answer without the empty line that ends it.
pub fn head(status: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\nconnection: close\r\n");
    for (name, value) in headers {
        text.extend([*name, ": ", *value, "\r\n"]);
    }
    text.into_bytes()
}

/// A running server on 127.0.0.1; dropping it ends it.
#[derive(Debug)]
pub struct Raw {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Raw {
    /// Starts a server that answers each request by what `answer` makes of its head: request line
    /// and headers.
    ///
    /// # Panics
    /// When no port can be bound.
    #[allow(clippy::expect_used, reason = "a test cannot go on without its server")]
    pub async fn start(answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("bind a port for the raw server");
        let address = listener.local_addr().expect("a bound port has an address");
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (record, answer) = (Arc::clone(&requests), Arc::new(answer));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                while connections.try_join_next().is_some() {}
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let (record, answer) = (Arc::clone(&record), Arc::clone(&answer));
                connections.spawn(async move {
                    // An error here is a client that left.
                    drop(serve(stream, &record, &*answer).await);
                });
            }
        });
        Self {
            address,
            requests,
            task,
        }
    }

    /// `127.0.0.1:<port>`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The heads of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        let requests = self.requests.lock();
        requests.clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    record: &Mutex<Vec<String>>,
    answer: &(impl Fn(&str) -> Reply + Send + Sync),
) -> std::io::Result<()> {
    let mut read = Vec::new();
    while !read.windows(4).any(|end| end == b"\r\n\r\n") && read.len() < MAX_HEAD {
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8_lossy(&read).into_owned();
    let reply = answer(&request);
    record.lock().push(request);
    match reply {
        Reply::Bytes(bytes) => stream.write_all(&bytes).await?,
        Reply::Trickle { head, body, every } => {
            stream.write_all(&head).await?;
            for byte in body {
                stream.write_all(&[byte]).await?;
                tokio::time::sleep(every).await;
            }
        }
        Reply::Endless { head, piece } => {
            stream.write_all(&head).await?;
            loop {
                stream.write_all(&piece).await?;
            }
        }
        Reply::Silence => std::future::pending::<()>().await,
    }
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn says_what_it_is_told() {
        crate::tls::install_crypto_provider();
        let raw = Raw::start(|request| {
            if request.starts_with("GET /good ") {
                Reply::http("200 OK", &[("x-a", "b")], b"body")
            } else {
                Reply::Bytes(b"nonsense".to_vec())
            }
        })
        .await;
        let good = reqwest::get(format!("{}/good", raw.url())).await.unwrap();
        assert_eq!(good.headers()["x-a"], "b");
        assert_eq!(good.text().await.unwrap(), "body");
        assert!(reqwest::get(raw.url()).await.is_err());
        assert_eq!(raw.requests().len(), 2);
    }
}
