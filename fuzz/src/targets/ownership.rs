//! Field ownership: sets of fields, and two managers who apply.

use insula_api::{
    decode,
    schema::Schema,
    structural::{
        apply::{Applier, ApplyError, Scope, apply as apply_config},
        built_in::BuiltIn,
        compare::{Comparison, compare},
        extract::created,
        fields,
        managers::{Identity, Managers, Operation},
        set::Set,
        versions::Only,
    },
};
use serde_json::Value;

use crate::input;

/// Two sets of fields.
pub(super) fn sets(bytes: &[u8]) {
    let [one, two] = input::parts(bytes);
    let (Some(one), Some(two)) = (input::text(one), input::text(two)) else { return };
    let read = |text| {
        let set: Option<Set<'_>> = fields::decode(text).ok();
        if let Some(set) = &set {
            let text = fields::encode(set);
            assert_eq!(fields::decode(&text).ok().as_ref(), Some(set), "{text}");
        }
        set
    };
    let (Some(one), Some(two)) = (read(one), read(two)) else { return };
    let both = one.clone().union(two.clone());
    assert!(one.is_within(&both) && two.is_within(&both));
    assert_eq!(both, two.clone().union(one.clone()));
    assert!(both.len() <= one.len() + two.len());
    let mut shared = one.clone();
    shared.intersect(&two);
    assert!(shared.is_within(&one) && shared.is_within(&two));
    assert_eq!(one.meets(&two), !shared.is_empty());
    assert_eq!(both.len() + shared.len(), one.len() + two.len());
    let mut rest = one.clone();
    rest.remove(&two);
    assert!(!rest.meets(&two) && rest.is_within(&one));
    assert_eq!(rest.union(shared), one);
    assert_eq!(both.texts().len(), both.len());
}

fn manager(name: &str) -> Identity<'_> {
    Identity {
        manager: name.into(),
        operation: Operation::Apply,
        api_version: "v1".into(),
        subresource: "".into(),
    }
}

/// A kind's name, an object, and what two want of it.
pub(super) fn apply(bytes: &[u8]) {
    let [name, live, one, two] = input::parts(bytes);
    let schema = Schema::built_in();
    let (_, id) = input::kind(name);
    let read = |bytes| {
        decode::json(schema, Some(id), bytes).ok().map(|it| it.value).filter(Value::is_object)
    };
    let (Some(live), Some(one), Some(two)) = (read(live), read(one), read(two)) else { return };
    let root = BuiltIn::root(id);
    let scope = Scope::new(&[], &[&["status"]], &[&["apiVersion"], &["kind"], &["metadata"]]);
    // What was there before anybody applied is somebody's.
    let before = Identity { operation: Operation::Update, ..manager("before") };
    let Ok(mut set) = created(root, &live) else { return };
    scope.strip(&mut set);
    let comparison = Comparison { added: set, ..Comparison::default() };
    let mut managers = Managers::default();
    managers.update(&before, comparison, &[], "t0");
    let live = live.clone();
    let (first, second) = (manager("one"), manager("two"));
    let Some(live) = applied(root, &live, &one, &mut managers, (&first, &scope)) else {
        return;
    };
    let Some(live) = applied(root, &live, &two, &mut managers, (&second, &scope)) else {
        return;
    };
    // Who forced has all that it wanted, so nobody is in its way now.
    let mut same = managers.clone();
    let identity = &second;
    let applier = Applier { identity, scope: &scope, force: false, now: "t2", told_version: None };
    let found = apply_config(&Only(root), &live, &two, &mut same, applier);
    assert_eq!(found, Ok(None), "an apply does nothing the second time");
    assert_eq!(same, managers);
    // Whoever wants nothing any more leaves what others have.
    let nothing = serde_json::json!({"metadata": {}});
    let held = managers.of(&first);
    let without = applied(root, &live, &nothing, &mut managers, (&second, &scope));
    if without.is_some() {
        let left = managers.of(&first);
        assert!(held.is_none() || left == held, "what others have stays: {held:?} {left:?}");
    }
}

/// What becomes of an object; none if that cannot be.
fn applied<'a>(
    root: BuiltIn,
    live: &Value,
    config: &'a Value,
    managers: &mut Managers<'a>,
    (identity, scope): (&Identity<'a>, &Scope),
) -> Option<Value> {
    let applier = Applier { identity, scope, force: true, now: "t1", told_version: None };
    let new = match apply_config(&Only(root), live, config, managers, applier) {
        Ok(new) => new.unwrap_or_else(|| live.clone()),
        Err(ApplyError::Conflicts(found)) => panic!("it was forced: {found:?}"),
        Err(ApplyError::Config(_) | ApplyError::Live(_) | ApplyError::Version(_)) => return None,
    };
    let text = managers.clone().encode().unwrap_or_default();
    if !text.is_empty() {
        let again = Managers::decode(&text, false).expect("what was written can be read");
        assert!(again.is_same_but_for_times(managers), "{text}");
    }
    let changes = compare(root, &new, &new).expect("what comes of it fits");
    assert!(changes.is_empty());
    Some(new)
}
