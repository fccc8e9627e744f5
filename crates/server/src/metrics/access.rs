//! How many tokens are good, and how the audit log keeps up. Nothing here names anybody.

use std::fmt;
use std::time::Duration;

use gf_tenancy::audit::TrailStats;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::exposition::counter;

/// What a server knows of its tokens and of its audit log, as far as it keeps them.
#[derive(Clone, Copy, Debug, Default)]
pub struct AccessStats {
    /// Tokens of our own that are good.
    pub good_tokens: Option<u64>,
    /// How long ago it was known what other processes revoked.
    pub followed_ago: Option<Duration>,
    /// What goes into the audit log.
    pub trail: Option<TrailStats>,
}

#[derive(Debug)]
pub(super) struct AccessCollector(pub(super) AccessStats);

impl Collector for AccessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(tokens) = self.0.good_tokens {
            let help = "Tokens that are good, exchanged ones among them";
            let mut metric = encoder.encode_descriptor("tenancy_tokens", help, None, MetricType::Gauge)?;
            metric.encode_gauge(&tokens)?;
        }
        if let Some(ago) = self.0.followed_ago {
            let help = "Seconds since it was known which tokens other processes revoked";
            let mut metric =
                encoder.encode_descriptor("tenancy_followed_ago_seconds", help, None, MetricType::Gauge)?;
            metric.encode_gauge(&ago.as_secs_f64())?;
        }
        let Some(TrailStats { queued, written, lost }) = self.0.trail else { return Ok(()) };
        let help = "Records that wait to be written to the audit log";
        encoder.encode_descriptor("audit_queued", help, None, MetricType::Gauge)?.encode_gauge(&queued)?;
        let totals = [
            ("audit_written", "Records that were written to the audit log from the queue", written),
            ("audit_lost", "Records that were counted instead, since the audit log could not be written to", lost),
        ];
        for (name, help, total) in totals {
            counter(&mut encoder.encode_descriptor(name, help, None, MetricType::Counter)?, total)?;
        }
        Ok(())
    }
}
