//! The versions of a kind, as the structural engine asks for them.
//!
//! Who converts a built-in kind is here, and so is who only renames versions of a custom one. A
//! webhook has to be asked: [`Versions::learn`] does so, and the engine is run again.

use std::{borrow::Cow, sync::Arc};

use insula_api::{
    schema::{Gvk, Schema, TypeId},
    structural::{
        built_in::BuiltIn,
        versions::{InVersion, VersionError, Versions as Contract, Wanted},
    },
    versions::other,
};
use insula_custom::{Version, definition::Conversion, place::Spot, prune};
use serde_json::Value;

use crate::{
    Server,
    error::{ApiError, Result},
    registry::{Nature, Served},
};

/// Most conversions by a webhook that one write waits for. Two for each version is what a write
/// needs whose webhook gives one answer to one question.
const CONVERSIONS: usize = 64;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Versions {
    nature: Nature,
    group: String,
    kind: String,
    /// Of the request.
    api_version: String,
    /// What webhooks made.
    made: Vec<(Wanted, Value)>,
}

impl Versions {
    pub(super) fn new(served: &Served) -> Self {
        let resource = &served.resource;
        Self {
            nature: served.nature.clone(),
            group: resource.group.clone(),
            kind: resource.kind.clone(),
            api_version: resource.api_version(),
            made: Vec::new(),
        }
    }

    pub(super) fn kind(&self) -> &str {
        &self.kind
    }

    /// Whether there is a version, in the same group: what was written in another one is not
    /// understood in this one, not even if both are of the same objects.
    pub(super) fn knows(&self, api_version: &str) -> bool {
        if api_version == self.api_version {
            return true;
        }
        match &self.nature {
            Nature::BuiltIn(_) => self.built_in(api_version).is_some(),
            Nature::Custom(_) => self.custom(api_version).is_some(),
        }
    }

    /// Its version's part, if it is of the same group.
    fn version_of<'v>(&self, api_version: &'v str) -> Option<&'v str> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        (group == self.group).then_some(version)
    }

    fn built_in(&self, api_version: &str) -> Option<(Gvk, TypeId)> {
        let kind = Gvk::new(&self.group, self.version_of(api_version)?, &self.kind);
        let id = Schema::built_in().by_kind(&kind)?;
        Some((kind, id))
    }

    fn custom(&self, api_version: &str) -> Option<&Arc<Version>> {
        let Nature::Custom(custom) = &self.nature else { return None };
        custom.definition.version(self.version_of(api_version)?)
    }

    /// Has a webhook convert what is wanted. Refuses if it had to too often.
    pub(crate) async fn learn(&mut self, server: &Server, wanted: Wanted) -> Result<()> {
        let Nature::Custom(custom) = &self.nature else { return Ok(()) };
        if CONVERSIONS <= self.made.len() {
            let told = "managers in too many versions: conversions of one write have a limit";
            return Err(ApiError::internal(told));
        }
        let mut made = server.convert_to(custom, &wanted.object, &wanted.version).await?;
        if let Some(version) = self.custom(&wanted.version) {
            prune::object(&version.schema, &mut made, &mut prune::Pruned::default());
        }
        self.made.push((wanted, made));
        Ok(())
    }
}

fn unknown(api_version: &str) -> VersionError {
    VersionError::Failed(format!("there is no version {api_version}"))
}

impl Contract for Versions {
    type Root<'f> = Spot<'f>;

    fn version(&self) -> &str {
        &self.api_version
    }

    fn root(&self) -> Spot<'_> {
        match &self.nature {
            Nature::BuiltIn(id) => Spot::BuiltIn(BuiltIn::root(*id)),
            Nature::Custom(custom) => Spot::Object(&custom.version.schema),
        }
    }

    fn in_version<'o, 'f: 'o>(
        &'f self,
        object: &'o Value,
        version: &str,
    ) -> Result<InVersion<'o, Spot<'f>>, VersionError> {
        let root = match &self.nature {
            _ if version == self.api_version => self.root(),
            Nature::BuiltIn(_) => {
                let (_, id) = self.built_in(version).ok_or_else(|| unknown(version))?;
                Spot::BuiltIn(BuiltIn::root(id))
            }
            Nature::Custom(_) => {
                Spot::Object(&self.custom(version).ok_or_else(|| unknown(version))?.schema)
            }
        };
        let is = object["apiVersion"].as_str().unwrap_or(&self.api_version);
        if is == version {
            return Ok(InVersion { root, object: Cow::Borrowed(object) });
        }
        let Nature::Custom(custom) = &self.nature else {
            let mut made = object.clone();
            for (api_version, to_other) in [(is, false), (version, true)] {
                let (kind, _) = self.built_in(api_version).ok_or_else(|| unknown(api_version))?;
                match other(&kind) {
                    Some(it) if to_other => it.show(&mut made),
                    Some(it) => it.keep(&mut made),
                    None => made["apiVersion"] = api_version.into(),
                }
            }
            return Ok(InVersion { root, object: Cow::Owned(made) });
        };
        if let Conversion::Webhook(_) = &custom.definition.conversion {
            let made = self
                .made
                .iter()
                .find(|(wanted, _)| wanted.version == version && wanted.object == *object);
            return match made {
                Some((_, made)) => Ok(InVersion { root, object: Cow::Borrowed(made) }),
                None => {
                    let (object, version) = (object.clone(), version.to_owned());
                    Err(VersionError::Wanted(Box::new(Wanted { object, version })))
                }
            };
        }
        let schema = &self.custom(version).ok_or_else(|| unknown(version))?.schema;
        let mut made = object.clone();
        made["apiVersion"] = version.into();
        // What a version does not have is nobody's in it.
        prune::object(schema, &mut made, &mut prune::Pruned::default());
        Ok(InVersion { root, object: Cow::Owned(made) })
    }
}
