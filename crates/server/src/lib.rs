//! The server: edges that speak the clients' protocols, and the one wiring function that builds them.
//!
//! Deliberately absent: product rules (services have them) and the command line (`gf-cli`).

pub mod access_api;
mod access_services;
mod app;
mod builtin_worker;
mod capacity;
pub mod config;
pub mod edges;
pub mod facts;
mod health;
mod issuers;
pub mod listen;
pub mod metrics;
mod nix_caches;
mod nix_closures;
pub mod operator;
pub mod quotas;
mod refusal;
pub mod telemetry;

pub use access_services::{AccessStartError, FirstTokenError, issue_first_token};
pub use app::{App, StartError, StopError};
pub use capacity::Background;
pub use issuers::IssuerFileError;
