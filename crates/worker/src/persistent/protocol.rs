//! The language of Bazel's persistent workers: one request, one answer, in protobuf or in JSON.
//!
//! Only what a process with one request at a time needs: `request_id` (3) stays zero, and `cancel` (4), `verbosity` (5)
//! and `sandbox_dir` (6) of a request are never said. What always holds: an answer has a bound, and what follows it
//! unasked is noticed, so that no answer is taken for that of the next request.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde::{Deserialize, Serialize, Serializer};
use tokio::io::{AsyncRead, AsyncReadExt};

/// A request or an answer.
pub(super) const MAX_MESSAGE_BYTES: usize = 64 << 20;
const READ_BYTES: usize = 64 << 10;
/// A varint of 32 bits.
const MAX_VARINT_BYTES: u32 = 5;

/// How requests and answers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    /// Messages with their length before them, as a varint.
    Proto,
    /// One object each, on a line of its own.
    Json,
}

/// What a process is asked to do.
#[derive(Clone, PartialEq, Message, Serialize)]
pub(super) struct WorkRequest {
    #[prost(string, repeated, tag = "1")]
    pub(super) arguments: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    pub(super) inputs: Vec<Input>,
}

/// A file that is there for a request.
#[derive(Clone, PartialEq, Message, Serialize)]
pub(super) struct Input {
    /// From the working directory.
    #[prost(string, tag = "1")]
    pub(super) path: String,
    /// The hash in hexadecimal digits, as Bazel sends it.
    #[prost(bytes = "vec", tag = "2")]
    #[serde(serialize_with = "as_base64")]
    pub(super) digest: Vec<u8>,
}

/// What it answers. The output is text, but a compiler that quotes its source may write anything.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WorkResponse {
    #[prost(int32, tag = "1")]
    pub(super) exit_code: i32,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) output: Vec<u8>,
    /// Nobody cancels, so an answer that says so answers something else.
    #[prost(bool, tag = "4")]
    was_cancelled: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct JsonResponse {
    exit_code: i32,
    output: String,
    was_cancelled: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// Its output ended.
    #[error("it ended without an answer")]
    Ended,
    /// It wrote something else.
    #[error("what it wrote is no answer of this protocol: {0}")]
    Malformed(String),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => Self::Ended,
            _ => Self::Malformed(error.to_string()),
        }
    }
}

impl Protocol {
    /// A request as it is written, or nothing if it is too long.
    pub(super) fn encode(self, request: &WorkRequest) -> Option<Vec<u8>> {
        let bytes = match self {
            Self::Proto => request.encode_length_delimited_to_vec(),
            Self::Json => {
                let mut line = serde_json::to_vec(request).ok()?;
                line.push(b'\n');
                line
            }
        };
        (bytes.len() <= MAX_MESSAGE_BYTES).then_some(bytes)
    }

    /// The next answer.
    pub(super) async fn read(self, stdout: &mut (impl AsyncRead + Unpin)) -> Result<WorkResponse, Broken> {
        let response = match self {
            Self::Proto => read_proto(stdout).await?,
            Self::Json => read_json(stdout).await?,
        };
        if response.was_cancelled {
            return Err(Broken::Malformed("it says that it was cancelled, which it was not".to_owned()));
        }
        Ok(response)
    }

    /// Whether bytes between an answer and the next request mean nothing.
    pub(super) fn is_silence(self, between: &[u8]) -> bool {
        between.is_empty() || (self == Self::Json && between.iter().all(u8::is_ascii_whitespace))
    }
}

async fn read_proto(stdout: &mut (impl AsyncRead + Unpin)) -> Result<WorkResponse, Broken> {
    let length = read_varint(stdout).await?;
    if length > MAX_MESSAGE_BYTES as u64 {
        return Err(too_long());
    }
    let mut body = Vec::new();
    stdout.take(length).read_to_end(&mut body).await?;
    if (body.len() as u64) < length {
        return Err(Broken::Ended);
    }
    WorkResponse::decode(body.as_slice()).map_err(|error| Broken::Malformed(error.to_string()))
}

async fn read_varint(stdout: &mut (impl AsyncRead + Unpin)) -> Result<u64, Broken> {
    let mut value = 0;
    for place in 0..MAX_VARINT_BYTES {
        let byte = stdout.read_u8().await?;
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Broken::Malformed("it does not begin with a length".to_owned()))
}

async fn read_json(stdout: &mut (impl AsyncRead + Unpin)) -> Result<WorkResponse, Broken> {
    let (mut line, mut scan) = (Vec::new(), Scan::default());
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let length = stdout.read(&mut buffer).await?;
        if length == 0 {
            return Err(Broken::Ended);
        }
        let read = buffer.get(..length).unwrap_or_default();
        if let Some(end) = scan.end(read)? {
            let (last, after) = read.split_at_checked(end).unwrap_or((read, &[]));
            line.extend_from_slice(last);
            if !Protocol::Json.is_silence(after) {
                return Err(Broken::Malformed("there is more than one answer".to_owned()));
            }
            let found: JsonResponse =
                serde_json::from_slice(&line).map_err(|error| Broken::Malformed(error.to_string()))?;
            let JsonResponse { exit_code, output, was_cancelled } = found;
            return Ok(WorkResponse { exit_code, output: output.into_bytes(), was_cancelled });
        }
        line.extend_from_slice(read);
        if line.len() > MAX_MESSAGE_BYTES {
            return Err(too_long());
        }
    }
}

/// Finds the end of an object, looking at every byte once.
#[derive(Default)]
struct Scan {
    depth: usize,
    is_in_string: bool,
    is_escaped: bool,
}

impl Scan {
    /// Where the object ends in these bytes, if it does.
    fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, Broken> {
        for (index, byte) in bytes.iter().enumerate() {
            if self.is_escaped {
                self.is_escaped = false;
                continue;
            }
            match byte {
                b'\\' if self.is_in_string => self.is_escaped = true,
                b'"' if self.depth > 0 => self.is_in_string = !self.is_in_string,
                _ if self.is_in_string => {}
                b'{' => self.depth += 1,
                b'}' if self.depth == 1 => return Ok(Some(index + 1)),
                b'}' if self.depth > 1 => self.depth -= 1,
                _ if self.depth == 0 && !byte.is_ascii_whitespace() => {
                    return Err(Broken::Malformed("it does not begin with an object".to_owned()));
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

fn too_long() -> Broken {
    Broken::Malformed(format!("it is longer than {MAX_MESSAGE_BYTES} bytes"))
}

fn as_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> WorkRequest {
        let input = Input { path: "a/b".to_owned(), digest: b"beef".to_vec() };
        WorkRequest { arguments: vec!["-x".to_owned()], inputs: vec![input] }
    }

    #[test]
    fn requests_are_written_as_the_protocols_want_them() {
        let proto = Protocol::Proto.encode(&request()).unwrap();
        assert_eq!(proto, b"\x11\x0a\x02-x\x12\x0b\x0a\x03a/b\x12\x04beef");
        let json = Protocol::Json.encode(&request()).unwrap();
        let json = String::from_utf8(json).unwrap();
        assert_eq!(json, "{\"arguments\":[\"-x\"],\"inputs\":[{\"path\":\"a/b\",\"digest\":\"YmVlZg==\"}]}\n");
    }

    #[tokio::test]
    async fn answers_are_read_and_what_is_none_is_refused() {
        let read = async |protocol: Protocol, mut bytes: &[u8]| match protocol.read(&mut bytes).await {
            Ok(WorkResponse { exit_code, output, .. }) => format!("{exit_code} {}", String::from_utf8_lossy(&output)),
            Err(Broken::Ended) => "ended".to_owned(),
            Err(Broken::Malformed(_)) => "malformed".to_owned(),
        };
        for (bytes, expected) in [
            (&b"\x06\x08\x03\x12\x02no"[..], "3 no"),
            (b"\x00", "0 "),
            (b"\x06\x08\x03\x12", "ended"),
            (b"", "ended"),
            (b"\x02\x20\x01", "malformed"),
            (b"\x02\x12\x7f", "malformed"),
            (b"\xff\xff\xff\xff\x0f", "malformed"),
            (b"\xff\xff\xff\xff\xff\x0f", "malformed"),
        ] {
            assert_eq!(read(Protocol::Proto, bytes).await, expected, "{bytes:?}");
        }
        for (text, expected) in [
            (r#" {"exitCode": 3, "output": "no } \" {", "other": {"a": []}}  "#, "3 no } \" {"),
            ("{}", "0 "),
            (r#"{"exitCode": 3"#, "ended"),
            ("hello", "malformed"),
            (r#"{"exitCode": "three"}"#, "malformed"),
            ("{}{}", "malformed"),
            (r#"{"wasCancelled": true}"#, "malformed"),
        ] {
            assert_eq!(read(Protocol::Json, text.as_bytes()).await, expected, "{text}");
        }
    }
}
