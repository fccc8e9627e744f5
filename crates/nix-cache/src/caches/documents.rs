//! Small documents that clients write and read: realisations and build traces of derivations that are content-addressed,
//! and where debug information is.
//!
//! What always holds: a key that was written says the same for ever. Who writes something else is told, and the first
//! stays.

use gf_database::{sql, work};
use gf_nix_formats::{BuildTrace, BuildTraceKey, DerivationOutput, Realisation};
use gf_tenancy::{Authorized, NixPull, NixPush};

use super::NixCaches;
use crate::CacheError;
use crate::rows::signed;

/// The longest document about debug information, in bytes.
const MAX_DEBUG_INFO_BYTES: usize = 64 << 10;

/// What became of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is here now, or was already, perhaps with fewer signatures.
    This,
    /// Another one with the same key was here, and stays.
    First,
}

#[derive(Clone, Copy)]
enum Kind {
    Realisation,
    BuildTrace,
    DebugInfo,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Realisation => "realisation",
            Self::BuildTrace => "build-trace",
            Self::DebugInfo => "debug-info",
        }
    }
}

impl NixCaches {
    /// Keeps what an output of a content-addressed derivation is (`realisations/`, Nix up to 2.34).
    ///
    /// # Errors
    /// [`CacheError::NoSuchCache`].
    pub async fn put_realisation(&self, grant: &Authorized<NixPush>, new: &Realisation) -> Result<Kept, CacheError> {
        let merge = |old: &str| {
            let mut old =
                Realisation::parse(old.as_bytes()).map_err(|error| CacheError::row("a realisation", error))?;
            if old.path != new.path {
                return Ok(None);
            }
            // What does not fit is left out: there are sixty-four others.
            let _ = old.signatures.merge(&new.signatures);
            Ok(Some(old.format()))
        };
        self.put_document(grant, Kind::Realisation, &new.id.to_string(), new.format(), merge).await
    }

    /// What an output of a content-addressed derivation is, as JSON; `None` when nobody said.
    ///
    /// # Errors
    /// [`CacheError`] when it cannot be known.
    pub async fn realisation(
        &self,
        grant: &Authorized<NixPull>,
        id: &DerivationOutput,
    ) -> Result<Option<String>, CacheError> {
        self.document(grant, Kind::Realisation, &id.to_string()).await
    }

    /// Keeps what an output of a derivation is (`build-trace-v2/`, Nix from 2.35).
    ///
    /// # Errors
    /// [`CacheError::NoSuchCache`].
    pub async fn put_build_trace(
        &self,
        grant: &Authorized<NixPush>,
        key: &BuildTraceKey,
        new: &BuildTrace,
    ) -> Result<Kept, CacheError> {
        let merge = |old: &str| {
            let mut old = BuildTrace::parse(old.as_bytes()).map_err(|error| CacheError::row("a build trace", error))?;
            if old.path != new.path {
                return Ok(None);
            }
            let _ = old.signatures.merge(&new.signatures);
            Ok(Some(old.format()))
        };
        self.put_document(grant, Kind::BuildTrace, &trace_name(key), new.format(), merge).await
    }

    /// What an output of a derivation is, as JSON; `None` when nobody said.
    ///
    /// # Errors
    /// [`CacheError`] when it cannot be known.
    pub async fn build_trace(
        &self,
        grant: &Authorized<NixPull>,
        key: &BuildTraceKey,
    ) -> Result<Option<String>, CacheError> {
        self.document(grant, Kind::BuildTrace, &trace_name(key)).await
    }

    /// Keeps where the debug information with a build id is: `debuginfo/<40 hexadecimal digits>.debug`, a JSON object.
    ///
    /// # Errors
    /// [`CacheError::Name`], [`CacheError::TooLarge`], or [`CacheError::NoSuchCache`].
    pub async fn put_debug_info(
        &self,
        grant: &Authorized<NixPush>,
        build_id: &str,
        document: &str,
    ) -> Result<Kept, CacheError> {
        check_build_id(build_id)?;
        if document.len() > MAX_DEBUG_INFO_BYTES {
            return Err(CacheError::TooLarge { what: "debug information", limit: MAX_DEBUG_INFO_BYTES, unit: "bytes" });
        }
        if !serde_json::from_str::<serde_json::Value>(document).is_ok_and(|json| json.is_object()) {
            return Err(CacheError::Name("debug information is a JSON object".to_owned()));
        }
        let merge = |old: &str| Ok((old == document).then(|| old.to_owned()));
        self.put_document(grant, Kind::DebugInfo, build_id, document.to_owned(), merge).await
    }

    /// Where the debug information with a build id is; `None` when nobody said.
    ///
    /// # Errors
    /// [`CacheError`] when it cannot be known.
    pub async fn debug_info(&self, grant: &Authorized<NixPull>, build_id: &str) -> Result<Option<String>, CacheError> {
        check_build_id(build_id)?;
        self.document(grant, Kind::DebugInfo, build_id).await
    }

    async fn document(
        &self,
        grant: &Authorized<NixPull>,
        kind: Kind,
        name: &str,
    ) -> Result<Option<String>, CacheError> {
        let id = self.cache(grant).await?.id;
        let statement = sql("SELECT document FROM nix_documents WHERE cache = $1 AND kind = $2 AND name = $3");
        let row = self.shared.database.first(statement.bind(id.0).bind(kind.as_str()).bind(name)).await?;
        Ok(row.map(|row| row.get("document")).transpose()?)
    }

    /// Writes a document, or what `merge` makes of the one that is here; `None` of it keeps that one.
    async fn put_document(
        &self,
        grant: &Authorized<NixPush>,
        kind: Kind,
        name: &str,
        new: String,
        merge: impl Fn(&str) -> Result<Option<String>, CacheError> + Send + Sync,
    ) -> Result<Kept, CacheError> {
        let id = self.cache(grant).await?.id;
        let now_s = signed(self.shared.time.now_s());
        let (new, merge) = (&new, &merge);
        self.shared
            .database
            .write(|transaction| work(async move {
                let old = sql("SELECT document FROM nix_documents WHERE cache = $1 AND kind = $2 AND name = $3");
                let old = transaction.first(old.bind(id.0).bind(kind.as_str()).bind(name)).await?;
                let old: Option<String> = old.map(|row| row.get("document")).transpose()?;
                let document = match &old {
                    None => new.clone(),
                    Some(old) => match merge(old)? {
                        None => return Ok(Kept::First),
                        Some(merged) if merged == *old => return Ok(Kept::This),
                        Some(merged) => merged,
                    },
                };
                let upsert = "INSERT INTO nix_documents (cache, kind, name, document, created_s) VALUES ($1, $2, $3, $4, $5) \
                              ON CONFLICT (cache, kind, name) DO UPDATE SET document = excluded.document";
                let upsert = sql(upsert).bind(id.0).bind(kind.as_str()).bind(name).bind(document).bind(now_s);
                transaction.execute(upsert).await?;
                Ok(Kept::This)
            }))
            .await
    }
}

fn trace_name(key: &BuildTraceKey) -> String {
    format!("{}/{}", key.derivation, key.output)
}

fn check_build_id(build_id: &str) -> Result<(), CacheError> {
    let is_good = build_id.len() == 40 && build_id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_good { Ok(()) } else { Err(CacheError::Name("a build id has 40 hexadecimal digits".to_owned())) }
}
