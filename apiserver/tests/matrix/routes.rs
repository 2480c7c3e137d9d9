//! Every route of every kind, from the tables that the server itself is made of.

use http::Method;
use insula_api::resources::{self, Resource, Scope};

/// A name that everyone has an object of, and one that nobody has.
pub(crate) const THERE: &str = "m-there";
pub(crate) const GONE: &str = "m-gone";
pub(crate) const NAMESPACE: &str = "default";

/// One thing that can be done, by its standard path.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub(crate) resource: Resource,
    pub(crate) subresource: String,
    /// As the rules are asked.
    pub(crate) verb: String,
    pub(crate) method: Method,
    /// Behind the group and version.
    pub(crate) rest: String,
    pub(crate) query: &'static str,
    pub(crate) namespace: &'static str,
}

/// How a URL says which tenant it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Short,
    Full,
    Prefix,
}

impl Route {
    pub(crate) fn is_read(&self) -> bool {
        matches!(&*self.verb, "get" | "list" | "watch") && self.subresource.is_empty()
    }

    fn base(&self) -> String {
        match self.resource.group.is_empty() {
            true => format!("/api/{}", self.resource.version),
            false => format!("/apis/{}/{}", self.resource.group, self.resource.version),
        }
    }

    pub(crate) fn url(&self, form: Form, tenant: &str) -> String {
        let (base, rest, query) = (self.base(), &self.rest, self.query);
        match form {
            Form::Short => format!("{base}{rest}{query}"),
            // The old form of watches stands before the tenant.
            Form::Full => match rest.strip_prefix("/watch") {
                Some(rest) => format!("{base}/watch/tenants/{tenant}{rest}{query}"),
                None => format!("{base}/tenants/{tenant}{rest}{query}"),
            },
            Form::Prefix => format!("/tenants/{tenant}{base}{rest}{query}"),
        }
    }

    /// A path that names two tenants.
    pub(crate) fn nested(&self, one: &str, two: &str) -> String {
        format!("/tenants/{one}{}", self.url(Form::Full, two))
    }

    /// The path of a namespace, for what lies in none.
    pub(crate) fn misplaced(&self) -> Option<Self> {
        let is_placed = self.rest.starts_with("/namespaces/") || self.resource.is_namespaced();
        (!is_placed).then(|| {
            let rest = format!("/namespaces/{NAMESPACE}{}", self.rest);
            Self { rest, namespace: NAMESPACE, ..self.clone() }
        })
    }
}

fn method(verb: &str) -> Method {
    match verb {
        "create" => Method::POST,
        "update" => Method::PUT,
        "patch" => Method::PATCH,
        "delete" | "deletecollection" => Method::DELETE,
        _ => Method::GET,
    }
}

fn of(resource: &Resource, out: &mut Vec<Route>) {
    let name = &resource.name;
    let namespaced = resource.is_namespaced();
    let here = match namespaced {
        true => format!("/namespaces/{NAMESPACE}/{name}"),
        false => format!("/{name}"),
    };
    let namespace = if namespaced { NAMESPACE } else { "" };
    let mut add = |verb: &str, rest: String, query: &'static str, namespace: &'static str| {
        out.push(Route {
            resource: resource.clone(),
            subresource: String::new(),
            verb: verb.into(),
            method: method(verb),
            rest,
            query,
            namespace,
        });
    };
    for verb in &resource.verbs {
        match verb.as_str() {
            "list" => {
                add(verb, here.clone(), "", namespace);
                if namespaced {
                    add(verb, format!("/{name}"), "", "");
                }
            }
            "watch" => {
                add(verb, here.clone(), "?watch=1&timeoutSeconds=1", namespace);
                add(verb, format!("/watch{here}"), "?timeoutSeconds=1", namespace);
                if namespaced {
                    add(verb, format!("/{name}"), "?watch=1&timeoutSeconds=1", "");
                }
            }
            "create" => add(verb, here.clone(), "", namespace),
            "deletecollection" => add(verb, here.clone(), "?dryRun=All", namespace),
            "get" => {
                add(verb, format!("{here}/{THERE}"), "", namespace);
                add(verb, format!("{here}/{GONE}"), "", namespace);
            }
            "delete" => add(verb, format!("{here}/{GONE}"), "?dryRun=All", namespace),
            _ => add(verb, format!("{here}/{GONE}"), "", namespace),
        }
    }
    for part in &resource.subresources {
        for verb in &part.verbs {
            let asked = match part.name.as_str() {
                "exec" | "attach" | "portforward" => "create",
                _ => verb,
            };
            out.push(Route {
                resource: resource.clone(),
                subresource: part.name.clone(),
                verb: asked.into(),
                method: method(verb),
                rest: format!("{here}/{GONE}/{}", part.name),
                query: "",
                namespace,
            });
        }
    }
    // A namespace, and what it has, is in itself.
    if name == "namespaces" {
        for route in out.iter_mut().filter(|it| it.resource.name == "namespaces") {
            route.namespace = match route.rest.split('/').nth(2) {
                Some(THERE) => THERE,
                Some(GONE) => GONE,
                _ => "",
            };
        }
    }
}

/// All of them; `custom` is what the tenants have defined.
pub(crate) fn all(custom: &[Resource]) -> Vec<Route> {
    let mut out = Vec::new();
    resources::built_in().iter().chain(custom).for_each(|it| of(it, &mut out));
    out
}

/// A custom resource as its definition makes it.
pub(crate) fn custom(group: &str, name: &str, kind: &str) -> Resource {
    let verbs = "create delete deletecollection get list patch update watch";
    Resource {
        group: group.into(),
        version: "v1".into(),
        name: name.into(),
        kind: kind.into(),
        singular: kind.to_lowercase(),
        short_names: Vec::new(),
        categories: Vec::new(),
        verbs: verbs.split(' ').map(str::to_owned).collect(),
        scope: Scope::Namespaced,
        subresources: Vec::new(),
        selectable_fields: Vec::new(),
    }
}
