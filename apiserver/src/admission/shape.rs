//! What a webhook or a policy made of an object, read again as if a client had sent it.

use insula_api::{decode, defaults, object, schema::Schema};
use serde_json::Value;

use super::{Admission, rules::Meant};
use crate::{
    custom,
    error::{ApiError, Result},
    strategy,
};

/// Metadata that only the server decides.
const KEPT: [&str; 6] =
    ["tenant", "namespace", "uid", "creationTimestamp", "resourceVersion", "deletionTimestamp"];

impl Admission<'_> {
    /// Takes over `after`, which was made of `before`, both as `meant` has the object: without
    /// what its kind does not know and with all defaults. False if nothing changed.
    pub(super) async fn take(
        &self,
        meant: &Meant,
        before: &Value,
        after: Value,
        it: &mut Value,
    ) -> Result<bool> {
        let mut made = self.read_again(meant, after)?;
        keep_identity(before, &mut made);
        if made == *before {
            return Ok(false);
        }
        *it = self.taken_back(meant, &made).await?;
        if self.has_own_kind() {
            strategy::normalize(&self.call.served, it);
        }
        Ok(true)
    }

    fn read_again(&self, meant: &Meant, mut value: Value) -> Result<Value> {
        if !value.is_object() {
            return Err(ApiError::internal("the object that a patch came to is none"));
        }
        value["apiVersion"] = meant.kind.api_version().into();
        value["kind"] = meant.kind.kind.as_str().into();
        if let Some(custom) = meant.served.custom().filter(|_| self.has_own_kind()) {
            custom::object::shape(&custom.version, &mut value).map_err(ApiError::internal)?;
            return Ok(value);
        }
        let schema = Schema::built_in();
        let root = schema.by_kind(&meant.kind);
        let mut value = decode::value(schema, root, value).map_err(ApiError::internal)?.value;
        if let Some(root) = root {
            defaults::apply(root, &mut value);
        }
        Ok(value)
    }
}

fn keep_identity(before: &Value, after: &mut Value) {
    let before = object::metadata(before);
    let after = object::metadata_mut(after);
    after.remove("managedFields");
    for field in KEPT {
        match before.get(field) {
            Some(value) => after.insert(field.to_owned(), value.clone()),
            None => after.remove(field),
        };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_stays_who_it_is() {
        let before = json!({"metadata": {"name": "a", "uid": "u", "tenant": "acme"}});
        let mut after = json!({"metadata": {
            "name": "b", "uid": "v", "namespace": "n", "managedFields": [], "labels": {"x": "y"}}});
        keep_identity(&before, &mut after);
        let expected = json!({"metadata": {
            "name": "b", "uid": "u", "tenant": "acme", "labels": {"x": "y"}}});
        assert_eq!(after, expected);
    }
}
