//! Places of built-in kinds: the type graph seen by the structural engine.

use serde_json::Value;

use super::{
    extract::{at_index, is_divided_list, member, mismatch},
    go,
    place::{Division, Form, Member, Misfit, Place, item_step},
    set::Step,
};
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

impl BuiltIn {
    /// The whole of an object of a type of the built-in schema.
    pub fn root(id: TypeId) -> Self {
        Self::new(object_shape(id))
    }

    fn new(shape: &'static Shape) -> Self {
        Self { schema: Schema::built_in(), shape, list: &ATOMIC, atomic: false }
    }
}

/// Says what in `value` no object of the kind at `place` can have, in upstream's words.
pub fn check(place: BuiltIn, value: &Value) -> Result<(), Misfit> {
    match (place.shape, value) {
        (_, Value::Null) | (Shape::Any | Shape::Either(..), _) => Ok(()),
        (Shape::Object(_) | Shape::Map(_), Value::Object(map)) => {
            for (name, value) in map {
                let step = Step::field(name);
                let member = member(place, name, &step)?;
                check(member.place, value).map_err(|error| error.below(&step))?;
            }
            Ok(())
        }
        (Shape::Raw, Value::Object(_)) => Ok(()),
        (Shape::Object(_) | Shape::Map(_) | Shape::Raw, _) => Err(mismatch(Form::Map, value)),
        (Shape::List(_), Value::Array(list)) => {
            for (index, item) in list.iter().enumerate() {
                let step = match is_divided_list(place.division()) {
                    true => item_step(place, item).map_err(|error| at_index(index, error))?,
                    false => Step::index(index),
                };
                check(place.item(), item).map_err(|error| error.below(&step))?;
            }
            Ok(())
        }
        (Shape::List(_), _) => Err(mismatch(Form::List, value)),
        (shape, value) => check_scalar(shape, value),
    }
}

fn check_scalar(shape: &Shape, value: &Value) -> Result<(), Misfit> {
    let is_scalar = !value.is_object() && !value.is_array();
    let (fits, wanted, found) = match shape {
        Shape::String | Shape::Duration => {
            (value.is_string(), "string", go::literal_wrapped(value))
        }
        Shape::Bool => (value.is_boolean(), "boolean", go::wrapped(value)),
        Shape::Int32 | Shape::Int64 | Shape::Double => {
            (value.is_number(), "numeric (int or float)", go::type_name(value).to_owned())
        }
        _ => (is_scalar, "any scalar", go::wrapped(value)),
    };
    if fits { Ok(()) } else { Err(Misfit::here(format!("expected {wanted}, got {found}"))) }
}

impl Place for BuiltIn {
    fn division(self) -> Division {
        match (self.shape, self.list) {
            _ if self.atomic => Division::Whole,
            (Shape::Object(id), _) if self.schema.get(*id).atomic => Division::Whole,
            (Shape::Object(_) | Shape::Map(_), _) => Division::Fields,
            (Shape::List(_), ListKind::Set) => Division::Set,
            (Shape::List(_), ListKind::Map(_)) => Division::Keyed,
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
