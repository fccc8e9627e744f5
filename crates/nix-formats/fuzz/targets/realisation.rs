//! A document that is accepted is written so that it reads the same. Seeds: `tests/golden/realisations`.

#![no_main]

use gf_nix_formats::{BuildTrace, Realisation};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(realisation) = Realisation::parse(data) {
        assert_eq!(Realisation::parse(realisation.format().as_bytes()).ok(), Some(realisation));
    }
    if let Ok(trace) = BuildTrace::parse(data) {
        assert_eq!(BuildTrace::parse(trace.format().as_bytes()).ok(), Some(trace));
    }
});
