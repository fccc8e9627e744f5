//! Signatures, right and wrong. The RSA keys below `golden/` were made with `openssl` for these tests and open nothing.

use ring::rand::SystemRandom;
use ring::signature::RSA_PKCS1_SHA256;

use super::*;

const PKCS1: &[u8] = include_bytes!("golden/rsa-private-pkcs1.pem");
const PKCS8: &[u8] = include_bytes!("golden/rsa-private-pkcs8.pem");
const PUBLIC: &[u8] = include_bytes!("golden/rsa-public.pem");
const ED25519: &[u8] = include_bytes!("golden/ed25519-public.pem");

/// RFC 7515, A.1.
const RFC_SECRET: &str = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ+EstJQLr/T+1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow==";
const RFC_TOKEN: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0\
                         dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

pub(crate) fn encode(part: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(part)
}

/// A token with this header and these claims, signed with an HMAC.
pub(crate) fn hs256(secret: &[u8], header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", encode(header.as_bytes()), encode(claims.as_bytes()));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{signed}.{}", encode(signature.as_ref()))
}

fn rs256(header: &str, claims: &str) -> String {
    let (_, der) = pem(&BASE64_STANDARD.encode(PKCS1)).unwrap();
    let pair = RsaKeyPair::from_der(&der).unwrap();
    let signed = format!("{}.{}", encode(header.as_bytes()), encode(claims.as_bytes()));
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
    format!("{signed}.{}", encode(&signature))
}

#[test]
fn the_example_of_the_rfc() {
    let key = JwtKey::hs256(RFC_SECRET).unwrap();
    let (claims, _) = key.verify(RFC_TOKEN).unwrap();
    assert!(claims.starts_with(br#"{"iss":"joe","#), "{}", String::from_utf8_lossy(&claims));
    let mut changed = RFC_TOKEN.to_owned();
    changed.replace_range(50..51, "x");
    assert_eq!(key.verify(&changed), Err(JwtFault::Signature));
}

#[test]
fn every_way_to_write_an_rsa_key() {
    let text = |pem: &[u8]| BASE64_STANDARD.encode(pem);
    let token = rs256(r#"{"alg":"RS256","typ":"JWT"}"#, "{}");
    for key in [
        JwtKey::rs256_private(&text(PKCS1)).unwrap(),
        JwtKey::rs256_private(&text(PKCS8)).unwrap(),
        JwtKey::rs256_public(&(text(PUBLIC) + "\n")).unwrap(),
        JwtKey::rs256_public(str::from_utf8(PUBLIC).unwrap()).unwrap(),
    ] {
        assert_eq!(key.verify(&token).unwrap().0, b"{}", "{key:?}");
        let another = rs256(r#"{"alg":"RS256"}"#, "{}");
        let (signed, _) = token.rsplit_once('.').unwrap();
        let (_, signature) = another.rsplit_once('.').unwrap();
        assert_eq!(key.verify(&format!("{signed}.{signature}")), Err(JwtFault::Signature));
    }
    for wrong in [PKCS1, ED25519, b"text".as_slice()] {
        assert!(matches!(JwtKey::rs256_public(&text(wrong)), Err(JwtKeyError::Rsa(_))));
    }
    assert!(matches!(JwtKey::rs256_private(&text(PUBLIC)), Err(JwtKeyError::Rsa(_))));
}

#[test]
fn secrets_that_are_none() {
    assert_eq!(JwtKey::hs256("!").unwrap_err(), JwtKeyError::Base64);
    assert_eq!(JwtKey::hs256("c2VjcmV0").unwrap_err(), JwtKeyError::ShortSecret(6));
    assert!(!format!("{:?}", JwtKey::hs256(RFC_SECRET)).contains("AyM1"));
}

#[test]
fn the_key_says_which_algorithm_it_is_for() {
    let secret = [7; 32];
    let shared = JwtKey::hs256(&BASE64_STANDARD.encode(secret)).unwrap();
    let public = JwtKey::rs256_public(&BASE64_STANDARD.encode(PUBLIC)).unwrap();
    assert!(shared.verify(&hs256(&secret, r#"{"alg":"HS256"}"#, "{}")).is_ok());

    let check = |key: &JwtKey, token: &str, expected: JwtFault| {
        assert_eq!(key.verify(token), Err(expected), "{key:?} {token}");
    };
    let none = format!("{}.{}.", encode(br#"{"alg":"none"}"#), encode(b"{}"));
    // The public key taken for a shared secret: as PEM, as its DER, and as the key within.
    let (_, der) = pem(&BASE64_STANDARD.encode(PUBLIC)).unwrap();
    for confused in [PUBLIC, &der, inner_key(&der).unwrap()] {
        check(&public, &hs256(confused, r#"{"alg":"HS256"}"#, "{}"), JwtFault::Algorithm);
        check(&public, &hs256(confused, r#"{"alg":"RS256"}"#, "{}"), JwtFault::Signature);
    }
    for key in [&shared, &public] {
        check(key, &none, JwtFault::Algorithm);
        for alg in ["None", "NONE", "HS512", "ES256", "hs256", ""] {
            check(key, &hs256(&secret, &format!(r#"{{"alg":"{alg}"}}"#), "{}"), JwtFault::Algorithm);
        }
    }
    check(&shared, &rs256(r#"{"alg":"RS256"}"#, "{}"), JwtFault::Algorithm);
    check(&shared, &hs256(&secret, r#"{"alg":"HS256","crit":["exp"]}"#, "{}"), JwtFault::Algorithm);
    check(&shared, &hs256(&[8; 32], r#"{"alg":"HS256"}"#, "{}"), JwtFault::Signature);
}

#[test]
fn what_has_no_form() {
    let key = JwtKey::hs256(RFC_SECRET).unwrap();
    let unsigned = RFC_TOKEN.rsplit_once('.').unwrap().0;
    let padded = format!("{RFC_TOKEN}=");
    let long = format!("eyJ{}", "A".repeat(MAX_TOKEN_LENGTH));
    for wrong in ["", ".", "..", "a.b.c", unsigned, &padded, &format!("{RFC_TOKEN}.x"), &long] {
        assert_eq!(key.verify(wrong), Err(JwtFault::Form), "{wrong}");
    }
    assert_eq!(key.verify(&format!("{unsigned}.")), Err(JwtFault::Signature));
    assert!(looks_like_token(RFC_TOKEN) && !looks_like_token(unsigned) && !looks_like_token("s3cret"));
}
