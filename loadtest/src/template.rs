//! Object templates: JSON that is cut where variables stand, once, and put together per object.
//!
//! `{i}` is the object's number, `{i%N}` what is left of it divided by N, `{name}`, `{namespace}`,
//! `{tenant}` and `{run}` say whose it is, `{random}` is a number that differs each time, `{fill:N}` are N letters.

use std::fmt::Write as _;

use bytes::Bytes;
use serde_json::{Value, json};

/// Every object of a run carries it: the run's id.
pub const RUN_LABEL: &str = "insula.io/loadtest-run";
/// Where an object came from: the template.
pub const TEMPLATE_LABEL: &str = "insula.io/loadtest-template";
/// The largest filler: what an API server takes for an object is less.
const MOST_FILL: usize = 2 << 20;

/// What an object is called, and whose it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names<'a> {
    pub(crate) index: u64,
    pub(crate) name: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) tenant: &'a str,
    pub(crate) run: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hole {
    Index,
    /// Never 0.
    IndexModulo(u64),
    Name,
    Namespace,
    Tenant,
    Run,
    Random,
    Fill(usize),
}

impl Hole {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "i" => Self::Index,
            "name" => Self::Name,
            "namespace" => Self::Namespace,
            "tenant" => Self::Tenant,
            "run" => Self::Run,
            "random" => Self::Random,
            _ => match text.strip_prefix("i%") {
                Some(n) => Self::IndexModulo(n.parse().ok().filter(|n| 0 < *n)?),
                None => {
                    Self::Fill(text.strip_prefix("fill:")?.parse::<usize>().ok()?.min(MOST_FILL))
                }
            },
        })
    }
}

/// A JSON text with holes.
#[derive(Debug)]
pub(crate) struct Template {
    /// A piece of text, and what comes after it.
    pieces: Vec<(String, Option<Hole>)>,
}

impl Template {
    /// An object that is to be created: with name, labels, and of its namespace.
    pub(crate) fn of_object(object: &Value, template: &str) -> Self {
        let mut object = object.clone();
        object["metadata"]["name"] = json!("{name}");
        label(&mut object, template);
        // What controllers make of it is ours as well.
        if let Some(inner) = object.pointer_mut("/spec/template").filter(|it| it.is_object()) {
            label(inner, template);
        }
        Self::of(&object)
    }

    pub(crate) fn of(value: &Value) -> Self {
        let text = value.to_string();
        let (mut pieces, mut piece) = (Vec::new(), String::new());
        let mut rest = text.as_str();
        // In JSON a brace is followed by a quote, a brace or nothing, so these are within texts.
        while let Some(at) = rest.find('{') {
            let (before, from) = rest.split_at(at);
            piece.push_str(before);
            let inner = from.get(1..).unwrap_or_default();
            let end = inner.find('}').filter(|it| *it <= 16);
            let hole = end.and_then(|end| Some((Hole::parse(inner.get(..end)?)?, end)));
            match hole {
                Some((hole, end)) => {
                    pieces.push((std::mem::take(&mut piece), Some(hole)));
                    rest = inner.get(end + 1..).unwrap_or_default();
                }
                None => {
                    piece.push('{');
                    rest = inner;
                }
            }
        }
        piece.push_str(rest);
        pieces.push((piece, None));
        Self { pieces }
    }

    /// The JSON of one object.
    pub(crate) fn fill(&self, names: &Names<'_>) -> Bytes {
        let mut text = String::with_capacity(1024);
        for (piece, hole) in &self.pieces {
            text.push_str(piece);
            // Writing to a String cannot fail.
            let _ = match hole {
                None => Ok(()),
                Some(Hole::Index) => write!(text, "{}", names.index),
                Some(Hole::IndexModulo(n)) => write!(text, "{}", names.index % n),
                Some(Hole::Name) => text.write_str(names.name),
                Some(Hole::Namespace) => text.write_str(names.namespace),
                Some(Hole::Tenant) => text.write_str(names.tenant),
                Some(Hole::Run) => text.write_str(names.run),
                Some(Hole::Random) => write!(text, "{}", rand::random::<u32>()),
                Some(Hole::Fill(n)) => {
                    text.extend(std::iter::repeat_n('x', *n));
                    Ok(())
                }
            };
        }
        text.into()
    }
}

fn label(object: &mut Value, template: &str) {
    object["metadata"]["labels"][RUN_LABEL] = json!("{run}");
    object["metadata"]["labels"][TEMPLATE_LABEL] = json!(template);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_put_together() {
        let object = json!({"kind": "Deployment", "data": {"a": "{i}-{fill:3}-{i%4}{i%0}", "b": "{no}{", "c": {}},
            "spec": {"template": {"metadata": {"labels": {"app": "x-{namespace}"}}}}});
        let template = Template::of_object(&object, "web");
        let names = Names { index: 7, name: "web-7", namespace: "n", tenant: "t", run: "r1" };
        let read: Value = serde_json::from_slice(&template.fill(&names)).unwrap();
        let ours = json!({RUN_LABEL: "r1", TEMPLATE_LABEL: "web"});
        assert_eq!(read["metadata"], json!({"name": "web-7", "labels": ours}));
        assert_eq!(read["data"], json!({"a": "7-xxx-3{i%0}", "b": "{no}{", "c": {}}));
        let mut inner = ours;
        inner["app"] = json!("x-n");
        assert_eq!(read["spec"]["template"]["metadata"]["labels"], inner);
    }
}
