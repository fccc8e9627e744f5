//! A worker and its server for one test.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gf_digest::Digest;
use gf_reapi::bytestream::byte_stream_server::ByteStreamServer;
use gf_reapi::execution::content_addressable_storage_server::ContentAddressableStorageServer;
use gf_reapi::execution::{Action, Command, Directory, DirectoryNode, FileNode, SymlinkNode};
use gf_reapi::worker::finished::Verdict;
use gf_reapi::worker::workers_server::WorkersServer;
use gf_reapi::worker::{
    Assignment, Cancel, Finished, Hello, Resources, StorePath, ToWorker, from_worker, progress::Stage, to_worker,
};
use gf_worker::{ServerConnection, Token, WorkerConfig, WorkerError};
use prost::Message;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::server::{Attached, CREDENTIAL, MemoryServer, State, TOKEN};

/// Nothing here takes so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const MAX_BATCH_BYTES: u64 = 64 << 10;

pub(crate) struct Case {
    pub(crate) store: Arc<State>,
    pub(crate) dir: TempDir,
    pub(crate) stop: CancellationToken,
    pub(crate) worker: JoinHandle<Result<(), WorkerError>>,
    pub(crate) hello: Hello,
    pub(crate) url: String,
    /// What every assignment reserves.
    pub(crate) reserved: Resources,
    /// What every assignment shows.
    pub(crate) store_paths: Vec<StorePath>,
    attached: Attached,
    attaching: mpsc::Receiver<Attached>,
    server: AbortHandle,
    next: u32,
}

impl Drop for Case {
    fn drop(&mut self) {
        self.worker.abort();
        self.server.abort();
    }
}

/// An input root: paths and what is there.
pub(crate) enum Input {
    File(Vec<u8>),
    Executable(Vec<u8>),
    Link(String),
    Folder,
}

pub(crate) fn file(text: &str) -> Input {
    Input::File(text.as_bytes().to_vec())
}

impl Case {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut WorkerConfig)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (attach, mut attaching) = mpsc::channel(4);
        let store = Arc::new(State::new(MAX_BATCH_BYTES, attach));
        let memory = MemoryServer { state: Arc::clone(&store) };
        let router = Server::builder()
            .add_service(WorkersServer::new(memory.clone()))
            .add_service(ContentAddressableStorageServer::new(memory.clone()))
            .add_service(ByteStreamServer::new(memory));
        // Without it small answers wait for acknowledgements.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = tokio::spawn(router.serve_with_incoming(incoming)).abort_handle();

        let dir = tempfile::tempdir().unwrap();
        let connection = ServerConnection::Url { url: url.clone(), ca_pem: None };
        let mut config = WorkerConfig::new("tested".to_owned(), dir.path().join("data"), connection, Token::new(TOKEN));
        config.cores = 4;
        config.memory_bytes = 4 << 30;
        config.sandbox.program = PathBuf::from(env!("CARGO_BIN_EXE_gf-launcher"));
        change(&mut config);
        let stop = CancellationToken::new();
        let mut worker = tokio::spawn(gf_worker::run(config, stop.clone()));
        let mut attached = tokio::select! {
            attached = attaching.recv() => attached.unwrap(),
            ended = &mut worker => panic!("the worker does not run here: {ended:?}"),
        };
        let Some(from_worker::Message::Hello(hello)) = hear(&mut attached).await else { panic!("no hello") };
        let reserved = Resources { milli_cores: 1000, memory_bytes: 512 << 20 };
        let store_paths = Vec::new();
        Self { store, dir, stop, worker, hello, url, reserved, store_paths, attached, attaching, server, next: 0 }
    }

    /// Waits until the worker comes back after its stream was cut.
    pub(crate) async fn cut(&mut self) {
        let attached = &mut self.attached;
        attached.orders.send(Err(tonic::Status::unavailable("cut"))).await.unwrap();
        self.await_another().await;
    }

    /// Waits until a worker comes, and works with that one from now on.
    pub(crate) async fn await_another(&mut self) {
        self.attached = timeout(PATIENCE, self.attaching.recv()).await.unwrap().unwrap();
        let Some(from_worker::Message::Hello(_)) = hear(&mut self.attached).await else { panic!("no hello") };
    }

    /// A shell script over inputs.
    pub(crate) fn script(&mut self, script: &str, inputs: &[(&str, Input)]) -> (Command, Digest) {
        let command =
            Command { arguments: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(), ..Command::default() };
        (command, put_root(&self.store, inputs))
    }

    pub(crate) async fn run(&mut self, script: &str, inputs: &[(&str, Input)], outputs: &[&str]) -> Finished {
        let (mut command, root) = self.script(script, inputs);
        command.output_paths = outputs.iter().map(|path| (*path).to_owned()).collect();
        self.execute(&command, root).await
    }

    pub(crate) async fn execute(&mut self, command: &Command, root: Digest) -> Finished {
        let id = self.assign(command, root, Duration::from_secs(30)).await;
        self.finished(&id).await
    }

    pub(crate) async fn assign(&mut self, command: &Command, root: Digest, limit: Duration) -> String {
        self.assign_for("", command, root, limit).await
    }

    pub(crate) async fn assign_for(
        &mut self,
        instance: &str,
        command: &Command,
        root: Digest,
        limit: Duration,
    ) -> String {
        self.next += 1;
        let id = format!("a-{}", self.next);
        let action = Action { input_root_digest: Some(root.into()), ..Action::default() };
        let assignment = Assignment {
            assignment_id: id.clone(),
            instance_name: instance.to_owned(),
            digest_function: 1,
            action: action.encode_to_vec().into(),
            command: command.encode_to_vec().into(),
            timeout: Some(prost_types::Duration {
                seconds: limit.as_secs() as i64,
                nanos: limit.subsec_nanos() as i32,
            }),
            reserved: Some(self.reserved),
            credential: CREDENTIAL.to_owned(),
            queued_timestamp: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
            store_paths: self.store_paths.clone(),
            ..Assignment::default()
        };
        self.tell(to_worker::Message::Assignment(assignment)).await;
        id
    }

    pub(crate) async fn cancel(&mut self, id: &str) {
        self.tell(to_worker::Message::Cancel(Cancel { assignment_id: id.to_owned() })).await;
    }

    async fn tell(&mut self, message: to_worker::Message) {
        self.attached.orders.send(Ok(ToWorker { message: Some(message) })).await.unwrap();
    }

    pub(crate) async fn hear(&mut self) -> Option<from_worker::Message> {
        hear(&mut self.attached).await
    }

    pub(crate) async fn finished(&mut self, id: &str) -> Finished {
        loop {
            match self.hear().await {
                Some(from_worker::Message::Finished(finished)) if finished.assignment_id == id => return finished,
                Some(_) => {}
                None => panic!("the worker left before it finished {id}"),
            }
        }
    }

    pub(crate) async fn reached(&mut self, id: &str, stage: Stage) {
        loop {
            match self.hear().await {
                Some(from_worker::Message::Progress(progress))
                    if progress.assignment_id == id && progress.stage == stage as i32 =>
                {
                    return;
                }
                Some(_) => {}
                None => panic!("the worker left before {stage:?}"),
            }
        }
    }

    /// Waits until no run has a folder: after those that did not end by themselves, it is removed.
    pub(crate) async fn is_tidied(&self) {
        let deadline = Instant::now() + PATIENCE;
        let runs = || std::fs::read_dir(self.dir.path().join("data/runs")).unwrap().count();
        while runs() > 0 {
            assert!(Instant::now() < deadline, "{} runs are not tidied", runs());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn hear(attached: &mut Attached) -> Option<from_worker::Message> {
    let message = timeout(PATIENCE, attached.said.message()).await.expect("the worker is silent");
    message.ok().flatten().and_then(|message| message.message)
}

/// What must be so of an action that ran to its end.
#[track_caller]
pub(crate) fn completed(finished: &Finished) -> &gf_reapi::execution::ActionResult {
    assert_eq!(finished.verdict(), Verdict::Completed, "{finished:?}");
    let result = finished.result.as_ref().unwrap();
    assert_eq!(result.exit_code, 0, "{result:?}");
    result
}

#[track_caller]
pub(crate) fn ended_with(finished: &Finished, verdict: Verdict, code: tonic::Code) {
    assert_eq!(finished.verdict(), verdict, "{finished:?}");
    assert_eq!(finished.status.as_ref().unwrap().code, code as i32, "{finished:?}");
}

#[derive(Default)]
struct Node {
    folders: BTreeMap<String, Node>,
    directory: Directory,
}

/// Stores an input root.
pub(crate) fn put_root(store: &State, inputs: &[(&str, Input)]) -> Digest {
    let mut root = Node::default();
    for (path, input) in inputs {
        let mut names: Vec<&str> = path.split('/').collect();
        let name = if matches!(input, Input::Folder) { String::new() } else { names.pop().unwrap().to_owned() };
        let folder = names.into_iter().fold(&mut root, |node, name| node.folders.entry(name.to_owned()).or_default());
        match input {
            Input::Folder => {}
            Input::Link(target) => {
                let target = target.clone();
                folder.directory.symlinks.push(SymlinkNode { name, target, node_properties: None });
            }
            Input::File(bytes) | Input::Executable(bytes) => folder.directory.files.push(FileNode {
                name,
                digest: Some(store.put(bytes.clone()).into()),
                is_executable: matches!(input, Input::Executable(_)),
                node_properties: None,
            }),
        }
    }
    put_node(store, root)
}

fn put_node(store: &State, mut node: Node) -> Digest {
    for (name, child) in node.folders {
        let digest = Some(put_node(store, child).into());
        node.directory.directories.push(DirectoryNode { name, digest });
    }
    node.directory.files.sort_by(|one, other| one.name.cmp(&other.name));
    node.directory.symlinks.sort_by(|one, other| one.name.cmp(&other.name));
    store.put(node.directory.encode_to_vec())
}
