//! URLs, as Go splits them.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    eval::{EvalError, Result},
    value::{Key, Value},
};

/// An absolute URL, or an absolute path.
#[derive(Debug, PartialEq, Eq)]
pub struct Url {
    scheme: String,
    host: String,
    path: String,
    query: String,
}

impl Url {
    fn parse(text: &str) -> Option<Self> {
        if text.chars().any(|it| it.is_control() || it == ' ') {
            return None;
        }
        let mut escapes = text.split('%').skip(1);
        if !escapes
            .all(|it| it.get(..2).is_some_and(|it| it.bytes().all(|it| it.is_ascii_hexdigit())))
        {
            return None;
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme, rest),
            None if text.starts_with('/') => ("", text),
            None => return None,
        };
        let named = |it: char| it.is_ascii_alphanumeric() || "+-.".contains(it);
        let is_named = scheme.starts_with(|it: char| it.is_ascii_alphabetic());
        if !scheme.is_empty() && (!is_named || !scheme.chars().all(named)) {
            return None;
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, path) = match (scheme.is_empty(), rest.find('/')) {
            (true, _) => ("", rest),
            (false, Some(at)) => rest.split_at(at),
            (false, None) => (rest, ""),
        };
        let host = host.rsplit('@').next().unwrap_or_default();
        let port = if host.ends_with(']') { None } else { host.rsplit_once(':') };
        if port.is_some_and(|(_, port)| !port.bytes().all(|it| it.is_ascii_digit())) {
            return None;
        }
        Some(Self {
            scheme: scheme.to_lowercase(),
            host: host.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
        })
    }

    fn split_host(&self) -> (&str, &str) {
        if self.host.ends_with(']') {
            return (self.host.trim_matches(['[', ']']), "");
        }
        match self.host.rsplit_once(':') {
            Some((host, port)) => (host.trim_matches(['[', ']']), port),
            None => (&self.host, ""),
        }
    }
}

pub(super) fn function<'a>(function: &str, text: &str) -> Result<Value<'a>> {
    let parsed = Url::parse(text);
    if function == "isURL" {
        return Ok(Value::Bool(parsed.is_some()));
    }
    parsed.map(|it| Value::Url(Arc::new(it))).ok_or_else(|| {
        EvalError::failed(format!("URL parse error during conversion from string: {text:?}"))
    })
}

pub(super) fn method<'a>(function: &str, it: &Url) -> Result<Value<'a>> {
    let (host, port) = it.split_host();
    Ok(match function {
        "getScheme" => Value::text(it.scheme.clone()),
        "getHost" => Value::text(it.host.clone()),
        "getHostname" => Value::text(host.to_owned()),
        "getPort" => Value::text(port.to_owned()),
        "getEscapedPath" => Value::text(it.path.clone()),
        "getQuery" => {
            let mut pairs: BTreeMap<Key, Vec<Value<'a>>> = BTreeMap::new();
            for pair in it.query.split('&').filter(|it| !it.is_empty()) {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let list = pairs.entry(Key::Text(unescaped(key))).or_default();
                list.push(Value::text(unescaped(value)));
            }
            let lists = pairs.into_iter().map(|(key, list)| (key, Value::list(list)));
            Value::Map(Arc::new(lists.collect()))
        }
        _ => return Err(EvalError::no_overload(function)),
    })
}

fn unescaped(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let mut digit = || bytes.next().and_then(|it| char::from(it).to_digit(16));
                let code = digit().zip(digit()).map(|(high, low)| high * 16 + low);
                out.extend(code.and_then(|it| u8::try_from(it).ok()));
            }
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
