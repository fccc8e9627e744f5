//! An upload that a case steers message by message.

use std::time::Duration;

use gf_reapi::bytestream::byte_stream_client::ByteStreamClient;
use gf_reapi::bytestream::{WriteRequest, WriteResponse};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::finding::{Checked, Finding};
use crate::session::Transport;

/// A `Write` call under way. Dropping it resets the stream, as a client does that vanishes.
pub(crate) struct Upload {
    sender: Option<mpsc::Sender<WriteRequest>>,
    answer: Option<JoinHandle<Result<WriteResponse, Status>>>,
}

impl Upload {
    pub(crate) fn begin(transport: &Transport) -> Self {
        // One message at a time, so that `send` returns no earlier than the message before was taken.
        let (sender, receiver) = mpsc::channel(1);
        let mut client = ByteStreamClient::new(transport.clone());
        let call = async move { client.write(ReceiverStream::new(receiver)).await.map(tonic::Response::into_inner) };
        Self { sender: Some(sender), answer: Some(tokio::spawn(call)) }
    }

    /// Sends a message. One that the server no longer takes is dropped: its answer then tells why.
    pub(crate) async fn send(&mut self, request: WriteRequest) {
        if let Some(sender) = &self.sender {
            let _: Result<(), _> = sender.send(request).await;
        }
    }

    /// The server's answer, if one comes within `patience` while the client keeps the stream open.
    pub(crate) async fn answer_within(&mut self, patience: Duration) -> Checked<Option<Result<WriteResponse, Status>>> {
        let Some(running) = &mut self.answer else { return Ok(None) };
        let Ok(answer) = tokio::time::timeout(patience, running).await else { return Ok(None) };
        self.answer = None;
        answer.map(Some).map_err(|error| Finding::Fail(format!("the call broke: {error}")))
    }

    /// Sends no more and waits for the server's answer; the deadline of the case bounds it.
    pub(crate) async fn close(mut self) -> Result<WriteResponse, Status> {
        self.sender = None;
        match self.answer.take() {
            Some(running) => {
                running.await.unwrap_or_else(|error| Err(Status::internal(format!("the call broke: {error}"))))
            }
            None => Err(Status::internal("the suite asked twice for one answer")),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(running) = &self.answer {
            running.abort();
        }
    }
}
