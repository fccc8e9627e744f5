//! What is run, for Prometheus.

use std::fmt;
use std::time::Duration;

use gf_execution::Operations;
use gf_execution::scheduler::Resources;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

pub(super) struct ExecutionCollector(pub(super) Operations);

impl fmt::Debug for ExecutionCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExecutionCollector").finish_non_exhaustive()
    }
}

impl Collector for ExecutionCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Executions that ended, by how";
        let mut family = encoder.encode_descriptor("executions", help, None, MetricType::Counter)?;
        for (end, count) in self.0.ends() {
            family.encode_family(&[("end", end)])?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        let now = self.0.snapshot();
        let waits = now.queues.iter().filter_map(|queue| queue.oldest_wait);
        let longest = waits.max().unwrap_or(Duration::ZERO);
        let gauges = [
            ("executions_queued", "Executions that wait for a worker", now.queued),
            ("executions_running", "Executions on workers", now.running),
            ("workers", "Workers that are here", now.workers.len()),
        ];
        for (name, help, value) in gauges {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        let help = "How long the execution waits that waits longest";
        let name = "executions_oldest_wait";
        let mut gauge = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
        gauge.encode_gauge(&longest.as_secs_f64())?;
        let help = "Cores of all workers";
        let mut family = encoder.encode_descriptor("worker_cores", help, None, MetricType::Gauge)?;
        let cores = |of: fn(&gf_execution::scheduler::WorkerState) -> Resources| {
            now.workers.iter().map(|worker| f64::from(of(worker).milli_cores) / 1000.0).sum::<f64>()
        };
        let free = cores(|worker| worker.free);
        for (state, value) in [("free", free), ("taken", cores(|worker| worker.capacity) - free)] {
            family.encode_family(&[("state", state)])?.encode_gauge(&value)?;
        }
        Ok(())
    }
}
