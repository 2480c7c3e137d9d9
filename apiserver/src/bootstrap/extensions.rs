//! What extension servers of a tenant read to know whom to believe.

use insula_api::{names::TenantName, object};
use serde_json::{Value, json};

use crate::{
    Server,
    aggregation::front_proxy,
    error::{ApiError, Result},
};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";

/// Says by which certificate and headers the tenant's front proxy is known.
///
/// Its `client-ca-file` is good for nobody: certificates of clients are signed by one authority
/// for all tenants, and who only knows that would take another tenant's user for its own. What the
/// tenant itself has put there stays.
pub(super) async fn authentication(
    server: &Server,
    tenant: &TenantName,
    uid: &str,
) -> Result<Value> {
    let ring = server.keys.ring();
    let known = server.find(tenant, "", "configmaps", NAMESPACE, NAME).await?;
    let data = known.as_ref().and_then(|it| object::at(it, &["data"])).cloned();
    let mut data = data.unwrap_or_else(|| json!({}));
    if data.get("client-ca-file").is_none() {
        let clients = ring.signing().front_proxies().no_clients(tenant, uid);
        data["client-ca-file"] = clients.map_err(ApiError::internal)?.into();
    }
    // That of every key: a new one is believed before it is shown, an old one until it is gone.
    let mut proxies = String::new();
    for key in ring.all() {
        let proxy = key.front_proxies().of(tenant, uid).map_err(ApiError::internal)?;
        proxies.push_str(&proxy.certificate);
    }
    let list = |names: &[&str]| json!(names).to_string();
    for (key, value) in [
        ("requestheader-allowed-names", list(&[front_proxy::NAME])),
        ("requestheader-client-ca-file", proxies),
        ("requestheader-extra-headers-prefix", list(&["X-Remote-Extra-"])),
        ("requestheader-group-headers", list(&["X-Remote-Group"])),
        ("requestheader-uid-headers", list(&["X-Remote-Uid"])),
        ("requestheader-username-headers", list(&["X-Remote-User"])),
    ] {
        data[key] = value.into();
    }
    Ok(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": NAMESPACE}, "data": data,
    }))
}

/// Says since when the use of tokens that never expire is tracked: always.
pub(super) fn tokens_tracked() -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": "kube-apiserver-legacy-service-account-token-tracking",
            "namespace": NAMESPACE,
        },
        "data": {"since": jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()},
    })
}
