//! Places of built-in kinds: the type graph seen by the structural engine.

use serde_json::Value;

use super::place::{Division, Member, Place};
use crate::schema::{ListKind, Schema, Shape, TypeId, object_shape};

/// A place in an object of a built-in kind.
#[derive(Debug, Clone, Copy)]
pub struct BuiltIn {
    schema: &'static Schema,
    shape: &'static Shape,
    list: &'static ListKind,
    /// The field is replaced as a whole, whatever its type says.
    atomic: bool,
}

static ATOMIC: ListKind = ListKind::Atomic;
static RAW: Shape = Shape::Raw;

impl BuiltIn {
    /// The whole of an object of a type of the built-in schema.
    pub fn root(id: TypeId) -> Self {
        Self::new(object_shape(id))
    }

    fn new(shape: &'static Shape) -> Self {
        Self { schema: Schema::built_in(), shape, list: &ATOMIC, atomic: false }
    }
}

impl Place for BuiltIn {
    fn division(self) -> Division {
        match (self.shape, self.list) {
            _ if self.atomic => Division::Whole,
            (Shape::Object(id), _) if self.schema.get(*id).atomic => Division::Whole,
            (Shape::Object(_) | Shape::Map(_), _) => Division::Fields,
            (Shape::List(_), ListKind::Set) => Division::Set,
            (Shape::List(_), ListKind::Map(_)) => Division::Keyed,
            (Shape::Raw, _) => Division::Deduced,
            _ => Division::Whole,
        }
    }

    fn member(self, name: &str) -> Option<Member<Self>> {
        match self.shape {
            Shape::Object(id) => {
                let field = self.schema.get(*id).field(name)?;
                let place = Self {
                    schema: self.schema,
                    shape: &field.shape,
                    list: &field.list,
                    atomic: field.atomic,
                };
                Some(Member { place, named: true, always: field.always })
            }
            Shape::Map(inner) => {
                Some(Member { place: Self::new(inner), named: false, always: false })
            }
            Shape::Raw => Some(Member { place: Self::new(&RAW), named: false, always: false }),
            _ => None,
        }
    }

    fn item(self) -> Self {
        match self.shape {
            Shape::List(inner) => Self::new(inner),
            _ => self,
        }
    }

    fn keys(&self) -> impl Iterator<Item = &str> {
        let keys = match self.list {
            ListKind::Map(keys) => keys.as_slice(),
            _ => &[],
        };
        keys.iter().copied()
    }

    fn key_default(&self, key: &str) -> Option<&Value> {
        let Shape::List(item) = self.shape else { return None };
        let Shape::Object(id) = item.as_ref() else { return None };
        self.schema.get(*id).field(key)?.default.as_ref()
    }
}
