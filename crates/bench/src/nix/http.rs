//! A client that does no more than HTTP/1.1 asks for, so that what is measured is the server.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// No head of an answer is longer.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// What is read at once.
const BUFFER_BYTES: usize = 256 << 10;
/// A server that says nothing for so long hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// One connection that is kept.
pub(super) struct Connection {
    stream: TcpStream,
    address: String,
    buffer: Vec<u8>,
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    /// The status code.
    pub(super) status: u16,
    /// The length of the body in bytes.
    pub(super) length: u64,
    /// The body, as far as the caller wanted to have it.
    pub(super) body: Vec<u8>,
}

impl Connection {
    /// Connects to `http://ADDRESS:PORT`.
    pub(super) async fn open(url: &str) -> anyhow::Result<Self> {
        let address = url.strip_prefix("http://").context("the URL does not begin with http://")?.to_owned();
        let stream = TcpStream::connect(&address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, address, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Asks for a path; up to `keep` bytes of the body are kept, the rest is only counted.
    pub(super) async fn get(&mut self, path: &str, keep: usize) -> anyhow::Result<Answer> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address);
        timeout(LIMIT, self.exchange(request.as_bytes(), &[], keep)).await.context("no answer")?
    }

    /// Puts a body.
    pub(super) async fn put(&mut self, path: &str, body: &[u8]) -> anyhow::Result<Answer> {
        let request =
            format!("PUT {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n", self.address, body.len());
        let answer = timeout(LIMIT, self.exchange(request.as_bytes(), body, 1 << 10)).await.context("no answer")??;
        let text = String::from_utf8_lossy(&answer.body);
        ensure!((200..300).contains(&answer.status), "PUT {path}: {} {text}", answer.status);
        Ok(answer)
    }

    async fn exchange(&mut self, head: &[u8], body: &[u8], keep: usize) -> anyhow::Result<Answer> {
        self.stream.write_all(head).await?;
        self.stream.write_all(body).await?;
        let (mut filled, mut end) = (0, None);
        while end.is_none() {
            ensure!(filled < MAX_HEAD_BYTES, "the head of an answer is too long");
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            ensure!(read > 0, "the connection was closed before an answer");
            filled += read;
            end = self.buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n");
        }
        let end = end.unwrap_or_default();
        let (status, length) = head_of(std::str::from_utf8(&self.buffer[..end])?)?;
        let first = &self.buffer[end + 4..filled];
        let mut kept = first[..first.len().min(keep)].to_vec();
        let mut left = length.checked_sub(u64::try_from(first.len())?).context("more came than was announced")?;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
            let read = self.stream.read(&mut self.buffer[..most]).await?;
            ensure!(read > 0, "the connection was closed with {left} bytes to come");
            let wanted = keep.saturating_sub(kept.len()).min(read);
            kept.extend_from_slice(&self.buffer[..wanted]);
            left -= u64::try_from(read)?;
        }
        Ok(Answer { status, length, body: kept })
    }
}

/// Status and length.
fn head_of(head: &str) -> anyhow::Result<(u16, u64)> {
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status")?.parse()?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find_map(|(name, value)| name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<u64>()));
    match length {
        Some(length) => Ok((status, length?)),
        None if status == 204 => Ok((status, 0)),
        None => bail!("an answer without Content-Length: {head}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_length_are_read() {
        let head = "HTTP/1.1 206 Partial Content\r\ncontent-length:  17\r\nX: y";
        assert_eq!(head_of(head).unwrap(), (206, 17));
        assert_eq!(head_of("HTTP/1.1 204 No Content").unwrap(), (204, 0));
        assert!(head_of("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked").is_err());
        assert!(head_of("what").is_err());
    }
}
