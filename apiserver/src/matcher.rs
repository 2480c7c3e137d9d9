//! Which objects a list or watch is about: label and field selectors.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::{LazyLock, OnceLock},
};

use insula_api::{
    object,
    resources::Resource,
    selector::{FieldSelector, Selector},
};
use insula_partition::snapshot::Entry;
use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    error::{ApiError, Result},
    topics::{Field, Topic},
};

/// The selectors of one request. Empty ones match everything and read nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Matcher {
    labels: Option<Selector>,
    fields: Option<FieldSelector>,
    /// What stands in the JSON of every object that the fields match: most others need not be
    /// parsed.
    needles: Vec<Finder<'static>>,
}

/// The part of an object that label selectors look at.
#[derive(Debug, Deserialize)]
pub(crate) struct Labelled {
    #[serde(default)]
    pub(crate) metadata: Labels,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Labels {
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}

impl Matcher {
    pub(crate) fn parse(
        labels: Option<&str>,
        fields: Option<&str>,
        resource: &Resource,
    ) -> Result<Self> {
        let labels = labels
            .map(Selector::parse)
            .transpose()
            .map_err(|error| ApiError::bad_request(error.to_string()))?
            .filter(|selector| !selector.is_empty());
        let fields = fields
            .map(FieldSelector::parse)
            .transpose()
            .map_err(|error| ApiError::bad_request(error.to_string()))?
            .filter(|selector| !selector.is_empty());
        for term in fields.iter().flat_map(|selector| &selector.terms) {
            if place_of(resource, &term.field).is_none() {
                let shown: String = term.field.chars().take(128).collect();
                return Err(ApiError::bad_request(match offers_none(resource) {
                    true => format!(
                        "{shown:?} is not a known field selector: \
                         only \"metadata.name\", \"metadata.namespace\""
                    ),
                    false => words_of_fields(resource, &shown),
                }));
            }
        }
        let needles = fields.iter().flat_map(|selector| &selector.terms).filter_map(|term| {
            let absent = place_of(resource, &term.field).map(|it| it.1);
            let certain = !term.negated && !term.value.is_empty() && absent != Some(&term.value);
            certain.then(|| Finder::new(&json_of(&term.value)).into_owned())
        });
        Ok(Self { labels, needles: needles.collect(), fields })
    }

    /// What all that matches is about, if there is such a thing.
    pub(crate) fn topic(&self, resource: &Resource) -> Option<Topic> {
        let name = self.fields.as_ref().and_then(|it| it.required("metadata.name"));
        let named = name.filter(|it| !it.is_empty()).map(|it| (Field::Name, it));
        let (field, value) = named.or_else(|| Some((Field::Node, self.node(resource)?)))?;
        Some(Topic { field, value: value.into() })
    }

    /// The node that all that matches is bound to, of pods.
    pub(crate) fn node(&self, resource: &Resource) -> Option<&str> {
        let is_of_pods = resource.group.is_empty() && resource.name == "pods";
        let node = self.fields.as_ref().filter(|_| is_of_pods)?.required("spec.nodeName")?;
        Some(node).filter(|it| !it.is_empty())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_none() && self.fields.is_none()
    }

    pub(crate) fn matches(&self, resource: &Resource, entry: &Entry) -> bool {
        self.is_empty() || self.fits(resource, &Sight::of(entry))
    }

    /// Whether what is seen of an object matches.
    pub(crate) fn fits(&self, resource: &Resource, seen: &Sight) -> bool {
        if let Some(selector) = &self.labels
            && !seen.labels().is_some_and(|labels| selector.matches(labels))
        {
            return false;
        }
        let Some(selector) = &self.fields else { return true };
        let Some(object) = seen.object(&self.needles) else { return false };
        selector.matches(|field| field_of(resource, object, field))
    }
}

/// What selectors look at of one object: nothing is looked for before it is asked for, and nothing
/// twice.
#[derive(Debug)]
pub(crate) struct Sight {
    entry: Entry,
    labels: OnceLock<Option<BTreeMap<String, String>>>,
    object: OnceLock<Option<Value>>,
}

impl Sight {
    pub(crate) fn of(entry: &Entry) -> Self {
        Self { entry: entry.clone(), labels: OnceLock::new(), object: OnceLock::new() }
    }

    /// Nothing if it is no object.
    fn labels(&self) -> Option<&BTreeMap<String, String>> {
        let look = || {
            let it: Labelled = serde_json::from_slice(&self.entry.value.glance()).ok()?;
            Some(it.metadata.labels)
        };
        self.labels.get_or_init(look).as_ref()
    }

    /// Nothing if one of `needles` is nowhere in it, or it is no object.
    fn object(&self, needles: &[Finder<'_>]) -> Option<&Value> {
        if self.object.get().is_none() {
            let text = self.entry.value.glance();
            if needles.iter().any(|needle| needle.find(&text).is_none()) {
                return None;
            }
            return self.object.get_or_init(|| object::parse(&text).ok()).as_ref();
        }
        self.object.get()?.as_ref()
    }
}

/// How a field with this text stands in stored JSON: as a string, unless it is the text of a
/// number or a flag.
fn json_of(text: &str) -> String {
    match serde_json::from_str(text) {
        Ok(Value::Bool(_) | Value::Number(_)) => text.to_owned(),
        _ => Value::from(text).to_string(),
    }
}

/// The text of a selectable field, empty if absent.
fn field_of<'a>(resource: &Resource, object: &'a Value, field: &str) -> Cow<'a, str> {
    let Some((paths, absent)) = place_of(resource, field) else { return Cow::default() };
    let found = paths.split(',').find_map(|path| {
        let value = path.split('.').try_fold(object, |value, part| value.get(part))?;
        match value {
            Value::Null => None,
            Value::String(text) => (!text.is_empty()).then_some(Cow::Borrowed(text.as_str())),
            other => Some(other.to_string().into()),
        }
    });
    found.unwrap_or(Cow::Borrowed(absent))
}

const TABLE: &str = include_str!("../../api/tables/fields.tsv");

/// Where a selectable field is, and what stands for nothing; `None` if the resource does not
/// offer it.
fn place_of<'a>(resource: &Resource, field: &'a str) -> Option<(&'a str, &'static str)> {
    match field {
        "metadata.name" => return Some((field, "")),
        "metadata.namespace" if resource.is_namespaced() => return Some((field, "")),
        _ if resource.selectable_fields.iter().any(|it| it == field) => return Some((field, "")),
        _ => (),
    }
    type Place = (&'static str, &'static str);
    /// Group, resource and where the field is there.
    type Row = (&'static str, &'static str, Place);
    static FIELDS: LazyLock<HashMap<&str, Vec<Row>>> = LazyLock::new(|| {
        let mut all: HashMap<_, Vec<_>> = HashMap::new();
        for row in TABLE.lines().filter(|row| !row.starts_with('#')) {
            let mut columns = [""; 5];
            for (slot, column) in columns.iter_mut().zip(row.split('\t')) {
                *slot = column;
            }
            let [group, resource, field, place, absent] = columns;
            let place = if place.is_empty() { field } else { place };
            all.entry(field).or_default().push((group, resource, (place, absent)));
        }
        all
    });
    let known = FIELDS.get(field)?.iter();
    let mut of_resource = known.filter(|it| (it.0, it.1) == (&*resource.group, &*resource.name));
    of_resource.next().map(|it| it.2)
}

/// How it is said that there is no such field, which is different for few.
fn words_of_fields(resource: &Resource, field: &str) -> String {
    match (&*resource.group, &*resource.name) {
        ("batch", "jobs") => format!("field label {field:?} not supported for {}", resource.kind),
        ("resource.k8s.io", _) => format!(
            "field label not supported for {}, Kind={}: {field}",
            resource.api_version(),
            resource.kind
        ),
        _ => format!("field label not supported: {field}"),
    }
}

/// Whether a resource offers nothing beyond what all do.
fn offers_none(resource: &Resource) -> bool {
    let rows = TABLE.lines().filter(|row| !row.starts_with('#'));
    let mut own = rows.filter(|row| {
        let mut columns = row.split('\t');
        (columns.next(), columns.next()) == (Some(&*resource.group), Some(&*resource.name))
    });
    resource.selectable_fields.is_empty() && own.next().is_none()
}

#[cfg(test)]
mod tests {
    use insula_api::resources::built_in;
    use insula_partition::store::Revision;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_row_is_of_a_resource() {
        for row in TABLE.lines().filter(|row| !row.starts_with('#')) {
            let columns: Vec<&str> = row.split('\t').collect();
            let known = built_in().iter().any(|it| it.group == columns[0] && it.name == columns[1]);
            assert!(known, "{row}");
        }
    }

    #[test]
    fn fields_are_found() {
        let get = |group: &str, name: &str| {
            built_in().iter().find(|it| it.group == group && it.name == name).unwrap()
        };
        let (pods, events) = (get("", "pods"), get("", "events"));
        let pod = json!({"spec": {"nodeName": "n"}});
        assert_eq!(field_of(pods, &pod, "spec.host"), "n");
        assert_eq!(field_of(pods, &pod, "spec.hostNetwork"), "false");
        let event = json!({"source": {"component": ""}, "reportingComponent": "c"});
        assert_eq!(field_of(events, &event, "source"), "c");
        let job = json!({"status": {"succeeded": 2}});
        assert_eq!(field_of(get("batch", "jobs"), &job, "status.successful"), "2");
        assert_eq!(place_of(get("", "configmaps"), "data"), None);
    }

    /// What is looked for before anything is parsed is there in whatever matches.
    #[test]
    fn needles_are_in_all_that_matches() {
        let get = |group: &str, name: &str| {
            built_in().iter().find(|it| (&*it.group, &*it.name) == (group, name)).unwrap()
        };
        let matches = |group: &str, name: &str, fields: &str, object: &Value| {
            let matcher = Matcher::parse(None, Some(fields), get(group, name)).unwrap();
            let value = object.to_string().into();
            matcher.matches(get(group, name), &Entry { value, modified: Revision(1) })
        };
        let pod = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n7"}});
        assert!(matches("", "pods", "spec.nodeName=n7", &pod));
        assert!(!matches("", "pods", "spec.nodeName=n", &pod));
        assert!(!matches("", "pods", "spec.nodeName!=n7", &pod));
        assert!(matches("", "pods", "spec.hostNetwork=false,spec.nodeName=n7", &pod));
        assert!(!matches("", "pods", "spec.hostNetwork=true", &pod));
        let job = json!({"status": {"succeeded": 2}});
        assert!(matches("batch", "jobs", "status.successful=2", &job));
        let event = json!({"involvedObject": {"fieldPath": "spec{\"x\"}\\"}});
        let selector = "involvedObject.fieldPath=spec{\"x\"}\\\\";
        assert!(matches("", "events", selector, &event));
    }
}
