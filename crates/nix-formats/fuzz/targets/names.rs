//! Short texts: what is accepted has one spelling, or is written so that it reads the same.

#![no_main]

use gf_nix_formats::{
    BuildTraceKey, ContentAddress, DerivationOutput, Hash, KeyName, OutputName, PublicKey, SecretKey, Signature,
    StoreDir, StorePath, StorePathHash,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(path) = StorePath::parse(text) {
        assert_eq!((path.as_str(), path.hash().to_string().as_str()), (text, &text[..32]));
    }
    if let Ok(hash) = StorePathHash::parse(text) {
        assert_eq!(hash.to_string(), text);
    }
    if let Ok(hash) = Hash::parse(text) {
        assert_eq!(Hash::parse(&hash.to_string()), Ok(hash));
        assert_eq!(Hash::parse(&hash.sri()), Ok(hash));
    }
    if let Ok(address) = ContentAddress::parse(text) {
        assert_eq!(ContentAddress::parse(&address.to_string()), Ok(address));
    }
    if let Ok(id) = DerivationOutput::parse(text) {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(signature) = Signature::parse(text) {
        assert_eq!(signature.to_string(), text);
    }
    if let Ok(key) = PublicKey::parse(text) {
        assert_eq!(key.to_string(), text.trim_ascii());
    }
    if let Ok(key) = SecretKey::parse(text) {
        assert_eq!(key.reveal(), text.trim_ascii());
    }
    let _ = (StoreDir::new(text), StoreDir::default().parse(text), KeyName::new(text), OutputName::new(text));
    let _ = text.split_once('/').map(|(derivation, output)| BuildTraceKey::parse(derivation, output).is_ok());
});
