//! What every tenant begins with, as texts with gaps: tables are read and objects put together
//! once for a server, and a tenant's are filled in.

use std::sync::Arc;

use bytes::Bytes;
use insula_api::{names::TenantName, object, time};
use insula_partition::store::{Change, Expect, ReadAt, StoreError, Write};
use serde_json::Value;

use crate::{
    Server,
    error::{ApiError, Result},
    registry::{self, Served},
};

/// One object of every tenant.
#[derive(Debug)]
pub(crate) struct Blank {
    served: Arc<Served>,
    namespace: String,
    name: String,
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Text(Box<str>),
    Gap(Gap),
}

/// What differs from tenant to tenant.
#[derive(Debug, Clone, Copy)]
enum Gap {
    Tenant,
    Uid,
    Time,
}

/// What stands in a gap while a blank is made. Characters that stand for nothing: only what this
/// program says itself is made a blank, and it says none of them.
const MARKS: [(&str, Gap); 3] =
    [("\u{f8f0}", Gap::Tenant), ("\u{f8f1}", Gap::Uid), ("\u{f8f2}", Gap::Time)];

impl Blank {
    /// `it`, of whichever tenant.
    pub(super) fn new(server: &Server, mut it: Value) -> Result<Self> {
        let served = super::served(server, &it)?;
        let (namespace, name) = (object::namespace(&it).to_owned(), object::name(&it).to_owned());
        let metadata = object::metadata_mut(&mut it);
        for (field, (mark, _)) in ["tenant", "uid", "creationTimestamp"].into_iter().zip(MARKS) {
            metadata.insert(field.into(), mark.into());
        }
        let text = String::from_utf8(object::encode(&it)).map_err(ApiError::internal)?;
        Ok(Self { served, namespace, name, parts: parts(&text) })
    }

    fn fill(&self, tenant: &TenantName) -> String {
        let (uid, time) = (uuid::Uuid::new_v4().to_string(), time::now());
        let texts = self.parts.iter().map(|it| match it {
            Part::Text(text) => text,
            Part::Gap(Gap::Tenant) => tenant.as_str(),
            Part::Gap(Gap::Uid) => uid.as_str(),
            Part::Gap(Gap::Time) => time.as_str(),
        });
        texts.collect()
    }

    /// Creates it in `tenant`, if it is not there yet.
    pub(super) async fn put(&self, server: &Server, tenant: &TenantName) -> Result<()> {
        let at = Place { tenant, namespace: &self.namespace, name: &self.name };
        create(server, &self.served, at, || self.fill(tenant).into()).await
    }

    /// Whether `tenant` has it, as far as this server knows.
    pub(super) async fn is_there(&self, server: &Server, tenant: &TenantName) -> Result<bool> {
        let Self { served, namespace, name, .. } = self;
        let (_, store) = served.place(&server.partitions, tenant, namespace, name);
        let found = store.read(&served.collection, ReadAt::Any).await?;
        Ok(found.get(&registry::key(tenant, namespace, name)).is_some())
    }
}

/// Where an object is.
struct Place<'a> {
    tenant: &'a TenantName,
    namespace: &'a str,
    name: &'a str,
}

/// Creates an object that is not there yet.
pub(super) async fn put(server: &Server, tenant: &TenantName, mut it: Value) -> Result<()> {
    let served = super::served(server, &it)?;
    let (namespace, name) = (object::namespace(&it).to_owned(), object::name(&it).to_owned());
    let at = Place { tenant, namespace: &namespace, name: &name };
    let make = || {
        let metadata = object::metadata_mut(&mut it);
        metadata.insert("tenant".into(), tenant.as_str().into());
        metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
        metadata.insert("creationTimestamp".into(), time::now().into());
        object::encode(&it).into()
    };
    create(server, &served, at, make).await
}

async fn create(
    server: &Server,
    served: &Served,
    Place { tenant, namespace, name }: Place<'_>,
    make: impl FnOnce() -> Bytes,
) -> Result<()> {
    let key = registry::key(tenant, namespace, name);
    let (_, store) = served.place(&server.partitions, tenant, namespace, name);
    // A start finds nearly all of it there.
    if store.read(&served.collection, ReadAt::Any).await?.get(&key).is_some() {
        return Ok(());
    }
    let write = Write::durable(served.collection.clone(), key, Expect::Absent, Change::Put(make()));
    match store.write(write).await {
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The text between marks, and the marks.
fn parts(text: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = text;
    let is_mark = |it: char| MARKS.iter().any(|(mark, _)| mark.starts_with(it));
    while let Some((before, mark)) = rest.find(is_mark).map(|at| rest.split_at(at)) {
        parts.push(Part::Text(before.into()));
        let found = MARKS.iter().find_map(|(it, gap)| Some((*gap, mark.strip_prefix(it)?)));
        let Some((gap, after)) = found else { break };
        parts.push(Part::Gap(gap));
        rest = after;
    }
    parts.push(Part::Text(rest.into()));
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_gap_is_where_a_mark_was() {
        let mut it = json!({"kind": "X", "metadata": {"name": "a"}, "text": "ä\"b"});
        for (mark, field) in MARKS.iter().zip(["tenant", "uid", "creationTimestamp"]) {
            it["metadata"][field] = mark.0.into();
        }
        let text = String::from_utf8(object::encode(&it)).unwrap();
        let filled: String = parts(&text)
            .iter()
            .map(|it| match it {
                Part::Text(text) => &**text,
                Part::Gap(Gap::Tenant) => "acme",
                Part::Gap(Gap::Uid) => "42",
                Part::Gap(Gap::Time) => "now",
            })
            .collect();
        it["metadata"] = json!({"resourceVersion": "", "name": "a", "tenant": "acme", "uid": "42",
                                "creationTimestamp": "now"});
        assert_eq!(serde_json::from_str::<Value>(&filled).unwrap(), it);
    }
}
