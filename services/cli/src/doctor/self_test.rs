//! `holdfast doctor --quick`: does the registry serve under the name by which pods of the cluster
//! reach it, with the CA and the credential that nodes use? The chart's test runs it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use holdfast_api::names::Names;
use holdfast_cli_kit::exit_status::Answer;
use holdfast_cli_kit::output::Document;
use holdfast_cli_kit::{duration, terminal};
use holdfast_config::Config;
use serde_json::json;

use crate::config_args;

/// Arguments of `doctor --quick`.
#[derive(clap::Args)]
pub(super) struct SelfTest {
    /// The configuration of the release
    #[arg(long, value_name = "FILE", default_value = config_args::CONFIG_FILE, hide = true)]
    config: PathBuf,
    /// Only the one question that a cluster's test asks: does the registry answer GET /v2/
    #[arg(long, hide = true)]
    pub(super) quick: bool,
    /// The registry; default: its Service in the release's namespace
    #[arg(long, value_name = "URL", hide = true)]
    url: Option<String>,
    /// The CA bundle that signs the registry's certificate (PEM)
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/holdfast/tls/ca.crt",
        hide = true
    )]
    ca: PathBuf,
    /// The folder with node-username and node-password
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/etc/holdfast/auth",
        hide = true
    )]
    auth: PathBuf,
    /// How long to keep trying; a release that was just installed needs some time
    #[arg(
        long,
        alias = "timeout-seconds",
        value_name = "DURATION",
        default_value = "30s",
        value_parser = duration::parse,
        hide = true
    )]
    timeout: Duration,
}

/// Asks until the registry answers, or until the time is over.
pub(super) async fn run(args: &SelfTest) -> anyhow::Result<Document> {
    let url = if let Some(url) = &args.url {
        url.trim_end_matches('/').to_owned()
    } else {
        let release = Config::from_file(&args.config)?.release;
        let names = Names {
            release: release.name,
            fullname: release.fullname,
            namespace: release.namespace,
        };
        format!("https://{}", names.dns(&names.registry()))
    };
    let client = client(&args.ca)?;
    let (username, password) = (
        read(&args.auth, "node-username")?,
        read(&args.auth, "node-password")?,
    );
    let url = format!("{url}/v2/");
    let deadline = tokio::time::Instant::now() + args.timeout;
    loop {
        match ask(&client, &url, &username, &password).await {
            Ok(()) => {
                let text = format!("ok: {url} answers with the node credential over TLS\n");
                return Document::new("SelfTest", Answer::Yes, &json!({"url": url}), text);
            }
            Err(error) if tokio::time::Instant::now() < deadline => {
                terminal::note(&format!("not yet: {error:#}"));
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn client(ca: &Path) -> anyhow::Result<reqwest::Client> {
    let pem = std::fs::read(ca).with_context(|| format!("cannot read the CA {}", ca.display()))?;
    let roots = reqwest::Certificate::from_pem_bundle(&pem)
        .with_context(|| format!("no certificate in {}", ca.display()))?;
    let client = reqwest::Client::builder()
        .tls_certs_only(roots)
        .no_proxy()
        .timeout(Duration::from_secs(5))
        .build()?;
    Ok(client)
}

fn read(folder: &Path, name: &str) -> anyhow::Result<String> {
    let path = folder.join(name);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read the credential {}", path.display()))?;
    // While it is rotated, the first line is the one in use.
    let line = text.lines().next().unwrap_or_default();
    Ok(line.trim_end().to_owned())
}

async fn ask(
    client: &reqwest::Client,
    url: &str,
    username: &str,
    password: &str,
) -> anyhow::Result<()> {
    let response = client
        .get(url)
        .basic_auth(username, Some(password))
        .send()
        .await
        .with_context(|| format!("{url} cannot be reached"))?;
    let status = response.status();
    if status == reqwest::StatusCode::UNAUTHORIZED {
        bail!("{url} refuses the node credential (401): the registry and the Secret disagree");
    }
    if status != reqwest::StatusCode::OK {
        bail!("{url} answered {status} where 200 was expected");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// Answers each connection with `status`, when it carries the credential `node:secret`.
    async fn registry(status: &'static str) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v2/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..length]).to_lowercase();
                let known = request.contains("authorization: basic bm9kztpzzwnyzxq=");
                let status = if known { status } else { "401 Unauthorized" };
                let answer =
                    format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        url
    }

    async fn check(status: &'static str, password: &str, expect: Result<(), &str>) {
        holdfast_runtime::tls::install_crypto_provider();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let outcome = ask(&client, &registry(status).await, "node", password).await;
        match (outcome, expect) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(part)) => assert!(format!("{error:#}").contains(part), "{error:#}"),
            (outcome, expect) => panic!("{outcome:?} instead of {expect:?}"),
        }
    }

    #[tokio::test]
    async fn the_answer_says_what_is_wrong() {
        check("200 OK", "secret", Ok(())).await;
        check("200 OK", "other", Err("refuses the node credential")).await;
        check("503 Service Unavailable", "secret", Err("503")).await;
    }
}
