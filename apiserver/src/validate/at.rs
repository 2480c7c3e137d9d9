//! A structure that is checked, with its place: what checks look at, and how they say what is wrong.

use std::collections::BTreeMap;

use insula_api::{field::FieldError, internal, schema::TypeId};
use insula_custom::path::Path;
use serde_json::Value;

/// A structure that is checked, with its place.
pub(super) struct At<'a> {
    pub id: TypeId,
    pub it: &'a Value,
    pub path: &'a Path<'a>,
    pub errors: &'a mut Vec<FieldError>,
    /// How many findings there were before this structure's own.
    pub before: usize,
}

/// What is wrong between the fields of a structure.
pub(super) type Check = fn(&mut At<'_>);

impl<'a> At<'a> {
    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.it.get(field).filter(|it| !it.is_null())
    }

    pub(super) fn has(&self, field: &str) -> bool {
        self.get(field).is_some()
    }

    pub(super) fn text(&self, field: &str) -> &'a str {
        self.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn list(&self, field: &str) -> &'a [Value] {
        self.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    pub(super) fn number(&self, field: &str) -> Option<i64> {
        self.get(field).and_then(Value::as_i64)
    }

    /// The path of something below, as messages show it.
    pub(super) fn at(&self, below: &str) -> String {
        match (self.path.is_root(), below.starts_with('[')) {
            _ if below.is_empty() => self.path.to_string(),
            (true, _) => below.to_owned(),
            (false, true) => format!("{}{below}", self.path),
            (false, false) => format!("{}.{below}", self.path),
        }
    }

    /// The path of the list whose item this is.
    pub(super) fn of_list(&self, below: &str) -> String {
        let list = match self.path {
            Path::Index(list, _) => list.to_string(),
            other => other.to_string(),
        };
        format!("{list}.{below}")
    }

    pub(super) fn required(&mut self, below: &str, why: &str) {
        self.errors.push(FieldError::required(self.at(below), why));
    }

    /// Forgets what the table found wrong with something below, for one reason or for any.
    pub(super) fn take_back(&mut self, below: &str, reason: Option<&str>) {
        let at = self.at(below);
        let own = self.errors.split_off(self.before);
        let is_other =
            |it: &FieldError| it.field != at || reason.is_some_and(|why| it.reason != why);
        self.errors.extend(own.into_iter().filter(is_other));
    }

    /// What messages show of `value`, which is at `below`.
    fn form(&self, below: &str, value: &Value) -> String {
        internal::line(self.id, below, value)
    }

    pub(super) fn forbidden(&mut self, below: &str, why: &str) {
        self.errors.push(FieldError::forbidden(self.at(below), why));
    }

    pub(super) fn invalid(&mut self, below: &str, value: &Value, why: &str) {
        let form = self.form(below, value);
        self.errors.push(FieldError::invalid_form(self.at(below), &form, why));
    }

    /// Something is wrong, and no value is shown.
    pub(super) fn wrong(&mut self, below: &str, why: &str) {
        self.errors.push(FieldError::invalid_whole(self.at(below), why));
    }

    pub(super) fn unsupported(&mut self, below: &str, value: &Value, allowed: &[&str]) {
        let form = self.form(below, value);
        self.errors.push(FieldError::unsupported_form(self.at(below), &form, allowed));
    }

    pub(super) fn duplicate(&mut self, below: &str, value: &Value) {
        let form = self.form(below, value);
        self.errors.push(FieldError::duplicate_form(self.at(below), &form));
    }

    /// Exactly one of several ways, each a field; `what` names them in messages.
    pub(super) fn one_of(&mut self, fields: &[&str], none: &str, more: &str) {
        let mut found = fields.iter().filter(|field| self.has(field));
        let first = found.next().is_some();
        let others: Vec<&str> = found.copied().collect();
        if !first {
            let path = self.path.to_string();
            self.errors.push(FieldError::required(path, none));
        }
        for field in others {
            self.forbidden(field, more);
        }
    }
}

/// A map of texts, ordered, as selectors want it.
pub(super) fn texts(value: Option<&Value>) -> BTreeMap<String, String> {
    let fields = value.and_then(Value::as_object).into_iter().flatten();
    fields
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect()
}
