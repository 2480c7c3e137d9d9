//! The table of how resources differ when their objects are written: `api/tables/strategy.tsv`.

use std::{collections::HashMap, sync::LazyLock};

use insula_api::resources::Resource;

const TABLE: &str = include_str!("../../../api/tables/strategy.tsv");

/// What the name of an object may look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Name {
    #[default]
    Subdomain,
    Label,
    /// Anything that can be a part of a path.
    Path,
    Ip,
    /// A label that is not reserved.
    Tenant,
    Any,
}

/// Which changes `metadata.generation` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Generation {
    #[default]
    None,
    Spec,
    /// And annotations.
    SpecAndAnnotations,
    /// All but metadata and status.
    All,
    /// And labels.
    AllAndLabels,
    /// It begins, and stays.
    First,
    /// Of the specification, but it begins without.
    Later,
}

/// What a write of the status leaves as it is, of the metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Kept {
    #[default]
    Nothing,
    Labels,
    OwnerReferences,
    Most,
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Facts {
    pub name: Name,
    pub generation: Generation,
    /// A PUT may create.
    pub put_creates: bool,
    /// A PUT must say which revision it replaces.
    pub put_needs_revision: bool,
    /// A DELETE answers with the object even when it is gone.
    pub deleted_shown: bool,
    /// Dependents stay, unless a delete says otherwise.
    pub orphans: bool,
    /// It takes no part in garbage collection.
    pub no_owner: bool,
    /// An update that leaves out what the object was given keeps it.
    pub keeps_given: bool,
    /// An annotation counts the changes of its template.
    pub counts_templates: bool,
    /// Who creates it says what its status is.
    pub comes_with_status: bool,
    pub kept: Kept,
    /// Fields that nobody here heeds, by their paths, with commas between: they are not taken.
    pub unheeded: &'static str,
}

/// What is special about a resource.
pub(crate) fn of(resource: &Resource) -> Facts {
    static FACTS: LazyLock<HashMap<(&str, &str), Facts>> = LazyLock::new(|| {
        let rows = TABLE.lines().filter(|line| !line.starts_with('#'));
        rows.map(|row| {
            let mut columns = [""; 7];
            for (slot, column) in columns.iter_mut().zip(row.split('\t')) {
                *slot = column;
            }
            let [group, resource, name, generation, flags, kept, unheeded] = columns;
            ((group, resource), Facts { unheeded, ..facts(name, generation, flags, kept) })
        })
        .collect()
    });
    FACTS.get(&(&*resource.group, &*resource.name)).copied().unwrap_or_default()
}

fn facts(name: &str, generation: &str, flags: &str, kept: &str) -> Facts {
    let has = |flag: &str| flags.split(',').any(|it| it == flag);
    Facts {
        name: match name {
            "label" => Name::Label,
            "path" => Name::Path,
            "ip" => Name::Ip,
            "tenant" => Name::Tenant,
            "any" => Name::Any,
            _ => Name::Subdomain,
        },
        generation: match generation {
            "spec" => Generation::Spec,
            "annotations" => Generation::SpecAndAnnotations,
            "all" => Generation::All,
            "labels" => Generation::AllAndLabels,
            "first" => Generation::First,
            "later" => Generation::Later,
            _ => Generation::None,
        },
        put_creates: has("put-creates"),
        put_needs_revision: has("put-needs-revision"),
        deleted_shown: has("deleted-shown"),
        orphans: has("orphans"),
        no_owner: has("no-owner"),
        keeps_given: has("keeps-given"),
        counts_templates: has("counts-templates"),
        comes_with_status: has("comes-with-status"),
        kept: match kept {
            "labels" => Kept::Labels,
            "ownerReferences" => Kept::OwnerReferences,
            "most" => Kept::Most,
            _ => Kept::Nothing,
        },
        unheeded: "",
    }
}

#[cfg(test)]
mod tests {
    use insula_api::{
        resources::built_in,
        schema::{Schema, Shape},
    };

    use super::*;

    #[test]
    fn every_row_is_of_a_resource_and_every_word_is_known() {
        let rows = TABLE.lines().filter(|line| !line.starts_with('#'));
        for row in rows {
            let columns: Vec<&str> = row.split('\t').collect();
            let known =
                built_in().iter().find(|it| it.group == columns[0] && it.name == columns[1]);
            let known = known.unwrap_or_else(|| panic!("{row}"));
            for path in columns.get(6).into_iter().flat_map(|it| it.split(',')) {
                let schema = Schema::built_in();
                let mut id = schema.by_kind(&known.gvk());
                for part in path.split('.') {
                    let field = id.and_then(|id| schema.get(id).field(part));
                    let field = field.unwrap_or_else(|| panic!("{row}: {path}"));
                    id = match field.shape {
                        Shape::Object(id) => Some(id),
                        _ => None,
                    };
                }
            }
            let words = [
                "",
                "label",
                "path",
                "ip",
                "tenant",
                "any",
                "spec",
                "annotations",
                "all",
                "labels",
                "first",
                "later",
                "put-creates",
                "put-needs-revision",
                "deleted-shown",
                "orphans",
                "no-owner",
                "keeps-given",
                "counts-templates",
                "comes-with-status",
                "ownerReferences",
                "most",
            ];
            for word in columns[2..].iter().take(4).flat_map(|it| it.split(',')) {
                assert!(words.contains(&word), "{row}: {word}");
            }
        }
    }

    #[test]
    fn some_rows() {
        let get = |group: &str, name: &str| {
            of(built_in().iter().find(|it| it.group == group && it.name == name).unwrap())
        };
        assert_eq!(get("", "configmaps"), Facts::default());
        assert!(get("batch", "jobs").orphans && get("", "services").put_creates);
        assert_eq!(get("apps", "deployments").kept, Kept::Labels);
    }
}
