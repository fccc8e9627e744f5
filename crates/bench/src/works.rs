//! The work of each row: what is prepared, what is timed, and what is checked afterwards.

mod action_cache;
mod byte_stream;
mod cas;
mod mix;
mod scheduler;

use std::time::Duration;

use async_trait::async_trait;

pub(crate) use action_cache::{GetActionResult, UpdateActionResult};
pub(crate) use byte_stream::{ByteStreamRead, ByteStreamWrite};
pub(crate) use cas::{BatchRead, BatchUpdate, FindMissing};
pub(crate) use mix::Mix;
pub(crate) use scheduler::measure as scheduler_core;

use crate::connection::Connections;
use crate::fixture::Fixture;
use crate::load::Round;

/// Callers at once, where the table says 16 clients.
const CALLERS: usize = 16;

/// How much of a row's work makes a round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portion {
    /// For work that can go on for as long as one likes.
    pub(crate) time: Duration,
    /// For work that uses up what was prepared: a share of the usual amount.
    pub(crate) amount: f64,
}

impl Portion {
    /// The share of `usual`, at least one.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "amounts are small and positive")]
    fn of(self, usual: usize) -> usize {
        let usual = crate::load::as_float(u64::try_from(usual).unwrap_or(u64::MAX));
        ((usual * self.amount) as usize).max(1)
    }
}

/// The work of one row. The floor and the product get exactly the same in the same round.
#[async_trait]
pub(crate) trait Work: Send + Sync {
    /// Makes what the coming round needs. Not timed.
    fn prepare(&mut self, fixture: &Fixture, portion: Portion);

    /// One timed round. Answers are checked as they come, as far as that costs next to nothing.
    async fn round(&self, connections: &Connections) -> anyhow::Result<Round>;

    /// After a round of the product: whether what it said is so. Not timed.
    async fn verify(&self, product: &Connections) -> anyhow::Result<()>;
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::connection::Side;
    use crate::floor;

    fn works() -> Vec<(&'static str, Box<dyn Work>)> {
        vec![
            ("find-missing", Box::<FindMissing>::default()),
            ("get-action-result", Box::<GetActionResult>::default()),
            ("update-action-result", Box::<UpdateActionResult>::default()),
            ("batch-update", Box::<BatchUpdate>::default()),
            ("batch-read", Box::<BatchRead>::default()),
            ("bytestream-write", Box::new(ByteStreamWrite::new(2, 2))),
            ("bytestream-read", Box::<ByteStreamRead>::default()),
            ("mix", Box::<Mix>::default()),
        ]
    }

    /// The floor remembers nothing: taken for the product, it must be found out by every row but the one whose
    /// right answer needs no memory.
    #[tokio::test]
    async fn the_floor_can_do_all_work_and_is_not_taken_for_a_store() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(floor::serve(listener));
        let as_floor = Connections::open(Side::Floor, &url).await.unwrap();
        let as_product = Connections::open(Side::Product, &url).await.unwrap();
        let fixture = Fixture::random(200, 20);
        for (name, mut work) in works() {
            work.prepare(&fixture, Portion { time: Duration::from_millis(50), amount: 0.01 });
            let round = work.round(&as_floor).await.unwrap();
            assert!(round.per_second > 0.0 && round.p50 <= round.p99, "{name}");
            let found_out = work.round(&as_product).await.is_err() || work.verify(&as_product).await.is_err();
            assert_eq!(found_out, name != "find-missing", "{name}");
        }
        serving.abort();
    }
}
