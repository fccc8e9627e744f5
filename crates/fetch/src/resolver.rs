//! Names become addresses, of which only those remain that questions may go to.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec::IntoIter;

use futures::future::BoxFuture;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tower::Service;

use crate::Networks;
use crate::networks::refusal;

/// The resolver of the machine. What it says is what is connected to, so that a name cannot mean something else meanwhile.
#[derive(Clone)]
pub(super) struct Resolver {
    machine: GaiResolver,
    networks: Option<Arc<Networks>>,
}

impl Resolver {
    /// A resolver that says addresses of these networks alone, or else all.
    pub(super) fn new(networks: Option<Arc<Networks>>) -> Self {
        Self { machine: GaiResolver::new(), networks }
    }
}

impl Service<Name> for Resolver {
    type Response = IntoIter<SocketAddr>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.machine.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (networks, host) = (self.networks.clone(), name.as_str().to_owned());
        let looked_up = self.machine.call(name);
        Box::pin(async move {
            let mut addresses: Vec<SocketAddr> = looked_up.await?.collect();
            if let Some(networks) = networks {
                addresses.retain(|address| networks.admit(address.ip()));
                if addresses.is_empty() {
                    return Err(refusal(&host).into());
                }
            }
            Ok(addresses.into_iter())
        })
    }
}
