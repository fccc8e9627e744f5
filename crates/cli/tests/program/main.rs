//! Runs the real binary: what it prints, what it answers, and how it ends.

mod config_check;
mod running;
mod serve;
