//! Custom resources: which ones a tenant has, and what is special about their objects.
//!
//! A tenant's definitions lie in its partition like any other objects. A request for a resource
//! that is not built in looks at them as they are at that moment; the read is of a view that
//! costs nothing to take, and what was compiled is kept as long as the definition stays as it is.
//! Equal definitions of many tenants are compiled once and shared ([`compiled`]).
//!
//! # Invariants
//!
//! * Who asks after a definition was Established, anywhere, finds it.
//! * A tenant without definitions keeps nothing here.
//! * What is shared between tenants holds nothing of either but the definition's own text.

mod cleanup;
pub(crate) mod compiled;
pub(crate) mod object;
mod settle;
pub(crate) mod shared;
mod webhook;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use insula_api::{
    field::FieldError,
    names::TenantName,
    object::{self as json_object, Stored},
    resources,
};
use insula_custom::definition::Conversion;
use insula_partition::{
    snapshot::{Entry, Snapshot},
    store::{ReadAt, Revision},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::{
    Server, aggregation,
    custom::compiled::{Compiled, Envelope, Interned},
    error::{ApiError, Result},
    lately::Lately,
    measured,
    openapi::Document,
    registry::{Served, Whose},
};

pub(crate) use self::settle::{set_condition, settle};

/// The group of definitions.
pub(crate) const GROUP: &str = "apiextensions.k8s.io";
/// The resource that serves definitions.
pub(crate) const RESOURCE: &str = "customresourcedefinitions";

/// Whether `served` holds definitions.
pub(crate) fn holds_definitions(served: &Served) -> bool {
    served.resource.group == GROUP && served.resource.name == RESOURCE
}

/// All tenants' custom resources, as far as somebody asked for them.
#[derive(Debug, Default)]
pub(crate) struct Customs {
    pub(crate) tenants: Lately<Arc<OfTenant>>,
    interned: Interned,
    /// What tenants have together with what the platform shares.
    pub(crate) shared: shared::Merged,
    /// Tenants whose definitions have to be looked after.
    due: Mutex<BTreeSet<TenantName>>,
    asked: Notify,
}

/// The custom resources of one tenant.
#[derive(Debug, Default)]
pub(crate) struct OfTenant {
    /// What they were read from.
    snapshot: Option<Snapshot>,
    /// By name of the definition, `plural.group`.
    installed: BTreeMap<String, Installed>,
    /// Whether one of them is meant for all tenants.
    has_shared: bool,
    /// OpenAPI documents that were asked for, by path.
    pub documents: Mutex<HashMap<String, Arc<Document>>>,
}

/// What a path means.
pub(crate) enum Found {
    Here(Arc<Served>),
    /// An extension server has it, if anybody.
    Elsewhere(Arc<aggregation::Api>),
}

/// One definition of a tenant.
#[derive(Debug, Clone)]
struct Installed {
    modified: Revision,
    is_leaving: bool,
    /// Meant for all tenants, if it is the platform's.
    is_shared: bool,
    /// Absent until it is established.
    compiled: Option<Arc<Compiled>>,
}

impl OfTenant {
    /// The resource, if it is there in this version.
    pub(crate) fn get(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Served>> {
        self.installed
            .get(&format!("{resource}.{group}"))?
            .served()
            .find(|it| it.resource.version == version)
    }

    /// Whether there is anything of this group version.
    pub(crate) fn has(&self, group: &str, version: &str) -> bool {
        self.all().any(|it| it.resource.group == group && it.resource.version == version)
    }

    /// All resources, in all versions that are served.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.installed.values().flat_map(Installed::served)
    }

    /// What was compiled of each definition that is established.
    pub(crate) fn compiled(&self) -> impl Iterator<Item = &Arc<Compiled>> {
        self.installed.values().filter_map(|it| it.compiled.as_ref())
    }
}

impl Installed {
    fn served(&self) -> impl Iterator<Item = &Arc<Served>> {
        let list = self.compiled.as_ref().map(|it| it.served(self.is_leaving));
        list.into_iter().flatten()
    }
}

impl Customs {
    /// The custom resources of `tenant`, as they are now.
    pub(crate) async fn of(&self, server: &Server, tenant: &TenantName) -> Result<Arc<OfTenant>> {
        Ok(self.now(server, tenant).await?.0)
    }

    /// As [`Customs::of`], with the revision of its partition that is now.
    pub(crate) async fn now(
        &self,
        server: &Server,
        tenant: &TenantName,
    ) -> Result<(Arc<OfTenant>, Revision)> {
        let (own, revision) = self.own(server, tenant, ReadAt::Latest).await?;
        if tenant.is_system() {
            return Ok((own, revision));
        }
        let system = TenantName::system();
        // The latest would be a question to another server for each request.
        let (platform, _) = self.own(server, &system, ReadAt::Any).await?;
        Ok((self.shared.of(tenant, own, &platform), revision))
    }

    /// What a tenant itself has defined.
    async fn own(
        &self,
        server: &Server,
        tenant: &TenantName,
        at: ReadAt,
    ) -> Result<(Arc<OfTenant>, Revision)> {
        let definitions = definitions(server)?;
        let store = definitions.own(&server.partitions, tenant);
        let snapshot = store.read(&definitions.collection, at).await?;
        let revision = snapshot.revision();
        let known = self.tenants.get(tenant);
        if let Some(known) = &known
            && known.snapshot.as_ref().is_some_and(|it| it.is_same(&snapshot))
        {
            return Ok((known.clone(), revision));
        }
        let prefix = format!("{tenant}//");
        let mut found = OfTenant::default();
        // After a start it may be that something was left undone.
        let mut is_due = known.is_none() && snapshot.range(&prefix, None).next().is_some();
        for (key, entry) in snapshot.range(&prefix, None) {
            let name = key.strip_prefix(&prefix).unwrap_or_default().to_owned();
            let same = known.as_ref().and_then(|it| it.installed.get(&name));
            if let Some(same) = same.filter(|it| it.modified == entry.modified) {
                is_due |= same.is_leaving || same.compiled.is_none();
                found.has_shared |= same.is_shared;
                found.installed.insert(name, same.clone());
                continue;
            }
            let text = entry.value.bytes();
            let envelope = Envelope::read(&text).map_err(ApiError::internal)?;
            is_due |= envelope.is_leaving() || envelope.is_pending();
            let compiled = match envelope.is_established() {
                true => self.interned.get(&envelope, &text),
                false => None,
            };
            let (is_leaving, is_shared) = (envelope.is_leaving(), envelope.is_shared());
            let modified = entry.modified;
            found.has_shared |= is_shared;
            found.installed.insert(name, Installed { modified, is_leaving, is_shared, compiled });
        }
        if is_due {
            self.ask(tenant);
        }
        if found.installed.is_empty() {
            self.tenants.remove(tenant);
            return Ok((Arc::new(found), revision));
        }
        found.snapshot = Some(snapshot);
        let found = Arc::new(found);
        self.tenants.put(tenant, found.clone());
        Ok((found, revision))
    }

    /// Has the definitions of `tenant` looked after, soon.
    pub(crate) fn ask(&self, tenant: &TenantName) {
        self.due.lock().insert(tenant.clone());
        self.asked.notify_one();
    }
}

/// The resource of definitions.
pub(crate) fn definitions(server: &Server) -> Result<&Arc<Served>> {
    let found = server.registry.get(GROUP, "v1", RESOURCE);
    found.ok_or_else(|| ApiError::internal("definitions are not served"))
}

impl Server {
    /// Has kept objects of one tenant look as `served` shows them.
    pub(crate) async fn show<'a>(
        &self,
        served: &Served,
        entries: impl Iterator<Item = &'a mut Entry>,
    ) -> Result<()> {
        if let Some(other) = served.other {
            for entry in entries {
                entry.value = object::shown(other, &entry.value.bytes())?.into();
            }
            return Ok(());
        }
        let Some(custom) = served.custom() else { return Ok(()) };
        let Conversion::Webhook(webhook) = &custom.definition.conversion else {
            for entry in entries {
                entry.value = custom.show(&entry.value.bytes())?.into();
            }
            return Ok(());
        };
        let wanted = custom.version.api_version();
        let mut waiting = Vec::new();
        let mut objects = Vec::new();
        for entry in entries {
            let Stored { object, managed } =
                Stored::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
            match object["apiVersion"] == wanted {
                true => entry.value = custom.show(&entry.value.bytes())?.into(),
                false => {
                    waiting.push((entry, managed));
                    objects.push(object);
                }
            }
        }
        if objects.is_empty() {
            return Ok(());
        }
        let converted = self.convert(custom, webhook, &objects, &wanted).await?;
        for ((entry, managed), it) in waiting.into_iter().zip(converted) {
            entry.value = custom.encode(it, &managed).into();
        }
        Ok(())
    }

    /// As [`Server::show`], of one.
    pub(crate) async fn show_entry(&self, served: &Served, mut entry: Entry) -> Result<Entry> {
        self.show(served, std::iter::once(&mut entry)).await?;
        Ok(entry)
    }

    /// As [`Server::show`], of the bytes of one.
    pub(crate) async fn show_bytes(&self, served: &Served, value: Bytes) -> Result<Bytes> {
        let entry = Entry { value: value.into(), modified: Revision(0) };
        Ok(self.show_entry(served, entry).await?.value.into_bytes())
    }

    /// As [`Server::show`], of a parsed object. Returns what it was, if it is another now.
    pub(crate) async fn show_value(
        &self,
        served: &Served,
        it: &mut Value,
    ) -> Result<Option<Value>> {
        if let Some(other) = served.other {
            let kept = it.clone();
            other.show(it);
            return Ok(Some(kept));
        }
        let Some(custom) = served.custom() else { return Ok(None) };
        let kept = it.clone();
        let wanted = custom.version.api_version();
        if let Conversion::Webhook(webhook) = &custom.definition.conversion
            && it["apiVersion"] != wanted
        {
            let made = self.convert(custom, webhook, std::slice::from_ref(it), &wanted).await?;
            *it = made.into_iter().next().unwrap_or_else(|| kept.clone());
            custom.show_value(it);
            return Ok(Some(kept));
        }
        Ok(custom.show_value(it).then_some(kept))
    }

    /// An object as a webhook shows it in another version, of which no more is made.
    pub(crate) async fn convert_to(
        &self,
        custom: &compiled::Custom,
        it: &Value,
        api_version: &str,
    ) -> Result<Value> {
        let Conversion::Webhook(webhook) = &custom.definition.conversion else {
            return Err(ApiError::internal("no webhook converts this kind"));
        };
        let made = self.convert(custom, webhook, std::slice::from_ref(it), api_version).await?;
        made.into_iter().next().ok_or_else(|| ApiError::internal("nothing was converted"))
    }

    /// An object of `served`, as it is kept.
    pub(crate) async fn keep<'a>(&self, served: &Served, it: &'a Value) -> Result<Cow<'a, Value>> {
        if let Some(other) = served.other {
            let mut kept = it.clone();
            other.keep(&mut kept);
            return Ok(Cow::Owned(kept));
        }
        let Some(custom) = served.custom() else { return Ok(Cow::Borrowed(it)) };
        let wanted = custom.definition.storage().api_version();
        if it["apiVersion"] == wanted {
            return Ok(Cow::Borrowed(it));
        }
        let converted = match &custom.definition.conversion {
            Conversion::Webhook(webhook) => {
                let made = self.convert(custom, webhook, std::slice::from_ref(it), &wanted).await?;
                made.into_iter().next()
            }
            Conversion::None => {
                let mut kept = it.clone();
                kept["apiVersion"] = wanted.into();
                Some(kept)
            }
        };
        let Some(mut kept) = converted else { return Ok(Cow::Borrowed(it)) };
        object::prune_silently(custom.definition.storage(), &mut kept);
        Ok(Cow::Owned(kept))
    }

    /// Definitions of a tenant, and what it says of group versions, at the same moment.
    pub(crate) async fn own_of(
        &self,
        tenant: &TenantName,
    ) -> Result<(Arc<OfTenant>, Arc<aggregation::OfTenant>)> {
        let (customs, revision) = self.customs.now(self, tenant).await?;
        // The partition has been asked for its latest already.
        let at = ReadAt::NotOlderThan(revision);
        Ok((customs, self.aggregation.at(self, tenant, at).await?))
    }

    /// The resource that a path means, built in or of the tenant; or who else serves it.
    pub(crate) async fn served(
        &self,
        whose: &Whose,
        group: &str,
        version: &str,
        resource: &str,
    ) -> Result<Option<Found>> {
        if let Some(served) = self.registry.get(group, version, resource) {
            return Ok(Some(Found::Here(served.clone())));
        }
        let is_it = |served: &&Arc<Served>| {
            let it = &served.resource;
            it.group == group && it.version == version && it.name == resource
        };
        let Some(tenant) = whose.tenant() else {
            if let Some(it) = self.registry.stand_ins().iter().find(is_it) {
                return Ok(Some(Found::Here(it.clone())));
            }
            let all = || Served::of_all(group, version, resource);
            let all = (!self.registry.has_group(group)).then(all).flatten();
            return Ok(all.map(|it| Found::Here(Arc::new(it))));
        };
        let (customs, apis) = self.own_of(tenant).await?;
        if let Some(api) = apis.remote(group, version) {
            return Ok(Some(Found::Elsewhere(api.clone())));
        }
        if let Some(it) = self.registry.stand_ins_beside(&customs, &apis).find(is_it) {
            return Ok(Some(Found::Here(it.clone())));
        }
        let found = customs.get(group, version, resource);
        Ok(found.filter(|_| !self.registry.has_group(group)).cloned().map(Found::Here))
    }
}

/// Fills in what a definition leaves out, and remembers its storage version.
pub(crate) fn prepare(it: &mut Value) {
    let kind = json_object::text(it, &["spec", "names", "kind"]).to_owned();
    if let Some(names) = it.pointer_mut("/spec/names").and_then(Value::as_object_mut) {
        for (name, default) in
            [("singular", kind.to_lowercase()), ("listKind", format!("{kind}List"))]
        {
            let is_given = !names.get(name).and_then(Value::as_str).unwrap_or_default().is_empty();
            if !is_given && !kind.is_empty() {
                names.insert(name.into(), default.into());
            }
        }
    }
    if let Some(spec) = it.get_mut("spec").and_then(Value::as_object_mut) {
        // False is the only value there may be, and what absence means.
        if spec.get("preserveUnknownFields") == Some(&Value::Bool(false)) {
            spec.remove("preserveUnknownFields");
        }
        spec.entry("conversion").or_insert_with(|| json!({"strategy": "None"}));
        if let Some(service) = spec
            .get_mut("conversion")
            .and_then(|it| it.pointer_mut("/webhook/clientConfig/service"))
            .and_then(Value::as_object_mut)
        {
            service.entry("port").or_insert_with(|| 443.into());
        }
    }
    let versions = json_object::at(it, &["spec", "versions"]).and_then(Value::as_array);
    let storage = versions.and_then(|it| it.iter().find(|it| it["storage"] == true));
    let Some(storage) = storage.map(|it| it["name"].clone()) else { return };
    let stored = json_object::at(it, &["status", "storedVersions"]).and_then(Value::as_array);
    let mut stored = stored.cloned().unwrap_or_default();
    if !stored.contains(&storage) {
        stored.push(storage);
    }
    it["status"]["storedVersions"] = stored.into();
}

/// What is wrong with a definition; `old` is what it was, if it was.
pub(crate) fn check(it: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = insula_custom::check::definition(it, old);
    let group = json_object::text(it, &["spec", "group"]);
    // What is measured gives way to a tenant's own.
    let is_ours = |it: &resources::Resource| it.group == group && group != measured::GROUP;
    if !group.is_empty() && resources::built_in().iter().any(is_ours) {
        let why = format!("group {group} is one of the built-in groups");
        errors.push(FieldError::forbidden("spec.group", &why));
    }
    errors
}

/// Marks a definition whose deletion begins.
pub(crate) fn begin_deletion(it: &mut Value, finalizers: &mut Vec<String>) {
    if !finalizers.iter().any(|it| it == cleanup::FINALIZER) {
        finalizers.push(cleanup::FINALIZER.into());
    }
    cleanup::begin(it);
}

/// After a definition of `tenant` changed: decides at once what can be decided.
pub(crate) async fn changed(server: &Server, tenant: &TenantName) {
    if let Err(error) = settle(server, tenant).await {
        tracing::warn!(%tenant, %error, "definitions could not be decided on yet");
    }
    // It may have become free for others, or have to be cleaned up.
    server.customs.ask(tenant);
}

/// How long to wait before trying again what did not work out.
const AGAIN: Duration = Duration::from_millis(100);
/// The longest such wait.
const AGAIN_AT_MOST: Duration = Duration::from_secs(5);

/// Looks after definitions that wait for their names, or for their objects to go.
pub(crate) async fn look_after(server: Arc<Server>) {
    let busy: Arc<Mutex<BTreeSet<TenantName>>> = Arc::default();
    loop {
        tokio::select! {
            () = server.customs.asked.notified() => (),
            () = server.shutdown.cancelled() => return,
        }
        let due = std::mem::take(&mut *server.customs.due.lock());
        for tenant in due {
            if !busy.lock().insert(tenant.clone()) {
                // Whoever is at it looks once more before it ends.
                server.customs.due.lock().insert(tenant);
                continue;
            }
            let (it, busy) = (server.clone(), busy.clone());
            server.tasks.spawn(async move {
                let shutdown = it.shutdown.clone();
                let _ = shutdown.run_until_cancelled(look_after_tenant(&it, &tenant)).await;
                busy.lock().remove(&tenant);
                if it.customs.due.lock().contains(&tenant) {
                    it.customs.asked.notify_one();
                }
            });
        }
    }
}

async fn look_after_tenant(server: &Server, tenant: &TenantName) {
    let mut wait = AGAIN;
    loop {
        let settled = async {
            settle(server, tenant).await?;
            let is_clean = cleanup::clean(server, tenant).await?;
            aggregation::register(server, tenant).await?;
            Ok::<_, ApiError>(is_clean)
        };
        match settled.await {
            Ok(true) => return,
            Ok(false) => (),
            Err(error) if error.reason == "NotFound" => return,
            Err(error) => tracing::warn!(%tenant, %error, "definitions could not be looked after"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AGAIN_AT_MOST);
    }
}
