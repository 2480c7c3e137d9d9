//! Certificate requests: who may approve and sign for whom, and whom nobody may ask to become.

use base64::Engine as _;
use futures::{FutureExt as _, future::BoxFuture};
use insula_api::object;
use serde_json::Value;
use x509_parser::{
    certification_request::X509CertificationRequest, pem::parse_x509_pem, prelude::FromDer as _,
    x509::X509Name,
};

use crate::{
    admission::Admission, error::Result, identity::MASTERS, peers::SERVERS, rbac::Attributes,
};

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// Whether the caller may do `verb` for a signer, or for all of its domain.
async fn may(admission: &Admission<'_>, verb: &str, signer: &str) -> Result<bool> {
    let domain = signer.split('/').next().unwrap_or_default();
    for name in [signer.to_owned(), format!("{domain}/*")] {
        let attributes = Attributes {
            verb: verb.into(),
            group: "certificates.k8s.io".into(),
            resource: "signers".into(),
            name,
            ..Attributes::default()
        };
        let call = admission.call;
        if admission.server.may(&call.identity, &call.whose, &attributes).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Only who may approve for the signer approves.
pub(in crate::admission) fn approve<'a>(
    admission: &'a Admission<'a>,
    it: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let Some(old) = admission.old else { return Ok(()) };
        let signer = object::text(old, &["spec", "signerName"]);
        if may(admission, "approve", signer).await? {
            return Ok(());
        }
        let why = format!("user not permitted to approve requests with signerName {signer:?}");
        Err(admission.forbidden(it, &why))
    }
    .boxed()
}

/// Only who may sign for the signer puts a certificate, or its refusal, into the status.
pub(in crate::admission) fn sign<'a>(
    admission: &'a Admission<'a>,
    it: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let (Some(new), Some(old)) = (it, admission.old) else { return Ok(()) };
        let of = |it: &Value, field: &str| object::at(it, &["status", field]).cloned();
        let is_same = |field: &str| of(new, field) == of(old, field);
        if is_same("certificate") && is_same("conditions") {
            return Ok(());
        }
        let signer = object::text(old, &["spec", "signerName"]);
        if may(admission, "sign", signer).await? {
            return Ok(());
        }
        let why = format!("user not permitted to sign requests with signerName {signer:?}");
        Err(admission.forbidden(it, &why))
    }
    .boxed()
}

/// Nobody asks to become a superuser, or somebody of another tenant.
pub(in crate::admission) fn restrict(admission: &Admission<'_>, it: Option<&Value>) -> Result<()> {
    let Some(it) = it else { return Ok(()) };
    if object::text(it, &["spec", "signerName"]) != CLIENT_SIGNER {
        return Ok(());
    }
    let groups = match organizations(object::text(it, &["spec", "request"])) {
        Ok(groups) => groups,
        Err(why) => {
            return Err(admission.forbidden(Some(it), &format!("failed to parse CSR: {why}")));
        }
    };
    if groups.iter().any(|it| it == MASTERS) {
        let why = format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed");
        return Err(admission.forbidden(Some(it), &why));
    }
    // Servers are believed what they say of others.
    if groups.iter().any(|it| it == SERVERS) {
        let why = format!("use of {CLIENT_SIGNER} signer with {SERVERS} group is not allowed");
        return Err(admission.forbidden(Some(it), &why));
    }
    // A certificate says by an organization of whose tenant its holder is.
    let own = format!("tenant:{}", admission.tenant()?);
    if groups.iter().any(|it| it.starts_with("tenant:") && *it != own) {
        let why = format!("use of {CLIENT_SIGNER} signer for another tenant is not allowed");
        return Err(admission.forbidden(Some(it), &why));
    }
    Ok(())
}

/// The organizations that the subject of a request is of, and their units: a certificate's groups.
fn organizations(request: &str) -> Result<Vec<String>, String> {
    with_subject(request, |subject| {
        let all = subject.iter_organization().chain(subject.iter_organizational_unit());
        let texts: Vec<&str> = all
            .map(|it| it.as_str())
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        let groups = texts.iter().flat_map(|it| it.split('\u{1f}'));
        Ok(groups.map(str::to_owned).collect())
    })
}

/// The name of the subject of a request.
pub(super) fn common_name(request: &str) -> Result<String, String> {
    with_subject(request, |subject| {
        let mut names = subject.iter_common_name().filter_map(|it| it.as_str().ok());
        Ok(names.next().unwrap_or_default().to_owned())
    })
}

/// Reads the subject of a request in PEM, in base64.
fn with_subject<T>(
    request: &str,
    read: impl FnOnce(&X509Name<'_>) -> Result<T, String>,
) -> Result<T, String> {
    let bad = || "PEM block type must be CERTIFICATE REQUEST".to_owned();
    let pem = base64::engine::general_purpose::STANDARD.decode(request).map_err(|_| bad())?;
    let (_, pem) = parse_x509_pem(&pem).map_err(|_| bad())?;
    if pem.label != "CERTIFICATE REQUEST" {
        return Err(bad());
    }
    let (_, request) =
        X509CertificationRequest::from_der(&pem.contents).map_err(|error| error.to_string())?;
    read(&request.certification_request_info.subject)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    #[test]
    fn organizations_are_read() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "tenant:acme");
        params.distinguished_name.push(DnType::OrganizationalUnitName, "ops\u{1f}system:masters");
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let text = base64::engine::general_purpose::STANDARD.encode(pem);
        let groups = ["tenant:acme", "ops", "system:masters"].map(str::to_owned).to_vec();
        assert_eq!(organizations(&text), Ok(groups));
        assert!(organizations("bm90aGluZw==").is_err());
        assert_eq!(common_name(&text), Ok("rcgen self signed cert".to_owned()));
    }
}
