//! The stay of a worker: by whose right it is here, whether that still counts, and when it came and left.

use gf_execution::scheduler::WorkerId;
use gf_tenancy::{Authorized, Work};
use tonic::Status;

use crate::edges::Gate;
use crate::edges::credentials::Visitor;
use crate::edges::reapi::IntoStatus;

/// Somebody who may attach a worker that runs what all tenants send.
pub(in crate::edges) struct Admitted {
    gate: Gate,
    visitor: Visitor,
    grant: Authorized<Work>,
}

/// A worker that is here. That it left is recorded when this is dropped.
pub(super) struct Stay {
    admitted: Admitted,
    name: String,
    id: WorkerId,
}

impl Admitted {
    /// Lets in who may attach workers for all tenants.
    pub(in crate::edges) fn new(gate: &Gate, visitor: Visitor) -> Result<Self, Status> {
        let grant = gate.authorize_everywhere(&visitor).map_err(IntoStatus::into_status)?;
        Ok(Self { gate: gate.clone(), visitor, grant })
    }

    /// The worker of this name came.
    pub(super) fn begin(self, name: &str, id: WorkerId) -> Stay {
        self.gate.record(&self.visitor, &self.grant, "worker.attach", name, format_args!("worker {id}"));
        Stay { admitted: self, name: name.to_owned(), id }
    }
}

impl Stay {
    /// Refuses a worker whose credential was revoked or ended since.
    pub(super) fn check(&self) -> Result<(), Status> {
        let Admitted { gate, visitor, .. } = &self.admitted;
        gate.authorize_everywhere::<Work>(visitor).map(drop).map_err(|denied| {
            tracing::warn!(worker = self.name, %denied, "a worker is sent away");
            denied.into_status()
        })
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let Admitted { gate, visitor, grant } = &self.admitted;
        gate.record(visitor, grant, "worker.leave", &self.name, format_args!("worker {}", self.id));
    }
}
