//! Short texts: paths, selectors, quantities and times, and the names in certificates.

use insula_api::{
    path::{self, Place, Target, TenantRef},
    quantity::Quantity,
    selector::{FieldSelector, LabelSelector, Selector},
    slots::Slots,
    time,
};
use insula_apiserver::identity::Identity;

use crate::input;

/// A path of a URL.
pub(super) fn paths(bytes: &[u8]) {
    let Some(text) = input::text(bytes) else { return };
    let Ok(Target { tenant, place }) = path::parse(text) else { return };
    if let Place::Resource(it) = &place {
        for part in [&it.group, &it.version, &it.resource, &it.namespace, &it.name, &it.subresource]
        {
            assert!(!part.contains(['/', '%']) && part != "." && part != "..", "{it:?}");
        }
    }
    // Whoever has a tenant in front asks for the same, of that tenant.
    let prefixed = path::parse(&format!("/tenants/acme/{text}"));
    match (&tenant, prefixed) {
        (TenantRef::Callers, Ok(found)) if !is_prefixed(text) => {
            assert!(matches!(&found.tenant, TenantRef::Named(it) if it.as_str() == "acme"));
            assert_eq!(found.place, place);
        }
        // Only for length.
        (TenantRef::Callers, Err(_)) => assert!(8000 < text.len() || is_prefixed(text)),
        (_, found) => {
            let is_other = found.as_ref().is_ok_and(|it| matches!(it.place, Place::Other(_)));
            assert!(found.is_err() || is_other, "two tenants: {found:?}");
        }
    }
}

fn is_prefixed(text: &str) -> bool {
    text.split('/').find(|it| !it.is_empty()).is_some_and(|it| it == "tenants")
}

/// A selector, and a label and its value; or slots.
pub(super) fn selectors(bytes: &[u8]) {
    let [selector, key, value] = input::parts(bytes);
    let (Some(selector), Some(key), Some(value)) =
        (input::text(selector), input::text(key), input::text(value))
    else {
        return;
    };
    let label = |asked: &str| (asked == key).then_some(value);
    if let Ok(found) = Selector::parse(selector) {
        let text = found.to_string();
        let again = Selector::parse(&text);
        assert_eq!(again.as_ref(), Ok(&found), "{text:?}");
        assert_eq!(again.is_ok_and(|it| it.matches_by(label)), found.matches_by(label));
    }
    let field = |asked: &str| label(asked).unwrap_or_default().into();
    if let Ok(found) = FieldSelector::parse(selector) {
        let text = found.to_string();
        let again = FieldSelector::parse(&text);
        assert_eq!(again.as_ref(), Ok(&found), "{text:?}");
        assert_eq!(again.is_ok_and(|it| it.matches(field)), found.matches(field));
    }
    if let Ok(found) = serde_json::from_str::<LabelSelector>(selector)
        && let Ok(compiled) = found.compile()
    {
        assert_eq!(Selector::parse(&compiled.to_string()), Ok(compiled));
    }
    if let Ok(found) = selector.parse::<Slots>() {
        assert!(!found.is_none());
        assert_eq!(found.to_string().parse(), Ok(found));
    }
}

/// A quantity or a time.
pub(super) fn scalars(bytes: &[u8]) {
    let Some(text) = input::text(bytes) else { return };
    if let Ok(found) = Quantity::parse(text) {
        let shown = found.to_string();
        let again = Quantity::parse(&shown).expect("what is shown can be read");
        assert_eq!(again, found, "{shown}");
        assert_eq!(again.to_string(), shown);
        // Up to an edge that is far away, what was added can be taken away.
        let one = Quantity::new(1, found.format());
        if found.value().unsigned_abs() < 1 << 50 {
            assert_eq!(found.saturating_add(one).saturating_sub(one), found);
        }
    }
    for normalize in [time::normalize, time::normalize_micro] {
        if let Some(found) = normalize(text) {
            assert_eq!(normalize(&found).as_deref(), Some(&*found));
        }
    }
}

/// A certificate in DER.
pub(super) fn certificates(bytes: &[u8]) {
    if let Ok(found) = Identity::from_certificate(bytes) {
        assert!(!found.user.is_empty() && !found.tenant.as_str().is_empty());
        assert!(found.groups.len() < 1000);
    }
}
