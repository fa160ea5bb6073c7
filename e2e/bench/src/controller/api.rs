//! The bench's own client of the API server: JSON over HTTP/1.1 and TLS on connections that are
//! kept. Its requests are not the controller's: it calls as another user.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use holdfast_cluster::ApiServer;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

type Connection = SendRequest<Full<Bytes>>;

/// Media type of a patch that is merged.
const MERGE: &str = "application/merge-patch+json";
/// Media type of a patch that is a list of operations.
const OPERATIONS: &str = "application/json-patch+json";

/// The way to the API server of a user who may do everything.
pub(crate) struct Api {
    address: SocketAddr,
    tls: TlsConnector,
    token: &'static str,
    idle: Mutex<Vec<Connection>>,
}

impl Api {
    /// The way to this one.
    pub(crate) fn new(server: &ApiServer) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        let authority = server.certificate_authority()?;
        for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
            roots.add(certificate.context("the API server's authority")?)?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let url = server.url();
        Ok(Self {
            address: url.trim_start_matches("https://").parse()?,
            tls: TlsConnector::from(Arc::new(config)),
            token: server.token(),
            idle: Mutex::default(),
        })
    }

    /// An object or a list; `None` where there is none.
    pub(crate) async fn get(&self, path: &str) -> Result<Option<Value>> {
        let (status, value) = self.send(Method::GET, path, "", None).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        ensure!(status.is_success(), "GET {path}: {status}: {value}");
        Ok(Some(value))
    }

    /// Creates an object.
    pub(crate) async fn post(&self, path: &str, object: &Value) -> Result<Value> {
        self.change(Method::POST, path, "application/json", object)
            .await
    }

    /// Merges into an object.
    pub(crate) async fn merge(&self, path: &str, patch: &Value) -> Result<Value> {
        self.change(Method::PATCH, path, MERGE, patch).await
    }

    /// Changes an object by a list of operations.
    pub(crate) async fn operate(&self, path: &str, operations: &Value) -> Result<Value> {
        self.change(Method::PATCH, path, OPERATIONS, operations)
            .await
    }

    /// Deletes an object; a pod at once.
    pub(crate) async fn delete(&self, path: &str) -> Result<Value> {
        let options = serde_json::json!({"gracePeriodSeconds": 0});
        self.change(Method::DELETE, path, "application/json", &options)
            .await
    }

    async fn change(&self, method: Method, path: &str, kind: &str, body: &Value) -> Result<Value> {
        let said = format!("{method} {path}");
        let (status, value) = self.send(method, path, kind, Some(body)).await?;
        ensure!(status.is_success(), "{said}: {status}: {value}");
        Ok(value)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value)> {
        let mut connection = self.connection().await?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.to_string())
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        if !kind.is_empty() {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(body)))?;
        let answer = connection.send_request(request).await?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        let value = serde_json::from_slice(&bytes).with_context(|| format!("answer to {path}"))?;
        self.idle.lock().push(connection);
        Ok((status, value))
    }

    /// One that is open and idle, or a new one.
    async fn connection(&self) -> Result<Connection> {
        loop {
            let idle = self.idle.lock().pop();
            let Some(mut connection) = idle else {
                break;
            };
            if connection.ready().await.is_ok() {
                return Ok(connection);
            }
        }
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::from(self.address.ip());
        let stream = self.tls.connect(name, stream).await?;
        let (connection, driver) = http1::handshake(TokioIo::new(stream)).await?;
        // Its end shows at the next use of the connection.
        tokio::spawn(async move { driver.await.ok() });
        Ok(connection)
    }
}
