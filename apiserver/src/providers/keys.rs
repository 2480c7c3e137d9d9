//! The keys of a provider: fetched when they are needed, kept, and fetched again in time.
//!
//! A key that is not known is looked for at most every [`AGAIN`], whoever asks for it; who asks
//! meanwhile waits for the one fetch that is under way. What was fetched stays good while the
//! provider is away, for [`OLD`].

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Request, StatusCode};
use insula_api::names::TenantName;
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    Server,
    error::chain,
    outbound::{Destination, OutboundError, Trust},
};

/// What tokens of providers may be signed with: only what tells apart who signs and who verifies.
pub(super) const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];
/// How long a provider has to show its keys.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// When keys are fetched again beside what is going on.
const FRESH: Duration = Duration::from_secs(300);
/// When keys are no longer good that could not be fetched again.
const OLD: Duration = Duration::from_secs(24 * 3600);
/// How long a provider is left alone after a fetch, whatever came of it.
const AGAIN: Duration = Duration::from_secs(10);
/// Longest document of a provider, in bytes, and most keys.
const MAX_DOCUMENT: usize = 256 * 1024;
const MAX_KEYS: usize = 64;
/// Most keys that a token is tried with that names none.
const MAX_TRIED: usize = 4;

/// Why there is no key.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum KeysError {
    #[error("none of them signed the token")]
    Unknown,
    #[error("{url} cannot be read")]
    Outbound {
        url: String,
        #[source]
        source: OutboundError,
    },
    #[error("{url} answers {code}")]
    Code { url: String, code: StatusCode },
    #[error("{url} is no such document: {why}")]
    Document { url: String, why: String },
    #[error("the provider says that it is {0:?}")]
    OtherIssuer(String),
    #[error("the provider did not answer in time")]
    Late,
}

/// See the module.
pub(super) struct Keys {
    issuer: String,
    discovery: String,
    trust: Trust,
    known: ArcSwapOption<Known>,
    /// When it was last tried, and what came of it. Held while it is tried.
    tried: Mutex<Option<(Instant, Result<(), KeysError>)>>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

struct Known {
    keys: Vec<Key>,
    since: Instant,
}

struct Key {
    id: Option<String>,
    algorithm: Option<KeyAlgorithm>,
    family: Family,
    key: DecodingKey,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Rsa,
    Ec,
    Ed,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Value>,
}

impl Keys {
    pub(super) fn new(issuer: String, discovery: String, trust: Trust) -> Self {
        let (known, tried) = (ArcSwapOption::empty(), Mutex::new(None));
        Self { issuer, discovery, trust, known, tried }
    }

    /// The keys that may have signed a token.
    pub(super) async fn find(
        self: &Arc<Self>,
        server: &Server,
        tenant: &TenantName,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<DecodingKey>, KeysError> {
        let (found, age) = self.known(id, algorithm);
        if !found.is_empty() {
            if FRESH < age {
                self.refresh(server, tenant);
            }
            return Ok(found);
        }
        self.fetch(server, tenant).await?;
        match self.known(id, algorithm).0 {
            found if found.is_empty() => Err(KeysError::Unknown),
            found => Ok(found),
        }
    }

    fn known(&self, id: Option<&str>, algorithm: Algorithm) -> (Vec<DecodingKey>, Duration) {
        let known = self.known.load();
        let Some(known) = known.as_ref().filter(|it| it.since.elapsed() < OLD) else {
            return (Vec::new(), Duration::MAX);
        };
        let fits = known.keys.iter().filter(|it| it.fits(id, algorithm));
        (fits.take(MAX_TRIED).map(|it| it.key.clone()).collect(), known.since.elapsed())
    }

    /// Fetches them beside what is going on.
    fn refresh(self: &Arc<Self>, server: &Server, tenant: &TenantName) {
        // Whoever is at it already does it for all.
        if self.tried.try_lock().is_ok_and(|it| may_try(it.as_ref()))
            && let Some(server) = server.myself()
        {
            let (keys, tenant) = (self.clone(), tenant.clone());
            server.clone().tasks.spawn(async move {
                let fetched = keys.fetch(&server, &tenant);
                if let Some(Err(error)) = server.shutdown.run_until_cancelled(fetched).await {
                    let error = chain(&error);
                    tracing::info!(%tenant, issuer = keys.issuer, error, "old keys stay in use");
                }
            });
        }
    }

    /// Fetches them, unless that has just been tried.
    async fn fetch(&self, server: &Server, tenant: &TenantName) -> Result<(), KeysError> {
        let asking = async {
            let mut tried = self.tried.lock().await;
            if !may_try(tried.as_ref()) {
                return tried.as_ref().map_or(Ok(()), |(_, outcome)| outcome.clone());
            }
            // Who asks may go away, and nothing is known of it then.
            *tried = Some((Instant::now(), Err(KeysError::Late)));
            let outcome = self.fetched(server, tenant).await;
            let outcome = outcome.map(|keys| {
                let since = Instant::now();
                self.known.store(Some(Arc::new(Known { keys, since })));
            });
            *tried = Some((Instant::now(), outcome.clone()));
            outcome
        };
        tokio::time::timeout(PATIENCE, asking).await.unwrap_or(Err(KeysError::Late))
    }

    async fn fetched(&self, server: &Server, tenant: &TenantName) -> Result<Vec<Key>, KeysError> {
        let found: Discovery = self.document(server, tenant, &self.discovery).await?;
        if found.issuer != self.issuer {
            return Err(KeysError::OtherIssuer(found.issuer.chars().take(256).collect()));
        }
        if !found.jwks_uri.starts_with("https://") {
            let why = "jwks_uri is no https URL".to_owned();
            return Err(KeysError::Document { url: self.discovery.clone(), why });
        }
        let Jwks { keys } = self.document(server, tenant, &found.jwks_uri).await?;
        Ok(keys.into_iter().take(MAX_KEYS).filter_map(Key::read).collect())
    }

    async fn document<T: for<'de> Deserialize<'de>>(
        &self,
        server: &Server,
        tenant: &TenantName,
        url: &str,
    ) -> Result<T, KeysError> {
        let outbound = |source| KeysError::Outbound { url: url.to_owned(), source };
        let place = server.resolve(tenant, Destination::Url(url)).await.map_err(outbound)?;
        let request = Request::get(&place.path)
            .header(http::header::ACCEPT, "application/json")
            .body(Bytes::new())
            .map_err(|_| outbound(OutboundError::Url))?;
        let answer = server
            .exchange_outbound(tenant, &place, &self.trust, request, MAX_DOCUMENT)
            .await
            .map_err(outbound)?;
        if answer.status() != StatusCode::OK {
            return Err(KeysError::Code { url: url.to_owned(), code: answer.status() });
        }
        serde_json::from_slice(answer.body())
            .map_err(|error| KeysError::Document { url: url.to_owned(), why: error.to_string() })
    }
}

fn may_try(tried: Option<&(Instant, Result<(), KeysError>)>) -> bool {
    tried.is_none_or(|(at, _)| AGAIN <= at.elapsed())
}

impl Key {
    /// Reads a key; `None` of one that signs no tokens, or in a way that is not known.
    fn read(it: Value) -> Option<Self> {
        let it: Jwk = serde_json::from_value(it).ok()?;
        use jsonwebtoken::jwk::AlgorithmParameters as Kind;
        let family = match it.algorithm {
            Kind::RSA(_) => Family::Rsa,
            Kind::EllipticCurve(_) => Family::Ec,
            Kind::OctetKeyPair(_) => Family::Ed,
            _ => return None,
        };
        let signs = it.common.public_key_use.as_ref();
        if signs.is_some_and(|it| *it != PublicKeyUse::Signature) {
            return None;
        }
        let key = DecodingKey::from_jwk(&it).ok()?;
        Some(Self { id: it.common.key_id, algorithm: it.common.key_algorithm, family, key })
    }

    fn fits(&self, id: Option<&str>, algorithm: Algorithm) -> bool {
        let family = match algorithm {
            Algorithm::ES256 | Algorithm::ES384 => Family::Ec,
            Algorithm::EdDSA => Family::Ed,
            _ => Family::Rsa,
        };
        let is_same = |it: KeyAlgorithm| format!("{it:?}") == format!("{algorithm:?}");
        self.family == family
            && id.is_none_or(|id| self.id.as_deref() == Some(id))
            && self.algorithm.is_none_or(is_same)
    }
}
