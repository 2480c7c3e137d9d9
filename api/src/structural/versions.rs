//! The same object in other versions of its kind.
//!
//! What a manager has is a set of paths in the version in which it wrote. To tell what a write in
//! another version means to it, both objects are brought into its version and compared there, as
//! upstream does it; sets themselves are never converted.

use std::borrow::Cow;

use serde_json::Value;

use super::{
    compare::{Comparison, compare},
    place::{Misfit, Place},
    set::Set,
};

/// An object in one version, and how that version divides it.
#[derive(Debug)]
pub struct InVersion<'o, P> {
    pub root: P,
    pub object: Cow<'o, Value>,
}

/// Why an object has no form in a version.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum VersionError {
    /// Who converts this kind is elsewhere, and has not been asked yet.
    #[error("not converted to {} yet", .0.version)]
    Wanted(Box<Wanted>),
    #[error("{0}")]
    Failed(String),
    /// The converted object does not fit its version.
    #[error("{0}")]
    Misfit(Misfit),
}

impl From<Misfit> for VersionError {
    fn from(misfit: Misfit) -> Self {
        Self::Misfit(misfit)
    }
}

/// A conversion that somebody else has to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub object: Value,
    pub version: String,
}

/// The versions of one kind.
pub trait Versions {
    type Root<'f>: Place
    where
        Self: 'f;

    /// The version of the request, in which objects are unless something else is said.
    fn version(&self) -> &str;

    /// How that version divides objects.
    fn root(&self) -> Self::Root<'_>;

    /// An object, whatever version it is in, as `version` has it.
    fn in_version<'o, 'f: 'o>(
        &'f self,
        object: &'o Value,
        version: &str,
    ) -> Result<InVersion<'o, Self::Root<'f>>, VersionError>;
}

/// A kind of which there is one version only.
#[derive(Debug, Clone, Copy)]
pub struct Only<P>(pub P);

impl<P: Place> Versions for Only<P> {
    type Root<'f>
        = P
    where
        Self: 'f;

    fn version(&self) -> &str {
        ""
    }

    fn root(&self) -> P {
        self.0
    }

    fn in_version<'o, 'f: 'o>(
        &'f self,
        object: &'o Value,
        _: &str,
    ) -> Result<InVersion<'o, P>, VersionError> {
        Ok(InVersion { root: self.0, object: Cow::Borrowed(object) })
    }
}

/// What changed between two objects, in another version than theirs.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    pub version: String,
    pub comparison: Comparison<'static>,
}

/// What changed between two objects, as each of the `others` sees it.
pub fn compare_elsewhere<V: Versions>(
    versions: &V,
    others: Vec<String>,
    old: &Value,
    new: &Value,
) -> Result<Vec<Elsewhere>, VersionError> {
    others
        .into_iter()
        .map(|version| {
            let (old, new) =
                (versions.in_version(old, &version)?, versions.in_version(new, &version)?);
            let comparison = compare(new.root, &old.object, &new.object)?.into_owned();
            Ok(Elsewhere { version, comparison })
        })
        .collect()
}

/// What managers hold in one version.
#[derive(Debug)]
pub(super) struct Held<'a> {
    pub version: String,
    pub set: Set<'a>,
}
