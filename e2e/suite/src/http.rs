//! A tiny HTTP client for control APIs and probes. It runs in a process of its own (`holdfast-e2e
//! http …`), so that it can be started inside the cluster's network.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Sends one request to `http://HOST:PORT/PATH` and returns the body of a 2xx answer.
///
/// # Errors
/// When the connection fails, 10 s pass without a byte, or the status is not 2xx.
pub(crate) fn request(method: &str, url: &str, body: &str) -> Result<String> {
    let rest = url
        .strip_prefix("http://")
        .with_context(|| format!("not a plain URL: {url}"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = authority
        .to_socket_addrs()
        .with_context(|| format!("address {authority}"))?
        .next()
        .context("no address")?;
    let limit = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address, limit)
        .with_context(|| format!("connect to {authority}"))?;
    stream.set_read_timeout(Some(limit)).context("time limit")?;
    let head = format!(
        "{method} /{path} HTTP/1.1\r\nHost: {authority}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).context("send")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read the answer")?;
    let (status, body) = parse(&String::from_utf8_lossy(&answer))?;
    if !(200..300).contains(&status) {
        bail!("{method} {url}: {status} {body}");
    }
    Ok(body)
}

/// Splits an answer into status and body; understands chunked bodies.
fn parse(answer: &str) -> Result<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("no status")?;
    if !head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        return Ok((status, body.to_owned()));
    }
    let mut whole = String::new();
    let mut rest = body;
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).context("chunk size")?;
        let Some(chunk) = after.get(..size).filter(|_| size > 0) else {
            break;
        };
        whole.push_str(chunk);
        rest = after.get(size + 2..).unwrap_or_default();
    }
    Ok((status, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_chunked_answers_are_read() {
        assert_eq!(
            parse("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").expect("plain"),
            (200, "{}".to_owned())
        );
        let chunked = "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).expect("chunked"), (404, "abcde".to_owned()));
    }
}
