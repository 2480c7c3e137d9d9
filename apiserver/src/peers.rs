//! Servers talking to each other: HTTP/2 with mutual TLS, on the listener that clients use too.
//!
//! ```text
//! POST /insula/peer/v1/raft     one stream of frames for ever, nothing comes back
//! POST /insula/peer/v1/call     a request, an answer
//! POST /insula/peer/v1/stream   a request, an answer of frames
//! POST /insula/peer/v1/measured what some nodes and pods use, as far as it was told here
//! ```
//!
//! A frame is its length (u32, big-endian) and its bytes, which are the business of
//! `insula-partition`.
//!
//! # Invariants
//!
//! * These paths are open to certificates of servers only: tenant `system`, group
//!   [`SERVERS`], user `system:insula-server:NAME`. The name is the sender's; nothing it says
//!   about itself is asked for.
//! * Who is called proves its name as well: its certificate is for [`dns_name`].
//! * Nothing waits for a server that does not answer: raft's frames are dropped, calls fail.

mod client;
mod connection;
mod frame;
mod service;
#[cfg(test)]
mod tests;

pub use self::client::{HttpPeers, PeerTls};
pub(crate) use self::{connection::SendError, service::serve};
use crate::identity::Identity;

/// The group of servers, in tenant `system`.
pub const SERVERS: &str = "system:insula-servers";
/// What the user of a server's certificate begins with.
pub(crate) const USER: &str = "system:insula-server:";

/// Where servers talk to each other.
pub(crate) const PREFIX: &str = "/insula/peer/v1/";

/// What asks for what is measured.
const MEASURED: &str = "measured";

/// Longest frame, and longest body of a call, in bytes.
pub(crate) const MAX_FRAME: usize = 64 << 20;

/// The user of the server `name`, for its certificate.
pub fn user(name: &str) -> String {
    format!("{USER}{name}")
}

/// The name in the certificate of the server `name` by which others know it, wherever it is.
pub fn dns_name(name: &str) -> String {
    format!("{name}.servers.insula.internal")
}

/// Whether a certificate's name is one by which servers know each other.
pub(crate) fn is_dns_name(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "insula.internal" || name.ends_with(".insula.internal")
}

impl Identity {
    /// The server that this is.
    pub fn server(&self) -> Option<&str> {
        let name = self.user.strip_prefix(USER).filter(|name| !name.is_empty())?;
        (self.tenant.is_system() && self.in_group(SERVERS)).then_some(name)
    }
}
