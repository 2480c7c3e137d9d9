//! The authority's key where certificate requests are signed: in the controllers, nowhere else.

use std::path::{Path, PathBuf};

use insula_api::names::TenantName;
use insula_apiserver::{
    error::chain,
    pki::{Asked, Authority},
};
use insula_controllers::{SignError, Signer};
use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;

/// Signs with the key that lies in a file now: it is read for each request, and not kept.
#[derive(Debug)]
pub(crate) struct Signing {
    certificate: PathBuf,
    key: PathBuf,
}

impl Signing {
    pub(crate) fn new(certificate: &Path, key: &Path) -> Self {
        Self { certificate: certificate.to_owned(), key: key.to_owned() }
    }
}

fn asked<'a>(tenant: &'a TenantName, spec: &'a CertificateSigningRequestSpec) -> Asked<'a> {
    Asked {
        tenant,
        signer: &spec.signer_name,
        pem: &spec.request.0,
        usages: spec.usages.as_deref().unwrap_or_default(),
        seconds: spec.expiration_seconds,
        user: spec.username.as_deref().unwrap_or_default(),
    }
}

/// The node whose client certificate is asked for; that needs no key.
pub(crate) fn node_asked_for(
    tenant: &TenantName,
    spec: &CertificateSigningRequestSpec,
) -> Option<String> {
    insula_apiserver::pki::node_asked_for(&asked(tenant, spec))
}

impl Signer for Signing {
    fn sign(
        &self,
        tenant: &TenantName,
        spec: &CertificateSigningRequestSpec,
    ) -> Result<Option<String>, SignError> {
        let unavailable = |error| SignError::Unavailable(chain(&error));
        let authority = Authority::open(&self.certificate, &self.key).map_err(unavailable)?;
        authority.sign_request(&asked(tenant, spec)).map_err(|error| match error.is_final() {
            true => SignError::Refused(chain(&error)),
            false => SignError::Unavailable(chain(&error)),
        })
    }
}
