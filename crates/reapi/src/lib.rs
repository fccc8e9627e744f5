//! reapi
