//! What a client wants its answer to look like: `Accept`, and what goes with it.

use http::{HeaderMap, header};

use crate::{
    error::{ApiError, Result},
    request::{Encoding, Query},
};

/// What objects are turned into before they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The object or list itself.
    Object,
    Table,
    PartialMetadata,
    /// As above, of the items of a list.
    PartialMetadataList,
}

/// The answer that was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accept {
    pub form: Form,
    /// The version of `meta.k8s.io` that the form is in.
    pub meta: &'static str,
    pub encoding: Encoding,
    /// Indented for people.
    pub pretty: bool,
}

/// What there is to choose from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offers {
    /// The object itself has a message; its metadata always has.
    pub protobuf: bool,
    pub table: bool,
    /// Answers are a stream of events, for which there is no YAML.
    pub stream: bool,
}

/// One clause of `Accept`.
#[derive(Debug)]
struct Clause<'a> {
    main: &'a str,
    sub: &'a str,
    quality: f32,
    parameters: Vec<(&'a str, &'a str)>,
}

const ENCODINGS: [(&str, Encoding); 3] = [
    ("json", Encoding::Json),
    ("yaml", Encoding::Yaml),
    ("vnd.kubernetes.protobuf", Encoding::Protobuf),
];

impl Accept {
    /// JSON, for those that cannot be asked.
    pub(crate) const JSON: Self = Self {
        form: Form::Object,
        meta: "meta.k8s.io/v1",
        encoding: Encoding::Json,
        pretty: false,
    };

    /// The best that `headers` accept of `offers`.
    pub(crate) fn negotiate(headers: &HeaderMap, query: &Query, offers: Offers) -> Result<Self> {
        let pretty = is_for_people(headers, query);
        let text = headers.get(header::ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or_default();
        if text.is_empty() {
            return Ok(Self { pretty, ..Self::JSON });
        }
        let mut clauses: Vec<Clause<'_>> = text.split(',').filter_map(clause).collect();
        // Better before worse; of equals what is named before what is not.
        let rank = |it: &Clause<'_>| (it.main == "*", it.sub == "*");
        clauses.sort_by(|one, other| {
            other.quality.total_cmp(&one.quality).then_with(|| rank(one).cmp(&rank(other)))
        });
        for clause in &clauses {
            for (sub, encoding) in ENCODINGS {
                let fits = match (clause.main, clause.sub) {
                    ("*", "*") => true,
                    ("application", wanted) => wanted == "*" || wanted == sub,
                    _ => false,
                };
                if fits && let Some(found) = agreed(clause, encoding, offers) {
                    return Ok(Self { pretty: pretty || found.pretty, ..found });
                }
            }
        }
        // What names none of our encodings does not come as far as what they are asked to say.
        let is_known = |it: &Clause<'_>| {
            (it.main, it.sub) == ("*", "*")
                || it.main == "application"
                    && (it.sub == "*" || ENCODINGS.iter().any(|(sub, _)| *sub == it.sub))
        };
        Err(match clauses.iter().any(is_known) {
            true => ApiError::not_acceptable(offers.stream),
            false => ApiError::no_such_encoding(),
        })
    }

    /// As what a Status is sent, whatever else the client asked for.
    pub(crate) fn of_status(headers: &HeaderMap, query: Option<&str>) -> Self {
        let offers = Offers { protobuf: true, table: true, stream: false };
        let found = Self::negotiate(headers, &Query::parse(query), offers);
        found.map_or(Self::JSON, |it| Self { form: Form::Object, ..it })
    }
}

fn clause(text: &str) -> Option<Clause<'_>> {
    let mut parts = text.split(';').map(str::trim);
    let (main, sub) = match parts.next()? {
        "*" => ("*", "*"),
        name => name.split_once('/')?,
    };
    let (mut quality, mut parameters) = (1.0, Vec::new());
    for (key, value) in parts.filter_map(|part| part.split_once('=')) {
        match key {
            "q" => quality = value.parse().ok().filter(|it: &f32| it.is_finite()).unwrap_or(1.0),
            _ => parameters.push((key, value)),
        }
    }
    Some(Clause { main, sub, quality, parameters })
}

/// What `clause` means in `encoding`; `None` if that is not on offer.
fn agreed(clause: &Clause<'_>, encoding: Encoding, offers: Offers) -> Option<Accept> {
    let get = |key| clause.parameters.iter().find(|(it, _)| *it == key).map(|(_, value)| *value);
    if offers.stream && encoding == Encoding::Yaml {
        return None;
    }
    match get("stream") {
        None | Some("") => (),
        Some("watch") if encoding != Encoding::Yaml => (),
        Some(_) => return None,
    }
    let accept = Accept { encoding, pretty: get("pretty") == Some("1"), ..Accept::JSON };
    let (kind, group, version) = (get("as"), get("g"), get("v"));
    if kind.is_none() && group.is_none() && version.is_none() {
        return (encoding != Encoding::Protobuf || offers.protobuf).then_some(accept);
    }
    let meta = match (group, version) {
        (Some("meta.k8s.io"), Some("v1")) => "meta.k8s.io/v1",
        (Some("meta.k8s.io"), Some("v1beta1")) => "meta.k8s.io/v1beta1",
        _ => return None,
    };
    let form = match kind {
        Some("Table") if offers.table && encoding != Encoding::Protobuf => Form::Table,
        Some("PartialObjectMetadata") => Form::PartialMetadata,
        Some("PartialObjectMetadataList") => Form::PartialMetadataList,
        _ => return None,
    };
    Some(Accept { form, meta, ..accept })
}

/// Whether the reader is a person, by what it says or by what it is.
fn is_for_people(headers: &HeaderMap, query: &Query) -> bool {
    match query.get("pretty") {
        Some(_) => query.flag("pretty"),
        None => {
            let agent = headers.get(header::USER_AGENT).and_then(|it| it.to_str().ok());
            let agent = agent.unwrap_or_default();
            ["curl", "Wget", "Mozilla/5.0"].iter().any(|it| agent.starts_with(it))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offers = Offers { protobuf: true, table: true, stream: false };

    fn accept(value: &str, offers: Offers) -> Option<(Form, Encoding)> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, value.parse().unwrap());
        let found = Accept::negotiate(&headers, &Query::default(), offers).ok()?;
        Some((found.form, found.encoding))
    }

    #[test]
    fn kubectls_table_comes_first() {
        let value = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accept(value, ALL), Some((Form::Table, Encoding::Json)));
        let offers = Offers { table: false, ..ALL };
        assert_eq!(accept(value, offers), Some((Form::Object, Encoding::Json)));
        let alone = "application/json;as=Table;v=v1;g=meta.k8s.io";
        assert_eq!(accept(alone, offers), None);
    }

    #[test]
    fn protobuf_where_there_are_messages() {
        let both = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(accept(both, ALL), Some((Form::Object, Encoding::Protobuf)));
        let offers = Offers { protobuf: false, ..ALL };
        assert_eq!(accept(both, offers), Some((Form::Object, Encoding::Json)));
        assert_eq!(accept("application/vnd.kubernetes.protobuf", offers), None);
        let metadata =
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        assert_eq!(accept(metadata, offers), Some((Form::PartialMetadata, Encoding::Protobuf)));
        let table = "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1";
        assert_eq!(accept(table, ALL), None);
    }

    #[test]
    fn the_best_wins_and_of_equals_the_first_that_is_named() {
        let json = Some((Form::Object, Encoding::Json));
        let yaml = Some((Form::Object, Encoding::Yaml));
        assert_eq!(accept("application/json;q=0.5,application/yaml", ALL), yaml);
        assert_eq!(accept("*/*,application/yaml", ALL), yaml);
        assert_eq!(accept("application/yaml;q=0.1,*/*;q=0.9", ALL), json);
        assert_eq!(accept("*", ALL), json);
        assert_eq!(accept("application/*", ALL), json);
        assert_eq!(accept("application/json;charset=utf-8", ALL), json);
        assert_eq!(accept("text/html, image/png;q=0.3", ALL), None);
        assert_eq!(accept("application/cbor,application/json", ALL), json);
        assert_eq!(accept("application/cbor", ALL), None);
    }

    #[test]
    fn streams_have_no_yaml() {
        let offers = Offers { stream: true, ..ALL };
        assert_eq!(accept("application/yaml", offers), None);
        let value =
            "application/vnd.kubernetes.protobuf;stream=watch,application/json;stream=watch";
        assert_eq!(accept(value, offers), Some((Form::Object, Encoding::Protobuf)));
        assert_eq!(accept("application/json;stream=other", offers), None);
    }
}
