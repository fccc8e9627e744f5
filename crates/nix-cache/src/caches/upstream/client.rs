//! A client of HTTP, as far as binary caches need one: GET, redirects, and bounds on everything.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring::default_provider;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Until there is a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Until an answer begins.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two pieces of a body.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// Questions to all upstreams at the same time; bodies that are read do not count.
const MAX_QUESTIONS: usize = 64;

type Http = hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// What comes: pieces of a body, or why they end.
pub(super) type Body = BoxStream<'static, Result<Bytes, String>>;

pub(super) struct Client {
    http: OnceLock<Http>,
    questions: Semaphore,
}

impl Default for Client {
    fn default() -> Self {
        Self { http: OnceLock::new(), questions: Semaphore::new(MAX_QUESTIONS) }
    }
}

impl Client {
    /// The body behind a URL; `None` when it says that there is none. Anything else is an error: unknown.
    pub(super) async fn get(&self, url: &str) -> Result<Option<Body>, String> {
        let Some(body) = self.ask(url).await? else { return Ok(None) };
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
        Ok(Some(pieces.boxed()))
    }

    /// As [`Self::get`], whole.
    pub(super) async fn get_small(&self, url: &str, max_bytes: usize) -> Result<Option<Bytes>, String> {
        let Some(mut body) = self.get(url).await? else { return Ok(None) };
        let mut whole = BytesMut::new();
        while let Some(piece) = body.try_next().await? {
            if whole.len() + piece.len() > max_bytes {
                return Err(format!("it sent more than {max_bytes} bytes"));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(Some(whole.freeze()))
    }

    async fn ask(&self, url: &str) -> Result<Option<Incoming>, String> {
        let mut uri: Uri = url.parse().map_err(|error| format!("{url} is no URL: {error}"))?;
        // Fails only when it is closed, which it never is.
        let _question = self.questions.acquire().await.map_err(|error| error.to_string())?;
        for _ in 0..=MAX_REDIRECTS {
            let request =
                Request::get(uri.clone()).header(header::USER_AGENT, concat!("gf/", env!("CARGO_PKG_VERSION")));
            let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
            let answer = timeout(ANSWER_TIMEOUT, self.http()?.request(request)).await;
            let answer = answer.map_err(|_| "it does not answer".to_owned())?;
            let answer = answer.map_err(|error| with_sources(&error))?;
            match answer.status() {
                StatusCode::OK => return Ok(Some(answer.into_body())),
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
        let mut roots = rustls::RootCertStore::empty();
        // Without any, https fails and says so; http works.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
        Ok(self.http.get_or_init(|| http))
    }
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
