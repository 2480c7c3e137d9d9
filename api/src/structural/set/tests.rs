use proptest::prelude::*;

use super::*;
use crate::structural::fields;

fn step() -> impl Strategy<Value = Step<'static>> {
    prop_oneof![
        "[a-c]|weird \"\\\\name".prop_map(|name| Step::Field(name.into())),
        "[a-b]".prop_map(|name| Step::Item(format!("k:{{\"name\":\"{name}\"}}").into())),
        (0..3).prop_map(|index| Step::Item(format!("i:{index}").into())),
    ]
}

fn set() -> impl Strategy<Value = Set<'static>> {
    let path = prop::collection::vec(step(), 1..5);
    prop::collection::vec(path, 0..12).prop_map(|paths| {
        let mut set = Set::default();
        paths.iter().for_each(|path| set.insert(path));
        set
    })
}

fn paths(set: &Set<'_>) -> std::collections::BTreeSet<Vec<String>> {
    let mut out = std::collections::BTreeSet::new();
    set.each(&mut |path| {
        out.insert(path.iter().map(|step| format!("{step:?}")).collect());
    });
    out
}

/// The order and that no node is there for nothing.
fn check_form(set: &Set<'_>) {
    assert!(set.nodes.is_sorted_by(|one, two| one.step < two.step), "{set:?}");
    for node in &set.nodes {
        assert!(node.owned || !node.below.is_empty(), "{set:?}");
        check_form(&node.below);
    }
}

proptest! {
    /// A tree of paths does what a plain set of paths does.
    #[test]
    fn operations_are_those_of_sets(a in set(), b in set()) {
        let (one, two) = (paths(&a), paths(&b));
        prop_assert_eq!(a.len(), one.len());
        let union = a.clone().union(b.clone());
        check_form(&union);
        prop_assert_eq!(paths(&union), one.union(&two).cloned().collect());
        prop_assert_eq!(&union, &b.clone().union(a.clone()));

        let mut rest = a.clone();
        rest.remove(&b);
        check_form(&rest);
        prop_assert_eq!(paths(&rest), one.difference(&two).cloned().collect());
        prop_assert!(!rest.meets(&b) && rest.is_within(&a));

        let mut both = a.clone();
        both.intersect(&b);
        check_form(&both);
        prop_assert_eq!(paths(&both), one.intersection(&two).cloned().collect());
        prop_assert_eq!(a.meets(&b), !both.is_empty());
        prop_assert_eq!(a.is_within(&b), one.is_subset(&two));
        // What is taken and what is left are the whole.
        prop_assert_eq!(rest.union(both), a);
    }

    #[test]
    fn a_path_goes_with_all_below_it(a in set(), b in set()) {
        let mut rest = a.clone();
        rest.remove_all_below(&b);
        check_form(&rest);
        let gone = paths(&b);
        let expected = paths(&a).into_iter()
            .filter(|path| !(1..=path.len()).any(|n| gone.contains(&path[..n])))
            .collect();
        prop_assert_eq!(paths(&rest), expected);
    }

    #[test]
    fn leaves_lead_nowhere_further(a in set()) {
        let leaves = a.clone().leaves();
        check_form(&leaves);
        let all = paths(&a);
        let expected = all.iter()
            .filter(|path| !all.iter().any(|it| path.len() < it.len() && it.starts_with(path)))
            .cloned().collect();
        prop_assert_eq!(paths(&leaves), expected);
    }

    /// `FieldsV1` keeps a set as it is, and inserting its paths makes it again.
    #[test]
    fn sets_survive_their_text(a in set()) {
        let text = fields::encode(&a);
        let back = fields::decode(&text).unwrap();
        prop_assert_eq!(&back, &a);
        check_form(&back);
        let mut again = Set::default();
        a.each(&mut |path| again.insert(&path.iter().map(|it| (*it).clone()).collect::<Vec<_>>()));
        prop_assert_eq!(again, a);
    }

    /// Whatever bytes come, they are read or refused, and what is read is canonical from then on.
    #[test]
    fn any_text_is_read_or_refused(
        text in r#"(\{|\}|:|,|"[.fkvi]:[a-z0-9"\\\{\}\[\]]{0,6}"|"\."|\{\}|[ -~]){0,24}"#
    ) {
        if let Ok(set) = fields::decode(&text) {
            check_form(&set);
            let canonical = fields::encode(&set);
            prop_assert_eq!(fields::decode(&canonical).unwrap(), set);
        }
    }
}
