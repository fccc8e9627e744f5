//! The methods of gRPC.

use bytes::Bytes;
use h2::client::SendRequest;
use hyper::Request;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{CALLERS, Caller, Setting};
use crate::running::DEADLINE;

/// Codes of gRPC.
const INVALID_ARGUMENT: u32 = 3;
const PERMISSION_DENIED: u32 = 7;
const UNAUTHENTICATED: u32 = 16;

/// What a method needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Read,
    Write,
    /// To attach a worker, which no token here may.
    Work,
}

/// What each method needs, and how the first field of its message names the instance.
const METHODS: [(&str, Needs, &str); 21] = [
    ("build.bazel.remote.execution.v2.Capabilities/GetCapabilities", Needs::Read, "INSTANCE"),
    ("build.bazel.remote.execution.v2.ActionCache/GetActionResult", Needs::Read, "INSTANCE"),
    ("build.bazel.remote.execution.v2.ActionCache/UpdateActionResult", Needs::Write, "INSTANCE"),
    ("build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs", Needs::Read, "INSTANCE"),
    ("build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs", Needs::Read, "INSTANCE"),
    ("build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs", Needs::Write, "INSTANCE"),
    ("build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree", Needs::Read, "INSTANCE"),
    ("build.bazel.remote.execution.v2.ContentAddressableStorage/SplitBlob", Needs::Read, "INSTANCE"),
    ("build.bazel.remote.execution.v2.ContentAddressableStorage/SpliceBlob", Needs::Write, "INSTANCE"),
    ("build.bazel.remote.execution.v2.ContentAddressableStorage/GetChunkMapping", Needs::Read, "INSTANCE"),
    ("build.bazel.remote.execution.v2.ContentAddressableStorage/RegisterChunkMapping", Needs::Write, "INSTANCE"),
    ("google.bytestream.ByteStream/Read", Needs::Read, BLOB),
    ("google.bytestream.ByteStream/Write", Needs::Write, UPLOAD),
    ("google.bytestream.ByteStream/QueryWriteStatus", Needs::Write, UPLOAD),
    ("build.bazel.remote.execution.v2.Execution/Execute", Needs::Write, "INSTANCE"),
    ("build.bazel.remote.execution.v2.Execution/WaitExecution", Needs::Write, OPERATION),
    ("google.longrunning.Operations/GetOperation", Needs::Write, OPERATION),
    ("google.longrunning.Operations/ListOperations", Needs::Write, "INSTANCE"),
    ("google.longrunning.Operations/CancelOperation", Needs::Write, OPERATION),
    ("google.longrunning.Operations/WaitOperation", Needs::Write, OPERATION),
    ("gloriousflywheel.worker.v1.Workers/Attach", Needs::Work, ""),
];

const BLOB: &str = "INSTANCE/blobs/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/1";
const UPLOAD: &str = "INSTANCE/uploads/0b4a5f0e-5a3c-4d3e-9d55-0a7a9f3f8a11/blobs/\
                      aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/1";
const OPERATION: &str = "INSTANCE/operations/0b4a5f0e-5a3c-4d3e-9d55-0a7a9f3f8a11";

/// The message: one text, in the field that names the instance.
fn message(method: &str, text: &str) -> Bytes {
    // Only ListOperations names it in another field than the first.
    let field: u8 = if method.ends_with("/ListOperations") { 4 } else { 1 };
    let mut message = vec![field << 3 | 2, u8::try_from(text.len()).unwrap()];
    message.extend_from_slice(text.as_bytes());
    if text.is_empty() {
        message.clear();
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend(message);
    framed.into()
}

/// The code and the text that a call ends with. One that is still open after its first message was let in: code 0.
async fn call(requests: &mut SendRequest<Bytes>, token: Option<&str>, method: &str, text: &str) -> (u32, String) {
    let mut request = Request::post(format!("http://test/{method}")).header("content-type", "application/grpc");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let (answer, mut body) = requests.send_request(request.body(()).unwrap(), false).unwrap();
    let _refused_already = body.send_data(message(method, text), true);
    let answer = timeout(DEADLINE, answer).await.unwrap().unwrap();
    let status = |headers: &hyper::HeaderMap| {
        let code = headers.get("grpc-status")?.to_str().unwrap().parse().unwrap();
        let text = headers.get("grpc-message").map_or("", |text| text.to_str().unwrap());
        Some((code, text.to_owned()))
    };
    if let Some(ended) = status(answer.headers()) {
        return ended;
    }
    let mut body = answer.into_body();
    while let Some(piece) = timeout(DEADLINE, body.data()).await.unwrap() {
        let piece = piece.unwrap();
        body.flow_control().release_capacity(piece.len()).unwrap();
    }
    let trailers = timeout(DEADLINE, body.trailers()).await.unwrap().unwrap();
    trailers.as_ref().and_then(status).unwrap_or_default()
}

async fn connect(setting: &Setting) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(setting.server.authority()).await.unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    requests.ready().await.unwrap()
}

#[test]
fn every_method_has_a_case() {
    let mut served: Vec<String> = gf_server::edges::grpc_methods().collect();
    let mut tried: Vec<String> = METHODS.iter().map(|(method, ..)| format!("/{method}")).collect();
    served.sort();
    tried.sort();
    assert_eq!(tried, served);
}

#[tokio::test]
async fn every_method_lets_in_whom_it_should() {
    let setting = Setting::start();
    let mut requests = connect(&setting).await;
    for caller in CALLERS {
        for (method, needs, name) in METHODS {
            let name = name.replace("INSTANCE", "default");
            let (code, text) = call(&mut requests, setting.token(caller), method, &name).await;
            let shown = format!("{caller:?}: {method}: {code} {text}");
            match (caller, needs) {
                (Caller::Nobody | Caller::Late, _) => assert_eq!(code, UNAUTHENTICATED, "{shown}"),
                (_, Needs::Work) | (Caller::Reader, Needs::Write) => assert_eq!(code, PERMISSION_DENIED, "{shown}"),
                (Caller::Foreigner, _) => assert_eq!(code, INVALID_ARGUMENT, "{shown}"),
                (Caller::Reader | Caller::Operator, _) => {
                    assert!(!matches!(code, PERMISSION_DENIED | UNAUTHENTICATED), "{shown}");
                }
            }
        }
    }
}

#[tokio::test]
async fn another_tenants_instance_looks_like_one_that_is_not_there() {
    let setting = Setting::start();
    let mut requests = connect(&setting).await;
    for caller in [Caller::Nobody, Caller::Late, Caller::Foreigner] {
        for (method, _, name) in METHODS {
            let mut answers = Vec::new();
            for instance in ["default", "nowhere"] {
                let name = name.replace("INSTANCE", instance);
                let (code, text) = call(&mut requests, setting.token(caller), method, &name).await;
                answers.push((code, text.replace(instance, "NAME")));
            }
            assert_eq!(answers[0], answers[1], "{caller:?}: {method}");
        }
    }
}
