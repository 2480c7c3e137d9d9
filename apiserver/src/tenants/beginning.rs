//! The beginning of a tenant, seen to the end: whoever makes a Tenant writes what it begins with,
//! and may die over it; and a new version of this program may have more to begin with.
//!
//! A server that has the Tenant objects looks at all of them once after its start, beside what it
//! answers, and at those that come later when whoever made them must be done.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use insula_api::{names::TenantName, object};
use insula_partition::{
    map::ShardKey,
    snapshot::Snapshot,
    store::{Collection, ReadAt},
};

use crate::{Server, bootstrap, error::Result};

/// How often it looks.
const LOOK: Duration = Duration::from_secs(10);
/// How long whoever makes a tenant may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs until the server ends.
pub(crate) async fn follow(server: Arc<Server>) {
    let mut beginnings = Beginnings::default();
    let shutdown = server.shutdown.clone();
    let looking = async {
        loop {
            if let Err(error) = beginnings.pass(&server).await {
                tracing::warn!(%error, "tenants may lack what they begin with; tried again");
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    shutdown.run_until_cancelled(looking).await;
}

#[derive(Default)]
struct Beginnings {
    /// The tenants that are known.
    seen: Option<Snapshot>,
    /// Those to be looked at, and since when they are known; of the first ones that does not
    /// count.
    unsure: VecDeque<(TenantName, Option<Instant>)>,
}

impl Beginnings {
    async fn pass(&mut self, server: &Server) -> Result<()> {
        let place = server.partitions.place(&ShardKey::System);
        if !place.local {
            // A server that has them does it.
            return Ok(());
        }
        let collection = Collection::new("insula.io", "tenants");
        let now = place.store.read(&collection, ReadAt::Any).await?;
        let since = self.seen.is_some().then(Instant::now);
        for (key, _) in now.changed_since(self.seen.as_ref()) {
            let is_new = self.seen.as_ref().is_none_or(|seen| seen.get(key).is_none());
            let name = key.strip_prefix("system//").filter(|it| is_new && *it != "system");
            let tenant = name.and_then(|it| TenantName::parse(it).ok());
            self.unsure.extend(tenant.map(|it| (it, since)));
        }
        self.seen = Some(now);
        while let Some((tenant, since)) = self.unsure.front() {
            if since.is_some_and(|it| it.elapsed() < PATIENCE) {
                break;
            }
            mend(server, tenant, since.is_none()).await?;
            self.unsure.pop_front();
        }
        Ok(())
    }
}

async fn mend(server: &Server, tenant: &TenantName, at_start: bool) -> Result<()> {
    let Some(it) = bootstrap::find_tenant(server, tenant).await? else { return Ok(()) };
    if object::is_deleting(&it) {
        return Ok(());
    }
    // At a start, that may be of another version or with other keys, all is compared.
    if at_start || !bootstrap::is_whole(server, tenant).await? {
        bootstrap::mend(server, &it).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{Method, Request, header};
    use http_body_util::{BodyExt as _, Full};
    use insula_partition::store::{Change, Expect, Write};
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        identity::{Identity, MASTERS},
        lately::TURN,
        registry,
        tenants::ending,
    };

    const TENANTS: &str = "/apis/insula.io/v1/tenants";
    const ROLES: &str = "apis/rbac.authorization.k8s.io/v1/clusterroles";

    async fn asks(
        server: &Arc<Server>,
        caller: Identity,
        (method, uri): (Method, &str),
        body: &Value,
    ) -> (u16, String) {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, "test/1")
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let response = server.handle_trusted(request, caller).await;
        let code = response.status().as_u16();
        let said = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8_lossy(&said).into_owned())
    }

    async fn ask(server: &Arc<Server>, method: Method, uri: &str, body: &Value) -> u16 {
        let admin = Identity::new(TenantName::system(), "admin", &[MASTERS]);
        asks(server, admin, (method, uri), body).await.0
    }

    async fn has(server: &Arc<Server>, uri: &str) -> bool {
        ask(server, Method::GET, uri, &Value::Null).await == 200
    }

    fn tenant(name: &str) -> Value {
        json!({"apiVersion": "insula.io/v1", "kind": "Tenant", "metadata": {"name": name}})
    }

    #[tokio::test]
    async fn a_tenant_whose_maker_died_gets_its_first_quota_and_all_else() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::alone(dir.path()).await.unwrap();
        let quota = json!({
            "apiVersion": "insula.io/v1", "kind": "TenantQuota", "metadata": {"name": "default"},
            "spec": {"hard": {"pods": "7"}},
        });
        let created = ask(&server, Method::POST, "/apis/insula.io/v1/tenantquotas", &quota).await;
        assert_eq!(created, 201);
        // Of whoever made it nothing is left but the Tenant itself.
        let mut it = tenant("lost");
        it["metadata"]["uid"] = "5f0f7a3e-0000-4000-8000-000000000001".into();
        it["spec"] = json!({"admins": [{"kind": "User", "name": "ann"}]});
        let key = registry::key(&TenantName::system(), "", "lost");
        let collection = Collection::new("insula.io", "tenants");
        let text = Change::Put(object::encode(&it).into());
        let write = Write::durable(collection, key, Expect::Absent, text);
        server.partitions.place(&ShardKey::System).store.write(write).await.unwrap();

        let quota = "/tenants/lost/apis/insula.io/v1/tenantquotas/platform";
        let view = format!("/tenants/lost/{ROLES}/view");
        let service = "/tenants/lost/api/v1/namespaces/default/services/kubernetes";
        assert!(!has(&server, quota).await && !has(&server, &view).await);
        Beginnings::default().pass(&server).await.unwrap();
        assert!(has(&server, quota).await && has(&server, &view).await);
        assert!(has(&server, service).await);
        let ann = Identity::new(TenantName::parse("lost").unwrap(), "ann", &[]);
        let (code, said) = asks(&server, ann, (Method::GET, &view), &Value::Null).await;
        assert_eq!(code, 200, "{said}");

        // What was there once was taken away by somebody, who may: but for what all have.
        for uri in [quota, &view] {
            assert_eq!(ask(&server, Method::DELETE, uri, &Value::Null).await, 200, "{uri}");
        }
        Beginnings::default().pass(&server).await.unwrap();
        assert!(!has(&server, quota).await && has(&server, &view).await);
    }

    #[tokio::test]
    async fn who_comes_later_is_looked_at_later() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::alone(dir.path()).await.unwrap();
        let mut beginnings = Beginnings::default();
        assert_eq!(ask(&server, Method::POST, TENANTS, &tenant("first")).await, 201);
        beginnings.pass(&server).await.unwrap();
        assert!(beginnings.unsure.is_empty());
        assert_eq!(ask(&server, Method::POST, TENANTS, &tenant("second")).await, 201);
        beginnings.pass(&server).await.unwrap();
        beginnings.pass(&server).await.unwrap();
        let waiting: Vec<&str> = beginnings.unsure.iter().map(|(it, _)| it.as_str()).collect();
        assert_eq!(waiting, ["second"]);
    }

    #[tokio::test]
    async fn nothing_is_remembered_of_tenants_that_are_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::alone(dir.path()).await.unwrap();
        let names: Vec<String> = (0..20).map(|n| format!("t{n}")).collect();
        for name in &names {
            assert_eq!(ask(&server, Method::POST, TENANTS, &tenant(name)).await, 201);
            let of = TenantName::parse(name).unwrap();
            let hooks = json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "x"},
            });
            let uri = format!(
                "/tenants/{name}/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
            );
            assert_eq!(ask(&server, Method::POST, &uri, &hooks).await, 201);
            let class = json!({
                "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
                "metadata": {"name": "mine"}, "value": 1,
            });
            let uri = format!("/tenants/{name}/apis/scheduling.k8s.io/v1/priorityclasses");
            assert_eq!(ask(&server, Method::POST, &uri, &class).await, 201);
            // One who may nothing is judged as well.
            let somebody = Identity::new(of, "somebody", &[]);
            let asked = (Method::GET, &*format!("/tenants/{name}/{ROLES}"));
            assert_eq!(asks(&server, somebody, asked, &Value::Null).await.0, 403);
        }
        let sizes = || server.memories().iter().map(|it| it.len()).collect::<Vec<_>>();
        let (policies, most) = (sizes()[0], sizes().into_iter().max());
        assert!(names.len() <= policies, "{:?}", sizes());
        // Of two kinds at least: policies and webhooks.
        let full = sizes().into_iter().filter(|it| names.len() <= *it).count();
        assert!(2 <= full, "{:?}", sizes());
        assert!(most <= Some(names.len() + 1), "{:?}", sizes());
        for name in &names {
            ending::end(&server, &TenantName::parse(name).unwrap()).await.unwrap();
        }
        let left = server.partitions.names().into_iter().filter_map(|name| {
            let store = server.partitions.store(&name)?;
            Some(store.tenants()?.all())
        });
        assert_eq!(left.flatten().map(|it| it.0).collect::<Vec<_>>(), Vec::<String>::new());
        let now = Instant::now();
        for turns in 1..=2 {
            server.memories().iter().for_each(|it| it.tidy(now + turns * (TURN + LOOK)));
        }
        assert!(sizes().iter().all(|it| *it == 0), "{:?}", sizes());
    }
}
