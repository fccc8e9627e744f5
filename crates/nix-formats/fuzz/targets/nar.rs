//! An archive that is accepted, in chunks of any size, is written again as it was; meter and layout agree.
//! Seeds: `tests/golden/nar`.

#![no_main]

use bytes::Bytes;
use gf_nix_formats::ListingBuilder;
use gf_nix_formats::nar::{NarError, NarEvent, NarLayoutBuilder, NarLimits, NarMeter, NarParser, NarWriter};
use libfuzzer_sys::fuzz_target;

fn read(nar: &[u8], chunk_bytes: usize) -> Result<Vec<NarEvent>, NarError> {
    let mut parser = NarParser::new(NarLimits::default());
    let mut listing = ListingBuilder::new();
    let mut events = Vec::new();
    for chunk in nar.chunks(chunk_bytes) {
        let mut chunk = Bytes::copy_from_slice(chunk);
        while let Some(event) = parser.next(&mut chunk)? {
            listing.add(&event, parser.position());
            events.push(event);
        }
    }
    assert_eq!(parser.finish()?, nar.len() as u64);
    let _ = listing.finish()?.to_json();
    Ok(events)
}

fuzz_target!(|data: (u8, &[u8])| {
    let (chunk_bytes, nar) = data;
    let Ok(events) = read(nar, usize::from(chunk_bytes) + 1) else { return };
    let mut writer = NarWriter::new(NarLimits::default());
    let (mut meter, mut layout) = (NarMeter::new(), NarLayoutBuilder::new(NarLimits::default()));
    let mut chunks = Vec::new();
    for event in &events {
        writer.write(event, &mut chunks).expect("what was read can be written");
        meter.add(event);
        layout.add(event).expect("what was read can be laid out");
    }
    writer.finish(&mut chunks).expect("what was read is complete");
    assert_eq!(chunks.concat(), nar);
    assert_eq!(meter.size_bytes(), nar.len() as u64);
    assert_eq!(layout.finish().expect("what was read is complete").size_bytes(), nar.len() as u64);
});
