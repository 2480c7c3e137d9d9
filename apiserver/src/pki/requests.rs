//! Certificates for those who asked for one in a `CertificateSigningRequest`.
//!
//! What is signed is made anew: of the request only the key, the names that were looked at, and for
//! nodes the addresses are taken over. Whatever the subject says, the certificate is of the tenant
//! in which it was asked for.

use std::net::IpAddr;

use insula_api::names::TenantName;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose,
    SanType, SubjectPublicKeyInfo, string::Ia5String,
};
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    pem::parse_x509_pem,
    prelude::FromDer as _,
};

use super::{Authority, PkiError, push_group};
use crate::{
    identity::{Identity, IdentityError, MASTERS, NODES},
    peers::SERVERS,
};

/// Clients of the API.
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Node agents, as clients of the API.
const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Node agents, as servers of logs and the like.
const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";

/// Seconds that a certificate is good for at most, and that it begins before now.
const LONGEST: i64 = 365 * 86_400;
const BEFORE: i64 = 300;
/// Most names and addresses of a server.
const MAX_NAMES: usize = 64;

/// What is asked for, as its object has it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub tenant: &'a TenantName,
    pub signer: &'a str,
    /// The request, in PEM.
    pub pem: &'a [u8],
    pub usages: &'a [String],
    /// For how long it is wanted.
    pub seconds: Option<i32>,
    /// Who asks.
    pub user: &'a str,
}

/// Why a request is not signed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("unable to parse csr: {0}")]
    Unreadable(String),
    #[error("the subject: {0}")]
    Subject(#[from] IdentityError),
    #[error("invalid usages for {0} certificates")]
    Usages(&'static str),
    #[error("subject organization is not system:nodes")]
    NoNode,
    #[error("subject common name does not begin with system:node:")]
    NoNodeName,
    #[error("{0:?} may only ask for itself")]
    OtherNode(String),
    #[error("subjectAltNames are not as {0} certificates have them")]
    Names(&'static str),
    #[error("nodes are the platform's, not of tenant {0}")]
    NoNodesHere(TenantName),
    #[error("nobody is let into the group {0:?} this way")]
    Group(String),
    #[error("nobody is given the name {0:?} this way")]
    Name(String),
    #[error("the public key cannot be certified: {0}")]
    Key(String),
    #[error(transparent)]
    Authority(#[from] PkiError),
}

impl RequestError {
    /// Whether it is the request's fault, so that asking again is of no use.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Authority(_))
    }
}

/// What a request names beside its subject.
#[derive(Default)]
struct Names {
    dns: Vec<String>,
    addresses: Vec<IpAddr>,
    has_others: bool,
}

/// A request that is what its signer signs.
struct Request {
    identity: Identity,
    names: Names,
    /// What its certificate is good for.
    purpose: ExtendedKeyUsagePurpose,
    key: SubjectPublicKeyInfo,
}

impl Request {
    fn read(asked: &Asked<'_>) -> Result<Self, RequestError> {
        let unreadable = |why: &str| RequestError::Unreadable(why.to_owned());
        let (_, pem) = parse_x509_pem(asked.pem).map_err(|_| unreadable("no PEM"))?;
        if pem.label != "CERTIFICATE REQUEST" {
            return Err(unreadable("PEM block type must be CERTIFICATE REQUEST"));
        }
        let (rest, request) = X509CertificationRequest::from_der(&pem.contents)
            .map_err(|error| RequestError::Unreadable(error.to_string()))?;
        if !rest.is_empty() {
            return Err(unreadable("trailing data"));
        }
        request.verify_signature().map_err(|_| unreadable("the signature is wrong"))?;
        let info = &request.certification_request_info;
        let identity = Identity::from_subject(&info.subject, Some(asked.tenant))?;
        if identity.tenant != *asked.tenant {
            return Err(IdentityError::BadTenant.into());
        }
        let names = names(&request)?;
        let purpose = check(asked, &identity, &names)?;
        let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
            .map_err(|error| RequestError::Key(error.to_string()))?;
        Ok(Self { identity, names, purpose, key })
    }
}

/// The user name of the node for which a client certificate is asked, as its signer signs it;
/// `None` of all other requests.
pub fn node_asked_for(asked: &Asked<'_>) -> Option<String> {
    let request = (asked.signer == NODE_CLIENT).then(|| Request::read(asked).ok()).flatten();
    request.map(|it| it.identity.user)
}

impl Authority {
    /// Signs what is asked for, if it is what its signer signs; `None` of signers that are not ours.
    pub fn sign_request(&self, asked: &Asked<'_>) -> Result<Option<String>, RequestError> {
        if ![CLIENT, NODE_CLIENT, NODE_SERVING].contains(&asked.signer) {
            return Ok(None);
        }
        Ok(Some(self.certify(asked, &Request::read(asked)?)?))
    }

    fn certify(&self, asked: &Asked<'_>, request: &Request) -> Result<String, PkiError> {
        let Request { identity, names, purpose, key } = request;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, &identity.user);
        let tenant = format!("tenant:{}", asked.tenant);
        params.distinguished_name.push(DnType::OrganizationName, tenant);
        for group in identity.own_groups() {
            push_group(&mut params.distinguished_name, group);
        }
        for name in &names.dns {
            let name =
                Ia5String::try_from(name.as_str()).map_err(|_| PkiError::Name(name.clone()))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.subject_alt_names.extend(names.addresses.iter().map(|it| SanType::IpAddress(*it)));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if asked.usages.iter().any(|it| it == "key encipherment") {
            params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        }
        params.extended_key_usages = vec![purpose.clone()];
        let seconds = asked.seconds.map_or(LONGEST, i64::from).clamp(600, LONGEST);
        let now = std::time::SystemTime::now();
        let after = |seconds: i64| now + std::time::Duration::from_secs(seconds.unsigned_abs());
        params.not_before = (now - std::time::Duration::from_secs(BEFORE.unsigned_abs())).into();
        params.not_after = after(seconds).into();
        if let Some(left) = self.seconds_left() {
            // Nobody believes it after that.
            params.not_after = after(seconds.min(left)).into();
        }
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }
}

/// Whether a request is what its signer signs; what its certificate is good for.
fn check(
    asked: &Asked<'_>,
    identity: &Identity,
    names: &Names,
) -> Result<ExtendedKeyUsagePurpose, RequestError> {
    let is_within = |allowed: &[&str], needed: &[&str]| {
        asked.usages.iter().all(|it| allowed.contains(&it.as_str()))
            && needed.iter().all(|it| asked.usages.iter().any(|has| has == it))
    };
    const BOTH: [&str; 2] = ["digital signature", "key encipherment"];
    let has_names = !names.dns.is_empty() || !names.addresses.is_empty() || names.has_others;
    if asked.signer == CLIENT {
        if !is_within(&[BOTH[0], BOTH[1], "client auth"], &["client auth"]) {
            return Err(RequestError::Usages("client"));
        }
        // Superusers, and servers, which are believed what they say of others, are made by hand.
        let mut groups = identity.own_groups();
        if let Some(group) = groups.find(|it| [MASTERS, SERVERS].contains(it)) {
            return Err(RequestError::Group(group.to_owned()));
        }
        if identity.user.starts_with(crate::peers::USER) {
            return Err(RequestError::Name(identity.user.clone()));
        }
        return match has_names {
            true => Err(RequestError::Names("client")),
            false => Ok(ExtendedKeyUsagePurpose::ClientAuth),
        };
    }
    if !asked.tenant.is_system() {
        return Err(RequestError::NoNodesHere(asked.tenant.clone()));
    }
    if !identity.own_groups().eq([NODES]) {
        return Err(RequestError::NoNode);
    }
    if identity.node().is_none_or(str::is_empty) {
        return Err(RequestError::NoNodeName);
    }
    if asked.signer == NODE_CLIENT {
        if !is_within(&[BOTH[0], BOTH[1], "client auth"], &[BOTH[0], "client auth"]) {
            return Err(RequestError::Usages("kubelet client"));
        }
        return match has_names {
            true => Err(RequestError::Names("kubelet client")),
            false => Ok(ExtendedKeyUsagePurpose::ClientAuth),
        };
    }
    if !is_within(&[BOTH[0], BOTH[1], "server auth"], &[BOTH[0], "server auth"]) {
        return Err(RequestError::Usages("kubelet serving"));
    }
    if asked.user != identity.user {
        return Err(RequestError::OtherNode(asked.user.to_owned()));
    }
    if names.has_others || names.dns.is_empty() && names.addresses.is_empty() {
        return Err(RequestError::Names("kubelet serving"));
    }
    // By that name other servers know each other.
    if let Some(name) = names.dns.iter().find(|it| crate::peers::is_dns_name(it)) {
        return Err(RequestError::Name(name.clone()));
    }
    Ok(ExtendedKeyUsagePurpose::ServerAuth)
}

fn names(request: &X509CertificationRequest<'_>) -> Result<Names, RequestError> {
    let mut names = Names::default();
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(found) = extension else { continue };
        for name in &found.general_names {
            match name {
                GeneralName::DNSName(name) => names.dns.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => match address(bytes) {
                    Some(address) => names.addresses.push(address),
                    None => names.has_others = true,
                },
                _ => names.has_others = true,
            }
        }
    }
    match names.dns.len() + names.addresses.len() <= MAX_NAMES {
        true => Ok(names),
        false => Err(RequestError::Unreadable("too many names".into())),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

#[cfg(test)]
mod tests {
    use rcgen::{Issuer, KeyPair};

    use super::*;

    fn request(user: &str, organization: &str, group: &str, names: &[&str]) -> String {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|it| (*it).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        for (kind, text) in
            [(DnType::OrganizationName, organization), (DnType::OrganizationalUnitName, group)]
        {
            if !text.is_empty() {
                params.distinguished_name.push(kind, text);
            }
        }
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    fn sign(
        tenant: &str,
        signer: &str,
        pem: &str,
        usages: &[&str],
        user: &str,
    ) -> Result<Identity, String> {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(directory.path()).unwrap();
        let usages: Vec<String> = usages.iter().map(|it| (*it).to_owned()).collect();
        let tenant = TenantName::parse(tenant).unwrap();
        let (seconds, pem) = (Some(3600), pem.as_bytes());
        let asked = Asked { tenant: &tenant, signer, pem, usages: &usages, seconds, user };
        let made = authority.sign_request(&asked).map_err(|error| error.to_string())?;
        let made = x509_parser::pem::parse_x509_pem(made.unwrap().as_bytes()).unwrap().1;
        let read = made.parse_x509().unwrap();
        let (_, ca) = x509_parser::pem::parse_x509_pem(authority.certificate().as_bytes()).unwrap();
        read.verify_signature(Some(ca.parse_x509().unwrap().public_key())).unwrap();
        let life = read.validity().not_after.timestamp() - read.validity().not_before.timestamp();
        assert!((3600..=3600 + BEFORE + 1).contains(&life), "{life}");
        assert!(!read.is_ca());
        Identity::from_certificate(&made.contents).map_err(|error| error.to_string())
    }

    #[test]
    fn clients_are_of_the_tenant_in_which_they_asked() {
        let acme = TenantName::parse("acme").unwrap();
        let client = |organization: &str, group: &str| {
            let pem = request("dev", organization, group, &[]);
            sign("acme", CLIENT, &pem, &["client auth"], "somebody")
        };
        assert_eq!(client("", ""), Ok(Identity::new(acme.clone(), "dev", &[])));
        assert_eq!(client("ops", ""), Ok(Identity::new(acme.clone(), "dev", &["ops"])));
        assert_eq!(client("tenant:acme", "ops"), Ok(Identity::new(acme, "dev", &["ops"])));
        for (organization, group, why) in [
            ("tenant:globex", "", "no valid tenant"),
            ("tenant:Acme", "", "no valid tenant"),
            ("system:masters", "", "system:masters"),
            ("", "system:masters", "system:masters"),
            // What would be two groups to whoever reads the certificate.
            ("ops\u{1f}system:masters", "", "no name may hold"),
            ("", "ops\u{1f}system:insula-servers", "system:insula-servers"),
        ] {
            let error = client(organization, group).unwrap_err();
            assert!(error.contains(why), "{organization} {group}: {error}");
        }
        let pem = request("system:insula-server:s1", "", "", &[]);
        assert!(sign("system", CLIENT, &pem, &["client auth"], "x").unwrap_err().contains("name"));
        let pem = request("dev", "", "", &["a.example.com"]);
        assert!(
            sign("acme", CLIENT, &pem, &["client auth"], "x").unwrap_err().contains("AltNames")
        );
        let pem = request("dev", "", "", &[]);
        let error = sign("acme", CLIENT, &pem, &["client auth", "cert sign"], "x").unwrap_err();
        assert!(error.contains("usages"), "{error}");
    }

    #[test]
    fn nodes_are_the_platforms() {
        let node = |tenant: &str, signer: &str, names: &[&str], usage: &str, user: &str| {
            let pem = request("system:node:n1", NODES, "", names);
            sign(tenant, signer, &pem, &["digital signature", usage], user)
        };
        let own = "system:node:n1";
        let found = node("system", NODE_CLIENT, &[], "client auth", "system:bootstrap:abcdef");
        assert_eq!(found.unwrap().node(), Some("n1"));
        let names = ["n1", "10.0.0.1"];
        assert!(node("system", NODE_SERVING, &names, "server auth", own).is_ok());
        for (found, why) in [
            (node("acme", NODE_CLIENT, &[], "client auth", own), "not of tenant acme"),
            (node("system", NODE_SERVING, &names, "server auth", "system:node:n2"), "itself"),
            (node("system", NODE_SERVING, &[], "server auth", own), "subjectAltNames"),
            (node("system", NODE_SERVING, &names, "client auth", own), "usages"),
            (
                node("system", NODE_SERVING, &["s1.servers.insula.internal"], "server auth", own),
                "name",
            ),
        ] {
            let error = found.unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn other_signers_are_others_business() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(directory.path()).unwrap();
        let system = TenantName::system();
        let asked = Asked {
            tenant: &system,
            signer: "example.com/mine",
            pem: b"",
            usages: &[],
            seconds: None,
            user: "",
        };
        assert!(authority.sign_request(&asked).unwrap().is_none());
        let asked = Asked { signer: CLIENT, pem: b"no request", ..asked };
        assert!(authority.sign_request(&asked).unwrap_err().is_final());
        // The key that is certified is the one that signed the request.
        let forged = {
            let key = KeyPair::generate().unwrap();
            let other = KeyPair::generate().unwrap();
            let params = CertificateParams::default();
            let issuer = Issuer::new(params.clone(), &other);
            params.signed_by(&key, &issuer).unwrap().pem()
        };
        let asked = Asked { pem: forged.as_bytes(), ..asked };
        assert!(authority.sign_request(&asked).is_err());
    }
}
