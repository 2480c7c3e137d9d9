//! What a claim asks for, ready to be looked for on many nodes.

use std::{collections::BTreeMap, sync::Arc};

use insula_api::quantity::Quantity;
use insula_client::{ObjectKey, Tenanted};
use k8s_openapi::api::resource::v1::{
    CapacityRequirements, DeviceClaimConfiguration, DeviceClass, DeviceClassConfiguration,
    DeviceConstraint, DeviceSelector, DeviceToleration, ExactDeviceRequest, ResourceClaim,
};

/// A claim for which devices are to be found.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    pub(crate) requests: Vec<Request>,
    pub(crate) constraints: Vec<Constraint>,
    pub(crate) config: Vec<DeviceClaimConfiguration>,
}

/// One of its requests: of the choices the first one for which there is enough.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) name: String,
    pub(crate) choices: Vec<Choice>,
}

/// How many devices a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Exactly(usize),
    All,
}

/// Devices of one kind.
#[derive(Debug)]
pub(crate) struct Choice {
    /// That of the request; with that of the subrequest, if it is one of several.
    pub(crate) name: String,
    pub(crate) class: String,
    pub(crate) class_config: Vec<DeviceClassConfiguration>,
    /// Those of the class first.
    pub(crate) selectors: Vec<Selector>,
    pub(crate) wanted: Wanted,
    /// It may look at devices that others have.
    pub(crate) is_admin: bool,
    pub(crate) tolerations: Option<Vec<DeviceToleration>>,
    pub(crate) capacity: BTreeMap<String, Quantity>,
}

/// An expression, and who says it.
#[derive(Debug)]
pub(crate) struct Selector {
    pub(crate) expression: Arc<str>,
    pub(crate) origin: String,
}

/// What the devices of some requests must have alike, or all differently.
#[derive(Debug)]
pub(crate) struct Constraint {
    pub(crate) attribute: String,
    pub(crate) is_distinct: bool,
    /// Of all if it is empty.
    requests: Vec<String>,
}

impl Constraint {
    /// Whether it is about devices of this choice.
    pub(crate) fn is_about(&self, choice: &str) -> bool {
        let of_parent = choice.split_once('/').map_or(choice, |(parent, _)| parent);
        self.requests.is_empty() || self.requests.iter().any(|it| it == choice || it == of_parent)
    }

    fn of(it: &DeviceConstraint) -> Option<Self> {
        let is_distinct = it.match_attribute.is_none();
        let attribute = it.match_attribute.as_ref().or(it.distinct_attribute.as_ref())?.clone();
        Some(Self { attribute, is_distinct, requests: it.requests.clone().unwrap_or_default() })
    }
}

impl Asked {
    /// Reads a claim. The error is why no node can do; `class` finds classes by name.
    pub(crate) fn of(
        claim: &Tenanted<ResourceClaim>,
        class: impl Fn(&str) -> Option<Arc<Tenanted<DeviceClass>>>,
    ) -> Result<Self, String> {
        let devices = claim.spec.devices.clone().unwrap_or_default();
        let shown = format!("{}/{}", claim.namespace(), claim.name());
        let choice = |name: &str, it: &ExactDeviceRequest| {
            let found = class(&it.device_class_name).ok_or_else(|| {
                let class = &it.device_class_name;
                format!("request {name}: device class {class} does not exist")
            })?;
            Choice::of(&shown, name, it, &found)
        };
        let mut requests = Vec::new();
        for it in devices.requests.iter().flatten() {
            let mut choices = Vec::new();
            if let Some(exactly) = &it.exactly {
                choices.push(choice(&it.name, exactly)?);
            }
            for sub in it.first_available.iter().flatten() {
                let exactly = ExactDeviceRequest {
                    admin_access: None,
                    allocation_mode: sub.allocation_mode.clone(),
                    capacity: sub.capacity.clone(),
                    count: sub.count,
                    device_class_name: sub.device_class_name.clone(),
                    selectors: sub.selectors.clone(),
                    tolerations: sub.tolerations.clone(),
                };
                choices.push(choice(&format!("{}/{}", it.name, sub.name), &exactly)?);
            }
            if choices.is_empty() {
                let name = &it.name;
                return Err(format!(
                    "resource claim {shown}, request {name}: unknown request type"
                ));
            }
            requests.push(Request { name: it.name.clone(), choices });
        }
        let constraints = devices.constraints.iter().flatten();
        let constraints: Option<Vec<_>> = constraints.map(Constraint::of).collect();
        Ok(Self {
            key: claim.key(),
            uid: claim.uid().to_owned(),
            requests,
            constraints: constraints.ok_or_else(|| {
                format!("claim {shown}: empty constraint (unsupported constraint type?)")
            })?,
            config: devices.config.unwrap_or_default(),
        })
    }
}

impl Choice {
    fn of(
        claim: &str,
        name: &str,
        it: &ExactDeviceRequest,
        class: &DeviceClass,
    ) -> Result<Self, String> {
        let of_class = class.spec.selectors.as_deref().unwrap_or_default();
        let class_name = &it.device_class_name;
        let mut selectors = read(of_class, &format!("class {class_name}"))?;
        selectors
            .extend(read(it.selectors.as_deref().unwrap_or_default(), &format!("claim {claim}"))?);
        let wanted = match it.allocation_mode.as_deref() {
            None | Some("ExactCount") => {
                Wanted::Exactly(usize::try_from(it.count.unwrap_or(1)).unwrap_or(usize::MAX))
            }
            Some("All") => Wanted::All,
            Some(mode) => {
                return Err(format!(
                    "claim {claim}, request {name}: unsupported count mode {mode}"
                ));
            }
        };
        Ok(Self {
            name: name.to_owned(),
            class: class_name.clone(),
            class_config: class.spec.config.clone().unwrap_or_default(),
            selectors,
            wanted,
            is_admin: it.admin_access == Some(true),
            tolerations: it.tolerations.clone().filter(|it| !it.is_empty()),
            capacity: it.capacity.as_ref().map(amounts).unwrap_or_default(),
        })
    }
}

fn read(selectors: &[DeviceSelector], origin: &str) -> Result<Vec<Selector>, String> {
    let numbered = selectors.iter().enumerate();
    let read = numbered.map(|(n, it)| {
        let origin = format!("{origin}: selector #{n}");
        let cel = it.cel.as_ref().ok_or_else(|| format!("{origin}: CEL expression empty"))?;
        Ok(Selector { expression: cel.expression.as_str().into(), origin })
    });
    read.collect()
}

fn amounts(it: &CapacityRequirements) -> BTreeMap<String, Quantity> {
    let requests = it.requests.iter().flatten();
    requests
        .map(|(name, it)| (name.clone(), Quantity::parse(&it.0).unwrap_or(Quantity::ZERO)))
        .collect()
}
