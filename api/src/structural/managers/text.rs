//! Managers as JSON: `metadata.managedFields`.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Entry, Fields, Identity, Managers, Operation, order};
use crate::structural::{fields, set::Set};

/// Why a list of managers cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ManagersError {
    #[error("operation must be `Apply` or `Update`")]
    Operation,
    #[error("apiVersion must not be empty")]
    ApiVersion,
    #[error("missing fieldsType in managed fields entry {0}")]
    NoFieldsType(usize),
    #[error("invalid fieldsType {found:?} in managed fields entry {index}")]
    FieldsType { found: String, index: usize },
    #[error("error decoding managed fields: {0}")]
    Malformed(#[from] serde_json::Error),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEntry<'a> {
    #[serde(borrow, default)]
    manager: Cow<'a, str>,
    #[serde(borrow, default)]
    operation: Cow<'a, str>,
    #[serde(borrow, default)]
    api_version: Cow<'a, str>,
    #[serde(borrow, default)]
    time: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    fields_type: Cow<'a, str>,
    #[serde(borrow, default, rename = "fieldsV1")]
    fields: Option<&'a RawValue>,
    #[serde(borrow, default)]
    subresource: Cow<'a, str>,
}

impl<'a> Managers<'a> {
    /// Reads the JSON of `metadata.managedFields`. `trusted` says that it was written by
    /// [`Managers::encode`], and each set is read when it is looked at.
    pub fn decode(json: &'a str, trusted: bool) -> Result<Self, ManagersError> {
        if json.is_empty() {
            return Ok(Self::default());
        }
        let raw: Vec<RawEntry<'a>> = serde_json::from_str(json)?;
        let mut managers = Self { entries: Vec::with_capacity(raw.len() + 1) };
        for (index, it) in raw.into_iter().enumerate() {
            let operation = match it.operation.as_ref() {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return Err(ManagersError::Operation),
            };
            if it.api_version.is_empty() {
                return Err(ManagersError::ApiVersion);
            }
            match it.fields_type.as_ref() {
                "FieldsV1" => (),
                "" => return Err(ManagersError::NoFieldsType(index)),
                found => {
                    return Err(ManagersError::FieldsType { found: found.to_owned(), index });
                }
            }
            let text = it.fields.map_or("{}", RawValue::get);
            let fields = match trusted {
                true => Fields::Text(text),
                false => Fields::Set(match text {
                    "null" => Set::EMPTY,
                    text => fields::decode(text)?,
                }),
            };
            let (manager, subresource) = (it.manager, it.subresource);
            let identity =
                Identity { manager, operation, api_version: it.api_version, subresource };
            let entry = Entry { identity, time: it.time, fields };
            // Of two that are one, the later counts.
            match managers.entries.iter_mut().find(|known| known.identity.is(&entry.identity)) {
                Some(known) => *known = entry,
                None => managers.entries.push(entry),
            }
        }
        Ok(managers)
    }

    /// The JSON of `metadata.managedFields`, in upstream's order; `None` if there is nothing.
    pub fn encode(mut self) -> Option<String> {
        self.entries.retain(|it| match &it.fields {
            Fields::Text(_) => true,
            Fields::Set(set) => !set.is_empty(),
        });
        if self.entries.is_empty() {
            return None;
        }
        self.entries.sort_by(|one, two| order(one).cmp(&order(two)));
        let mut out = String::with_capacity(1024);
        for entry in &self.entries {
            out.push(if out.is_empty() { '[' } else { ',' });
            let text = |out: &mut String, name: &str, value: &str| {
                out.push_str(name);
                fields::push_text(out, "", value);
            };
            // Names in order, as any other JSON of this server: so what a client sends back
            // unchanged is the same text.
            text(&mut out, "{\"apiVersion\":", &entry.identity.api_version);
            out.push_str(",\"fieldsType\":\"FieldsV1\",\"fieldsV1\":");
            match &entry.fields {
                Fields::Text(json) => out.push_str(json),
                Fields::Set(set) => fields::write(set, false, &mut out),
            }
            text(&mut out, ",\"manager\":", &entry.identity.manager);
            text(&mut out, ",\"operation\":", entry.identity.operation.name());
            if !entry.identity.subresource.is_empty() {
                text(&mut out, ",\"subresource\":", &entry.identity.subresource);
            }
            if let Some(time) = &entry.time {
                text(&mut out, ",\"time\":", time);
            }
            out.push('}');
        }
        out.push(']');
        Some(out)
    }
}
