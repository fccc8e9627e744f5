//! Calls of remote execution by their path, as [`Client::call`] makes them.

use gf_digest::{Digest, DigestFunction};
use gf_reapi::execution::capabilities_client::CapabilitiesClient;
use gf_reapi::execution::execution_client::ExecutionClient;
use gf_reapi::execution::{ExecuteRequest, ExecuteResponse, GetCapabilitiesRequest, WaitExecutionRequest};
use gf_reapi::longrunning::operation;
use gf_reapi::longrunning::operations_client::OperationsClient;
use gf_reapi::longrunning::{
    CancelOperationRequest, GetOperationRequest, ListOperationsRequest, Operation, WaitOperationRequest,
};
use gf_reapi::worker::workers_client::WorkersClient;
use gf_reapi::worker::{FromWorker, Hello, Resources, from_worker};
use gf_server::edges::Limits;
use gf_testkit::MemoryBlobStore;
use prost::Message;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::grpc::{Client, Seen, seen};
use crate::server::{Door, Server, TOKEN};

/// The methods that tell of operations, and of no blob.
pub(crate) const OF_OPERATIONS: [&str; 5] =
    ["WaitExecution", "GetOperation", "ListOperations", "CancelOperation", "WaitOperation"];

impl Client {
    fn executions(&self) -> ExecutionClient<Channel> {
        ExecutionClient::new(self.channel.clone())
    }

    /// Executes the blob as if it were an action. None is: where it is present, the answer says so.
    pub(crate) async fn execute(&self, instance: &str, action: Digest) -> Result<Seen, Status> {
        let last = self.execute_to_the_end(instance, action).await?;
        let Some(operation::Result::Response(response)) = last.result else { panic!("no response: {last:?}") };
        let status = ExecuteResponse::decode(response.value.as_slice()).unwrap().status.unwrap();
        match Code::from(status.code) {
            Code::Ok | Code::InvalidArgument => Ok(Seen::Present),
            Code::FailedPrecondition => Ok(Seen::Absent),
            code => Err(Status::new(code, status.message)),
        }
    }

    async fn execute_to_the_end(&self, instance: &str, action: Digest) -> Result<Operation, Status> {
        let request = ExecuteRequest {
            instance_name: instance.to_owned(),
            action_digest: Some(action.into()),
            ..ExecuteRequest::default()
        };
        last(self.executions().execute(self.request(request)).await?.into_inner()).await
    }

    /// Asks in `instance` about an operation of the instance `default`.
    pub(crate) async fn call_about_operation(
        &self,
        method: &str,
        instance: &str,
        action: Digest,
    ) -> Result<Seen, Status> {
        let owner = Self { channel: self.channel.clone(), token: Some(TOKEN) };
        let theirs = owner.execute_to_the_end("default", action).await.unwrap().name;
        let name = format!("{instance}/{}", theirs.strip_prefix("default/").unwrap());
        let mut operations = OperationsClient::new(self.channel.clone());
        match method {
            "WaitExecution" => {
                let request = self.request(WaitExecutionRequest { name });
                seen(async { last(self.executions().wait_execution(request).await?.into_inner()).await }.await)
            }
            "GetOperation" => seen(operations.get_operation(self.request(GetOperationRequest { name })).await),
            "CancelOperation" => seen(operations.cancel_operation(self.request(CancelOperationRequest { name })).await),
            "WaitOperation" => {
                let request = WaitOperationRequest { name, ..WaitOperationRequest::default() };
                seen(operations.wait_operation(self.request(request)).await)
            }
            _ => {
                let request = ListOperationsRequest { name: instance.to_owned(), ..ListOperationsRequest::default() };
                let listed = operations.list_operations(self.request(request)).await?.into_inner().operations;
                let is_listed = listed.iter().any(|operation| operation.name == theirs);
                Ok(if is_listed { Seen::Present } else { Seen::Absent })
            }
        }
    }

    /// Attaches as a worker, and tells nothing of any blob.
    pub(crate) async fn attach(&self) -> Result<Seen, Status> {
        let capacity = Some(Resources { milli_cores: 1000, memory_bytes: 1 << 30 });
        let hello = Hello { name: "a test".to_owned(), capacity, ..Hello::default() };
        let hello = FromWorker { message: Some(from_worker::Message::Hello(hello)) };
        let mut workers = WorkersClient::new(self.channel.clone());
        let mut told = workers.attach(self.request(tokio_stream::iter([hello]))).await?.into_inner();
        told.message().await?.unwrap();
        Ok(Seen::Absent)
    }
}

async fn last(mut operations: Streaming<Operation>) -> Result<Operation, Status> {
    let mut last = None;
    while let Some(operation) = operations.message().await? {
        last = Some(operation);
    }
    Ok(last.unwrap())
}

#[tokio::test]
async fn a_cache_says_that_it_runs_nothing() {
    for executes in [true, false] {
        let limits = Limits { executes, ..Limits::default() };
        let server = Server::with(Door::Open, MemoryBlobStore::default(), limits);
        let client = Client { channel: server.channel().await, token: None };
        let mut capabilities = CapabilitiesClient::new(client.channel.clone());
        let offered = capabilities.get_capabilities(GetCapabilitiesRequest::default()).await.unwrap().into_inner();
        assert!(offered.cache_capabilities.is_some());
        assert_eq!(offered.execution_capabilities.is_some(), executes);
        let executed = client.execute("", Digest::of(DigestFunction::Sha256, b"nothing")).await;
        let attached = client.attach().await;
        if executes {
            assert_eq!(executed.unwrap(), Seen::Absent);
            assert!(attached.is_ok());
        } else {
            assert_eq!(executed.unwrap_err().code(), Code::Unimplemented);
            assert_eq!(attached.unwrap_err().code(), Code::Unimplemented);
        }
    }
}
