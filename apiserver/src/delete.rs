//! Deleting: at once, gracefully (pods), or when finalizers let go.

use futures::future::join_all;
use insula_api::{
    decode,
    object::{self, Stored},
    schema::{Gvk, Schema},
    time,
};
use insula_partition::{
    snapshot::Entry,
    store::{Change, Expect, ReadAt, StoreError, Write},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    Server,
    admission::{self, Admission},
    call::{Call, HEAD, not_an_object},
    custom,
    error::{ApiError, Result},
    read::{self, Page},
    request::{Encoding, ListOptions, body_encoding},
    services, shown, strategy, write,
};

/// `metav1.DeleteOptions`, from the body or the query.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    grace: Option<i64>,
    uid: Option<String>,
    revision: Option<String>,
    propagation: Option<Propagation>,
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Propagation {
    Background,
    Foreground,
    Orphan,
}

const KIND: &str = "DeleteOptions";
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
const RETRIES: usize = 8;
/// How many objects of a collection are deleted at the same time: they share steps of their store.
const TOGETHER: usize = 16;

/// A flag of a query: whatever does not say no says yes.
fn is_meant(flag: &str) -> bool {
    !flag.eq_ignore_ascii_case("false") && flag != "0"
}

impl Options {
    pub(crate) fn parse(call: &Call, body: &[u8]) -> Result<Self> {
        let dry_run = call.query.dry_run()?;
        let body = if body.is_empty() {
            json!({
                "gracePeriodSeconds": call.query.number("gracePeriodSeconds")?,
                "propagationPolicy": call.query.get("propagationPolicy"),
                "orphanDependents": call.query.get("orphanDependents").map(is_meant),
            })
        } else {
            decoded(call, body)?
        };
        Self::from_value(&body, dry_run)
    }

    /// Reads `metav1.DeleteOptions`.
    pub(crate) fn from_value(body: &Value, dry_run: bool) -> Result<Self> {
        let mut options = Self { dry_run, ..Self::default() };
        options.grace = body["gracePeriodSeconds"].as_i64();
        options.uid = body["preconditions"]["uid"].as_str().map(str::to_owned);
        options.revision = body["preconditions"]["resourceVersion"].as_str().map(str::to_owned);
        options.dry_run |= body["dryRun"].as_array().is_some_and(|it| !it.is_empty());
        if let Some(other) =
            body["dryRun"].as_array().filter(|list| list.iter().any(|it| it != "All"))
        {
            let shown = Value::from(other.clone());
            let error = crate::error::FieldError::unsupported("dryRun", &shown, &["All"]);
            return Err(ApiError::invalid("meta.k8s.io", "DeleteOptions", "", &[error]));
        }
        let orphan = body["orphanDependents"].as_bool();
        options.propagation = match (body["propagationPolicy"].as_str(), orphan) {
            (Some(_), Some(_)) => {
                let error = crate::error::FieldError::invalid(
                    "propagationPolicy",
                    &body["propagationPolicy"],
                    "orphanDependents and deletionPropagation cannot be both set",
                );
                return Err(ApiError::invalid("meta.k8s.io", "DeleteOptions", "", &[error]));
            }
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some(_), None) => {
                let error = crate::error::FieldError::unsupported(
                    "propagationPolicy",
                    &body["propagationPolicy"],
                    // Upstream says it so.
                    &["Foreground", "Background", "Orphan", "nil"],
                );
                return Err(ApiError::invalid("meta.k8s.io", "DeleteOptions", "", &[error]));
            }
            (None, None) => None,
        };
        Ok(options)
    }

    pub(crate) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Whether the request says what happens to dependents.
    pub(crate) fn says_propagation(&self) -> bool {
        self.propagation.is_some()
    }

    pub(crate) fn has_revision(&self) -> bool {
        self.revision.is_some()
    }

    /// Nothing is deleted but at this revision.
    pub(crate) fn only_at(&mut self, revision: &str) {
        self.revision = Some(revision.to_owned());
    }

    /// Refuses an object that is not the one that is meant.
    pub(crate) fn check(&self, call: &Call, it: &Value) -> Result<()> {
        check_preconditions(call, object::name(it), it, self)
    }
}

/// What a body says. Upstream has this kind in every version, known or not; unknown fields are the
/// client's business.
fn decoded(call: &Call, body: &[u8]) -> Result<Value> {
    let schema = Schema::built_in();
    let kind = Gvk::new("", "v1", KIND);
    let raw = match body_encoding(&call.headers)? {
        Encoding::Json => decode::json(schema, None, body),
        Encoding::Yaml => decode::yaml(schema, None, body),
        Encoding::Protobuf => {
            let mut lenient = call.clone();
            lenient.query = crate::request::Query::parse(Some("fieldValidation=Ignore"));
            let resource = &call.served.resource;
            let own = Gvk::new(&resource.group, &resource.version, KIND);
            let meta = Gvk::new("meta.k8s.io", "v1", KIND);
            let others = [meta, own];
            return lenient.decode(&kind, body).or_else(|error| {
                others.iter().find_map(|it| lenient.decode(it, body).ok()).ok_or(error)
            });
        }
    };
    let unread = |why: &dyn std::fmt::Display| {
        ApiError::bad_request(format!("couldn't get version/kind; json parse error: {why}"))
    };
    let raw = raw.map_err(|error| unread(&error))?.value;
    let text = |field: &str| raw.get(field).and_then(Value::as_str).unwrap_or_default();
    match &raw {
        Value::Null => return Ok(json!({})),
        Value::Object(_) if ["", KIND].contains(&text("kind")) => (),
        Value::Object(_) => {
            let (found, version) = (text("kind"), text("apiVersion"));
            let why = format!("no kind {found:?} is registered for version {version:?}");
            return Err(ApiError::bad_request(why));
        }
        other => {
            let found = not_an_object(other).unwrap_or_default();
            return Err(unread(&format!(
                "json: cannot unmarshal {found} into Go value of type {HEAD}"
            )));
        }
    }
    let decoded = decode::value(schema, schema.by_kind(&kind), raw);
    Ok(decoded.map_err(|error| ApiError::bad_request(error.to_string()))?.value)
}

impl Options {
    /// As admission shows them.
    fn to_value(&self) -> Value {
        let mut it = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        if let Some(grace) = self.grace {
            it["gracePeriodSeconds"] = grace.into();
        }
        for (field, value) in [("uid", &self.uid), ("resourceVersion", &self.revision)] {
            if let Some(value) = value {
                it["preconditions"][field] = value.as_str().into();
            }
        }
        if let Some(propagation) = self.propagation {
            it["propagationPolicy"] = match propagation {
                Propagation::Background => "Background",
                Propagation::Foreground => "Foreground",
                Propagation::Orphan => "Orphan",
            }
            .into();
        }
        if self.dry_run {
            it["dryRun"] = json!(["All"]);
        }
        it
    }
}

/// The answer to a delete.
#[derive(Debug)]
pub(crate) enum Deleted {
    /// The object as it is now, or was last.
    Object(bytes::Bytes),
    /// It is gone; the `Status` says so.
    Status(Value),
}

impl Deleted {
    /// `old` is no more.
    fn gone(call: &Call, name: &str, old: &Value) -> Self {
        let resource = &call.served.resource;
        let mut details = json!({
            "name": name, "kind": resource.name, "uid": object::uid(old),
        });
        if !resource.group.is_empty() {
            details["group"] = resource.group.as_str().into();
        }
        Self::Status(json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Success", "details": details,
        }))
    }
}

/// Deletes the object of the path.
pub(crate) async fn delete(server: &Server, call: &Call, options: &Options) -> Result<Deleted> {
    delete_named(server, call, &call.path.name, &call.namespace(), options).await
}

async fn delete_named(
    server: &Server,
    call: &Call,
    name: &str,
    namespace: &str,
    options: &Options,
) -> Result<Deleted> {
    let resource = &call.served.resource;
    let tenant = call.tenant()?.clone();
    let key = crate::registry::key(&tenant, namespace, name);
    let (_, store) = call.served.place(&server.partitions, &tenant, namespace, name);
    let mut entry = read::find(&call.served, &*store, &key, name, ReadAt::Latest).await?;
    for _ in 0..RETRIES {
        let Stored { object: old, managed } =
            Stored::parse(&entry.value.glance()).map_err(ApiError::internal)?;
        check_preconditions(call, name, &old, options)?;
        // Rules see it as this version shows it.
        let shown = match call.served.is_converted() {
            false => None,
            true => {
                let mut shown = old.clone();
                server.show_value(&call.served, &mut shown).await?;
                Some(shown)
            }
        };
        let judged = shown.as_ref().unwrap_or(&old);
        let admission =
            Admission::delete(server, call, (namespace, name), judged, options.to_value())?;
        admission.mutate(&mut Value::Null).await?;
        admission.validate(None).await?;
        let mut new = old.clone();
        let began = begin(call, &mut new, options);
        let gone = write::is_finished(&new);
        let is_shown = !gone || strategy::facts(resource).deleted_shown;
        // A pod is shown as it is told to end, even if it is gone by then.
        let is_pod = resource.name == "pods" && resource.group.is_empty();
        let as_marked = |revision| {
            let managed = Some(managed.as_str()).filter(|it| !it.is_empty());
            let bytes = object::encode_with(&new, managed).into();
            insula_partition::value::with_revision(&bytes, revision)
        };
        if options.dry_run {
            return Ok(match (is_shown, gone && !is_pod) {
                (true, true) => Deleted::Object(entry.value.glance().into_owned()),
                (true, false) => Deleted::Object(as_marked(entry.modified)),
                (false, _) => Deleted::gone(call, name, &old),
            });
        }
        if !gone && !began {
            // Already on its way, and this request changes nothing.
            return Ok(Deleted::Object(entry.value.glance().into_owned()));
        }
        if !gone {
            // What could not be opened must not take its own place; it may go as a whole.
            entry = read::opened(entry)?;
        }
        let leaving = match gone {
            true => Some(services::leaving(server, call, &old).await?),
            false => None,
        };
        let managed_by = Some(managed.as_str()).filter(|it| !it.is_empty());
        let change = match gone {
            true => Change::Delete,
            false => Change::Put(object::encode_with(&new, managed_by).into()),
        };
        let write = Write {
            collection: call.served.collection.clone(),
            key: key.as_str().into(),
            expect: Expect::At(entry.modified),
            change,
            durability: call.served.durability(namespace),
            by_move: None,
            within: None,
            epoch: call.epoch.clone(),
        };
        match store.write(write).await {
            Ok(committed) => {
                if let Some(leaving) = leaving {
                    leaving.end(server, call, Some(true)).await;
                }
                admission::changed(server, call).await;
                if gone && is_pod {
                    return Ok(Deleted::Object(as_marked(committed.entry.modified)));
                }
                if is_shown {
                    return Ok(Deleted::Object(committed.entry.value.glance().into_owned()));
                }
                return Ok(Deleted::gone(call, name, &old));
            }
            Err(StoreError::Conflict { found: Some(found), .. }) => entry = found,
            Err(StoreError::Conflict { found: None, .. }) => return Err(call.not_found(name)),
            Err(error) => return Err(error.into()),
        }
    }
    Err(call.modified(name))
}

fn check_preconditions(call: &Call, name: &str, old: &Value, options: &Options) -> Result<()> {
    let resource = &call.served.resource;
    let uid = object::uid(old);
    let revision = object::meta_str(old, "resourceVersion");
    if has_own_deletion(call) {
        // Upstream looks at these in another place, with other words.
        for (what, wanted, found) in
            [("UID", &options.uid, uid), ("ResourceVersion", &options.revision, revision)]
        {
            if let Some(wanted) = wanted.as_ref().filter(|it| *it != found) {
                let why = format!(
                    "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
                );
                return Err(ApiError::conflict(&resource.group, &resource.name, name, &why));
            }
        }
        return Ok(());
    }
    // Upstream names the kind here, not the resource.
    let group = call.served.told_group();
    let conflict = |why: &str| Err(ApiError::conflict(group, &resource.kind, name, why));
    if let Some(wanted) = &options.uid
        && wanted != uid
    {
        return conflict(&format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). \
             The object might have been deleted and then recreated"
        ));
    }
    if let Some(wanted) = &options.revision
        && wanted != revision
    {
        return conflict(&format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the \
             ResourceVersion in record ({revision}). The object might have been modified"
        ));
    }
    Ok(())
}

/// Namespaces and definitions end in steps: they only get the time at which it began.
fn has_own_deletion(call: &Call) -> bool {
    let resource = &call.served.resource;
    custom::holds_definitions(&call.served)
        || (resource.group.is_empty() && resource.name == "namespaces")
}

/// Marks `it` as being deleted. False if it was so already, just as this request wants it.
fn begin(call: &Call, it: &mut Value, options: &Options) -> bool {
    let before = object::metadata(it).clone();
    let resource = &call.served.resource;
    // What the request says, else what the object already says, else the resource's default.
    let had = object::finalizers(it);
    let said = options.propagation.or_else(|| {
        if had.contains(&ORPHAN) {
            Some(Propagation::Orphan)
        } else if had.contains(&FOREGROUND) {
            Some(Propagation::Foreground)
        } else {
            None
        }
    });
    let facts = strategy::facts(resource);
    let propagation = match said {
        _ if facts.no_owner => Propagation::Background,
        Some(said) => said,
        None if facts.orphans => Propagation::Orphan,
        None => Propagation::Background,
    };
    let mut finalizers: Vec<String> = had
        .iter()
        .filter(|it| **it != ORPHAN && **it != FOREGROUND)
        .map(|it| (*it).to_owned())
        .collect();
    match propagation {
        Propagation::Background => (),
        Propagation::Foreground => finalizers.push(FOREGROUND.into()),
        Propagation::Orphan => finalizers.push(ORPHAN.into()),
    }
    if custom::holds_definitions(&call.served) && !object::is_deleting(it) {
        custom::begin_deletion(it, &mut finalizers);
    }
    let grace = if resource.group.is_empty() && resource.name == "pods" {
        pod_grace(it, options.grace)
    } else {
        0
    };
    let now = Timestamp::now();
    let already = object::is_deleting(it);
    let metadata = object::metadata_mut(it);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), finalizers.into());
    }
    let previous = metadata.get("deletionGracePeriodSeconds").and_then(Value::as_i64);
    // A second delete can only make it sooner.
    if !already || previous.is_some_and(|previous| grace < previous) {
        let at = now + SignedDuration::from_secs(grace);
        metadata.insert("deletionTimestamp".into(), time::seconds(at).into());
        let is_plain = !has_own_deletion(call);
        if is_plain {
            metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
        }
        if is_plain && !already && object::metadata(it).contains_key("generation") {
            strategy::bump_generation(it);
        }
        if resource.name == "namespaces" {
            it["status"]["phase"] = "Terminating".into();
        }
        if resource.name == "tenants" {
            it["status"]["phase"] = "Terminating".into();
        }
    }
    before != *object::metadata(it)
}

/// Seconds that a pod may still run.
fn pod_grace(pod: &Value, asked: Option<i64>) -> i64 {
    let over = matches!(object::text(pod, &["status", "phase"]), "Succeeded" | "Failed");
    if object::text(pod, &["spec", "nodeName"]).is_empty() || over {
        return 0;
    }
    let of_spec = pod["spec"].get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    match asked.unwrap_or_else(|| of_spec.unwrap_or(30)) {
        ..0 => 1,
        seconds => seconds,
    }
}

/// Deletes all objects that the path and the selectors name, each by the normal way; of a page that
/// is limited, only its own. Gives those that were deleted, as they were before.
pub(crate) async fn delete_collection(
    server: &Server,
    call: &Call,
    options: &Options,
) -> Result<Page> {
    // Also where there is nothing to delete.
    call.tenant()?;
    let list = ListOptions::parse(&call.query, &call.served.resource)?;
    let namespace = call.namespace();
    let places = call.served.places(&server.partitions, &call.whose, &namespace, &list);
    let mut page =
        read::list(server, &call.served, &places, &call.whose, &namespace, &list).await?;
    if shown::is_of_these(&call.served) && !call.tenant()?.is_system() {
        // What the platform shows is not meant by who deletes all that it has.
        page.entries.retain(|(_, entry)| {
            let it: Value = serde_json::from_slice(&entry.value.glance()).unwrap_or_default();
            !shown::is_platforms(&it)
        });
    }
    let found = std::mem::take(&mut page.entries);
    for some in found.chunks(TOGETHER) {
        let outcomes = join_all(some.iter().map(|(key, _)| {
            let mut parts = key.splitn(3, '/').skip(1);
            let (namespace, name) =
                (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            delete_named(server, call, name, namespace, options)
        }));
        for ((key, entry), outcome) in some.iter().zip(outcomes.await) {
            match outcome {
                Ok(_) => {
                    let value = entry.value.clone().glanced();
                    page.entries.push((key.clone(), Entry { value, ..entry.clone() }));
                }
                // Somebody else was faster; that is what was wanted.
                Err(error) if error.reason == "NotFound" => (),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(page)
}
