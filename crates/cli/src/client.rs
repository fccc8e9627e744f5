//! Calls to a running server.
//!
//! Every failure says what to do next. What always holds: an answer that is kept in memory is bounded, and the token goes
//! to no other server than the one named: that of the environment, to none that nobody named.

use std::fmt::Display;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::args::ServerArgs;
use crate::failure::{Failure, FailureKind};
use crate::logins::{self, ClientCertificate};
use crate::output::say;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// What is sent; it may be made while it is.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A body that is at hand.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// How long an answer may take.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// A question that is answered at once.
    Short,
    /// Maintenance that reads the whole store: as long as it takes, within a day. Ctrl-C gives up.
    Maintenance,
}

impl Patience {
    const fn limit(self) -> Duration {
        match self {
            Self::Short => Duration::from_secs(30),
            Self::Maintenance => Duration::from_secs(24 * 3600),
        }
    }
}

/// A server to ask.
pub(crate) struct Client {
    server: Uri,
    authority: String,
    /// Whether somebody said which.
    is_named: bool,
    token: Option<String>,
    ca: Option<PathBuf>,
    /// What the command names.
    named_certificate: Option<ClientCertificate>,
    /// What `gf login` stored.
    stored_certificate: Option<ClientCertificate>,
}

impl Client {
    pub(crate) fn new(args: ServerArgs) -> Result<Self, Failure> {
        let mut client = Self::without_token(args)?;
        // What is no text is refused as no token when it is used, not taken for none.
        let token = std::env::var_os("GF_TOKEN").map(|token| token.to_string_lossy().trim().to_owned());
        client.token = token.filter(|token| !token.is_empty());
        if client.token.is_some() && !client.is_named {
            let message = "GF_TOKEN is set, and nothing says for which server: name it with --server URL or GF_SERVER";
            return Err(Failure::new(FailureKind::Usage, message));
        }
        if client.token.is_none() {
            client.token = logins::login_for(&client.url())?.token;
        }
        if client.token.is_some() {
            warn_of_plain_http(&client.server);
        }
        Ok(client)
    }

    /// The same, and presents this token.
    #[must_use]
    pub(crate) fn with_token(self, token: String) -> Self {
        warn_of_plain_http(&self.server);
        Self { token: Some(token), ..self }
    }

    /// As [`Self::new`], and presents no token by itself.
    pub(crate) fn without_token(args: ServerArgs) -> Result<Self, Failure> {
        let text = args.url();
        let wrong = || {
            let message = format!("--server {text:?} is no URL: write http://HOST:PORT or https://HOST:PORT");
            Failure::new(FailureKind::Usage, message)
        };
        let server: Uri = text.parse().map_err(|_| wrong())?;
        let authority = server.authority().ok_or_else(wrong)?.to_string();
        if !matches!(server.scheme_str(), Some("http" | "https")) || server.path() != "/" || authority.contains('@') {
            return Err(wrong());
        }
        let named = args.client_cert.zip(args.client_key);
        let named = named.map(|(client_cert, client_key)| ClientCertificate { client_cert, client_key });
        if named.is_some() && server.scheme_str() == Some("http") {
            let message = format!("--client-cert is of no use with {text}: a certificate is presented over https");
            return Err(Failure::new(FailureKind::Usage, message));
        }
        let is_named = args.server.is_some();
        let (named_certificate, stored_certificate) = (named, None);
        let mut client =
            Self { server, authority, is_named, token: None, ca: args.ca, named_certificate, stored_certificate };
        client.stored_certificate = logins::login_for(&client.url())?.certificate;
        Ok(client)
    }

    /// The certificate that the command names.
    pub(crate) const fn named_certificate(&self) -> Option<&ClientCertificate> {
        self.named_certificate.as_ref()
    }

    /// Where it is: `http://HOST:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.server.scheme_str().unwrap_or("http"), self.authority)
    }

    /// Whether a token was given.
    pub(crate) const fn token(&self) -> Option<&String> {
        self.token.as_ref()
    }

    pub(crate) fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, Failure> {
        self.call(Method::GET, path, Bytes::new(), Patience::Short)
    }

    pub(crate) fn post<A: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<A, Failure> {
        let body = serde_json::to_vec(body).map_err(Failure::failed)?;
        self.call(Method::POST, path, body.into(), Patience::Maintenance)
    }

    pub(crate) fn delete<A: DeserializeOwned>(&self, path: &str) -> Result<A, Failure> {
        self.call(Method::DELETE, path, Bytes::new(), Patience::Short)
    }

    /// Does something that says nothing when it is done.
    pub(crate) fn call_empty(&self, method: Method, path: &str) -> Result<(), Failure> {
        self.call::<serde_json::Value>(method, path, Bytes::new(), Patience::Short).map(drop)
    }

    /// Asks for something that is no JSON.
    pub(crate) fn bytes(&self, method: Method, path: &str) -> Result<Bytes, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
        let (status, answer) =
            runtime.block_on(self.exchange(method, path, &[], whole(Bytes::new()), Patience::Short))?;
        if status.is_success() { Ok(answer) } else { Err(self.refused(status, &answer)) }
    }

    fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        patience: Patience,
    ) -> Result<A, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
        runtime.block_on(self.ask(method, path, body, patience))
    }

    /// A question in JSON, and its answer.
    pub(crate) async fn ask<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        patience: Patience,
    ) -> Result<A, Failure> {
        let json = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let headers = if body.is_empty() { &[][..] } else { &json };
        let (status, answer) = self.exchange(method, path, headers, whole(body), patience).await?;
        if !status.is_success() {
            return Err(self.refused(status, &answer));
        }
        // What says nothing is no JSON.
        let answer = if answer.is_empty() { Bytes::from_static(b"null") } else { answer };
        serde_json::from_slice(&answer).map_err(|error| self.not_ours(error))
    }

    /// Why a server did not do what it was asked.
    pub(crate) fn refused(&self, status: StatusCode, answer: &[u8]) -> Failure {
        match (status, serde_json::from_slice::<Refusal>(answer)) {
            (StatusCode::UNAUTHORIZED, _) if self.token.is_some() => {
                let message =
                    "does not accept the token that was presented: put another into GF_TOKEN, or store one with";
                Failure::failed(format!("{} {message} `gf login --server {}`", self.server, self.url()))
            }
            (StatusCode::UNAUTHORIZED, _) => {
                let message = "wants a token: put it into the environment variable GF_TOKEN, or store it with";
                Failure::failed(format!("{} {message} `gf login --server {}`", self.server, self.url()))
            }
            (StatusCode::NOT_FOUND, Ok(refusal)) => Failure::new(FailureKind::NotSo, refusal.sentence()),
            (_, Ok(refusal)) => Failure::failed(refusal.sentence()),
            (_, Err(_)) => self.not_ours(status),
        }
    }

    pub(crate) fn not_ours(&self, why: impl Display) -> Failure {
        Failure::failed(format!(
            "what answers at {} does not speak this program's API ({why}): check --server, and that both sides have \
             the same version",
            self.server
        ))
    }

    fn unreachable(&self, why: impl Display) -> Failure {
        Failure::failed(format!(
            "no server answers at {} ({why}): start one with `gf serve`, or name it with --server URL",
            self.server
        ))
    }

    /// Sends a request, and reads the whole answer.
    pub(crate) async fn exchange(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: Body,
        patience: Patience,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let limit = patience.limit();
        let exchange = async {
            let answer = self.send(method, path, headers, body).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
            Ok((status, body.map_err(|error| self.broken(error))?.to_bytes()))
        };
        let answer = timeout(limit, exchange).await;
        answer.map_err(|_| self.unreachable(format!("no answer within {} s", limit.as_secs())))?
    }

    /// Sends a request on a connection of its own; the body of the answer is still to be read.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: Body,
    ) -> Result<Response<Incoming>, Failure> {
        let is_tls = self.server.scheme_str() == Some("https");
        let host = self.server.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = self.server.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let connect = timeout(CONNECT_TIMEOUT, TcpStream::connect((host.as_str(), port)));
        let stream =
            connect.await.map_err(|error| self.unreachable(error))?.map_err(|error| self.unreachable(error))?;
        let request = self.request(method, path, headers, body)?;
        let answer = if is_tls {
            let name = ServerName::try_from(host).map_err(|error| self.unreachable(error))?;
            let connector = TlsConnector::from(Arc::new(self.tls()?));
            let connect = timeout(CONNECT_TIMEOUT, connector.connect(name, stream)).await;
            let stream = connect.map_err(|error| self.unreachable(error))?.map_err(|error| self.untrusted(error))?;
            send(stream, request).await
        } else {
            send(stream, request).await
        };
        answer.map_err(|error| self.broken(error))
    }

    fn broken(&self, why: impl Display) -> Failure {
        // In TLS 1.3 whoever presents no certificate is refused after its handshake.
        let why = why.to_string();
        if self.server.scheme_str() == Some("https")
            && ["CertificateRequired", "certificate"].iter().any(|sign| why.contains(sign))
        {
            return Failure::failed(format!(
                "{} does not accept the certificate of this client, or wants one ({why}): name it with --client-cert FILE and \
                 --client-key FILE, or store it with `gf login`",
                self.server
            ));
        }
        Failure::failed(format!("the connection to {} broke ({why}): look at the server's log", self.server))
    }

    fn untrusted(&self, error: impl Display) -> Failure {
        Failure::failed(format!(
            "the connection to {} is not secure ({error}): if the server has a certificate of its own, name the \
             authority that signed it with --ca FILE",
            self.server
        ))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: Body,
    ) -> Result<Request<Body>, Failure> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.authority);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request.body(body).map_err(|_| Failure::new(FailureKind::Usage, "GF_TOKEN holds characters that no token has"))
    }

    fn tls(&self) -> Result<ClientConfig, Failure> {
        let mut roots = RootCertStore::empty();
        match &self.ca {
            Some(path) => {
                let wrong = |error: &dyn Display| {
                    Failure::new(
                        FailureKind::Usage,
                        format!("--ca {}: no certificate in PEM form: {error}", path.display()),
                    )
                };
                for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))? {
                    roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(Failure::failed)?.with_root_certificates(roots);
        match self.named_certificate.as_ref().or(self.stored_certificate.as_ref()) {
            Some(certificate) => certificate.present(builder),
            None => Ok(builder.with_no_client_auth()),
        }
    }
}

impl ClientCertificate {
    /// The same, named so that it is found from everywhere.
    pub(crate) fn resolved(self) -> Result<Self, Failure> {
        let resolve = |path: PathBuf| {
            let found = path.canonicalize();
            found.map_err(|error| Failure::new(FailureKind::Usage, format!("{}: {error}", path.display())))
        };
        Ok(Self { client_cert: resolve(self.client_cert)?, client_key: resolve(self.client_key)? })
    }

    fn present(&self, builder: ConfigBuilder<ClientConfig, WantsClientCert>) -> Result<ClientConfig, Failure> {
        let Self { client_cert, client_key } = self;
        let wrong = |path: &Path, what: &str, error: &dyn Display| {
            Failure::new(FailureKind::Usage, format!("{}: no {what} in PEM form: {error}", path.display()))
        };
        let of_chain = |error: &dyn Display| wrong(client_cert, "certificate of a client", error);
        let mut chain = Vec::new();
        for certificate in CertificateDer::pem_file_iter(client_cert).map_err(|error| of_chain(&error))? {
            chain.push(certificate.map_err(|error| of_chain(&error))?);
        }
        let key = PrivateKeyDer::from_pem_file(client_key).map_err(|error| wrong(client_key, "key", &error))?;
        builder.with_client_auth_cert(chain, key).map_err(|error| {
            let (cert, key) = (client_cert.display(), client_key.display());
            Failure::new(FailureKind::Usage, format!("{cert} and {key} cannot be presented: {error}"))
        })
    }
}

/// Says so when a token is about to go where others read it.
pub(crate) fn warn_of_plain_http(server: &Uri) {
    if is_read_on_the_way(server) {
        let host = server.host().unwrap_or_default();
        say(format_args!(
            "warning: the token goes to {host} over plain HTTP, and whoever is on the way can read and use it: give the server a \
             certificate ([tls] in gf.toml) and use https://"
        ));
    }
}

/// Whether what is sent there leaves this machine in the clear.
fn is_read_on_the_way(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let is_local_name = name == "localhost" || name.ends_with(".localhost");
    let is_loopback = host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    server.scheme_str() == Some("http") && !is_local_name && !is_loopback
}

/// One request on one connection, which ends with the answer.
async fn send<S>(stream: S, request: Request<Body>) -> Result<Response<Incoming>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // What goes wrong with it is heard by whoever reads the answer.
    tokio::spawn(connection);
    requests.send_request(request).await
}

/// What a server says when it refuses. Attic's interface has a word for programs in `error`, and the sentence beside it.
#[derive(Deserialize)]
struct Refusal {
    error: String,
    message: Option<String>,
}

impl Refusal {
    fn sentence(self) -> String {
        self.message.unwrap_or(self.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_in_the_clear_is_warned_of_where_others_can_read_it() {
        let check = |server: &str, expected: bool| {
            assert_eq!(is_read_on_the_way(&server.parse().unwrap()), expected, "{server}");
        };
        for own in [
            "http://127.0.0.1:8980",
            "http://[::1]:8980",
            "http://localhost:1",
            "http://gf.localhost.",
            "http://[::ffff:127.0.0.1]:1",
        ] {
            check(own, false);
        }
        for others in
            ["http://build.example:8980", "http://10.0.0.7:8980", "http://[2001:db8::1]:1", "http://localhost.example"]
        {
            check(others, true);
            check(&others.replace("http:", "https:"), false);
        }
    }
}
