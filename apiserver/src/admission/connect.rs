//! Streams are admitted before they are opened: what is asked of them is the object.

use insula_api::schema::Gvk;
use serde_json::{Map, Value};

use super::{Admission, Operation};
use crate::{
    Server,
    call::Call,
    error::{ApiError, Result},
};

/// How an option is read from the query.
#[derive(Clone, Copy)]
enum Form {
    Flag,
    Text,
    Texts,
    Numbers,
    /// What of the URL is behind the subresource.
    Rest,
}

const STREAMS: &[(&str, Form)] = &[
    ("stdin", Form::Flag),
    ("stdout", Form::Flag),
    ("stderr", Form::Flag),
    ("tty", Form::Flag),
    ("container", Form::Text),
    ("command", Form::Texts),
];

/// The kind of the options of a subresource, and its fields.
fn options_of(
    resource: &str,
    subresource: &str,
) -> Option<(&'static str, &'static [(&'static str, Form)])> {
    const PROXY: &[(&str, Form)] = &[("path", Form::Rest)];
    Some(match (resource, subresource) {
        ("pods", "exec") => ("PodExecOptions", STREAMS),
        ("pods", "attach") => ("PodAttachOptions", &STREAMS[..5]),
        ("pods", "portforward") => ("PodPortForwardOptions", &[("ports", Form::Numbers)]),
        ("pods", "proxy") => ("PodProxyOptions", PROXY),
        ("services", "proxy") => ("ServiceProxyOptions", PROXY),
        ("nodes", "proxy") => ("NodeProxyOptions", PROXY),
        _ => return None,
    })
}

/// Has the chain look at a connection that `call` opens.
pub(crate) async fn connect(server: &Server, call: &Call) -> Result<()> {
    let resource = &call.served.resource;
    if call.query.dry_run()? {
        return Err(ApiError::bad_request("dryRun is not supported"));
    }
    let Some((kind, fields)) = options_of(&resource.name, &call.path.subresource) else {
        return Ok(());
    };
    let mut options = Map::new();
    options.insert("kind".into(), kind.into());
    options.insert("apiVersion".into(), "v1".into());
    for (field, form) in fields {
        let texts: Vec<&str> = call.query.all(field).collect();
        let value = match form {
            Form::Flag => Some(Value::Bool(true)).filter(|_| call.query.flag(field)),
            Form::Text => call.query.get(field).map(Value::from),
            Form::Texts => Some(Value::from(texts)),
            Form::Rest => {
                let rest = call.path.rest.as_str();
                Some(Value::from(if rest.is_empty() { "/" } else { rest }))
            }
            Form::Numbers => {
                let numbers = texts.iter().flat_map(|it| it.split(','));
                Some(numbers.filter_map(|it| it.parse::<u16>().ok()).collect())
            }
        };
        if let Some(value) = value.filter(|it| it.as_array().is_none_or(|it| !it.is_empty())) {
            options.insert((*field).into(), value);
        }
    }
    let admission =
        Admission::new(server, call, Operation::Connect, Gvk::new("", "v1", kind), None)?;
    let mut options = Value::Object(options);
    admission.mutate(&mut options).await?;
    admission.validate(Some(&options)).await?;
    if admission.has_changed() {
        // What was judged is not what would be opened.
        let why = format!("the options of {} cannot be changed by admission", kind);
        return Err(call.forbidden(&call.path.name, &why));
    }
    Ok(())
}
