//! What tenants use. Their names are labels: they are of the configuration, and no stranger can make one.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::operator::report::{QuotaReport, TenantReport};

#[derive(Debug)]
pub(super) struct TenantCollector(pub(super) Vec<TenantReport>);

/// A quota: its name, and where it stands.
type Quota = (&'static str, fn(&TenantReport) -> &QuotaReport);
const QUOTAS: [Quota; 4] = [
    ("stored_bytes", |tenant| &tenant.stored_bytes),
    ("uploaded_bytes_today", |tenant| &tenant.uploaded_bytes_today),
    ("executions", |tenant| &tenant.executions),
    ("requests_a_second", |tenant| &tenant.requests_a_second),
];

impl Collector for TenantCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "What a tenant uses; requests are not measured";
        let mut family = encoder.encode_descriptor("tenant_used", help, None, MetricType::Gauge)?;
        for (tenant, (name, quota)) in self.each().filter(|(_, (name, _))| *name != "requests_a_second") {
            let labels = [("tenant", tenant.name.as_str()), ("quota", name)];
            family.encode_family(&labels)?.encode_gauge(&quota(tenant).used)?;
        }
        let help = "What a tenant may use; absent without a limit";
        let mut family = encoder.encode_descriptor("tenant_limit", help, None, MetricType::Gauge)?;
        for (tenant, (name, quota)) in self.each() {
            if let Some(limit) = quota(tenant).limit {
                let labels = [("tenant", tenant.name.as_str()), ("quota", name)];
                family.encode_family(&labels)?.encode_gauge(&limit)?;
            }
        }
        let help = "Requests refused since a tenant had used what it may";
        let mut family = encoder.encode_descriptor("tenant_refused", help, None, MetricType::Counter)?;
        for (tenant, (name, quota)) in self.each() {
            let labels = [("tenant", tenant.name.as_str()), ("quota", name)];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&quota(tenant).refused, None)?;
        }
        Ok(())
    }
}

impl TenantCollector {
    fn each(&self) -> impl Iterator<Item = (&TenantReport, Quota)> {
        self.0.iter().flat_map(|tenant| QUOTAS.into_iter().map(move |quota| (tenant, quota)))
    }
}
