//! The paths of the agent's server.

use std::borrow::Cow;

/// Names a pod in a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodPath {
    pub(super) tenant: String,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// What a path asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Health,
    Metrics,
    Logs(PodPath, String),
    Exec(PodPath, String),
    Attach(PodPath, String),
    PortForward(PodPath),
}

impl Route {
    pub(super) fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        let pod = |tenant: &str, namespace: &str, name: &str| PodPath {
            tenant: tenant.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        match parts[..] {
            ["healthz" | "livez" | "readyz"] => Some(Self::Health),
            ["metrics"] => Some(Self::Metrics),
            ["tenants", tenant, "portForward", namespace, name] => {
                Some(Self::PortForward(pod(tenant, namespace, name)))
            }
            ["tenants", tenant, action, namespace, name, container] => {
                let (pod, container) = (pod(tenant, namespace, name), container.to_owned());
                match action {
                    "containerLogs" => Some(Self::Logs(pod, container)),
                    "exec" => Some(Self::Exec(pod, container)),
                    "attach" => Some(Self::Attach(pod, container)),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// The parameters of a query, decoded.
pub(super) fn parameters(query: Option<&str>) -> impl Iterator<Item = (String, String)> {
    let pairs = query.unwrap_or_default().split('&').filter(|it| !it.is_empty());
    pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name).into_owned(), decode(value).into_owned())
    })
}

/// Whether a flag is set in a query: `1` and `true` are yes.
pub(super) fn flag(query: Option<&str>, name: &str) -> bool {
    parameters(query).any(|(it, value)| it == name && matches!(value.as_str(), "1" | "true"))
}

fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = |digit: u8| char::from(digit).to_digit(16).and_then(|it| u8::try_from(it).ok());
        (bytes, rest) = match (byte, after) {
            (b'%', [high, low, tail @ ..])
                if let (Some(high), Some(low)) = (hex(*high), hex(*low)) =>
            {
                bytes.push(high << 4 | low);
                (bytes, tail)
            }
            (b'+', tail) => {
                bytes.push(b' ');
                (bytes, tail)
            }
            (other, tail) => {
                bytes.push(other);
                (bytes, tail)
            }
        };
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let pod = PodPath { tenant: "t".into(), namespace: "ns".into(), name: "p".into() };
        for (path, expected) in [
            ("/healthz", Some(Route::Health)),
            ("/tenants/t/containerLogs/ns/p/c", Some(Route::Logs(pod.clone(), "c".into()))),
            ("/tenants/t/exec/ns/p/c", Some(Route::Exec(pod.clone(), "c".into()))),
            ("/tenants/t/attach/ns/p/c", Some(Route::Attach(pod.clone(), "c".into()))),
            ("/tenants/t/portForward/ns/p", Some(Route::PortForward(pod.clone()))),
            ("/tenants/t/portForward/ns/p/c", None),
            ("/exec/ns/p/c", None),
            ("/", None),
            ("", None),
        ] {
            assert_eq!(Route::parse(path), expected, "{path:?}");
        }
    }

    #[test]
    fn queries() {
        let of = |query| parameters(Some(query)).collect::<Vec<_>>();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            of("command=sh&command=-c&command=echo+a%20b%26%zz&input=1&x"),
            [
                pair("command", "sh"),
                pair("command", "-c"),
                pair("command", "echo a b&%zz"),
                pair("input", "1"),
                pair("x", "")
            ]
        );
        assert!(flag(Some("tty=true"), "tty") && flag(Some("tty=1"), "tty"));
        assert!(!flag(Some("tty=false&ttyx=1"), "tty") && !flag(None, "tty"));
    }
}
