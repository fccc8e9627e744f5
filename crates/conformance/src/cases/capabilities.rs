//! Case 34: what the server says it offers.

use gf_reapi::execution::capabilities_client::CapabilitiesClient;
use gf_reapi::execution::{
    ActionResult, GetCapabilitiesRequest, ServerCapabilities, compressor, digest_function,
    symlink_absolute_path_strategy,
};
use tonic::{Code, Status};

use crate::cases::action_cache::{get, new_action, update};
use crate::cases::cases;
use crate::finding::{Checked, Finding, describe, ensure, refused, succeeds};
use crate::probe::Probe;

cases! {
    "34-versions" => versions(),
    "34-digest-functions" => digest_functions(),
    "34-compressors" => compressors(),
    "34-limits" => limits(),
    "34-symlink-strategy" => symlink_strategy(),
    "34-execution" => execution(),
    "34-action-cache-updates-as-stated" => action_cache_updates_as_stated(),
    "34-unknown-instance" => unknown_instance(),
    "34-malformed-instance" => malformed_instance(),
}

async fn ask(probe: &Probe<'_>, instance: &str) -> Result<ServerCapabilities, Status> {
    let request = GetCapabilitiesRequest { instance_name: instance.to_owned() };
    Ok(CapabilitiesClient::new(probe.transport()).get_capabilities(request).await?.into_inner())
}

async fn versions(probe: &mut Probe<'_>) -> Checked {
    let capabilities = probe.session.capabilities()?;
    let number = |version: &Option<gf_reapi::semver::SemVer>, which: &str| {
        let version = version.as_ref().ok_or_else(|| Finding::Fail(format!("no {which} is stated")))?;
        Ok::<_, Finding>((version.major, version.minor, version.patch))
    };
    let low = number(&capabilities.low_api_version, "low_api_version")?;
    let high = number(&capabilities.high_api_version, "high_api_version")?;
    ensure!(low <= high, "low_api_version {low:?} is above high_api_version {high:?}");
    ensure!(low.0 == 2 && high.0 == 2, "the versions {low:?} to {high:?} are not of 2.x");
    if let Some(deprecated) = &capabilities.deprecated_api_version {
        let deprecated = (deprecated.major, deprecated.minor, deprecated.patch);
        ensure!(deprecated <= low, "deprecated_api_version {deprecated:?} is above low_api_version {low:?}");
    }
    Ok(format!("{low:?} to {high:?}"))
}

fn names(numbers: &[i32]) -> Vec<String> {
    let name = |number: &i32| digest_function::Value::try_from(*number).map(|value| value.as_str_name());
    numbers.iter().map(|number| name(number).map_or_else(|_| number.to_string(), str::to_owned)).collect()
}

async fn digest_functions(probe: &mut Probe<'_>) -> Checked {
    let functions = &probe.session.cache()?.digest_functions;
    ensure!(!functions.is_empty(), "no digest function is stated");
    ensure!(!functions.contains(&0), "UNKNOWN is among the digest functions");
    Ok(names(functions).join(", "))
}

async fn compressors(probe: &mut Probe<'_>) -> Checked {
    let cache = probe.session.cache()?;
    let known = |number: &i32| compressor::Value::try_from(*number).is_ok();
    for numbers in [&cache.supported_compressors, &cache.supported_batch_update_compressors] {
        ensure!(numbers.iter().all(known), "the compressors {numbers:?} have one that the specification lacks");
    }
    let streams: Vec<_> = cache.supported_compressors().map(|value| value.as_str_name()).collect();
    let batches: Vec<_> = cache.supported_batch_update_compressors().map(|value| value.as_str_name()).collect();
    Ok(format!("streams {streams:?}, batches {batches:?}"))
}

async fn limits(probe: &mut Probe<'_>) -> Checked {
    let cache = probe.session.cache()?;
    let (batch, blob) = (cache.max_batch_total_size_bytes, cache.max_cas_blob_size_bytes);
    ensure!(batch >= 0, "max_batch_total_size_bytes is {batch}");
    ensure!(blob >= 0, "max_cas_blob_size_bytes is {blob}");
    Ok(format!("batch {batch}, blob {blob} (0 is none)"))
}

async fn symlink_strategy(probe: &mut Probe<'_>) -> Checked {
    use symlink_absolute_path_strategy::Value;
    let strategy = probe.session.cache()?.symlink_absolute_path_strategy();
    ensure!(strategy != Value::Unknown, "symlink_absolute_path_strategy is UNKNOWN");
    Ok(strategy.as_str_name().into())
}

async fn execution(probe: &mut Probe<'_>) -> Checked {
    let Some(execution) = &probe.session.capabilities()?.execution_capabilities else {
        return Ok("no remote execution under this instance".into());
    };
    let function = execution.digest_function;
    ensure!(function != 0, "digest_function is UNKNOWN");
    ensure!(!execution.digest_functions.contains(&0), "UNKNOWN is among the digest functions of execution");
    ensure!(
        execution.digest_functions.is_empty() || execution.digest_functions.contains(&function),
        "digest_function {function} is not among digest_functions {:?}",
        execution.digest_functions
    );
    Ok(format!("exec_enabled {}, {}", execution.exec_enabled, names(&execution.digest_functions).join(", ")))
}

async fn action_cache_updates_as_stated(probe: &mut Probe<'_>) -> Checked {
    let enabled = probe.require_action_cache_updates().is_ok();
    let action = new_action(probe).await?;
    let answer = update(probe, &action, ActionResult { exit_code: 1, ..ActionResult::default() }).await;
    if enabled {
        succeeds("update_enabled is true, and an update", answer)?;
        let result = succeeds("looking up what was stored", get(probe, &action).await)?;
        ensure!(result.exit_code == 1, "looking up what was stored: exit code {}, not 1", result.exit_code);
        return Ok("update_enabled is true, and an update is taken".into());
    }
    let allowed = &[Code::PermissionDenied, Code::Unauthenticated, Code::Unimplemented];
    refused("update_enabled is false, and an update", answer, allowed)
}

async fn unknown_instance(probe: &mut Probe<'_>) -> Checked {
    let name = format!("unknown-{}", probe.uuid());
    match ask(probe, &name).await {
        Ok(_) => Ok("any instance name is served".into()),
        answer => {
            let allowed = &[Code::NotFound, Code::InvalidArgument, Code::PermissionDenied, Code::Unauthenticated];
            refused("an instance that does not exist", answer, allowed)
        }
    }
}

async fn malformed_instance(probe: &mut Probe<'_>) -> Checked {
    let mut details = Vec::new();
    for name in ["a//b", "/", "blobs", "a/uploads/b", &"x".repeat(100_000)] {
        let shown: String = name.chars().take(16).collect();
        match ask(probe, name).await {
            Ok(_) => details.push(format!("`{shown}` is served")),
            Err(status) if matches!(status.code(), Code::Internal | Code::Unknown | Code::Unavailable) => {
                return Err(Finding::Fail(format!("`{shown}`: {}", describe(&status))));
            }
            Err(status) => details.push(format!("`{shown}`: {}", describe(&status))),
        }
    }
    Ok(details.join("; "))
}
