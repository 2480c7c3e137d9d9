//! Requests for certificates, and what is decided of them.

use std::cmp::Ordering;

use base64::Engine as _;
use insula_api::object;
use serde_json::Value;
use x509_parser::{
    certification_request::X509CertificationRequest,
    prelude::{FromDer as _, parse_x509_pem},
};

use super::{
    Errors,
    at::{At, Check},
    formats::Format,
    updates::list,
};
use crate::error::FieldError;

pub(super) const CHECKS: &[(&str, Check)] =
    &[("api.certificates.v1.CertificateSigningRequestSpec", certificate)];

/// Whether `text` is, in base64, the PEM form of a request that its key has signed.
fn readable(text: &str) -> Result<(), String> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    let block = parse_x509_pem(&bytes).map(|(_, block)| block);
    let block = block.ok().filter(|it| it.label == "CERTIFICATE REQUEST");
    let block = block.ok_or("PEM block type must be CERTIFICATE REQUEST")?;
    let (rest, request) = X509CertificationRequest::from_der(&block.contents)
        .map_err(|error| format!("x509: malformed certificate request: {error}"))?;
    if !rest.is_empty() {
        return Err("asn1: syntax error: trailing data".into());
    }
    request.verify_signature().map_err(|_| "x509: signature verification failed".to_owned())
}

fn certificate(it: &mut At<'_>) {
    const USAGES: [&str; 23] = [
        "any",
        "cert sign",
        "client auth",
        "code signing",
        "content commitment",
        "crl sign",
        "data encipherment",
        "decipher only",
        "digital signature",
        "email protection",
        "encipher only",
        "ipsec end system",
        "ipsec tunnel",
        "ipsec user",
        "key agreement",
        "key encipherment",
        "microsoft sgc",
        "netscape sgc",
        "ocsp signing",
        "s/mime",
        "server auth",
        "signing",
        "timestamping",
    ];
    if let Err(why) = readable(it.text("request")) {
        let shown = it.text("request").into();
        it.invalid("request", &shown, &why);
    }
    let usages = it.list("usages").to_vec();
    for (index, usage) in usages.iter().enumerate() {
        if !USAGES.contains(&usage.as_str().unwrap_or_default()) {
            it.unsupported(&format!("usages[{index}]"), usage, &USAGES);
        }
        if usages[..index].contains(usage) {
            it.duplicate(&format!("usages[{index}]"), usage);
        }
    }
    let signer = it.text("signerName").to_owned();
    if signer == "kubernetes.io/legacy-unknown" {
        let why = "the legacy signerName is not allowed via this API version";
        it.invalid("signerName", &signer.into(), why);
    } else if !signer.is_empty() {
        let shown = signer.as_str().into();
        match signer.split_once('/') {
            None => it.invalid(
                "signerName",
                &shown,
                "must be a fully qualified domain and path of the form 'example.com/signer-name'",
            ),
            Some((domain, path)) => {
                if path.is_empty() || path.contains("//") {
                    let why = "validation failed: must be a fully qualified domain and path of the form 'example.com/signer-name'";
                    it.invalid("signerName", &shown, why);
                }
                for why in Format::Subdomain.check(domain) {
                    it.invalid("signerName", &domain.into(), &why);
                }
            }
        }
    }
    if let Some(seconds) = it.number("expirationSeconds").filter(|it| *it < 600) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        it.invalid("expirationSeconds", &seconds.into(), why);
    }
}

/// A certificate request is approved or denied once, and not both; who only signs decides nothing,
/// and signs once.
pub(super) fn update(old: &Value, new: &Value, may_decide: bool, errors: &mut Errors) {
    const AT: &str = "status.conditions";
    let of = |it: &Value, kind: &str| -> Vec<Value> {
        list(&it["status"], "conditions").iter().filter(|it| it["type"] == kind).cloned().collect()
    };
    let shown = new["status"].get("conditions").cloned().unwrap_or_default();
    if !of(new, "Approved").is_empty() && !of(new, "Denied").is_empty() {
        let why = "Approved and Denied conditions are mutually exclusive";
        errors.push(FieldError::invalid(AT, &shown, why));
    }
    for kind in ["Approved", "Denied", "Failed"] {
        if of(new, kind).len() < of(old, kind).len() {
            let why = format!("updates may not remove a condition of type {kind:?}");
            errors.push(FieldError::forbidden(AT, &why));
        }
    }
    for kind in ["Approved", "Denied"].into_iter().filter(|_| !may_decide) {
        let (had, has) = (of(old, kind), of(new, kind));
        let what = match has.len().cmp(&had.len()) {
            Ordering::Less => continue,
            Ordering::Greater => "add",
            Ordering::Equal if had == has => continue,
            Ordering::Equal => "modify",
        };
        let why = format!("updates may not {what} a condition of type {kind:?}");
        errors.push(FieldError::forbidden(AT, &why));
    }
    let certificate = |it| object::text(it, &["status", "certificate"]);
    if !certificate(old).is_empty() && certificate(old) != certificate(new) {
        let why = "updates may not modify existing certificate content";
        errors.push(FieldError::forbidden("status.certificate", why));
    }
    for (index, it) in list(&new["status"], "conditions").iter().enumerate() {
        let decisive = matches!(object::text(it, &["type"]), "Approved" | "Denied" | "Failed");
        let status = &it["status"];
        if decisive && *status != "True" {
            let at = format!("{AT}[{index}].status");
            errors.push(FieldError::unsupported(at, status, &["True"]));
        }
        if object::text(it, &["type"]).is_empty() {
            errors.push(FieldError::required(format!("{AT}[{index}].type"), ""));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_signs_does_not_decide() {
        let of = |conditions: &[(&str, &str)], certificate: &str| {
            let list: Vec<Value> = conditions
                .iter()
                .map(|(kind, why)| json!({"type": kind, "status": "True", "reason": why}))
                .collect();
            json!({"status": {"conditions": list, "certificate": certificate}})
        };
        let found = |old: &Value, new: &Value, may_decide| {
            let mut errors = Vec::new();
            update(old, new, may_decide, &mut errors);
            errors.into_iter().map(|it| it.message).collect::<Vec<_>>()
        };
        let (open, approved) = (of(&[], ""), of(&[("Approved", "a")], ""));
        assert!(found(&open, &approved, true).is_empty());
        let told = |what: &str| {
            [format!("Forbidden: updates may not {what} a condition of type \"Approved\"")]
        };
        assert_eq!(found(&open, &approved, false), told("add"));
        assert_eq!(found(&approved, &open, false), told("remove"));
        assert_eq!(found(&approved, &of(&[("Approved", "b")], ""), false), told("modify"));
        // It signs, and may say that it cannot; once.
        let signed = of(&[("Approved", "a")], "c2lnbmVk");
        assert!(found(&approved, &signed, false).is_empty());
        assert!(found(&approved, &of(&[("Approved", "a"), ("Failed", "x")], ""), false).is_empty());
        let told = "Forbidden: updates may not modify existing certificate content";
        assert_eq!(found(&signed, &approved, false), [told]);
    }

    #[test]
    fn requests_are_of_those_whose_key_they_name() {
        let encode = |it: &str| base64::engine::general_purpose::STANDARD.encode(it);
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::new(vec!["a.example.com".to_owned()]).unwrap();
        let pem = request.serialize_request(&key).unwrap().pem().unwrap();
        assert_eq!(readable(&encode(&pem)), Ok(()));
        for (bad, why) in [
            (encode("hi"), "PEM block type must be CERTIFICATE REQUEST"),
            ("hi".into(), "PEM block type must be CERTIFICATE REQUEST"),
            (encode(&key.serialize_pem()), "PEM block type must be CERTIFICATE REQUEST"),
        ] {
            assert_eq!(readable(&bad).unwrap_err(), why);
        }
        let mut forged = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents;
        *forged.last_mut().unwrap() ^= 1;
        let forged = base64::engine::general_purpose::STANDARD.encode(forged);
        let forged = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{forged}\n-----END CERTIFICATE REQUEST-----\n"
        );
        assert_eq!(readable(&encode(&forged)).unwrap_err(), "x509: signature verification failed");
    }
}
