//! Cases 35 to 63: remote execution. They need a worker with a shell and the usual tools; a server that executes
//! nothing is not asked.

mod arguments;
mod directories;
mod inputs;
mod malformed;
mod missing;
mod operations;
mod outputs;
mod paths;
mod platform;
mod printed;
mod results;
mod reuse;
mod waiting;

use crate::cases::Case;

/// The cases of all modules.
pub(super) const MODULES: [&[Case]; 13] = [
    arguments::CASES,
    directories::CASES,
    inputs::CASES,
    malformed::CASES,
    missing::CASES,
    operations::CASES,
    outputs::CASES,
    paths::CASES,
    platform::CASES,
    printed::CASES,
    results::CASES,
    reuse::CASES,
    waiting::CASES,
];

/// Prints a line that no other process prints.
const PRINT_UNIQUE: &str = "cat /proc/sys/kernel/random/uuid";
