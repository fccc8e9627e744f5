//! A narinfo that is accepted is written so that it reads the same. Seeds: `tests/golden/narinfo`.

#![no_main]

use gf_nix_formats::{CacheInfo, NarInfo, StoreDir};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let store = StoreDir::default();
    if let Ok(info) = CacheInfo::parse(data) {
        assert_eq!(CacheInfo::parse(info.format().as_bytes()), Ok(info));
    }
    let Ok(info) = NarInfo::parse(&store, data) else { return };
    let _ = info.is_content_addressed(&store);
    assert_eq!(NarInfo::parse(&store, info.format(&store).as_bytes()), Ok(info));
});
