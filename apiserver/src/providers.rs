//! Who else names users: OpenID Connect providers, as each tenant says whom it trusts.
//!
//! A tenant has one `AuthenticationConfiguration`, `default`, in the form of upstream's file of the
//! same name. It lies in the tenant's partition like any other object and is in force with the next
//! request ([`config`]). A provider's keys are fetched when they are first needed, kept, and
//! fetched again beside the requests that use them ([`keys`]).
//!
//! # Invariants
//!
//! * Whoever a provider names is of the tenant in whose configuration it is. Nothing in a token
//!   says otherwise.
//! * No provider gives a name that begins with `system:`.
//! * A provider that does not answer holds up only who shows a token of its own, for [`keys::PATIENCE`].

mod claims;
pub(crate) mod config;
mod keys;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use insula_api::names::TenantName;
use serde_json::Value;

use self::{
    claims::ClaimsError,
    config::{Configuration, NAME, RESOURCE},
    keys::KeysError,
};
use crate::{
    Server,
    admission::rules::compiled::Compiled,
    error::ApiError,
    identity::{Identity, IdentityError},
    lately::Forgets,
};

/// Longest token of a provider that is looked at, in bytes.
const MAX_TOKEN: usize = 64 * 1024;

/// The providers of all tenants that have any.
#[derive(Debug)]
pub(crate) struct Providers {
    configurations: Compiled<Configuration>,
}

impl Default for Providers {
    fn default() -> Self {
        Self { configurations: Compiled::new(config::GROUP, RESOURCE, Configuration::compile) }
    }
}

impl Providers {
    pub(crate) fn memory(&self) -> &dyn Forgets {
        &self.configurations.tenants
    }
}

/// Why a provider's token is not good. Never sent to the client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProviderError {
    #[error("the token of a provider is longer than {MAX_TOKEN} bytes")]
    TooLong,
    /// Whom the tenant trusts is not known at the moment.
    #[error(transparent)]
    Storage(Box<ApiError>),
    #[error("the token says that it is signed by {0:?}, which is no algorithm of providers")]
    Algorithm(jsonwebtoken::Algorithm),
    #[error("the provider {issuer} cannot be used: {why}")]
    Broken { issuer: String, why: String },
    #[error("the keys of {issuer}")]
    Keys {
        issuer: String,
        #[source]
        source: KeysError,
    },
    #[error("the token of {issuer} is not valid")]
    Token {
        issuer: String,
        #[source]
        source: jsonwebtoken::errors::Error,
    },
    #[error("the claims of {issuer}")]
    Claims {
        issuer: String,
        #[source]
        source: ClaimsError,
    },
    #[error("the provider {issuer} names nobody")]
    Nobody {
        issuer: String,
        #[source]
        source: IdentityError,
    },
}

impl Server {
    /// Whom a token names to `tenant`, if it is of a provider that the tenant trusts, or the
    /// platform: then it is one of the platform's users.
    pub(crate) async fn provided(
        &self,
        token: &str,
        tenant: &TenantName,
    ) -> Result<Option<Identity>, ProviderError> {
        let Some(issuer) = issuer(token)? else { return Ok(None) };
        if let Some(found) = self.provided_by(token, &issuer, tenant).await? {
            return Ok(Some(found));
        }
        match tenant.is_system() {
            true => Ok(None),
            false => self.provided_by(token, &issuer, &TenantName::system()).await,
        }
    }

    async fn provided_by(
        &self,
        token: &str,
        issuer: &str,
        tenant: &TenantName,
    ) -> Result<Option<Identity>, ProviderError> {
        let found = self.providers.configurations.of(self, tenant).await;
        let found = found.map_err(|error| ProviderError::Storage(Box::new(error)))?;
        let configuration = found.as_deref().and_then(|all| all.iter().find(|it| it.name == NAME));
        let provider = configuration.and_then(|it| it.compiled.provider(issuer));
        match provider {
            Some(provider) => provider.holder(self, tenant, token).await.map(Some),
            None => Ok(None),
        }
    }
}

/// Who says that they signed a token, before anything of it is proven; `None` of what is no token.
fn issuer(token: &str) -> Result<Option<String>, ProviderError> {
    let mut parts = token.split('.');
    let (Some(_), Some(claims), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Ok(None);
    };
    if MAX_TOKEN < token.len() {
        return Err(ProviderError::TooLong);
    }
    let claims = URL_SAFE_NO_PAD.decode(claims).ok();
    let claims: Option<Value> = claims.and_then(|it| serde_json::from_slice(&it).ok());
    Ok(claims.as_ref().and_then(|it| it.get("iss")?.as_str()).map(str::to_owned))
}
