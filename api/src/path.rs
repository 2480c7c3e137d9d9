//! The request path grammar: which object of which tenant a URL means.
//!
//! Three forms reach the same object:
//!
//! 1. full: `/api/v1/tenants/{t}/namespaces/{ns}/pods/{name}`, `/apis/{g}/{v}/tenants/{t}/...`
//! 2. short: the standard Kubernetes path; the tenant is the caller's
//! 3. prefix: `/tenants/{t}/api/v1/...`: a whole standard API under a prefix
//!
//! # Invariants
//!
//! * Only the path names a tenant; neither query nor headers do.
//! * The prefix form never nests with the full form, so a path names at most one tenant.
//! * Segments are percent-decoded once; a segment that then holds `/`, `%` or is `.` or `..`
//!   is refused, so no later reader can understand it differently.

use crate::names::{ALL, NameError, TenantName};

/// Which tenant a path asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantRef {
    /// Short form: that of the caller.
    Callers,
    Named(TenantName),
    /// `all`: every tenant, for reads by the platform.
    All,
}

/// What a path points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub tenant: TenantRef,
    pub place: Place,
}

/// The part of a path behind the tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Objects of a resource.
    Resource(ResourcePath),
    /// Anything else, as a standard path: `/version`, `/apis`, `/openapi/v3/api/v1`.
    Other(String),
}

/// The parts of a standard resource path. Absent parts are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourcePath {
    pub group: String,
    pub version: String,
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub subresource: String,
    /// Behind the subresource, as for `proxy`; with its leading `/`.
    pub rest: String,
    /// The deprecated `/api/v1/watch/...` form.
    pub watch: bool,
}

/// Why a path means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error(transparent)]
    Tenant(#[from] NameError),
    #[error("the path names a tenant twice")]
    Nested,
    #[error("invalid path segment {0:?}")]
    Segment(String),
}

/// Longest path that is looked at, in bytes.
const MAX_LENGTH: usize = 8192;

/// Parses the path of a URL (without query).
pub fn parse(path: &str) -> Result<Target, PathError> {
    if MAX_LENGTH < path.len() {
        return Err(PathError::Segment(path.chars().take(64).collect()));
    }
    let segments = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .map(decode_segment)
        .collect::<Result<Vec<_>, _>>()?;
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["tenants", tenant, rest @ ..] => {
            let target = standard(rest, path)?;
            if target.tenant != TenantRef::Callers {
                return Err(PathError::Nested);
            }
            Ok(Target { tenant: tenant_ref(tenant)?, ..target })
        }
        parts => standard(parts, path),
    }
}

fn tenant_ref(name: &str) -> Result<TenantRef, NameError> {
    if name == ALL { Ok(TenantRef::All) } else { TenantName::parse(name).map(TenantRef::Named) }
}

/// Parses what stands behind a prefix: a standard path, or the full form.
fn standard(parts: &[&str], path: &str) -> Result<Target, PathError> {
    let (group, version, rest) = match parts {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Ok(other(parts, path)),
    };
    let (watch, rest) = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
        rest => (false, rest),
    };
    let (tenant, rest) = match rest {
        // `/apis/insula.io/v1/tenants/{t}` and its `/status` are the Tenant object itself.
        ["tenants"] | ["tenants", _] | ["tenants", _, "status"] if group == "insula.io" => {
            (TenantRef::Callers, rest)
        }
        ["tenants", tenant, rest @ ..] => (tenant_ref(tenant)?, rest),
        rest => (TenantRef::Callers, rest),
    };
    let mut found =
        ResourcePath { group: group.into(), version: version.into(), watch, ..Default::default() };
    let tail = match rest {
        [] => return Ok(Target { tenant, ..other(&without_tenant(parts), path) }),
        // A namespace itself, and its subresources.
        ["namespaces", name, sub @ ("status" | "finalize")] => {
            found.resource = "namespaces".into();
            found.namespace = (*name).into();
            found.name = (*name).into();
            found.subresource = (*sub).into();
            &[]
        }
        ["namespaces", name] => {
            found.resource = "namespaces".into();
            found.namespace = (*name).into();
            found.name = (*name).into();
            &[]
        }
        ["namespaces", namespace, resource, tail @ ..] => {
            found.namespace = (*namespace).into();
            found.resource = (*resource).into();
            tail
        }
        [resource, tail @ ..] => {
            found.resource = (*resource).into();
            tail
        }
    };
    match tail {
        [] => (),
        [name] => found.name = (*name).into(),
        [name, sub, rest @ ..] => {
            found.name = (*name).into();
            found.subresource = (*sub).into();
            if !rest.is_empty() {
                found.rest = format!("/{}", rest.join("/"));
            }
        }
    }
    Ok(Target { tenant, place: Place::Resource(found) })
}

/// A path without what names its tenant: the standard path of the same object, as it was written.
///
/// Of objects that are not built in; `insula.io` has tenants of its own.
pub fn standard_form(path: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let is = |part: Option<&&str>, name: &str| {
        part.is_some_and(|it| decode_segment(it).is_ok_and(|it| it == name))
    };
    if is(parts.first(), "tenants") && 1 < parts.len() {
        parts.drain(..2);
    }
    let mut at = if is(parts.first(), "apis") { 3 } else { 2 };
    if is(parts.get(at), "watch") && at + 1 < parts.len() {
        at += 1;
    }
    if is(parts.get(at), "tenants") && at + 1 < parts.len() {
        parts.drain(at..at + 2);
    }
    let slash = if path.ends_with('/') && !parts.is_empty() { "/" } else { "" };
    format!("/{}{slash}", parts.join("/"))
}

/// `api/v1/tenants/t` without its tenant, for discovery of a group version in the full form.
fn without_tenant<'a>(parts: &[&'a str]) -> Vec<&'a str> {
    let end = parts.iter().position(|part| *part == "tenants").unwrap_or(parts.len());
    parts[..end].to_vec()
}

fn other(parts: &[&str], path: &str) -> Target {
    let mut place = String::with_capacity(path.len());
    for part in parts {
        place.push('/');
        place.push_str(part);
    }
    if place.is_empty() {
        place.push('/');
    }
    Target { tenant: TenantRef::Callers, place: Place::Other(place) }
}

fn decode_segment(segment: &str) -> Result<String, PathError> {
    let bad = || PathError::Segment(segment.chars().take(64).collect());
    if segment == "." || segment == ".." {
        return Err(bad());
    }
    if !segment.contains('%') {
        return Ok(segment.to_owned());
    }
    let mut out = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (Some(high), Some(low)) = (digit(bytes.next()), digit(bytes.next())) else {
            return Err(bad());
        };
        let byte = u8::try_from(high * 16 + low).map_err(|_| bad())?;
        if matches!(byte, b'/' | b'%' | 0) {
            return Err(bad());
        }
        out.push(byte);
    }
    let out = String::from_utf8(out).map_err(|_| bad())?;
    if out == "." || out == ".." { Err(bad()) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(tenant: TenantRef) -> Target {
        let found = ResourcePath {
            version: "v1".into(),
            resource: "pods".into(),
            namespace: "ns".into(),
            name: "p".into(),
            ..Default::default()
        };
        Target { tenant, place: Place::Resource(found) }
    }

    fn acme() -> TenantRef {
        TenantRef::Named(TenantName::parse("acme").unwrap())
    }

    #[test]
    fn three_forms_one_object() {
        assert_eq!(parse("/api/v1/namespaces/ns/pods/p"), Ok(pod(TenantRef::Callers)));
        assert_eq!(parse("/api/v1/tenants/acme/namespaces/ns/pods/p"), Ok(pod(acme())));
        assert_eq!(parse("/tenants/acme/api/v1/namespaces/ns/pods/p"), Ok(pod(acme())));
        assert_eq!(parse("/tenants/all/api/v1/namespaces/ns/pods/p"), Ok(pod(TenantRef::All)));
    }

    #[test]
    fn a_tenant_is_named_once() {
        let nested = "/tenants/acme/api/v1/tenants/globex/pods";
        assert_eq!(parse(nested), Err(PathError::Nested));
        let twice = parse("/tenants/acme/tenants/globex/api/v1/pods").unwrap();
        assert!(matches!(twice.place, Place::Other(_)), "no resource is reached: {twice:?}");
    }

    #[track_caller]
    fn check(path: &str, resource: &str, namespace: &str, name: &str, sub: &str) {
        let target = parse(path).unwrap();
        let Place::Resource(found) = target.place else { panic!("{path}: {target:?}") };
        let got = (&*found.resource, &*found.namespace, &*found.name, &*found.subresource);
        assert_eq!(got, (resource, namespace, name, sub), "{path}");
    }

    #[test]
    fn standard_paths() {
        check("/api/v1/pods", "pods", "", "", "");
        check("/api/v1/namespaces", "namespaces", "", "", "");
        check("/api/v1/namespaces/a", "namespaces", "a", "a", "");
        check("/api/v1/namespaces/a/finalize", "namespaces", "a", "a", "finalize");
        check("/api/v1/namespaces/a/status", "namespaces", "a", "a", "status");
        check("/apis/apps/v1/namespaces/a/deployments/d/scale", "deployments", "a", "d", "scale");
        check("/api/v1/nodes/n/proxy/metrics/x", "nodes", "", "n", "proxy");
        check("/apis/insula.io/v1/tenants", "tenants", "", "", "");
        check("/apis/insula.io/v1/tenants/acme", "tenants", "", "acme", "");
        check("/apis/insula.io/v1/tenants/acme/status", "tenants", "", "acme", "status");
        check("/apis/insula.io/v1/tenants/system/partitions/p1", "partitions", "", "p1", "");
        check(
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
            "clusterroles",
            "",
            "system:node",
            "",
        );
    }

    #[test]
    fn other_paths() {
        for path in [
            "/",
            "/version",
            "/apis",
            "/apis/apps",
            "/apis/apps/v1",
            "/api/v1",
            "/openapi/v3/apis/apps/v1",
        ] {
            let target = parse(path).unwrap();
            assert_eq!(target.place, Place::Other(path.into()));
        }
        assert_eq!(parse("/tenants/acme/version").unwrap().tenant, acme());
        let discovery = parse("/apis/apps/v1/tenants/acme").unwrap();
        assert_eq!(
            discovery,
            Target { tenant: acme(), place: Place::Other("/apis/apps/v1".into()) }
        );
    }

    #[test]
    fn hostile_segments() {
        for path in [
            "/api/v1/../x",
            "/api/v1/%2e%2e/x",
            "/api/v1/pods/a%2fb",
            "/api/v1/%",
            "/api/v1/%zz",
            "/api/v1/a%00",
        ] {
            assert!(matches!(parse(path), Err(PathError::Segment(_))), "{path}");
        }
        assert!(matches!(parse("/tenants/Bad!/api/v1/pods"), Err(PathError::Tenant(_))));
    }

    #[test]
    fn the_tenant_is_taken_out() {
        for (path, expected) in [
            (
                "/apis/g.x/v1/namespaces/n/flunders/a%20b",
                "/apis/g.x/v1/namespaces/n/flunders/a%20b",
            ),
            ("/tenants/acme/apis/g.x/v1/flunders/", "/apis/g.x/v1/flunders/"),
            (
                "/apis/g.x/v1/tenants/acme/namespaces/n/flunders",
                "/apis/g.x/v1/namespaces/n/flunders",
            ),
            ("/apis/g.x/v1/watch/tenants/acme/flunders", "/apis/g.x/v1/watch/flunders"),
            ("//%74enants/acme//apis/g.x/v1", "/apis/g.x/v1"),
            ("/apis/g.x/v1/flunders/tenants/acme", "/apis/g.x/v1/flunders/tenants/acme"),
            ("/tenants/acme", "/"),
        ] {
            assert_eq!(standard_form(path), expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn without_its_tenant_a_path_is_of_the_same_object(
            path in "(/tenants/acme)?/apis/g\\.x/v1(/watch)?(/tenants/acme)?(/namespaces/n)?(/[a-c]{1,2}){1,4}/?",
        ) {
            if let Ok(target) = parse(&path) {
                let standard = parse(&standard_form(&path)).unwrap();
                prop_assert_eq!(standard.tenant, TenantRef::Callers);
                prop_assert_eq!(standard.place, target.place);
            }
        }

        #[test]
        fn never_panics(path in "[/a-z%.0-9]{0,60}") {
            let _ = parse(&path);
        }
    }
}
