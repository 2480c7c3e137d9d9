//! The types of all built-in kinds, as one graph.
//!
//! Everything structural is driven by it: decoding of JSON, YAML and protobuf, defaults, patches,
//! OpenAPI. There is one table (`tables/types.tsv`, derived by `tables/generate.py`, plus our own
//! additions in `tables/insula.tsv`) and no other place that says what fields a kind has.
//!
//! The table is parsed once at first use (about 4,000 rows, a few milliseconds).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::LazyLock,
};

use serde_json::Value;

const TYPES: &str = include_str!("../tables/types.tsv");
const POINTERS: &str = include_str!("../tables/pointers.tsv");
const PRESENCE: &str = include_str!("../tables/presence.tsv");
const GO_NAMES: &str = include_str!("../tables/go_names.tsv");
const ENUMS: &str = include_str!("../tables/enums.tsv");
const OURS: &str = include_str!("../tables/insula.tsv");
const DOCS: &str = include_str!("../tables/insula-docs.tsv");

/// Index of a [`Type`] in its [`Schema`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeId(u32);

impl TypeId {
    /// Its place among all types, for tables beside the schema's.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A structured type: an object with known fields.
#[derive(Debug, Clone)]
pub struct Type {
    /// Its name in OpenAPI, such as `io.k8s.api.core.v1.Pod`.
    pub name: &'static str,
    /// Sorted by name.
    pub fields: Vec<Field>,
    /// What is quickly compared of the fields' names, with the fields' places; sorted.
    by_look: Vec<(u32, u16)>,
    /// Replaced as a whole by server-side apply.
    pub atomic: bool,
    /// Paths of field numbers with the index of their field, sorted.
    by_number: Vec<(Vec<u32>, usize)>,
}

/// What a field number of a message stands for.
#[derive(Debug, Clone, Copy)]
pub enum Numbered<'a> {
    Field(&'a Field),
    /// A message that Go embeds: its fields are the outer type's.
    Embedded,
}

/// Numbers differ where names do, mostly: every part of every object is looked up by name, and
/// comparing texts is what that would cost.
fn look_of(name: &str) -> u32 {
    let bytes = name.as_bytes();
    let at = |place: usize| bytes.get(place).copied().unwrap_or_default();
    let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
    u32::from_be_bytes([length, at(0), at(bytes.len() / 2), at(bytes.len().saturating_sub(1))])
}

impl Type {
    pub fn field(&self, name: &str) -> Option<&Field> {
        let look = look_of(name);
        let first = self.by_look.partition_point(|(known, _)| *known < look);
        let alike = self.by_look[first..].iter().take_while(|(known, _)| *known == look);
        let mut alike = alike.filter_map(|(_, place)| self.fields.get(usize::from(*place)));
        alike.find(|field| field.name == name)
    }

    /// What the last number of `path` means in the embedded message that the rest leads to.
    pub fn numbered(&self, path: &[u32]) -> Option<Numbered<'_>> {
        let index = self.by_number.partition_point(|(known, _)| known.as_slice() < path);
        let (known, field) = self.by_number.get(index)?;
        if known == path {
            return self.fields.get(*field).map(Numbered::Field);
        }
        known.starts_with(path).then_some(Numbered::Embedded)
    }

    /// The last part of the name, such as `PodSpec`.
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }
}

/// One field of a [`Type`].
#[derive(Debug, Clone)]
pub struct Field {
    pub name: &'static str,
    pub shape: Shape,
    /// Always present in what upstream's server sends.
    pub required: bool,
    /// An optional scalar in which zero differs from absent.
    pub pointer: bool,
    /// Go's encoder writes it even if nobody ever set it.
    pub always: bool,
    pub go: GoName,
    pub list: ListKind,
    /// A map or structure that server-side apply replaces as a whole here.
    pub atomic: bool,
    pub patch: PatchStrategy,
    /// What the OpenAPI document gives as default.
    pub default: Option<Value>,
    /// Field numbers from the outer message inwards: more than one where Go embeds a message
    /// that is flat in JSON. Empty if the field cannot be sent in protobuf.
    pub proto: Vec<u32>,
}

impl Field {
    /// Whether a scalar that is zero, false or empty is the same as none. In our own kinds, which
    /// have no form in protobuf, it is not.
    pub fn drops_zero(&self) -> bool {
        !self.always && !self.pointer && !self.proto.is_empty()
    }
}

/// What Go calls a field where that does not follow from the rest.
#[derive(Debug, Clone, Copy, Default)]
pub struct GoName {
    /// The structures that it embeds on the way to the field.
    pub embedded: &'static str,
    /// The field's type, if that has a name of its own.
    pub shape: &'static str,
}

/// What a value looks like in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    String,
    /// base64 text.
    Bytes,
    Bool,
    Int32,
    Int64,
    Double,
    Quantity,
    IntOrString,
    /// RFC 3339, whole seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// A length of time as Go writes it.
    Duration,
    /// Any JSON object, kept as it is.
    Raw,
    /// Any JSON value, kept as it is.
    Any,
    /// A JSON schema, or what may stand in its place.
    Either(Either, TypeId),
    Object(TypeId),
    List(Box<Shape>),
    Map(Box<Shape>),
}

impl Shape {
    /// The type of the structures in it, also of those in its lists and maps.
    pub fn innermost(&self) -> Option<TypeId> {
        match self {
            Self::Object(id) => Some(*id),
            Self::List(item) | Self::Map(item) => item.innermost(),
            _ => None,
        }
    }
}

/// What may stand in the place of a JSON schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Either {
    Bool,
    /// A list of schemas.
    List,
    /// A list of names of properties.
    Names,
}

/// How server-side apply sees a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ListKind {
    #[default]
    Atomic,
    Set,
    Map(Vec<&'static str>),
}

/// How a strategic merge patch sees a field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub retain_keys: bool,
    /// Names the field that identifies an item; empty for lists of scalars.
    pub merge_key: &'static str,
}

/// A kind as the API names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gvk {
    /// `""` for the core group.
    pub group: String,
    pub version: String,
    pub kind: String,
}

impl Gvk {
    pub fn new(group: &str, version: &str, kind: &str) -> Self {
        Self { group: group.into(), version: version.into(), kind: kind.into() }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }
}

/// `v1` for the core group, else `group/version`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// All types, by name and by kind.
#[derive(Debug)]
pub struct Schema {
    types: Vec<Type>,
    by_name: HashMap<&'static str, TypeId>,
    by_kind: BTreeMap<Gvk, TypeId>,
}

/// Names of types that are not structures in JSON.
fn special(name: &str) -> Option<Shape> {
    Some(match name {
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => Shape::Quantity,
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => Shape::IntOrString,
        "io.k8s.apimachinery.pkg.apis.meta.v1.Time" => Shape::Time,
        "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime" => Shape::MicroTime,
        "io.k8s.apimachinery.pkg.apis.meta.v1.Duration" => Shape::Duration,
        "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1"
        | "io.k8s.apimachinery.pkg.runtime.RawExtension" => Shape::Raw,
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON" => Shape::Any,
        _ => return None,
    })
}

impl Schema {
    /// The table of this build. Parsed at the first call.
    pub fn built_in() -> &'static Self {
        static SCHEMA: LazyLock<Schema> = LazyLock::new(|| Schema::parse(&[TYPES, OURS]));
        &SCHEMA
    }

    fn parse(tables: &[&'static str]) -> Self {
        let rows = || {
            let lines = tables.iter().flat_map(|table| table.lines());
            lines.filter(|line| !line.starts_with('#') && !line.is_empty()).map(|line| {
                let mut columns = [""; 8];
                for (slot, column) in columns.iter_mut().zip(line.split('\t')) {
                    *slot = column;
                }
                columns
            })
        };
        let mut schema =
            Self { types: Vec::new(), by_name: HashMap::new(), by_kind: BTreeMap::new() };
        // Types first, so that fields can refer to any of them.
        for [name, field, _, map_kind, kinds, ..] in rows() {
            if !field.is_empty() {
                continue;
            }
            let id = TypeId(u32::try_from(schema.types.len()).unwrap_or(u32::MAX));
            schema.types.push(Type {
                name,
                fields: Vec::new(),
                atomic: map_kind == "atomic",
                by_look: Vec::new(),
                by_number: Vec::new(),
            });
            schema.by_name.insert(name, id);
            for kind in kinds.split(',').filter(|kind| !kind.is_empty()) {
                let mut parts = kind.split('/');
                if let (Some(group), Some(version), Some(kind)) =
                    (parts.next(), parts.next(), parts.next())
                {
                    schema.by_kind.entry(Gvk::new(group, version, kind)).or_insert(id);
                }
            }
        }
        let pointers: HashSet<(&str, &str)> =
            POINTERS.lines().filter_map(|line| line.split_once('\t')).collect();
        let presence: HashMap<(&str, &str), bool> = PRESENCE
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (name, rest) = line.split_once('\t')?;
                let (field, how) = rest.split_once('\t')?;
                Some(((name, field), how == "always"))
            })
            .collect();
        let go_names: HashMap<(&str, &str), GoName> = GO_NAMES
            .lines()
            .filter_map(|line| {
                let mut columns = line.split('\t');
                let field = (columns.next()?, columns.next()?);
                Some((field, GoName { embedded: columns.next()?, shape: columns.next()? }))
            })
            .collect();
        for [name, field, json, list, patch, default, proto, _] in rows() {
            let Some(&id) = schema.by_name.get(name).filter(|_| !field.is_empty()) else {
                continue;
            };
            let required = json.ends_with('!');
            let pointer = pointers.contains(&(name, field));
            let shape = schema.shape(json.trim_end_matches('!'));
            let default: Option<Value> = serde_json::from_str(default).ok();
            let structure =
                matches!(shape, Shape::Object(_)) && default.as_ref().is_some_and(Value::is_object);
            let always = presence.get(&(name, field)).copied();
            let field = Field {
                name: field,
                go: go_names.get(&(name, field)).copied().unwrap_or_default(),
                shape,
                required,
                pointer,
                always: always.unwrap_or(structure || (required && !pointer)),
                list: parse_list(list),
                atomic: list == "atomic",
                patch: parse_patch(patch),
                default,
                proto: proto.split('/').filter_map(|number| number.parse().ok()).collect(),
            };
            schema.types[id.0 as usize].fields.push(field);
        }
        for it in &mut schema.types {
            it.fields.sort_by_key(|field| field.name);
            let looks =
                it.fields.iter().zip(0..).map(|(field, place)| (look_of(field.name), place));
            it.by_look = looks.collect();
            it.by_look.sort_unstable();
            let numbered =
                it.fields.iter().enumerate().filter(|(_, field)| !field.proto.is_empty());
            it.by_number = numbered.map(|(index, field)| (field.proto.clone(), index)).collect();
            it.by_number.sort();
        }
        schema
    }

    fn shape(&self, json: &str) -> Shape {
        if let Some(inner) = json.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return Shape::List(Box::new(self.shape(inner)));
        }
        if let Some(inner) = json.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            return Shape::Map(Box::new(self.shape(inner)));
        }
        if let Some(name) = json.strip_prefix("->") {
            return special(name)
                .or_else(|| self.either(name))
                .or_else(|| self.by_name.get(name).map(|&id| Shape::Object(id)))
                .unwrap_or(Shape::Any);
        }
        match json {
            "string" => Shape::String,
            "string:byte" => Shape::Bytes,
            "boolean" => Shape::Bool,
            "integer:int32" => Shape::Int32,
            "integer:int64" | "integer" => Shape::Int64,
            "number:double" | "number" => Shape::Double,
            "object" => Shape::Raw,
            _ => Shape::Any,
        }
    }

    fn either(&self, name: &str) -> Option<Shape> {
        let (props, or) = name.split_once("JSONSchemaPropsOr")?;
        let id = self.by_name(&format!("{props}JSONSchemaProps"))?;
        let either = match or {
            "Bool" => Either::Bool,
            "Array" => Either::List,
            "StringArray" => Either::Names,
            _ => return None,
        };
        Some(Shape::Either(either, id))
    }

    /// Whether objects of this type can be written in protobuf: ours cannot.
    pub fn has_proto(&self, id: TypeId) -> bool {
        self.get(id).fields.iter().any(|field| !field.proto.is_empty())
    }

    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.index()]
    }

    pub fn by_name(&self, name: &str) -> Option<TypeId> {
        self.by_name.get(name).copied()
    }

    /// The type of a kind that can be an object of its own.
    pub fn by_kind(&self, kind: &Gvk) -> Option<TypeId> {
        self.by_kind.get(kind).copied()
    }

    /// All kinds, in order.
    pub fn kinds(&self) -> impl Iterator<Item = (&Gvk, TypeId)> {
        self.by_kind.iter().map(|(kind, &id)| (kind, id))
    }

    /// All types, in table order.
    pub fn types(&self) -> impl ExactSizeIterator<Item = (TypeId, &Type)> {
        self.types.iter().enumerate().map(|(index, it)| (TypeId(index as u32), it))
    }
}

/// What the table says of a field of a type: what it is in JSON, such as
/// `[->io.k8s.api.core.v1.Volume]`, and how lists and maps are divided, if that is said. Documents
/// tell what a [`Field`] no longer tells apart.
pub fn words() -> impl Iterator<Item = ((&'static str, &'static str), [&'static str; 2])> {
    [TYPES, OURS].into_iter().flat_map(str::lines).filter_map(|line| {
        let mut columns = line.split('\t');
        let field = (columns.next()?, columns.next()?);
        Some((field, [columns.next()?, columns.next().unwrap_or_default()]))
    })
}

/// The values that documents name for a field of a type, with `|` between them.
pub fn enums() -> impl Iterator<Item = ((&'static str, &'static str), &'static str)> {
    ENUMS.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let mut columns = line.split('\t');
        Some(((columns.next()?, columns.next()?), columns.next()?))
    })
}

/// What a type of ours is, or a field of it; `None` for those of Kubernetes.
pub fn description(kind: &str, field: Option<&str>) -> Option<&'static str> {
    static TEXTS: LazyLock<HashMap<(&str, &str), &str>> = LazyLock::new(|| {
        let rows = DOCS.lines().filter(|line| !line.starts_with('#'));
        let columns = rows.filter_map(|row| {
            let mut columns = row.splitn(3, '\t');
            Some(((columns.next()?, columns.next()?), columns.next()?))
        });
        columns.collect()
    });
    // Every object has these, and they are the same everywhere.
    let common = || match field {
        Some("apiVersion") => Some("The version of the API that the object is written in."),
        Some("kind") => Some("What the object is."),
        Some("metadata") => Some("Name, labels, annotations and what else all objects have."),
        _ => None,
    };
    TEXTS.get(&(kind, field.unwrap_or(""))).copied().or_else(common)
}

/// `Shape::Object(id)` with a static life, for roots of documents in the built-in schema.
pub(crate) fn object_shape(id: TypeId) -> &'static Shape {
    static SHAPES: LazyLock<Vec<Shape>> =
        LazyLock::new(|| Schema::built_in().types().map(|(id, _)| Shape::Object(id)).collect());
    SHAPES.get(id.0 as usize).unwrap_or(&Shape::Any)
}

fn parse_list(text: &'static str) -> ListKind {
    match text.split_once(':') {
        Some(("map", keys)) => ListKind::Map(keys.split(',').collect()),
        _ if text == "set" => ListKind::Set,
        _ => ListKind::Atomic,
    }
}

fn parse_patch(text: &'static str) -> PatchStrategy {
    let (strategies, merge_key) = text.split_once('/').unwrap_or((text, ""));
    let has = |wanted: &str| strategies.split(',').any(|strategy| strategy == wanted);
    PatchStrategy { merge: has("merge"), retain_keys: has("retainKeys"), merge_key }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(kind: &str, name: &str) -> &'static Field {
        let schema = Schema::built_in();
        schema.get(schema.by_name(kind).unwrap()).field(name).unwrap()
    }

    #[test]
    fn every_field_is_found_and_no_other() {
        for (_, it) in Schema::built_in().types() {
            for field in &it.fields {
                assert_eq!(it.field(field.name).map(|it| it.name), Some(field.name));
            }
            assert!(it.field("").is_none() && it.field("nameX").is_none());
        }
    }

    #[test]
    fn pods_containers_are_a_keyed_list() {
        let containers = field("io.k8s.api.core.v1.PodSpec", "containers");
        assert_eq!(containers.list, ListKind::Map(vec!["name"]));
        assert_eq!(containers.patch.merge_key, "name");
        assert!(containers.patch.merge && containers.required);
        assert_eq!(containers.proto, [2]);
    }

    #[test]
    fn embedded_messages_have_number_paths() {
        assert_eq!(field("io.k8s.api.core.v1.Volume", "emptyDir").proto, [2, 2]);
        assert_eq!(field("io.k8s.api.core.v1.Volume", "name").proto, [1]);
    }

    #[test]
    fn our_additions_are_part_of_the_graph() {
        assert_eq!(
            field("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "tenant").shape,
            Shape::String
        );
        let schema = Schema::built_in();
        assert!(schema.by_kind(&Gvk::new("insula.io", "v1", "Tenant")).is_some());
    }

    /// `kubectl explain` has something to say of each.
    #[test]
    fn our_own_are_described_and_nothing_else() {
        let mut ours = std::collections::BTreeSet::new();
        // What metrics are is not in upstream's table either.
        let is_ours =
            |it: &Type| it.name.contains(".insula.") || it.name.contains(".apis.metrics.");
        for (_, it) in Schema::built_in().types().filter(|(_, it)| is_ours(it)) {
            ours.insert((it.name, ""));
            assert!(description(it.name, None).is_some(), "{}", it.name);
            for field in &it.fields {
                ours.insert((it.name, field.name));
                assert!(
                    description(it.name, Some(field.name)).is_some(),
                    "{} {}",
                    it.name,
                    field.name
                );
            }
        }
        for row in DOCS.lines().filter(|row| !row.starts_with('#')) {
            let columns: Vec<_> = row.split('\t').collect();
            let [kind, field, _] = columns[..] else { panic!("{row}") };
            assert!(ours.contains(&(kind, field)) || kind.ends_with("ObjectMeta"), "{row}");
        }
    }

    /// Every reference in the table leads somewhere: `Any` stands only for what JSON leaves open.
    #[test]
    fn no_field_fell_back_to_any() {
        let schema = Schema::built_in();
        for (_, it) in schema.types() {
            for field in it.fields.iter().filter(|field| field.shape == Shape::Any) {
                assert!(
                    it.name.contains("apiextensions") || it.name.contains("WatchEvent"),
                    "{} {}",
                    it.name,
                    field.name
                );
            }
        }
    }
}
