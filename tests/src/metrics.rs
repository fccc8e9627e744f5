//! A server's counters, read over HTTP without a client library.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result, bail};

const LIMIT: Duration = Duration::from_secs(10);
const BODY_LIMIT_BYTES: u64 = 16 << 20;

/// The body of a plain GET. `address` is `HOST:PORT`.
pub fn http_get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    // HTTP/1.0: the answer ends with the connection, so there are no chunks to take apart.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(BODY_LIMIT_BYTES).read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of headers")?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("GET http://{address}{path}: {status}");
    }
    Ok(body.to_owned())
}

/// One reading of `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    text: String,
}

impl Metrics {
    /// Reads them from the server at `HOST:PORT`.
    pub fn read(address: &str) -> Result<Self> {
        Ok(Self { text: http_get(address, "/metrics")? })
    }

    /// The sum of all series of a metric that carry every one of `labels`; none is zero.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let values = self.text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (metric, given) = series.split_once('{').unwrap_or((series, ""));
            let fits = metric == name && labels.iter().all(|label| given.contains(label));
            if fits { value.parse::<f64>().ok() } else { None }
        });
        values.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_added_up() {
        let text = "# TYPE a counter\na{kind=\"cas\",result=\"hit\"} 2\na{kind=\"ac\",result=\"hit\"} 3\nab 7\nb 1.5\n";
        let metrics = Metrics { text: text.to_owned() };
        assert_eq!(metrics.sum("a", &[]), 5.0);
        assert_eq!(metrics.sum("a", &["kind=\"ac\""]), 3.0);
        assert_eq!(metrics.sum("b", &[]), 1.5);
        assert_eq!(metrics.sum("c", &[]), 0.0);
    }
}
