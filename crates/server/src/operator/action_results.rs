//! Why an action hits or misses, who wrote its result, and taking one out on purpose.
//!
//! Asking needs the right to read the action cache of the instance; removing needs the right to run maintenance there, and
//! is in the audit log before it is done.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use gf_blobstore::ErrorKind;
use gf_digest::{Digest, DigestFunction, InstanceName};
use gf_execution::{
    ActionCache, ActionCacheError, ActionId, Inspection, Provenance, RemovalError, Standing, Tombstone,
};
use gf_reapi::WireDigest;
use gf_reapi::execution::ActionResult;
use gf_tenancy::{ActionCacheRead, Authorized, InstancePermission, Operate};

use super::report::{
    ActionName, ActionResultRemoval, ActionResultRemoved, ActionResultReport, OutputReport, ProvenanceReport,
    ResultReport, TombstoneReport,
};
use crate::edges::Gate;
use crate::edges::credentials::Visitor;
use crate::refusal::Refusal;

const MAX_BODY_BYTES: usize = 64 << 10;
/// Outputs that a report names.
const MAX_NAMED: usize = 100;

/// What the questions are asked of.
pub(crate) struct ActionResults {
    pub(crate) gate: Gate,
    pub(crate) cache: ActionCache,
}

/// `/api/v1/action-results` and `/api/v1/action-results/remove`.
pub(crate) fn router(results: ActionResults) -> Router {
    Router::new()
        .route("/api/v1/action-results", get(show))
        .route("/api/v1/action-results/remove", post(remove))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(Arc::new(results))
}

async fn show(
    State(results): State<Arc<ActionResults>>,
    visitor: Visitor,
    name: Result<Query<ActionName>, QueryRejection>,
) -> Result<Json<ActionResultReport>, Refusal> {
    let Query(name) = name?;
    let (grant, action) = results.admit::<ActionCacheRead>(&visitor, &name)?;
    Ok(Json(results.report(&grant, action, name).await?))
}

async fn remove(
    State(results): State<Arc<ActionResults>>,
    visitor: Visitor,
    request: Result<Json<ActionResultRemoval>, JsonRejection>,
) -> Result<Json<ActionResultRemoved>, Refusal> {
    let Json(ActionResultRemoval { name, reason, quarantine_seconds, dry_run }) = request?;
    let (grant, action) = results.admit::<Operate>(&visitor, &name)?;
    let (reader, _) = results.admit::<ActionCacheRead>(&visitor, &name)?;
    let before = results.report(&reader, action, name).await?;
    if dry_run {
        return Ok(Json(ActionResultRemoved { dry_run, before, tombstone: None }));
    }
    let tombstone = results.remove(&visitor, &grant, action, &reason, Duration::from_secs(quarantine_seconds)).await?;
    Ok(Json(ActionResultRemoved { dry_run, before, tombstone: Some(tombstone_report(tombstone)) }))
}

impl ActionResults {
    fn admit<P: InstancePermission>(
        &self,
        visitor: &Visitor,
        name: &ActionName,
    ) -> Result<(Authorized<P>, ActionId), Refusal> {
        self.gate.check(visitor, P::NAME)?;
        let instance = InstanceName::new(&name.instance).map_err(|error| Refusal::invalid(error.to_string()))?;
        let grant = self.gate.authorize(visitor, &instance)?;
        Ok((grant, parse(name).map_err(Refusal::invalid)?))
    }

    async fn report(
        &self,
        grant: &Authorized<ActionCacheRead>,
        action: ActionId,
        name: ActionName,
    ) -> Result<ActionResultReport, Refusal> {
        Ok(report(name, self.cache.inspect(grant, action).await?))
    }

    /// It is in the audit log before it is done.
    async fn remove(
        &self,
        visitor: &Visitor,
        grant: &Authorized<Operate>,
        action: ActionId,
        reason: &str,
        quarantine: Duration,
    ) -> Result<Tombstone, Refusal> {
        let hash = Digest::new(action.function, action.hash, 0).hash_hex();
        let subject = format!("{}/{}", grant.instance(), hash.as_str());
        ActionCache::check_removal(reason, quarantine)?;
        self.gate.record_before(visitor, grant, "actioncache.remove", &subject, reason).await?;
        let removal = self.cache.remove(grant, action, reason, quarantine).await?;
        tracing::info!(subject, was_there = removal.was_there, "an action result was removed");
        Ok(removal.tombstone)
    }
}

/// `HASH` or `HASH/SIZE`, of a function that is named or SHA-256.
fn parse(name: &ActionName) -> Result<ActionId, String> {
    let function = match name.digest_function.to_ascii_lowercase().as_str() {
        "" | "sha256" => DigestFunction::Sha256,
        "blake3" => DigestFunction::Blake3,
        _ => return Err(format!("{:?} is no digest function: there are sha256 and blake3", name.digest_function)),
    };
    let (hash, size) = match name.action.split_once('/') {
        None => (name.action.as_str(), None),
        Some((hash, size)) => (hash, Some(size.parse::<u32>().map_err(|_| format!("{size:?} is no size in bytes"))?)),
    };
    let digest = Digest::parse(function, hash, 0).map_err(|error| error.to_string())?;
    Ok(ActionId { function, hash: *digest.hash(), size_bytes: size.map(u64::from) })
}

fn report(name: ActionName, inspection: Inspection) -> ActionResultReport {
    let Inspection { standing, provenance, result, blobs } = inspection;
    let (word, sentence, next_step) = explain(&standing);
    let (missing, missing_count) = match &standing {
        Standing::Incomplete { missing, missing_count } => {
            (missing.iter().map(ToString::to_string).collect(), *missing_count)
        }
        _ => (Vec::new(), 0),
    };
    let removed = match standing {
        Standing::Removed(tombstone) => Some(tombstone_report(tombstone)),
        _ => None,
    };
    ActionResultReport {
        name,
        standing: word.to_owned(),
        sentence,
        next_step: next_step.to_owned(),
        written: provenance.map(provenance_report),
        removed,
        result: result.as_ref().map(result_report),
        blobs,
        missing,
        missing_count,
    }
}

/// The word for it, one sentence, and the next step.
fn explain(standing: &Standing) -> (&'static str, String, &'static str) {
    match standing {
        Standing::Shown => (
            "shown",
            "there is a result, and everything that it names is here: a look-up hits".to_owned(),
            "if a build misses all the same, it asks for another action: compare the digests in its execution log",
        ),
        Standing::Absent => (
            "absent",
            "there is no result: none was written here, or nobody asked for it within the lease and it had to go"
                .to_owned(),
            "build it with upload allowed (--remote_upload_local_results), or execute it; `gf store stats` says how long \
             what is evicted had not been used",
        ),
        Standing::Incomplete { missing, missing_count } if missing.is_empty() && *missing_count == 0 => (
            "incomplete",
            "there is a result, and a directory that it names is not here or cannot be read".to_owned(),
            "build it again: the result is shown once all its blobs are here",
        ),
        Standing::Incomplete { missing_count, .. } => (
            "incomplete",
            format!("there is a result, and {missing_count} of the blobs that it names are not here"),
            "build it again: the result is shown once all its blobs are here",
        ),
        Standing::OtherSize { size_bytes } => (
            "other-size",
            format!("there is a result of an action of {size_bytes} bytes, and another size was asked for"),
            "ask with the size that the client's log shows, or without one",
        ),
        Standing::Opaque { size_bytes } => (
            "opaque",
            format!("HTTP clients keep {size_bytes} bytes here that are no action result"),
            "a client that shares this cache with others must use a prefix of its own in the URL",
        ),
        Standing::Removed(tombstone) => (
            "removed",
            format!("{} removed it: {}", tombstone.removed_by, tombstone.reason),
            "wait until the quarantine is over, or build with another platform property or salt",
        ),
    }
}

fn provenance_report(provenance: Provenance) -> ProvenanceReport {
    let told = |text: String| Some(text).filter(|text| !text.is_empty());
    let Provenance { written_ms, principal, worker, image } = provenance;
    ProvenanceReport { at_ms: written_ms, principal, worker: told(worker), image: told(image) }
}

fn tombstone_report(tombstone: Tombstone) -> TombstoneReport {
    let Tombstone { removed_s, until_s, removed_by, reason } = tombstone;
    TombstoneReport { at_s: removed_s, until_s, principal: removed_by, reason }
}

fn result_report(result: &ActionResult) -> ResultReport {
    let output = |path: &str, digest: Option<&WireDigest>| OutputReport {
        path: path.to_owned(),
        digest: digest.map(|digest| format!("{}/{}", digest.hash(), digest.size_bytes)).unwrap_or_default(),
    };
    let files = result.output_files.iter().take(MAX_NAMED);
    let directories = result.output_directories.iter().take(MAX_NAMED);
    let outputs = result.output_files.len() + result.output_directories.len() + result.output_symlinks.len();
    ResultReport {
        exit_code: result.exit_code,
        files: files.map(|file| output(&file.path, file.digest.as_ref())).collect(),
        directories: directories
            .map(|directory| {
                let digest = directory.tree_digest.as_ref().or(directory.root_directory_digest.as_ref());
                output(&directory.path, digest)
            })
            .collect(),
        outputs: outputs as u64,
    }
}

impl From<ActionCacheError> for Refusal {
    fn from(error: ActionCacheError) -> Self {
        match error.kind() {
            ErrorKind::Unavailable => cannot_now(&error),
            _ => Self::invalid(error.to_string()),
        }
    }
}

impl From<RemovalError> for Refusal {
    fn from(error: RemovalError) -> Self {
        match error {
            RemovalError::Reason | RemovalError::Quarantine => Self::invalid(error.to_string()),
            error => cannot_now(&error),
        }
    }
}

fn cannot_now(error: &(dyn Error + 'static)) -> Refusal {
    Refusal::unavailable(error, format!("{error}; try again, and look at the server's log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn names_of_actions() {
        let check = |action: String, function: &str, expected: Result<(DigestFunction, Option<u64>), &str>| {
            let name = ActionName { instance: String::new(), action, digest_function: function.to_owned() };
            match (parse(&name), expected) {
                (Ok(id), Ok(expected)) => assert_eq!((id.function, id.size_bytes), expected, "{name:?}"),
                (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
                (parsed, _) => panic!("{name:?} is {parsed:?}"),
            }
        };
        check(HASH.to_owned(), "", Ok((DigestFunction::Sha256, None)));
        check(format!("{HASH}/142"), "BLAKE3", Ok((DigestFunction::Blake3, Some(142))));
        check(format!("{HASH}/x"), "", Err("no size"));
        check(format!("{HASH}/-1"), "", Err("no size"));
        check("abc".to_owned(), "", Err("3 characters"));
        check(HASH.to_owned(), "md5", Err("no digest function"));
    }
}
