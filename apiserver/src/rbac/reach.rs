//! In which tenants a binding counts.
//!
//! A tenant's bindings count in it alone, and so do the platform's own, unless a
//! `ClusterRoleBinding` of tenant `system` names the tenants that it is about, in an annotation:
//!
//! ```yaml
//! metadata: {name: support, annotations: {insula.io/tenants: "acme,globex"}}
//! ```
//!
//! `*` stands for all of them. A binding that names tenants counts in those alone: who is to have
//! the same rights in the platform's own tenant names `system` as well.

use std::collections::HashMap;

use insula_api::names::{NameError, TenantName};

use crate::registry::Whose;

/// The annotation that names tenants.
pub(crate) const TENANTS: &str = "insula.io/tenants";
/// What stands for all tenants.
pub(crate) const EVERY: &str = "*";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The tenant that the binding lies in.
    Home,
    Chosen(Vec<TenantName>),
    Everywhere,
}

/// Why an annotation names no tenants.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReachError {
    #[error("must name tenants, separated by commas, or be \"*\"")]
    Empty,
    #[error(transparent)]
    Name(#[from] NameError),
}

impl Reach {
    /// The reach of a `ClusterRoleBinding` of `tenant` with these annotations.
    pub(crate) fn of(
        tenant: &TenantName,
        annotations: &HashMap<String, String>,
    ) -> Result<Self, ReachError> {
        match annotations.get(TENANTS).filter(|_| tenant.is_system()) {
            Some(text) => Self::parse(text),
            None => Ok(Self::Home),
        }
    }

    /// Reads an annotation.
    pub(crate) fn parse(text: &str) -> Result<Self, ReachError> {
        if text.trim() == EVERY {
            return Ok(Self::Everywhere);
        }
        let names = text.split(',').map(str::trim).filter(|it| !it.is_empty());
        let names: Vec<TenantName> = names.map(TenantName::parse).collect::<Result<_, _>>()?;
        match names.is_empty() {
            true => Err(ReachError::Empty),
            false => Ok(Self::Chosen(names)),
        }
    }

    /// Whether a binding of `home` counts for what is of `whose`.
    pub(crate) fn covers(&self, home: &TenantName, whose: &Whose) -> bool {
        match (self, whose) {
            (Self::Everywhere, _) => true,
            (Self::Home, Whose::One(tenant)) => tenant == home,
            (Self::Chosen(names), Whose::One(tenant)) => names.contains(tenant),
            (Self::Home | Self::Chosen(_), Whose::All) => false,
        }
    }

    /// Whose objects a binding of `home` is about.
    pub(crate) fn whose(&self, home: &TenantName) -> Vec<Whose> {
        match self {
            Self::Home => vec![Whose::One(home.clone())],
            Self::Chosen(names) => names.iter().cloned().map(Whose::One).collect(),
            Self::Everywhere => vec![Whose::All],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantName {
        TenantName::parse(name).unwrap()
    }

    #[test]
    fn tenants_are_named_or_all() {
        let two = Reach::Chosen(vec![tenant("acme"), tenant("globex")]);
        assert_eq!(Reach::parse("acme, globex"), Ok(two.clone()));
        assert_eq!(Reach::parse(" * "), Ok(Reach::Everywhere));
        for bad in ["", ",", "acme,*", "all", "Acme", "a/b", "acme;globex"] {
            assert!(Reach::parse(bad).is_err(), "{bad:?}");
        }
        let (system, acme) = (TenantName::system(), Whose::One(tenant("acme")));
        assert!(two.covers(&system, &acme) && Reach::Everywhere.covers(&system, &acme));
        assert!(!Reach::Home.covers(&system, &acme));
        assert!(!two.covers(&system, &Whose::One(system.clone())));
        assert!(
            !two.covers(&system, &Whose::All) && Reach::Everywhere.covers(&system, &Whose::All)
        );
    }

    #[test]
    fn only_the_platform_reaches_others() {
        let annotations = HashMap::from([(TENANTS.to_owned(), "*".to_owned())]);
        assert_eq!(Reach::of(&tenant("acme"), &annotations), Ok(Reach::Home));
        assert_eq!(Reach::of(&TenantName::system(), &annotations), Ok(Reach::Everywhere));
    }
}
