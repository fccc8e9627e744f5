//! The connection to the endpoint, and what the server says it offers.

use std::time::Duration;

use gf_reapi::execution::capabilities_client::CapabilitiesClient;
use gf_reapi::execution::{CacheCapabilities, GetCapabilitiesRequest, ServerCapabilities};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::finding::{Checked, Finding, describe};
use crate::{Config, RunError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A channel that sends a token with every call.
pub(crate) type Transport = InterceptedService<Channel, BearerToken>;

/// Adds the `authorization` header, where there is a token.
#[derive(Clone)]
pub(crate) struct BearerToken(Option<MetadataValue<Ascii>>);

impl BearerToken {
    fn new(token: Option<&str>) -> Result<Self, RunError> {
        let value = token.map(|token| format!("Bearer {token}").parse());
        let value = value.transpose().map_err(|_| RunError::Usage("the token is not a header value".into()))?;
        Ok(Self(value))
    }
}

impl Interceptor for BearerToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// What all cases of a run share.
pub(crate) struct Session {
    pub(crate) config: Config,
    pub(crate) transport: Transport,
    pub(crate) read_only_transport: Option<Transport>,
    capabilities: Result<ServerCapabilities, Status>,
}

impl Session {
    pub(crate) async fn connect(config: &Config) -> Result<Self, RunError> {
        let unreachable = |reason: String| RunError::Unreachable { endpoint: config.endpoint.clone(), reason };
        let channel = endpoint(config)?.connect().await.map_err(|error| unreachable(chain(&error)))?;
        let transport = InterceptedService::new(channel.clone(), BearerToken::new(config.token.as_deref())?);
        let read_only_transport = match config.read_only_token.as_deref() {
            Some("") => Some(InterceptedService::new(channel, BearerToken(None))),
            Some(token) => Some(InterceptedService::new(channel, BearerToken::new(Some(token))?)),
            None => None,
        };
        let request = GetCapabilitiesRequest { instance_name: config.instance.clone() };
        let capabilities =
            tokio::time::timeout(CONNECT_TIMEOUT, CapabilitiesClient::new(transport.clone()).get_capabilities(request))
                .await
                .map_err(|_| unreachable(format!("no answer to GetCapabilities within {CONNECT_TIMEOUT:?}")))?
                .map(tonic::Response::into_inner);
        if let Err(status) = &capabilities
            && status.code() == tonic::Code::Unavailable
        {
            return Err(unreachable(describe(status)));
        }
        Ok(Self { config: config.clone(), transport, read_only_transport, capabilities })
    }

    /// What the server offers to the principal of the run.
    pub(crate) fn capabilities(&self) -> Checked<&ServerCapabilities> {
        self.capabilities.as_ref().map_err(|status| Finding::Fail(format!("GetCapabilities: {}", describe(status))))
    }

    /// What its cache offers.
    pub(crate) fn cache(&self) -> Checked<&CacheCapabilities> {
        self.capabilities()?
            .cache_capabilities
            .as_ref()
            .ok_or_else(|| Finding::Skip("the server has no cache under this instance".into()))
    }
}

fn endpoint(config: &Config) -> Result<Endpoint, RunError> {
    let usage = |reason: &dyn std::fmt::Display| RunError::Usage(format!("{}: {reason}", config.endpoint));
    let (scheme, address) = match config.endpoint.split_once("://") {
        Some(("grpc" | "http", address)) => ("http", address),
        Some(("grpcs" | "https", address)) => ("https", address),
        _ => return Err(usage(&"expected grpc://HOST:PORT or grpcs://HOST:PORT")),
    };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(|error| usage(&error))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true);
    if scheme == "http" {
        return Ok(endpoint);
    }
    let mut tls = ClientTlsConfig::new().with_native_roots();
    if let Some(pem) = &config.ca_pem {
        tls = tls.ca_certificate(Certificate::from_pem(pem));
    }
    endpoint.tls_config(tls).map_err(|error| usage(&chain(&error)))
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
