//! Label selectors of specs, ready to match.

use insula_api::selector::{Selector, SelectorError};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Compiles a label selector as it stands in a spec.
pub fn compile(selector: &LabelSelector) -> Result<Selector, SelectorError> {
    let labels = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    Selector::from_parts(
        labels.map(|(key, value)| (key.as_str(), value.as_str())),
        expressions.map(|it| {
            (it.key.as_str(), it.operator.as_str(), it.values.as_deref().unwrap_or_default())
        }),
    )
}
