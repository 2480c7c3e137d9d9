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
        let message = format!("Invalid value: {}: {detail}", shown(value));
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

/// The beginning of a value's JSON, however large it is.
fn shown(value: &Value) -> String {
    const LIMIT: usize = 512;
    /// Takes so much and no more.
    struct Beginning(String);
    impl fmt::Write for Beginning {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let room = LIMIT - self.0.len();
            let end = text.floor_char_boundary(room);
            self.0.push_str(&text[..end]);
            if end == text.len() { Ok(()) } else { Err(fmt::Error) }
        }
    }
    let mut beginning = Beginning(String::new());
    match write!(beginning, "{value}") {
        Ok(()) => beginning.0,
        Err(fmt::Error) => beginning.0 + "...",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_values_are_cut() {
        assert_eq!(shown(&Value::from("a")), "\"a\"");
        let text = shown(&Value::from("é".repeat(1_000)));
        assert!(text.starts_with("\"éé") && text.ends_with("é..."), "{text}");
        assert_eq!(text.len(), 511 + 3);
    }
}
