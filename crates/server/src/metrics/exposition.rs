//! The text that Prometheus reads.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gf_blobstore::StoreStats;
use gf_execution::Operations;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::access::{AccessCollector, AccessStats};
use super::executions::ExecutionCollector;
use super::tenants::TenantCollector;
use super::{CODES, EdgeMetrics, Lookups, Method};
use crate::operator::report::TenantReport;

/// The media type of [`encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything as OpenMetrics text.
///
/// # Errors
/// Never in practice: writing to a string does not fail.
pub fn encode(
    edges: &Arc<EdgeMetrics>,
    store: StoreStats,
    operations: Operations,
    tenants: Vec<TenantReport>,
    access: AccessStats,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("gf");
    registry.register_collector(Box::new(EdgeCollector(Arc::clone(edges))));
    registry.register_collector(Box::new(StoreCollector(store)));
    registry.register_collector(Box::new(ExecutionCollector(operations)));
    registry.register_collector(Box::new(TenantCollector(tenants)));
    registry.register_collector(Box::new(AccessCollector(access)));
    let mut out = String::with_capacity(16 * 1024);
    text::encode(&mut out, &registry)?;
    Ok(out)
}

pub(super) fn counter(encoder: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

#[derive(Debug)]
struct EdgeCollector(Arc<EdgeMetrics>);

impl Collector for EdgeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.lookups(&mut encoder)?;
        self.bytes(&mut encoder)?;
        self.requests(&mut encoder)?;
        self.in_flight(&mut encoder)?;
        self.latency(&mut encoder)
    }
}

impl EdgeCollector {
    fn lookups(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Look-ups by kind and result; a FindMissingBlobs counts each digest";
        let mut family = encoder.encode_descriptor("cache_lookups", help, None, MetricType::Counter)?;
        let EdgeMetrics { cas, action_cache, http, nix, .. } = &*self.0;
        let kinds: [(&str, &Lookups); 4] = [("cas", cas), ("ac", action_cache), ("http", http), ("nix", nix)];
        for (kind, lookups) in kinds {
            for (result, count) in [("hit", &lookups.hits), ("miss", &lookups.misses)] {
                let labels = [("kind", kind), ("result", result)];
                counter(&mut family.encode_family(&labels)?, count.load(Ordering::Relaxed))?;
            }
        }
        Ok(())
    }

    fn bytes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let totals: [(&str, &str, &AtomicU64); 2] = [
            ("received", "Bytes of blobs received, as on the wire", &self.0.bytes_in),
            ("sent", "Bytes of blobs sent, as on the wire", &self.0.bytes_out),
        ];
        for (name, help, bytes) in totals {
            let mut metric = encoder.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Counter)?;
            counter(&mut metric, bytes.load(Ordering::Relaxed))?;
        }
        Ok(())
    }

    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Calls that ended, by method and gRPC code";
        let mut family = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
        for ((_, method), counters) in Method::ALL.iter().zip(&self.0.methods) {
            for (code, count) in CODE_NAMES.iter().zip(&counters.by_code) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    counter(&mut family.encode_family(&[("method", *method), ("code", *code)])?, count)?;
                }
            }
        }
        Ok(())
    }

    fn in_flight(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Calls under way";
        let mut family = encoder.encode_descriptor("requests_in_flight", help, None, MetricType::Gauge)?;
        for ((_, method), counters) in Method::ALL.iter().zip(&self.0.methods) {
            let value = counters.in_flight.load(Ordering::Relaxed);
            family.encode_family(&[("method", *method)])?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn latency(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "From the call's arrival to its last answer";
        let name = "request_duration";
        let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for ((_, method), counters) in Method::ALL.iter().zip(&self.0.methods) {
            let shot = counters.latency.snapshot();
            if shot.count > 0 {
                family.encode_family(&[("method", *method)])?.encode_histogram::<NoLabelSet>(
                    shot.sum_seconds,
                    shot.count,
                    &shot.buckets,
                    None,
                )?;
            }
        }
        Ok(())
    }
}

const CODE_NAMES: [&str; CODES] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

#[derive(Debug)]
struct StoreCollector(StoreStats);

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = &self.0;
        let sizes = [
            ("store_capacity", "The most that the store may hold", stats.capacity_bytes),
            ("store_used", "What the store holds on disk", stats.used_bytes),
            ("store_reserved", "Set aside for uploads under way", stats.reserved_bytes),
            ("store_leased", "Under lease, as of a minute ago at most: not to be evicted", stats.leased_bytes),
            ("store_disk_free", "Free on the file system of the store", stats.free_disk_bytes),
        ];
        for (name, help, bytes) in sizes {
            encoder.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?.encode_gauge(&bytes)?;
        }
        let counts = [
            ("store_keys", "Blobs, entries and grants in the parts of the index read so far", stats.keys),
            ("store_segments", "Segments of small blobs", stats.segments),
        ];
        for (name, help, value) in counts {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        let totals = [
            ("store_evicted_blobs", "Blobs and entries evicted", None, stats.evicted),
            ("store_evicted", "Bytes of blobs and entries evicted", Some(&Unit::Bytes), stats.evicted_bytes),
            ("store_deduplicated", "Bytes saved by sharing parts", Some(&Unit::Bytes), stats.deduplicated_bytes),
            ("store_quarantined_blobs", "Blobs found damaged and taken out", None, stats.quarantined),
        ];
        for (name, help, unit, value) in totals {
            counter(&mut encoder.encode_descriptor(name, help, unit, MetricType::Counter)?, value)?;
        }
        if let Some(age) = stats.youngest_evicted_age_s {
            let help = "Since the last use of the most recently used of all evicted blobs";
            let name = "store_youngest_evicted_age";
            encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?.encode_gauge(&age)?;
        }
        self.scrub(&mut encoder)
    }
}

impl StoreCollector {
    /// These count over the life of the store, not since the start.
    fn scrub(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let scrub = &self.0.scrub;
        let totals = [
            ("store_scrub_passes", "Times that everything was read back", None, scrub.passes),
            ("store_scrubbed_blobs", "Blobs read back and hashed to their digest", None, scrub.blobs),
            ("store_scrubbed", "Bytes of blobs read back and hashed", Some(&Unit::Bytes), scrub.bytes),
            ("store_scrubbed_entries", "Entries and grants that matched their check", None, scrub.entries),
            ("store_scrub_damaged", "Blobs and entries that the scrub found damaged", None, scrub.damaged),
            ("store_scrub_unreadable", "Times that the disk failed to read for the scrub", None, scrub.unreadable),
        ];
        for (name, help, unit, value) in totals {
            counter(&mut encoder.encode_descriptor(name, help, unit, MetricType::Counter)?, value)?;
        }
        if let Some(age) = scrub.last_pass_age_s {
            let (name, help) = ("store_scrub_last_pass_age", "Since everything was last read back to its end");
            encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?.encode_gauge(&age)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gf_blobstore::{BlobStore, ScrubStats};
    use gf_execution::scheduler::{Offer, Resources};
    use gf_execution::{ActionCache, OperationsConfig};
    use gf_tenancy::audit::TrailStats;
    use gf_tenancy::{Access, AccessConfig};
    use gf_testkit::MemoryBlobStore;
    use tonic::Code;

    use super::*;
    use crate::metrics::Lookup;
    use crate::operator::report::QuotaReport;

    fn operations() -> Operations {
        let access = AccessConfig { tenants: Vec::new(), token: None, anonymous_read: false };
        let store: Arc<dyn BlobStore> = Arc::new(MemoryBlobStore::default());
        let cache = ActionCache::new(Arc::clone(&store));
        Operations::start(store, cache, Arc::new(Access::new(access).unwrap()), OperationsConfig::default())
    }

    #[tokio::test]
    async fn counts_are_shown() {
        let edges = Arc::new(EdgeMetrics::default());
        edges.cas_lookup(90, 10);
        edges.action_cache_lookup(Lookup::Hit);
        edges.bytes_in(5);
        edges.observe(Method::GetActionResult, Duration::from_micros(70), Code::NotFound);
        let scrub = ScrubStats { passes: 2, last_pass_age_s: Some(60), bytes: 7, ..ScrubStats::default() };
        let store = StoreStats { capacity_bytes: 1000, leased_bytes: 400, evicted: 3, scrub, ..StoreStats::default() };
        let operations = operations();
        let capacity = Resources { milli_cores: 2500, memory_bytes: 1 << 30 };
        let limitations = Arc::default();
        let offer = Offer { name: "worker".into(), properties: Vec::new(), capacity, limitations };
        let _worker = operations.attach(offer).unwrap();
        let stored_bytes = QuotaReport { used: 7, limit: Some(9), refused: 2 };
        let tenant = TenantReport { name: "org-acme".to_owned(), stored_bytes, ..TenantReport::default() };
        let trail = TrailStats { queued: 3, written: 20, lost: 1 };
        let followed_ago = Some(std::time::Duration::from_millis(1500));
        let access = AccessStats { good_tokens: Some(7), followed_ago, trail: Some(trail) };
        let text = encode(&edges, store, operations, vec![tenant], access).unwrap();
        for line in [
            "gf_tenancy_tokens 7",
            "gf_tenancy_followed_ago_seconds 1.5",
            "gf_audit_queued 3",
            "gf_audit_written_total 20",
            "gf_audit_lost_total 1",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line} in {text}");
        }
        for line in [
            r#"gf_cache_lookups_total{kind="cas",result="hit"} 90"#,
            r#"gf_cache_lookups_total{kind="cas",result="miss"} 10"#,
            r#"gf_cache_lookups_total{kind="ac",result="hit"} 1"#,
            "gf_received_bytes_total 5",
            r#"gf_requests_total{method="GetActionResult",code="NOT_FOUND"} 1"#,
            r#"gf_request_duration_seconds_bucket{le="0.0001",method="GetActionResult"} 1"#,
            r#"gf_request_duration_seconds_bucket{le="+Inf",method="GetActionResult"} 1"#,
            "gf_store_capacity_bytes 1000",
            "gf_store_leased_bytes 400",
            "gf_store_evicted_blobs_total 3",
            "gf_store_scrub_passes_total 2",
            "gf_store_scrubbed_bytes_total 7",
            "gf_store_scrub_last_pass_age_seconds 60",
            "gf_workers 1",
            r#"gf_tenant_used{tenant="org-acme",quota="stored_bytes"} 7"#,
            r#"gf_tenant_limit{tenant="org-acme",quota="stored_bytes"} 9"#,
            r#"gf_tenant_refused_total{tenant="org-acme",quota="stored_bytes"} 2"#,
            "gf_executions_queued 0",
            r#"gf_worker_cores{state="free"} 2.5"#,
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "`{line}` is not in\n{text}");
        }
        assert!(!text.contains("youngest_evicted"), "no age before the first eviction");
    }
}
