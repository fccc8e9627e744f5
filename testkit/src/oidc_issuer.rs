//! An issuer of OpenID Connect, as a forge or a cluster has one: discovery, keys that rotate, tokens, and faults.
//!
//! It listens on loopback, each connection a thread of its own, so that tests with and without a runtime can have one.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Map, Value, json};

/// A key that opens nothing; `ring` makes none of this kind.
const RSA_KEY: &[u8] = include_bytes!("../../crates/tenancy/src/jwt/golden/rsa-private-pkcs8.pem");
/// The public half of it, which somebody could take for a shared secret.
pub const RSA_PUBLIC_PEM: &str = include_str!("../../crates/tenancy/src/jwt/golden/rsa-public.pem");
/// How long a connection that hangs is held, when nobody ends the issuer.
const HANG: Duration = Duration::from_secs(120);

/// What an issuer does when it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IssuerFault {
    /// It says nothing.
    Hangs,
    /// It answers 500.
    Fails,
    /// It answers what is no JSON.
    Babbles,
    /// It sends more than anybody should read.
    SendsMuch,
    /// It redirects to itself, for ever.
    RedirectsInCircles,
    /// It redirects to another place.
    RedirectsTo(String),
    /// It says that it is another issuer.
    IsAnother,
    /// It names keys that are not over TLS.
    NamesKeysInTheClear,
    /// It hangs up.
    HangsUp,
}

enum SigningKey {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
}

struct State {
    /// The last one signs; all are published.
    keys: Vec<(String, Arc<SigningKey>)>,
    fault: Option<IssuerFault>,
    made: usize,
}

struct Shared {
    url: String,
    state: Mutex<State>,
    asked: AtomicUsize,
    /// Who asked for the keys, and with which credential.
    credentials: Mutex<Vec<Option<String>>>,
    ended: AtomicBool,
    end: Condvar,
}

/// A running issuer; it ends when dropped.
pub struct OidcIssuer {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl OidcIssuer {
    /// An issuer on a free port, which signs with RS256.
    ///
    /// # Errors
    /// The system gives no port or no thread.
    pub fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let rsa = PrivatePkcs8KeyDer::from_pem_slice(RSA_KEY).map_err(io::Error::other)?;
        let rsa = RsaKeyPair::from_pkcs8(rsa.secret_pkcs8_der()).map_err(broken)?;
        let keys = vec![("rsa".to_owned(), Arc::new(SigningKey::Rsa(rsa)))];
        let shared = Arc::new(Shared {
            url: format!("http://{address}"),
            state: Mutex::new(State { keys, fault: None, made: 0 }),
            asked: AtomicUsize::new(0),
            credentials: Mutex::default(),
            ended: AtomicBool::new(false),
            end: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        thread::Builder::new().spawn(move || accept(&listener, &accepting))?;
        Ok(Self { shared, address })
    }

    /// Its name, which is where it is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// How often it was asked for anything.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// The credentials of those who asked.
    #[must_use]
    pub fn credentials(&self) -> Vec<Option<String>> {
        lock(&self.shared.credentials).clone()
    }

    /// The text of the keys that it publishes.
    #[must_use]
    pub fn key_set(&self) -> String {
        key_set(&lock(&self.shared.state).keys)
    }

    /// From now on it does this; `None` is what it should do.
    pub fn misbehave(&self, fault: Option<IssuerFault>) {
        lock(&self.shared.state).fault = fault;
    }

    /// Signs with a new key, of ES256, and publishes no other.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn rotate(&self) -> io::Result<()> {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random);
        let document = document.map_err(broken)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random);
        let pair = pair.map_err(broken)?;
        let mut state = lock(&self.shared.state);
        state.made += 1;
        let name = format!("key-{}", state.made);
        state.keys = vec![(name, Arc::new(SigningKey::Ec(pair)))];
        Ok(())
    }

    /// A token of these claims, for five minutes from now unless they say otherwise.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn token(&self, claims: &Value) -> io::Result<String> {
        let (name, key) = lock(&self.shared.state).keys.last().cloned().ok_or(io::ErrorKind::NotFound)?;
        let algorithm = match &*key {
            SigningKey::Rsa(_) => "RS256",
            SigningKey::Ec(_) => "ES256",
        };
        let header = json!({"alg": algorithm, "kid": name, "typ": "JWT"});
        let signed = self.unsigned(&header, claims);
        let signature = key.sign(signed.as_bytes())?;
        Ok(format!("{signed}.{}", encode(&signature)))
    }

    /// What a token of this header and these claims is before it is signed.
    #[must_use]
    pub fn unsigned(&self, header: &Value, claims: &Value) -> String {
        let now_s = now_s();
        let mut all = json!({"iss": self.url(), "iat": now_s, "nbf": now_s, "exp": now_s + 300});
        let (all_claims, given) = (all.as_object_mut(), claims.as_object());
        let nothing = Map::new();
        if let Some(all) = all_claims {
            for (name, value) in given.unwrap_or(&nothing) {
                all.insert(name.clone(), value.clone());
            }
            all.retain(|_, value| !value.is_null());
        }
        format!("{}.{}", encode(header.to_string().as_bytes()), encode(all.to_string().as_bytes()))
    }
}

impl Drop for OidcIssuer {
    fn drop(&mut self) {
        let state = lock(&self.shared.state);
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.end.notify_all();
        drop(state);
        // Whoever waits for a connection sees that it ended.
        let _ = TcpStream::connect(self.address);
    }
}

impl SigningKey {
    fn sign(&self, message: &[u8]) -> io::Result<Vec<u8>> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).map_err(broken)?;
                Ok(signature)
            }
            Self::Ec(pair) => Ok(pair.sign(&random, message).map_err(broken)?.as_ref().to_vec()),
        }
    }

    fn public(&self, name: &str) -> Value {
        match self {
            Self::Rsa(pair) => {
                let RsaPublicKeyComponents { n, e } = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": name, "n": encode(&n), "e": encode(&e)})
            }
            Self::Ec(pair) => {
                let point = pair.public_key().as_ref();
                let (x, y) = point.get(1..).unwrap_or_default().split_at(32);
                json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": name, "x": encode(x), "y": encode(y)})
            }
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept() {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        let serving = Arc::clone(shared);
        // A client that went away, or a system without threads: the client sees that nobody answers.
        let _ = thread::Builder::new().spawn(move || serve(stream, &serving));
    }
}

/// Answers one request, and hangs up.
fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(()) };
    let mut credential = None;
    for line in lines.by_ref() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let header = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        credential = header.map(|(_, value)| value.trim().to_owned()).or(credential);
    }
    shared.asked.fetch_add(1, Ordering::SeqCst);
    lock(&shared.credentials).push(credential);
    let path = first.split(' ').nth(1).unwrap_or_default();
    let state = lock(&shared.state);
    let fault = state.fault.clone();
    let keys = key_set(&state.keys);
    match fault {
        Some(IssuerFault::Hangs) => {
            let waiting = |_: &mut State| !shared.ended.load(Ordering::SeqCst);
            drop(shared.end.wait_timeout_while(state, HANG, waiting));
            Ok(())
        }
        fault => {
            drop(state);
            answer(stream, &shared.url, path, fault.as_ref(), keys)
        }
    }
}

fn answer(mut stream: TcpStream, url: &str, path: &str, fault: Option<&IssuerFault>, keys: String) -> io::Result<()> {
    let is_discovery = path == "/.well-known/openid-configuration";
    let (status, location, body) = match fault {
        Some(IssuerFault::HangsUp) => return Ok(()),
        Some(IssuerFault::Fails) => ("500 Internal Server Error", None, "no".to_owned()),
        Some(IssuerFault::Babbles) => ("200 OK", None, "<html>".to_owned()),
        Some(IssuerFault::SendsMuch) => ("200 OK", None, " ".repeat(8 << 20)),
        Some(IssuerFault::RedirectsInCircles) => ("302 Found", Some(path), String::new()),
        Some(IssuerFault::RedirectsTo(place)) => ("302 Found", Some(place.as_str()), String::new()),
        Some(IssuerFault::IsAnother) if is_discovery => {
            ("200 OK", None, json!({"issuer": "https://other.example", "jwks_uri": format!("{url}/keys")}).to_string())
        }
        Some(IssuerFault::NamesKeysInTheClear) if is_discovery => {
            ("200 OK", None, json!({"issuer": url, "jwks_uri": "http://elsewhere.example/keys"}).to_string())
        }
        _ if is_discovery => ("200 OK", None, json!({"issuer": url, "jwks_uri": format!("{url}/keys")}).to_string()),
        _ if path == "/keys" => ("200 OK", None, keys),
        _ => ("404 Not Found", None, String::new()),
    };
    let location = location.map_or_else(String::new, |place| format!("Location: {place}\r\n"));
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{location}\r\n{body}")
}

fn key_set(keys: &[(String, Arc<SigningKey>)]) -> String {
    let keys: Vec<Value> = keys.iter().map(|(name, key)| key.public(name)).collect();
    json!({"keys": keys}).to_string()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn encode(part: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(part)
}

fn broken(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
