//! What a plugin knows of a request, beside the object.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

use insula_api::{names::TenantName, object, resources::Resource, schema::Gvk};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::OnceCell;

use super::{plugins::quota::Receipt, reinvoke::Rounds};
use crate::{
    Server, bootstrap,
    call::Call,
    error::{ApiError, Result},
    registry::Served,
};

/// What is done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
    /// A stream is opened: exec, attach, port-forward, proxy.
    Connect,
}

impl Operation {
    /// As rules and reviews have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// Half of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Admit,
    Validate,
}

impl Step {
    /// As metrics have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Validate => "validate",
        }
    }
}

/// One request on its way through the chain.
#[derive(Debug)]
pub(crate) struct Admission<'a> {
    pub server: &'a Server,
    pub call: &'a Call,
    pub operation: Operation,
    pub subresource: Cow<'a, str>,
    /// Of the object that is admitted, which for a subresource may be another than the resource's.
    pub kind: Gvk,
    pub namespace: String,
    /// Of the path; empty for a create.
    pub name: String,
    /// The object before, if there was one.
    pub old: Option<&'a Value>,
    pub dry_run: bool,
    /// The options of the operation, as their kind has them.
    pub options: Value,
    /// Looked up when they are asked for.
    pub(super) equivalents: OnceCell<Vec<Arc<Served>>>,
    pub(super) namespace_found: OnceCell<Arc<Value>>,
    pub(super) rounds: Mutex<Rounds>,
    /// What quotas were charged.
    pub(super) receipts: Mutex<Vec<Receipt>>,
    /// What a user of the platform says of whose a volume's handle is.
    pub(super) vouched: OnceLock<Option<String>>,
}

impl<'a> Admission<'a> {
    /// A create, or an update of `old`, of the resource's own objects.
    pub(crate) fn write(
        server: &'a Server,
        call: &'a Call,
        old: Option<&'a Value>,
    ) -> Result<Self> {
        let operation = if old.is_some() { Operation::Update } else { Operation::Create };
        Self::new(server, call, operation, call.served.resource.gvk(), old)
    }

    /// An operation on objects of `kind`, which is that of a subresource.
    pub(crate) fn new(
        server: &'a Server,
        call: &'a Call,
        operation: Operation,
        kind: Gvk,
        old: Option<&'a Value>,
    ) -> Result<Self> {
        let name = call.path.name.clone();
        let dry_run = call.query.dry_run()?;
        let mut admission = Self {
            server,
            call,
            operation,
            subresource: Cow::Borrowed(&call.path.subresource),
            kind,
            namespace: call.namespace(),
            name,
            old,
            dry_run,
            options: Value::Null,
            equivalents: OnceCell::new(),
            namespace_found: OnceCell::new(),
            rounds: Mutex::default(),
            receipts: Mutex::default(),
            vouched: OnceLock::new(),
        };
        admission.options = admission.default_options();
        if admission.is_namespace() {
            admission.namespace = admission.name.clone();
        }
        Ok(admission)
    }

    /// The deletion of `old`, which one of several may be.
    pub(crate) fn delete(
        server: &'a Server,
        call: &'a Call,
        (namespace, name): (&str, &str),
        old: &'a Value,
        options: Value,
    ) -> Result<Self> {
        let kind = call.served.resource.gvk();
        let mut admission = Self::new(server, call, Operation::Delete, kind, Some(old))?;
        admission.name = name.to_owned();
        admission.namespace = match admission.is_namespace() {
            true => name.to_owned(),
            false => namespace.to_owned(),
        };
        admission.dry_run |= options.get("dryRun").is_some();
        admission.options = options;
        Ok(admission)
    }

    /// As another subresource than the path's.
    pub(crate) fn on(mut self, subresource: &'a str) -> Self {
        self.subresource = Cow::Borrowed(subresource);
        self
    }

    /// The options that the query gives.
    fn default_options(&self) -> Value {
        let kind = match self.operation {
            Operation::Create => "CreateOptions",
            Operation::Update => "UpdateOptions",
            Operation::Delete => "DeleteOptions",
            Operation::Connect => return Value::Null,
        };
        let mut options = Map::new();
        options.insert("kind".into(), kind.into());
        options.insert("apiVersion".into(), "meta.k8s.io/v1".into());
        if self.dry_run {
            options.insert("dryRun".into(), json!(["All"]));
        }
        if self.operation != Operation::Delete {
            for field in ["fieldManager", "fieldValidation"] {
                if let Some(value) = self.call.query.get(field) {
                    options.insert(field.into(), value.into());
                }
            }
        }
        options.into()
    }

    /// Whether the object is itself a rule about requests.
    pub(super) fn is_about_rules(&self) -> bool {
        self.kind.group == "admissionregistration.k8s.io"
    }

    /// Whether the tenant's own rules hold: not for the platform that takes a tenant away.
    pub(super) async fn is_under_own_rules(&self) -> Result<bool> {
        let tenant = self.tenant()?;
        if tenant.is_system() || !self.call.identity.tenant.is_system() {
            return Ok(true);
        }
        let found = bootstrap::find_tenant(self.server, tenant).await?;
        Ok(found.is_some_and(|it| !object::is_deleting(&it)))
    }

    /// Whether the object is a namespace.
    pub(crate) fn is_namespace(&self) -> bool {
        let resource = &self.call.served.resource;
        resource.name == "namespaces" && resource.group.is_empty()
    }

    pub(crate) fn resource(&self) -> &'a Arc<Resource> {
        &self.call.served.resource
    }

    pub(crate) fn tenant(&self) -> Result<&'a TenantName> {
        self.call.tenant()
    }

    /// The name of the object: of the path, or what the object says.
    pub(crate) fn name_of<'n>(&'n self, it: Option<&'n Value>) -> &'n str {
        match (self.name.as_str(), it) {
            ("", Some(it)) => object::name(it),
            (name, _) => name,
        }
    }

    /// Refuses the request as upstream's admission does.
    pub(crate) fn forbidden(&self, it: Option<&Value>, why: &str) -> ApiError {
        let resource = self.resource();
        let name = match (self.name_of(it), it) {
            // A name that is yet to be made is told by what it will begin with.
            ("", Some(it)) => object::meta_str(it, "generateName"),
            (name, _) => name,
        };
        ApiError::forbidden(&resource.group, &resource.name, name, why)
    }
}
