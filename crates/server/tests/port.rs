//! The one port: HTTP/1.1 and HTTP/2, in the clear and over TLS, and what it does to clients that say nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gf_server::App;
use gf_server::config::{Config, Environment, Overrides};
use gf_server::listen::Drained;
use http::{Request, StatusCode, Version};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

async fn start(dir: &Path, text: &str) -> App {
    let overrides = Overrides { listen: Some("127.0.0.1:0".parse().unwrap()), data_dir: Some(dir.join("data")) };
    let file = dir.join("gf.toml");
    let config = Config::parse(Some(&file), text, overrides, &Environment::default()).unwrap();
    App::start(config).await.unwrap()
}

async fn get_http1(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn get_http2(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> (StatusCode, Bytes) {
    let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::get("http://localhost/healthz").version(Version::HTTP_2).body(()).unwrap();
    let (answer, _) = requests.send_request(request, true).unwrap();
    let mut answer = answer.await.unwrap();
    let status = answer.status();
    let body = answer.body_mut().data().await.unwrap().unwrap();
    connection.abort();
    (status, body)
}

#[tokio::test]
async fn both_protocols_in_the_clear() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), "").await;
    assert!(app.url().starts_with("http://127.0.0.1:"));
    let answer = get_http1(TcpStream::connect(app.address()).await.unwrap(), "/healthz").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok\n"), "{answer}");
    let stream = TcpStream::connect(app.address()).await.unwrap();
    assert_eq!(get_http2(stream).await, (StatusCode::OK, Bytes::from_static(b"ok\n")));
}

/// Writes a certificate for `localhost` and its key, and returns what a client trusts.
fn make_certificate(dir: &Path) -> RootCertStore {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    roots
}

async fn connect_tls(app: &App, roots: &RootCertStore, alpn: &[u8]) -> TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots.clone()).with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(app.address()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

#[tokio::test]
async fn both_protocols_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let roots = make_certificate(dir.path());
    let app = start(dir.path(), "[tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n").await;
    assert!(app.url().starts_with("https://"));

    let stream = connect_tls(&app, &roots, b"h2").await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(get_http2(stream).await.0, StatusCode::OK);

    let stream = connect_tls(&app, &roots, b"http/1.1").await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert!(get_http1(stream, "/healthz").await.starts_with("HTTP/1.1 200 OK"));

    // A client that speaks in the clear to a TLS port gets no answer, and harms nobody.
    let mut clear = TcpStream::connect(app.address()).await.unwrap();
    clear.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = clear.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"));
}

/// Both facts in one test, since it waits until a certificate has ended.
#[tokio::test]
async fn a_certificate_without_a_rule_grants_nothing_and_takes_its_connection_along() {
    let dir = tempfile::tempdir().unwrap();
    let roots = make_certificate(dir.path());
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().unwrap();
    fs::write(dir.path().join("clients.pem"), authority.self_signed(&authority_key).unwrap().pem()).unwrap();
    let text = "[tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\nclient_ca_file = \"clients.pem\"\n";
    let app = start(dir.path(), text).await;

    // After the start, which takes as long as the disk wants.
    let mut params = rcgen::CertificateParams::new(["ann.example".to_owned()]).unwrap();
    params.not_after = time::OffsetDateTime::now_utc() + Duration::from_secs(15);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &rcgen::Issuer::new(authority, authority_key)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let own = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = Arc::new(builder.with_client_auth_cert(vec![certificate.der().clone()], own).unwrap());
    let stream = TcpStream::connect(app.address()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
    let request = format!("GET /cas/{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "0".repeat(64));
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(120), stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(closed.is_ok(), "the connection outlives the certificate");
}

#[tokio::test]
async fn a_key_of_another_certificate_is_a_mistake_of_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    make_certificate(dir.path());
    let other = rcgen::KeyPair::generate().unwrap();
    fs::write(dir.path().join("other.pem"), other.serialize_pem()).unwrap();
    for (key, expected) in [("other.pem", "do not work together"), ("cert.pem", "holds no private key")] {
        let text = format!("[tls]\ncert = \"cert.pem\"\nkey = \"{key}\"\n");
        let file = dir.path().join("gf.toml");
        let overrides = Overrides { data_dir: Some(dir.path().into()), ..Overrides::default() };
        let errors = Config::parse(Some(&file), &text, overrides, &Environment::default()).unwrap_err().to_string();
        assert!(errors.contains("gf.toml:2: tls.cert: ") && errors.contains(expected), "{errors}");
    }
}

#[tokio::test]
async fn a_drain_closes_idle_connections() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), "").await;
    let mut idle = TcpStream::connect(app.address()).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut begin = [0; 12];
    idle.read_exact(&mut begin).await.unwrap();
    // An idle connection is closed at once.
    assert_eq!(app.stop(Duration::from_secs(20)).await.unwrap(), Drained::Complete);
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
}

#[tokio::test]
async fn a_drain_waits_for_uploads_and_cuts_them_at_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), "").await;
    let address = app.address();
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let hash = "0".repeat(64);
    let request =
        Request::put(format!("http://localhost/cas/{hash}")).header("content-length", "1000").body(()).unwrap();
    let (answer, mut body) = requests.send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(b"begun"), false).unwrap();
    let in_flight = "gf_requests_in_flight{method=\"PUT\"} 1";
    let until = Instant::now() + Duration::from_secs(20);
    while !get_http1(TcpStream::connect(address).await.unwrap(), "/metrics").await.contains(in_flight) {
        assert!(Instant::now() < until, "the upload did not begin");
    }
    assert_eq!(app.stop(Duration::from_millis(100)).await.unwrap(), Drained::Cut);
    assert!(answer.await.is_err());
    let _ = connection.await;
}

#[tokio::test]
async fn headers_beyond_the_limit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), "").await;
    let mut stream = TcpStream::connect(app.address()).await.unwrap();
    let name = "x".repeat(1 << 20);
    // The server may hang up before it has read everything.
    let _ = stream.write_all(format!("GET /{name} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert!(get_http1(TcpStream::connect(app.address()).await.unwrap(), "/healthz").await.starts_with("HTTP/1.1 200"));
}
