//! Who acts, and from where: what is asked of the façade in a request is written down with it.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use backup_core::audit::Actor;
use backup_core::service::BackupService;

use super::AppState;
use super::login::address_of;
use super::observe::RequestId;

/// The façade, as the customer uses it who makes this request.
pub struct Acting(pub BackupService);

impl FromRequestParts<AppState> for Acting {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        Ok(Self(state.service.acting(at(Actor::customer(), parts))))
    }
}

/// Somebody, from where this request is.
pub fn at(actor: Actor, parts: &Parts) -> Actor {
    let id = parts.extensions.get::<RequestId>();
    let id = id.map(|RequestId(id)| id.as_str()).unwrap_or_default();
    actor.at(address(parts), id)
}

/// Who is at the other end, as far as proxies of ours say.
pub fn address(parts: &Parts) -> IpAddr {
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    // The listener tells of every one.
    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(peer)| {
        peer.ip()
    });
    address_of(peer, &parts.headers)
}
