//! A client of the Remote Execution API for small actions.

use std::time::Duration;

use gf_digest::{Digest, DigestFunction};
use gf_reapi::WireDigest;
use gf_reapi::execution::batch_update_blobs_request::Request as BlobRequest;
use gf_reapi::execution::command::EnvironmentVariable;
use gf_reapi::execution::content_addressable_storage_client::ContentAddressableStorageClient;
use gf_reapi::execution::execution_client::ExecutionClient;
use gf_reapi::execution::platform::Property;
use gf_reapi::execution::{
    Action, ActionResult, BatchReadBlobsRequest, BatchUpdateBlobsRequest, Command, Directory, ExecuteRequest,
    ExecuteResponse, ExecutionPolicy, FileNode, Platform,
};
use gf_reapi::longrunning::{Operation, operation};
use gf_reapi::rpc::PreconditionFailure;
use gf_tests::GfServer;
use prost::Message;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

/// No action of these tests takes so long, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
    /// Of the tenant in whose name it asks.
    pub(crate) instance: &'static str,
    /// In the environment of every action, so that none is in a cache and all can be found on the machine.
    mark: String,
}

/// What to run.
#[derive(Clone, Copy, Default)]
pub(crate) struct Job<'a> {
    pub(crate) script: &'a str,
    pub(crate) inputs: &'a [(&'a str, &'a str)],
    pub(crate) outputs: &'a [&'a str],
    pub(crate) seconds: Option<i64>,
    pub(crate) platform: &'a [(&'a str, &'a str)],
    /// The lower, the earlier.
    pub(crate) priority: i32,
}

/// An execution under way.
pub(crate) struct Watch {
    pub(crate) name: String,
    stream: Streaming<Operation>,
    last: Operation,
}

/// How one ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Code,
    /// What the status says, and the message beside it.
    pub(crate) words: String,
    /// What the status says is missing or wrong, each by its type and its subject.
    pub(crate) violations: Vec<(String, String)>,
    pub(crate) result: ActionResult,
}

impl Ended {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.result.stdout_raw).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.result.stderr_raw).into_owned()
    }

    /// What it printed, of one that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(&self) -> String {
        assert_eq!((self.code, self.result.exit_code), (Code::Ok, 0), "{self:?}\n{}", self.stderr());
        self.stdout()
    }

    /// When a worker took it up.
    pub(crate) fn started(&self) -> (i64, i32) {
        let metadata = self.result.execution_metadata.clone().unwrap_or_default();
        let started = metadata.worker_start_timestamp.unwrap();
        (started.seconds, started.nanos)
    }

    /// Who ran it.
    pub(crate) fn worker(&self) -> &str {
        self.result.execution_metadata.as_ref().map_or("", |metadata| &metadata.worker)
    }
}

impl Client {
    pub(crate) async fn connect(server: &GfServer, mark: &str) -> Self {
        let channel = Channel::from_shared(server.url().to_owned()).unwrap().connect().await.unwrap();
        Self { channel, instance: "", mark: mark.to_owned() }
    }

    /// Stores a blob.
    pub(crate) async fn put(&self, bytes: Vec<u8>) -> WireDigest {
        let digest = wire(&bytes);
        let request = BlobRequest { digest: Some(digest.clone()), data: bytes.into(), ..BlobRequest::default() };
        let instance_name = self.instance.to_owned();
        let requests = vec![request];
        let request = BatchUpdateBlobsRequest { instance_name, requests, ..BatchUpdateBlobsRequest::default() };
        let mut storage = ContentAddressableStorageClient::new(self.channel.clone());
        let answer = storage.batch_update_blobs(request).await.unwrap().into_inner();
        assert_eq!(answer.responses[0].status.clone().unwrap_or_default().code, 0, "{answer:?}");
        digest
    }

    /// Reads a blob, if it is there.
    pub(crate) async fn get(&self, digest: &WireDigest) -> Option<Vec<u8>> {
        let (instance_name, digests) = (self.instance.to_owned(), vec![digest.clone()]);
        let request = BatchReadBlobsRequest { instance_name, digests, ..BatchReadBlobsRequest::default() };
        let mut storage = ContentAddressableStorageClient::new(self.channel.clone());
        let answer = storage.batch_read_blobs(request).await.unwrap().into_inner().responses.remove(0);
        (answer.status.unwrap_or_default().code == 0).then(|| answer.data.to_vec())
    }

    /// Asks for an action, and waits until it has a name.
    pub(crate) async fn begin(&self, job: Job<'_>) -> Watch {
        let request = self.request(job).await;
        let mut stream = ExecutionClient::new(self.channel.clone()).execute(request).await.unwrap().into_inner();
        let last = timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
        Watch { name: last.name.clone(), stream, last }
    }

    /// Runs an action to its end.
    pub(crate) async fn run(&self, job: Job<'_>) -> Ended {
        self.begin(job).await.end().await
    }

    async fn request(&self, job: Job<'_>) -> ExecuteRequest {
        let mut files = Vec::new();
        for (name, text) in job.inputs {
            let digest = Some(self.put(text.as_bytes().to_vec()).await);
            files.push(FileNode { name: (*name).to_owned(), digest, ..FileNode::default() });
        }
        let root = self.put(Directory { files, ..Directory::default() }.encode_to_vec()).await;
        let property = |(name, value): &(&str, &str)| Property { name: (*name).to_owned(), value: (*value).to_owned() };
        let variable = |(name, value): (&str, &str)| EnvironmentVariable { name: name.into(), value: value.into() };
        let command = Command {
            arguments: ["/bin/sh", "-c", job.script].map(str::to_owned).to_vec(),
            environment_variables: vec![variable(("GF_MARK", &self.mark)), variable(("PATH", "/usr/bin:/bin"))],
            output_paths: job.outputs.iter().map(|path| (*path).to_owned()).collect(),
            ..Command::default()
        };
        let action = Action {
            command_digest: Some(self.put(command.encode_to_vec()).await),
            input_root_digest: Some(root),
            timeout: job.seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
            do_not_cache: true,
            platform: Some(Platform { properties: job.platform.iter().map(property).collect() }),
            ..Action::default()
        };
        let action_digest = Some(self.put(action.encode_to_vec()).await);
        ExecuteRequest {
            instance_name: self.instance.to_owned(),
            action_digest,
            execution_policy: Some(ExecutionPolicy { priority: job.priority }),
            skip_cache_lookup: true,
            inline_stdout: true,
            inline_stderr: true,
            ..ExecuteRequest::default()
        }
    }
}

impl Watch {
    /// Follows it to its end.
    pub(crate) async fn end(mut self) -> Ended {
        while !self.last.done {
            self.last = timeout(PATIENCE, self.stream.message()).await.unwrap().unwrap().unwrap();
        }
        let (status, response) = match self.last.result {
            Some(operation::Result::Response(any)) => {
                let response = ExecuteResponse::decode(any.value.as_slice()).unwrap();
                (response.status.clone().unwrap_or_default(), response)
            }
            Some(operation::Result::Error(status)) => (status, ExecuteResponse::default()),
            None => panic!("{} is done without an answer", self.name),
        };
        let words = format!("{} {}", status.message, response.message);
        let failures =
            status.details.iter().filter(|detail| detail.type_url.ends_with("/google.rpc.PreconditionFailure"));
        let failures = failures.flat_map(|detail| PreconditionFailure::decode(&*detail.value).unwrap().violations);
        let violations = failures.map(|violation| (violation.r#type, violation.subject)).collect();
        let result = response.result.unwrap_or_default();
        Ended { code: Code::from_i32(status.code), words, violations, result }
    }
}

pub(crate) fn wire(bytes: &[u8]) -> WireDigest {
    let digest = Digest::of(DigestFunction::Sha256, bytes);
    WireDigest::from_text(digest.hash_hex().as_str(), i64::try_from(bytes.len()).unwrap())
}
