//! What stands on the stream of a worker, and what it means.

use gf_digest::{Digest, DigestFunction};
use gf_execution::closures::{ClosurePath, ClosureRoot};
use gf_execution::operations::{Answer, Assignment, Order};
use gf_execution::scheduler::{AssignmentId, Offer, Property, Resources, RunStage};
use gf_reapi::execution::ActionResult;
use gf_reapi::worker::{self, finished, progress, store_path, to_worker};
use gf_reapi::{WireDigest, rpc};
use prost::Message;
use prost_types::Timestamp;
use tonic::{Code, Status};

use crate::edges::grpc::Lists;
use crate::edges::reapi::RESULT_LISTS;
use crate::edges::{self, grpc};

/// What a worker may offer.
const MAX_PROPERTIES: usize = 1000;
const MAX_PROPERTIES_BYTES: usize = 64 << 10;
const MAX_NAME_BYTES: usize = 256;
/// As many as the configuration of one takes.
const MAX_MILLI_CORES: u32 = 4096 * 1000;
/// What it cannot do: more is not told.
const MAX_LIMITATIONS: usize = 32;
/// What it says for people is cut to this.
const MAX_TEXT_BYTES: usize = 4096;
/// Blobs that it found missing: a client uploads these, and is told the rest when it asks again.
const MAX_MISSING: usize = 10_000;

/// Where lists may stand in a `FromWorker`: in its `hello`, in the result and the status of its `finished`.
pub(in crate::edges) const LISTS: Lists = {
    const FINISHED: Lists = Lists::only_within(&[(3, RESULT_LISTS), (4, Lists::FLAT)]);
    Lists::only_within(&[(1, Lists::FLAT), (3, FINISHED)])
};

/// What a worker has, and in sentences what it cannot do.
pub(super) fn offer(hello: worker::Hello) -> Result<Offer, Status> {
    let refused = |reason: String| Err(Status::invalid_argument(reason));
    let worker::Hello { name, properties, capacity, limitations } = hello;
    if name.len() > MAX_NAME_BYTES || !is_printable(&name) {
        return refused(format!("the name of a worker has at most {MAX_NAME_BYTES} bytes, and no control characters"));
    }
    if properties.len() > MAX_PROPERTIES {
        return refused(format!("a worker may have at most {MAX_PROPERTIES} properties"));
    }
    if properties.iter().any(|property| !is_printable(&property.name) || !is_printable(&property.value)) {
        return refused("a property of a worker holds control characters".to_owned());
    }
    let bytes: usize = properties.iter().map(|property| property.name.len() + property.value.len()).sum();
    if bytes > MAX_PROPERTIES_BYTES {
        return refused(format!("the properties of a worker have {bytes} bytes: at most {MAX_PROPERTIES_BYTES}"));
    }
    let worker::Resources { milli_cores, memory_bytes } = capacity.unwrap_or_default();
    if milli_cores == 0 || milli_cores > MAX_MILLI_CORES {
        return refused(format!("a worker has some cores, and at most {}", MAX_MILLI_CORES / 1000));
    }
    let property = |property: worker::Property| Property { name: property.name.into(), value: property.value.into() };
    Ok(Offer {
        name: name.into(),
        properties: properties.into_iter().map(property).collect(),
        capacity: Resources { milli_cores, memory_bytes },
        limitations: limitations.into_iter().take(MAX_LIMITATIONS).map(cut).collect(),
    })
}

/// Names are shown on terminals.
fn is_printable(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

fn cut(text: String) -> String {
    edges::cut(text, MAX_TEXT_BYTES)
}

pub(super) fn assignment(id: &str) -> Result<AssignmentId, Status> {
    id.parse().map(AssignmentId).map_err(|_| Status::invalid_argument("an `assignment_id` is none of this server"))
}

pub(super) fn run_stage(stage: i32) -> Option<RunStage> {
    match progress::Stage::try_from(stage) {
        Ok(progress::Stage::Fetching) => Some(RunStage::Fetching),
        Ok(progress::Stage::Running) => Some(RunStage::Running),
        Ok(progress::Stage::Uploading) => Some(RunStage::Uploading),
        Ok(progress::Stage::Unknown) | Err(_) => None,
    }
}

pub(super) fn encode(order: Order) -> to_worker::Message {
    match order {
        Order::Withdraw(assignment) => {
            to_worker::Message::Cancel(worker::Cancel { assignment_id: assignment.to_string() })
        }
        Order::Assign(assignment) => to_worker::Message::Assignment(encode_assignment(*assignment)),
    }
}

fn encode_assignment(assignment: Assignment) -> worker::Assignment {
    let Resources { milli_cores, memory_bytes } = assignment.demand;
    worker::Assignment {
        assignment_id: assignment.id.to_string(),
        instance_name: assignment.instance.as_str().to_owned(),
        digest_function: assignment.digest.function().number(),
        action_digest: Some(WireDigest::from(&assignment.digest)),
        action: assignment.action,
        command: assignment.command,
        timeout: assignment.timeout.try_into().ok(),
        reserved: Some(worker::Resources { milli_cores, memory_bytes }),
        credential: assignment.credential.expose().to_owned(),
        queued_timestamp: Some(Timestamp::from(assignment.queued)),
        store_paths: assignment.closure.paths().iter().map(encode_store_path).collect(),
    }
}

fn encode_store_path(path: &ClosurePath) -> worker::StorePath {
    let root = match &path.root {
        ClosureRoot::Directory(digest) => store_path::Root::Directory(WireDigest::from(digest)),
        ClosureRoot::File { digest, is_executable } => {
            let digest = Some(WireDigest::from(digest));
            store_path::Root::File(worker::StoreFile { digest, is_executable: *is_executable })
        }
        ClosureRoot::Symlink { target } => store_path::Root::SymlinkTarget(target.clone()),
    };
    worker::StorePath { name: path.path.as_str().to_owned(), root: Some(root) }
}

/// What a worker says becomes an answer. One that makes no sense is a failure of the worker.
pub(super) fn answer(finished: worker::Finished) -> Answer {
    let status = finished.status.unwrap_or_default();
    let code = Code::from(status.code);
    let text = cut(if finished.message.is_empty() { status.message.clone() } else { finished.message });
    match (finished::Verdict::try_from(finished.verdict), finished.result) {
        (Ok(finished::Verdict::Completed), Some(result)) => Answer::Completed(result),
        (Ok(finished::Verdict::Ended), result) if code == Code::DeadlineExceeded => {
            Answer::TimedOut(result.unwrap_or_default(), text)
        }
        (Ok(finished::Verdict::Ended), result) => Answer::LimitReached(result.unwrap_or_default(), text),
        (Ok(finished::Verdict::Refused), result) => refusal(code, &status, result.unwrap_or_default(), text),
        (Ok(finished::Verdict::Cancelled), _) => Answer::Cancelled,
        (Ok(finished::Verdict::WorkerFailed), _) => Answer::WorkerFailed(text),
        (Ok(finished::Verdict::HandedBack), _) => Answer::HandedBack(text),
        (Ok(finished::Verdict::Completed | finished::Verdict::Unknown) | Err(_), _) => {
            Answer::WorkerFailed("its answer has no verdict or no result".to_owned())
        }
    }
}

fn refusal(code: Code, status: &rpc::Status, result: ActionResult, text: String) -> Answer {
    let missing = missing(status);
    match code {
        Code::FailedPrecondition if !missing.is_empty() => Answer::Missing(missing),
        Code::InvalidArgument => Answer::Invalid(text),
        // What the logs say is wanted most when the outputs are not as they should be.
        _ => Answer::Unfit(result, text),
    }
}

/// The blobs that a status names as missing.
fn missing(status: &rpc::Status) -> Vec<Digest> {
    let details = status.details.iter().filter(|detail| detail.type_url.ends_with("/google.rpc.PreconditionFailure"));
    let few = details.filter(|detail| grpc::are_few(&detail.value, Lists::FLAT));
    let failures = few.filter_map(|detail| rpc::PreconditionFailure::decode(detail.value.as_slice()).ok());
    let violations = failures.flat_map(|failure| failure.violations).filter(|violation| violation.r#type == "MISSING");
    violations.filter_map(|violation| subject(&violation.subject)).take(MAX_MISSING).collect()
}

/// `blobs/<hash>/<size>`, or `blobs/<function>/<hash>/<size>`.
fn subject(subject: &str) -> Option<Digest> {
    let parts: Vec<&str> = subject.splitn(5, '/').collect();
    let (function, hash, size) = match parts.as_slice() {
        ["blobs", hash, size] => (DigestFunction::Sha256, hash, size),
        ["blobs", "blake3", hash, size] => (DigestFunction::Blake3, hash, size),
        _ => return None,
    };
    Digest::parse(function, hash, size.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use gf_execution::closures::StorePath;
    use gf_reapi::execution::OutputFile;
    use gf_reapi::worker::{Finished, FromWorker, Hello, from_worker};
    use prost::Name;

    use super::*;
    use crate::edges::grpc::are_few;

    fn hello() -> Hello {
        let capacity = Some(worker::Resources { milli_cores: 2000, memory_bytes: 1 << 30 });
        Hello { name: "builder-1".to_owned(), capacity, ..Hello::default() }
    }

    fn properties(count: usize, name: &str, value: &str) -> Vec<worker::Property> {
        vec![worker::Property { name: name.to_owned(), value: value.to_owned() }; count]
    }

    #[test]
    fn a_worker_that_offers_what_cannot_be_is_refused() {
        assert_eq!(offer(hello()).unwrap().capacity, Resources { milli_cores: 2000, memory_bytes: 1 << 30 });
        let cores = |milli_cores| Some(worker::Resources { milli_cores, memory_bytes: 1 });
        let refused = [
            Hello { name: "n".repeat(257), ..hello() },
            Hello { name: "a\u{1b}[2J".to_owned(), ..hello() },
            Hello { properties: properties(1, "pool", "a\nb"), ..hello() },
            Hello { properties: properties(1001, "a", "b"), ..hello() },
            Hello { properties: properties(100, "pool", &"x".repeat(1000)), ..hello() },
            Hello { capacity: None, ..hello() },
            Hello { capacity: cores(u32::MAX), ..hello() },
        ];
        for hello in refused {
            assert_eq!(offer(hello.clone()).map(drop).unwrap_err().code(), Code::InvalidArgument, "{hello:?}");
        }
    }

    #[test]
    fn what_is_said_for_people_is_cut() {
        let limitations = vec!["ä".repeat(3001); 100];
        let Offer { limitations, .. } = offer(Hello { limitations, ..hello() }).unwrap();
        assert_eq!((limitations.len(), limitations[0].as_str()), (MAX_LIMITATIONS, "ä".repeat(2048).as_str()));
        let failed = Finished {
            verdict: finished::Verdict::WorkerFailed.into(),
            message: "x".repeat(1 << 20),
            ..Finished::default()
        };
        assert!(matches!(answer(failed), Answer::WorkerFailed(text) if text.len() == MAX_TEXT_BYTES));
        let error = assignment(&"x".repeat(1 << 20)).unwrap_err();
        assert!(error.message().len() < 100);
    }

    #[test]
    fn missing_blobs_are_read_up_to_a_number() {
        let violation = rpc::precondition_failure::Violation {
            r#type: "MISSING".to_owned(),
            subject: format!("blobs/{}/5", "ab".repeat(32)),
            description: String::new(),
        };
        let failure = rpc::PreconditionFailure { violations: vec![violation; MAX_MISSING + 1] };
        let detail =
            prost_types::Any { type_url: rpc::PreconditionFailure::type_url(), value: failure.encode_to_vec() };
        let code = Code::FailedPrecondition as i32;
        let refused = Finished {
            verdict: finished::Verdict::Refused.into(),
            status: Some(rpc::Status { code, details: vec![detail], ..rpc::Status::default() }),
            ..Finished::default()
        };
        assert!(matches!(answer(refused), Answer::Missing(missing) if missing.len() == MAX_MISSING));
    }

    #[test]
    fn a_small_message_does_not_become_a_large_one() {
        let check = |message: from_worker::Message| {
            let message = FromWorker { message: Some(message) };
            are_few(&message.encode_to_vec(), LISTS)
        };
        let result = |output: OutputFile| {
            let result = ActionResult { output_files: vec![output; 20_000], ..ActionResult::default() };
            from_worker::Message::Finished(Finished { result: Some(result), ..Finished::default() })
        };
        let digest = Some(Digest::of(DigestFunction::Sha256, b"x").into());
        assert!(check(result(OutputFile { path: "a".to_owned(), digest, ..OutputFile::default() })));
        assert!(!check(result(OutputFile::default())));
        assert!(!check(from_worker::Message::Hello(Hello { properties: properties(20_000, "", ""), ..hello() })));
    }

    #[test]
    fn store_paths_arrive_as_what_they_are() {
        let digest = Digest::of(DigestFunction::Sha256, b"tool");
        let encoded = |root: ClosureRoot| {
            let path = StorePath::parse("2s4rw9nqymidjbnrk72ccxyn6yxcjdf4-tool").unwrap();
            let encoded = encode_store_path(&ClosurePath { path, root });
            assert_eq!(encoded.name, "2s4rw9nqymidjbnrk72ccxyn6yxcjdf4-tool");
            encoded.root.unwrap()
        };
        let wire = WireDigest::from(&digest);
        assert_eq!(encoded(ClosureRoot::Directory(digest)), store_path::Root::Directory(wire.clone()));
        let file = worker::StoreFile { digest: Some(wire), is_executable: true };
        assert_eq!(encoded(ClosureRoot::File { digest, is_executable: true }), store_path::Root::File(file));
        let link = ClosureRoot::Symlink { target: "t".to_owned() };
        assert_eq!(encoded(link), store_path::Root::SymlinkTarget("t".to_owned()));
    }
}
