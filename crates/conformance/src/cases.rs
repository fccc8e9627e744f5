//! The cases. Each is a name, which is its identity for good, and a small function; one function may serve several
//! names that differ in what they send.

mod action_cache;
mod batch;
mod capabilities;
mod chunking;
mod compression;
mod execution;
mod functions;
mod identity;
mod inlining;
mod names;
mod read;
mod resume;
mod transport;
mod tree;
mod write;

use futures::future::BoxFuture;

use crate::finding::Checked;
use crate::probe::Probe;

/// One question to the server.
pub(crate) struct Case {
    /// The number in the list of cases, and what is asked.
    pub(crate) name: &'static str,
    pub(crate) check: for<'a> fn(&'a mut Probe<'_>) -> BoxFuture<'a, Checked>,
}

/// A table of cases: `"name" => function(arguments)`; the function gets the probe before the arguments.
macro_rules! cases {
    ($($name:literal => $check:ident($($argument:expr),*)),* $(,)?) => {
        pub(crate) const CASES: &[$crate::cases::Case] = &[$(
            $crate::cases::Case { name: $name, check: |probe| Box::pin($check(probe, $($argument),*)) }
        ),*];
    };
}
pub(crate) use cases;

/// Every case, in the order of their names.
pub(crate) fn all() -> impl Iterator<Item = &'static Case> {
    const MODULES: [&[Case]; 14] = [
        identity::CASES,
        write::CASES,
        resume::CASES,
        read::CASES,
        compression::CASES,
        names::CASES,
        functions::CASES,
        batch::CASES,
        tree::CASES,
        chunking::CASES,
        action_cache::CASES,
        inlining::CASES,
        capabilities::CASES,
        transport::CASES,
    ];
    let mut cases: Vec<&'static Case> = MODULES.into_iter().chain(execution::MODULES).flatten().collect();
    cases.sort_by_key(|case| case.name);
    cases.into_iter()
}
