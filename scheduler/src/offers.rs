//! What the server has of what not every Kubernetes API has.

use std::time::Duration;

use insula_client::{Client, Error, chain};

/// Where servers list what is our own.
pub(crate) const OURS: &str = "/apis/insula.io/v1";
/// Where they list groups of pods.
pub(crate) const GROUPS: &str = "/apis/scheduling.k8s.io/v1alpha2";

/// Where they list claims of devices.
pub(crate) const DEVICES: &str = "/apis/resource.k8s.io/v1";

/// How long to wait before a server that did not answer is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether the server has a resource, of the group version that is listed there. Asks until it is
/// answered.
pub(crate) async fn offers(client: &Client, group: &str, resource: &str) -> bool {
    loop {
        match ask(client, group, resource).await {
            Ok(answer) => return answer,
            Err(error) => {
                tracing::warn!(resource, error = chain(&error), "what is offered is not known yet");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn ask(client: &Client, group: &str, resource: &str) -> Result<bool, Error> {
    match client.document(group).await {
        Ok(list) => {
            let mut resources = list["resources"].as_array().into_iter().flatten();
            Ok(resources.any(|it| it["name"] == resource))
        }
        Err(error) if error.is_not_found() || error.is_forbidden() => Ok(false),
        Err(error) => Err(error),
    }
}
