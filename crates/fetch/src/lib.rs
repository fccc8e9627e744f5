//! Questions to the servers of others: GET over HTTP, redirects, and bounds on everything.
//!
//! What always holds: every wait, body and chain of redirects is bounded; a [`Reach`] holds for every hop of a
//! redirect; a credential goes to the host that was named, and to no other; a client that is kept to some [`Networks`]
//! connects to no other address, whatever a name resolves to.
//!
//! Deliberately absent: other methods, caching, asking again, proxies.

mod networks;
mod resolver;

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use networks::{Network, NetworkError, Networks};
use resolver::Resolver;

/// Until there is a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Until an answer begins.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two pieces of a body.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// Questions of one client at the same time; bodies that are read do not count.
const MAX_QUESTIONS: usize = 64;

type Http = hyper_util::client::legacy::Client<HttpsConnector<HttpConnector<Resolver>>, Empty<Bytes>>;

/// What comes: pieces of a body, or why they end.
pub type Body = BoxStream<'static, Result<Bytes, String>>;

/// The rest of what is behind a URL.
pub struct Part {
    /// What comes.
    pub body: Body,
    /// Where it begins: at the offset that was asked for, or at 0 when the server does not give parts.
    pub offset: u64,
}

/// Where questions may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Wherever a URL leads: what comes is checked by other means, such as a signature.
    Anywhere,
    /// Over TLS, or to this machine: what comes is believed because of who says it.
    Authentic,
    /// Over TLS alone: whoever is asked has no business in leading to this machine.
    Tls,
}

impl Reach {
    /// Whether a question may go there.
    ///
    /// # Errors
    /// Why not.
    pub fn check(self, url: &str) -> Result<(), String> {
        self.admit(&parse(url)?)
    }

    fn admit(self, uri: &Uri) -> Result<(), String> {
        match (self, uri.scheme_str()) {
            (Self::Anywhere, Some("http" | "https")) | (Self::Authentic | Self::Tls, Some("https")) => Ok(()),
            (Self::Authentic, Some("http")) if is_loopback(uri) => Ok(()),
            (Self::Authentic, Some("http")) => {
                Err(format!("{uri} is not over TLS: only https is trusted, and http on this machine"))
            }
            (Self::Tls, Some("http")) => Err(format!("{uri} is not over TLS")),
            _ => Err(format!("{uri} is no URL of http or https")),
        }
    }
}

/// Asks. Connections to the same host are used again.
pub struct Client {
    reach: Reach,
    /// Where connections may go; `None` for anywhere.
    networks: Option<Arc<Networks>>,
    /// Whom to believe who a host is; `None` for those whom the machine believes.
    roots: Option<RootCertStore>,
    http: OnceLock<Http>,
    questions: Semaphore,
}

impl Client {
    /// A client that goes where this allows, and believes the authorities that the machine believes.
    #[must_use]
    pub fn new(reach: Reach) -> Self {
        let questions = Semaphore::new(MAX_QUESTIONS);
        Self { reach, networks: None, roots: None, http: OnceLock::new(), questions }
    }

    /// A client that connects to addresses of these networks alone: for URLs that come from people who must not look
    /// around in the network of this machine.
    #[must_use]
    pub fn within(networks: Arc<Networks>) -> Self {
        Self { networks: Some(networks), ..Self::new(Reach::Anywhere) }
    }

    /// A client that believes these authorities, and no others.
    #[must_use]
    pub fn with_authorities(reach: Reach, roots: RootCertStore) -> Self {
        Self { roots: Some(roots), ..Self::new(reach) }
    }

    /// The body behind a URL; `None` when it says that there is none. Anything else is an error: unknown.
    ///
    /// # Errors
    /// Why it is not known what is there.
    pub async fn get(&self, url: &str) -> Result<Option<Body>, String> {
        let Some((body, _)) = self.ask(url, None, 0).await? else { return Ok(None) };
        Ok(Some(pieces(body)))
    }

    /// As [`Self::get`], from `offset` on, for whoever has what comes before it.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_from(&self, url: &str, offset: u64) -> Result<Option<Part>, String> {
        let Some((body, offset)) = self.ask(url, None, offset).await? else { return Ok(None) };
        Ok(Some(Part { body: pieces(body), offset }))
    }

    /// As [`Self::get`], whole.
    ///
    /// # Errors
    /// As [`Self::get`], and when there are more than `max_bytes`.
    pub async fn get_small(&self, url: &str, max_bytes: usize) -> Result<Option<Bytes>, String> {
        let Some((body, _)) = self.ask(url, None, 0).await? else { return Ok(None) };
        collect(pieces(body), max_bytes).await.map(Some)
    }

    /// As [`Self::get_small`], for whoever holds a bearer's token. Redirects to another host are not followed.
    ///
    /// # Errors
    /// As [`Self::get_small`].
    pub async fn get_small_as(&self, url: &str, bearer: &str, max_bytes: usize) -> Result<Option<Bytes>, String> {
        let Some((body, _)) = self.ask(url, Some(bearer), 0).await? else { return Ok(None) };
        collect(pieces(body), max_bytes).await.map(Some)
    }

    /// The body, and where it begins.
    async fn ask(&self, url: &str, bearer: Option<&str>, offset: u64) -> Result<Option<(Incoming, u64)>, String> {
        let mut uri = parse(url)?;
        let named = uri.clone();
        // Fails only when it is closed, which it never is.
        let _question = self.questions.acquire().await.map_err(|error| error.to_string())?;
        for _ in 0..=MAX_REDIRECTS {
            self.reach.admit(&uri)?;
            if let Some(networks) = &self.networks {
                // An address in a URL is never looked up.
                networks.check(&uri)?;
            }
            if bearer.is_some() && !is_same_server(&uri, &named) {
                return Err("it redirects to another host, which must not see the credential".to_owned());
            }
            let answer = timeout(ANSWER_TIMEOUT, self.http()?.request(question(&uri, bearer, offset)?)).await;
            let answer = answer.map_err(|_| "it does not answer".to_owned())?;
            let answer = answer.map_err(|error| with_sources(&error))?;
            match answer.status() {
                StatusCode::OK => return Ok(Some((answer.into_body(), 0))),
                StatusCode::PARTIAL_CONTENT if begins_at(answer.headers(), offset) => {
                    return Ok(Some((answer.into_body(), offset)));
                }
                // Caches in buckets answer 403 for what is not there, when they may not be listed.
                StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::FORBIDDEN => return Ok(None),
                status if status.is_redirection() => {
                    let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
                    uri = follow(&uri, location.unwrap_or_default())?;
                }
                status => return Err(format!("it answers {status}")),
            }
        }
        Err(format!("it redirects more than {MAX_REDIRECTS} times"))
    }

    /// Made when it is used first, since reading the machine's certificates takes time.
    fn http(&self) -> Result<&Http, String> {
        if let Some(http) = self.http.get() {
            return Ok(http);
        }
        let roots = self.roots.clone().unwrap_or_else(|| {
            let mut roots = RootCertStore::empty();
            // Without any, https fails and says so; http works.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        });
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new_with_resolver(Resolver::new(self.networks.clone()));
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
        Ok(self.http.get_or_init(|| http))
    }
}

fn question(uri: &Uri, bearer: Option<&str>, offset: u64) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(uri.clone()).header(header::USER_AGENT, concat!("gf/", env!("CARGO_PKG_VERSION")));
    if offset > 0 {
        request = request.header(header::RANGE, format!("bytes={offset}-"));
    }
    if let Some(bearer) = bearer {
        let value = HeaderValue::try_from(format!("Bearer {bearer}"));
        let mut value = value.map_err(|_| "the credential holds characters that none has".to_owned())?;
        value.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, value);
    }
    request.body(Empty::new()).map_err(|error| error.to_string())
}

/// Whether a part is the one that was asked for.
fn begins_at(headers: &HeaderMap, offset: u64) -> bool {
    let range = headers.get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
    first == Some(offset)
}

fn pieces(body: Incoming) -> Body {
    let pieces = futures::stream::try_unfold(body, |mut body| async move {
        loop {
            match timeout(PIECE_TIMEOUT, body.frame()).await {
                Err(_) => return Err("it stopped sending".to_owned()),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(error.to_string()),
                Ok(Some(Ok(frame))) => {
                    // Trailers say nothing here.
                    if let Ok(piece) = frame.into_data() {
                        return Ok(Some((piece, body)));
                    }
                }
            }
        }
    });
    pieces.boxed()
}

async fn collect(mut body: Body, max_bytes: usize) -> Result<Bytes, String> {
    let mut whole = BytesMut::new();
    while let Some(piece) = body.try_next().await? {
        if whole.len() + piece.len() > max_bytes {
            return Err(format!("it sent more than {max_bytes} bytes"));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

fn parse(url: &str) -> Result<Uri, String> {
    url.parse().map_err(|error| format!("{url} is no URL: {error}"))
}

/// Whether two URLs lead to one server, in one way.
fn is_same_server(a: &Uri, b: &Uri) -> bool {
    a.scheme() == b.scheme() && a.authority() == b.authority()
}

fn is_loopback(uri: &Uri) -> bool {
    host(uri) == "localhost" || address(uri).is_some_and(|address| address.to_canonical().is_loopback())
}

fn host(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_matches(['[', ']'])
}

/// The address in a URL that has one in the place of a name.
fn address(uri: &Uri) -> Option<IpAddr> {
    host(uri).parse().ok()
}

/// Where a redirect leads: an absolute URL, or a path of the same host.
fn follow(from: &Uri, location: &str) -> Result<Uri, String> {
    let to: Uri = location.parse().map_err(|_| "it redirects to what is no URL".to_owned())?;
    if to.scheme().is_some() {
        return Ok(to);
    }
    let (Some(scheme), Some(authority), Some(path)) = (from.scheme(), from.authority(), to.path_and_query()) else {
        return Err("it redirects to what is no URL".to_owned());
    };
    let built = Uri::builder().scheme(scheme.clone()).authority(authority.clone()).path_and_query(path.clone());
    built.build().map_err(|error| error.to_string())
}

/// An error and what it came from: the outermost says only that it failed.
fn with_sources(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_believed_comes_over_tls_or_from_here() {
        let check = |url: &str, anywhere: bool, authentic: bool| {
            assert_eq!(Reach::Tls.check(url).is_ok(), authentic && url.starts_with("https:"), "{url}");
            assert_eq!(Reach::Anywhere.check(url).is_ok(), anywhere, "{url}");
            assert_eq!(Reach::Authentic.check(url).is_ok(), authentic, "{url}");
        };
        check("https://forge.example/x", true, true);
        check("http://forge.example/x", true, false);
        check("http://127.0.0.1:80/", true, true);
        check("http://[::1]:80/", true, true);
        check("http://[::ffff:127.0.0.1]/", true, true);
        check("http://localhost/", true, true);
        check("http://localhost.example/", true, false);
        check("http://127.0.0.1@forge.example/", true, false);
        check("ftp://127.0.0.1/", false, false);
        check("/x", false, false);
        check("a b", false, false);
    }

    #[test]
    fn redirects() {
        let from: Uri = "https://a.example/x/y?z".parse().unwrap();
        let check = |location: &str, expected: Option<&str>| {
            assert_eq!(follow(&from, location).ok().map(|uri| uri.to_string()).as_deref(), expected, "{location}");
        };
        check("/keys", Some("https://a.example/keys"));
        check("https://b.example/", Some("https://b.example/"));
        check("", None);
        check("a b", None);
    }

    #[test]
    fn credentials_go_to_one_server() {
        let check = |a: &str, b: &str, expected: bool| {
            assert_eq!(is_same_server(&a.parse().unwrap(), &b.parse().unwrap()), expected, "{a} {b}");
        };
        check("https://a.example/x", "https://A.example/y?z", true);
        check("https://a.example/", "https://a.example:444/", false);
        check("https://a.example/", "https://b.example/", false);
        check("https://localhost/", "http://localhost/", false);
    }

    /// Answers every question with one line of headers, and a body of nothing.
    async fn serve(listener: tokio::net::TcpListener, line: String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let answer = format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    }

    #[tokio::test]
    async fn names_and_redirects_lead_to_no_other_network() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let here = tokio::spawn(serve(listener, "200 OK".to_owned()));
        let leading = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let leading_port = leading.local_addr().unwrap().port();
        let away = tokio::spawn(serve(leading, format!("302 Found\r\nLocation: http://127.0.0.2:{port}/")));
        let only = |network: &str| Client::within(Arc::new(Networks::with(vec![network.parse().unwrap()])));
        let internet = Client::within(Arc::default());
        let (one, all) = (only("127.0.0.1"), only("127.0.0.0/8"));
        let refused = "nor in a network that the operator named";
        for url in [format!("http://localhost:{port}/"), format!("http://127.0.0.1:{port}/")] {
            let error = internet.get_small(&url, 10).await.unwrap_err();
            assert!(error.contains(refused), "{url}: {error}");
            assert_eq!(one.get_small(&url, 10).await.unwrap().as_deref(), Some(&b""[..]), "{url}");
        }
        let redirected = format!("http://127.0.0.1:{leading_port}/");
        let error = one.get_small(&redirected, 10).await.unwrap_err();
        assert!(error.contains(refused), "{error}");
        let error = all.get_small(&redirected, 10).await.err().unwrap_or_default();
        assert!(!error.contains(refused), "nobody listens there, but it may be asked: {error}");
        here.abort();
        away.abort();
    }
}
