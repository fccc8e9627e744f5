use std::sync::Arc;

use anyhow::ensure;
use async_trait::async_trait;
use bazel_remote_apis::build::bazel::remote::execution::v2 as rex;

use super::cas::time;
use super::{CALLERS, Portion, Work};
use crate::connection::{Connection, Connections, Side};
use crate::data::Source;
use crate::fixture::{Action, Fixture, action, get_request, update_request};
use crate::floor::OUTPUTS;
use crate::load::{Length, Round, drive};

/// `GetActionResult` of stored results with 5 outputs each. Units are calls.
#[derive(Default)]
pub(crate) struct GetActionResult {
    actions: Arc<[Action]>,
    requests: Arc<[Arc<rex::GetActionResultRequest>]>,
    portion: Option<Portion>,
}

#[async_trait]
impl Work for GetActionResult {
    fn prepare(&mut self, fixture: &Fixture, portion: Portion) {
        self.actions = Arc::clone(&fixture.actions);
        self.requests = fixture.actions.iter().map(|action| get_request(&action.digest)).collect();
        self.portion = Some(portion);
    }

    async fn round(&self, connections: &Connections) -> anyhow::Result<Round> {
        let (actions, requests) = (Arc::clone(&self.actions), Arc::clone(&self.requests));
        let connections = connections.clone();
        let call = move |caller, number: usize| {
            let place = number % requests.len();
            let (actions, request) = (Arc::clone(&actions), Arc::clone(&requests[place]));
            let connection = connections.of_caller(caller);
            async move { hit(&connection, request, &actions[place]).await }
        };
        drive(CALLERS, time(self.portion), call).await
    }

    async fn verify(&self, _: &Connections) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Asks for a result that is there and compares its outputs.
pub(super) async fn hit(
    connection: &Connection,
    request: Arc<rex::GetActionResultRequest>,
    expected: &Action,
) -> anyhow::Result<u64> {
    let result = connection.get_action_result(request).await?;
    ensure!(result.output_files.len() == OUTPUTS, "a hit with {} outputs", result.output_files.len());
    // The floor has one result for all; it is compared too, so that both sides cost the load the same.
    let same = result.output_files == expected.result.output_files;
    ensure!(same || connection.side == Side::Floor, "a hit with other outputs than were stored");
    Ok(1)
}

/// `UpdateActionResult` of fresh actions with 5 stored outputs each. Units are calls.
#[derive(Default)]
pub(crate) struct UpdateActionResult {
    actions: Arc<[Action]>,
    requests: Arc<[Arc<rex::UpdateActionResultRequest>]>,
}

#[async_trait]
impl Work for UpdateActionResult {
    fn prepare(&mut self, fixture: &Fixture, portion: Portion) {
        let mut source = Source::fresh();
        self.actions = (0..portion.of(60_000)).map(|_| action(&mut source, &fixture.small)).collect();
        self.requests = self.actions.iter().map(|action| Arc::new(update_request(action))).collect();
    }

    async fn round(&self, connections: &Connections) -> anyhow::Result<Round> {
        let (requests, connections) = (Arc::clone(&self.requests), connections.clone());
        let length = Length::Calls(requests.len());
        let call = move |caller, number: usize| {
            let request = Arc::clone(&requests[number]);
            let connection = connections.of_caller(caller);
            async move { update(&connection, request).await }
        };
        drive(CALLERS, length, call).await
    }

    async fn verify(&self, product: &Connections) -> anyhow::Result<()> {
        let connection = product.of_caller(0);
        for action in self.actions.iter().step_by(100) {
            hit(&connection, get_request(&action.digest), action).await?;
        }
        Ok(())
    }
}

/// Stores a result; the answer must be that result.
pub(super) async fn update(
    connection: &Connection,
    request: Arc<rex::UpdateActionResultRequest>,
) -> anyhow::Result<u64> {
    let answer = connection.update_action_result(Arc::clone(&request)).await?;
    let stored = request.action_result.as_ref();
    ensure!(stored.is_some_and(|stored| stored.output_files == answer.output_files), "another result came back");
    Ok(1)
}
