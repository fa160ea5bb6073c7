//! `holdfast-upstream`: a fault proxy in front of a registry, for tests.

use std::{io::Write as _, path::PathBuf};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use holdfast_testkit::{proxy, tls};

const EXAMPLE: &str = "Example: holdfast-upstream proxy --listen 0.0.0.0:5443 --target http://127.0.0.1:5001 \\
    --control 127.0.0.1:6443 --basic user:pass --tls self-signed ca.pem --name registry.example.test";

const HELP: &str = r#"An upstream registry with faults, for tests.

`holdfast-upstream proxy` stands in front of a registry. When it is ready it prints one line, `listening ADDR`.

The control port speaks JSON (also below /_control):
  GET    /requests   {"GET /v2/team/app/manifests/1": 2, …}
  DELETE /requests   forgets the counts
  GET    /fault      the faults in force
  DELETE /fault      ends all faults; what hangs goes on
  POST   /fault      adds one; the first that concerns a request counts:
    {"kind": "down"}                             every connection is cut
    {"kind": "hang"}                             no answer until cleared; with "after": N the body stops after N bytes
    {"kind": "slow", "bytes_per_second": N}      bodies trickle
    {"kind": "too_many", "retry_after": S}       429 with Retry-After
    {"kind": "error", "status": 500}
    {"kind": "truncate", "after": N}             the body breaks off after N bytes
    {"kind": "wrong_bytes"}                      right length, wrong first byte
    {"kind": "redirect", "to": "http://host"}    307 to that host, same path
  each with "path": "TEXT" (only requests whose "METHOD /path" contains TEXT, a digest for instance)
  and "times": N (only the next N)."#;

/// An upstream registry with faults, for tests.
#[derive(Parser)]
#[command(version, long_about = HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Forwards everything to one registry.
    #[command(after_help = EXAMPLE)]
    Proxy(Proxy),
}

#[derive(Args)]
struct Proxy {
    /// Address and port to listen on.
    #[arg(long)]
    listen: String,
    /// Scheme, host and port of the registry behind.
    #[arg(long)]
    target: String,
    /// Address and port of the control API.
    #[arg(long)]
    control: String,
    /// Ask for this user and password, `user:password`; the registry behind never sees them.
    #[arg(long)]
    basic: Option<String>,
    /// Serve TLS: the word `self-signed`, and the file to write the CA's certificate to.
    #[arg(long, num_args = 2, value_names = ["self-signed", "CA_FILE"])]
    tls: Option<Vec<String>>,
    /// Names and addresses of the certificate; may be given several times.
    #[arg(long)]
    name: Vec<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tls::install_crypto_provider();
    let Command::Proxy(arguments) = Arguments::parse().command;
    let basic = match &arguments.basic {
        Some(text) => {
            let (user, password) = text.split_once(':').context("--basic is user:password")?;
            Some((user.to_owned(), password.to_owned()))
        }
        None => None,
    };
    let acceptor = match arguments.tls.as_deref() {
        Some([kind, file]) => {
            anyhow::ensure!(kind == "self-signed", "--tls knows only self-signed");
            let names = if arguments.name.is_empty() {
                vec!["localhost".to_owned()]
            } else {
                arguments.name
            };
            let (acceptor, ca) = tls::self_signed(&names)?;
            let file = PathBuf::from(file);
            std::fs::write(&file, ca).with_context(|| format!("write {}", file.display()))?;
            Some(acceptor)
        }
        _ => None,
    };
    let settings = proxy::Settings {
        listen: arguments.listen,
        control: arguments.control,
        target: arguments.target,
        basic,
        tls: acceptor,
    };
    proxy::run(settings, |address| {
        let mut out = std::io::stdout();
        // A reader that closed the pipe does not want the line.
        drop(writeln!(out, "listening {address}").and_then(|()| out.flush()));
    })
    .await
}
