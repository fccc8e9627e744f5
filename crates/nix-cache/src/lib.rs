//! Nix binary caches over the content-addressed store; `adr/0007-nix-cache.md` says who owns what.
//!
//! [`archives`] takes archives apart and puts them together again.
//!
//! Deliberately absent: HTTP, and any notion of a credential. Who may do what arrives as `Authorized`.

pub mod archives;
