//! Findings of validation, in upstream's words.

use std::fmt::{self, Write as _};

use serde_json::Value;

/// One finding of validation: field path, upstream's cause reason, and message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    pub field: String,
    pub reason: &'static str,
    pub message: String,
}

impl FieldError {
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let message = if detail.is_empty() {
            "Required value".into()
        } else {
            format!("Required value: {detail}")
        };
        Self { field: field.into(), reason: "FieldValueRequired", message }
    }

    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        let message = told(&shown(value), detail);
        Self { field: field.into(), reason: "FieldValueInvalid", message }
    }

    /// The same error of what lies in `field`.
    pub fn below(mut self, field: &str) -> Self {
        self.field = match self.field.chars().next() {
            None | Some('<') => field.to_owned(),
            Some('[') => format!("{field}{}", self.field),
            Some(_) => format!("{field}.{}", self.field),
        };
        self
    }

    /// As [`FieldError::invalid`], of a value in the form that messages have of it.
    pub fn invalid_form(field: impl Into<String>, form: &str, detail: &str) -> Self {
        let message = told(&cut(form), detail);
        Self { field: field.into(), reason: "FieldValueInvalid", message }
    }

    /// As [`FieldError::unsupported`], of a value in the form that messages have of it.
    pub fn unsupported_form(field: impl Into<String>, form: &str, allowed: &[&str]) -> Self {
        let allowed: Vec<String> = allowed.iter().map(|it| format!("{it:?}")).collect();
        let (form, allowed) = (cut(form), allowed.join(", "));
        let message = format!("Unsupported value: {form}: supported values: {allowed}");
        Self { field: field.into(), reason: "FieldValueNotSupported", message }
    }

    /// As [`FieldError::duplicate`], of a value in the form that messages have of it.
    pub fn duplicate_form(field: impl Into<String>, form: &str) -> Self {
        let message = format!("Duplicate value: {}", cut(form));
        Self { field: field.into(), reason: "FieldValueDuplicate", message }
    }

    pub fn not_found(field: impl Into<String>, name: &str) -> Self {
        let message = format!("Not found: {name:?}");
        Self { field: field.into(), reason: "FieldValueNotFound", message }
    }

    /// Why something is wrong, without what it is.
    pub fn invalid_whole(field: impl Into<String>, detail: &str) -> Self {
        let message = format!("Invalid value: {detail}");
        Self { field: field.into(), reason: "FieldValueInvalid", message }
    }

    pub fn unsupported(field: impl Into<String>, value: &Value, allowed: &[&str]) -> Self {
        let allowed: Vec<String> = allowed.iter().map(|it| format!("{it:?}")).collect();
        let message = format!(
            "Unsupported value: {}: supported values: {}",
            shown(value),
            allowed.join(", ")
        );
        Self { field: field.into(), reason: "FieldValueNotSupported", message }
    }

    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        let message = format!("Forbidden: {detail}");
        Self { field: field.into(), reason: "FieldValueForbidden", message }
    }

    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        let message = format!("Duplicate value: {}", shown(value));
        Self { field: field.into(), reason: "FieldValueDuplicate", message }
    }

    pub fn type_invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        let message = format!("Invalid value: {}: {detail}", shown(value));
        Self { field: field.into(), reason: "FieldValueTypeInvalid", message }
    }

    pub fn too_many(field: impl Into<String>, found: usize, limit: usize) -> Self {
        let message = format!("Too many: {found}: must have at most {limit} items");
        Self { field: field.into(), reason: "FieldValueTooMany", message }
    }

    pub fn too_long(field: impl Into<String>, limit: usize) -> Self {
        let message = format!("Too long: may not be more than {limit} bytes");
        Self { field: field.into(), reason: "FieldValueTooLong", message }
    }
}

/// Most of a value that a message shows, in bytes.
const SHOWN: usize = 4096;

/// Takes so much and no more, however large a value is.
#[derive(Default)]
struct Beginning(String);

impl fmt::Write for Beginning {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = SHOWN - self.0.len();
        let end = text.floor_char_boundary(room);
        self.0.push_str(&text[..end]);
        if end == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

impl Beginning {
    fn of(write: impl FnOnce(&mut Self) -> fmt::Result) -> String {
        let mut beginning = Self::default();
        match write(&mut beginning) {
            Ok(()) => beginning.0,
            Err(fmt::Error) => beginning.0 + "...",
        }
    }
}

/// The beginning of a value, as Go shows it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => Beginning::of(|out| quote(out, text)),
        other => Beginning::of(|out| write!(out, "{other}")),
    }
}

/// That a value is wrong, and why, if there is more to say.
fn told(value: &str, detail: &str) -> String {
    match detail {
        "" => format!("Invalid value: {value}"),
        detail => format!("Invalid value: {value}: {detail}"),
    }
}

/// A text as Go quotes it.
fn quote(out: &mut Beginning, text: &str) -> fmt::Result {
    out.write_char('"')?;
    for letter in text.chars() {
        match letter {
            '"' | '\\' => write!(out, "\\{letter}")?,
            '\u{7}' => out.write_str("\\a")?,
            '\u{8}' => out.write_str("\\b")?,
            '\u{b}' => out.write_str("\\v")?,
            '\u{c}' => out.write_str("\\f")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            it if it.is_ascii_control() => write!(out, "\\x{:02x}", u32::from(it))?,
            it if it.is_control() => write!(out, "\\u{:04x}", u32::from(it))?,
            it => out.write_char(it)?,
        }
    }
    out.write_char('"')
}

fn cut(text: &str) -> String {
    Beginning::of(|out| out.write_str(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_as_go_does_it() {
        assert_eq!(shown(&"a\"\\\u{7}\n\u{1}ä".into()), r#""a\"\\\a\n\x01ä""#);
        assert!(shown(&"x".repeat(5000).into()).ends_with("x..."));
    }
}
