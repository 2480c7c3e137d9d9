//! Pages of a list are of one moment in each partition.
//!
//! In each tenant somebody counts on two objects in turn, so that at any moment the second has the
//! count of the first, or one less. They are listed one per page, while this goes on.

use std::{collections::BTreeMap, time::Duration};

use insula_api::names::TenantName;
use insula_client::{Client, Error, ListOptions};
use k8s_openapi::api::core::v1::ConfigMap;
use tokio_util::sync::CancellationToken;

use crate::subject::config_map;

const LABEL: &str = "insula.io/pair";
/// In the order of their names, so on different pages.
const NAMES: [&str; 2] = ["pair-a", "pair-b"];

fn count_of(object: &ConfigMap) -> u64 {
    object.data.as_ref().unwrap()["count"].parse().unwrap()
}

/// Counts on both objects of `tenant` until told to stop.
pub(crate) async fn count(client: Client, tenant: String, stop: CancellationToken) {
    let api =
        client.tenant(&TenantName::parse(&tenant).unwrap()).namespaced::<ConfigMap>("default");
    while !stop.is_cancelled() {
        let step = async {
            let mut found = Vec::new();
            for name in NAMES {
                match api.get_opt(name).await? {
                    Some(object) => found.push(object.object),
                    None => {
                        let mut object = config_map(name, "count", 0);
                        object.metadata.labels =
                            Some([(LABEL.to_owned(), "yes".to_owned())].into());
                        found.push(api.create(&object).await?.object);
                    }
                }
            }
            let (first, second) = (count_of(&found[0]), count_of(&found[1]));
            // Whatever became of the last step, this is the next one; it is guarded.
            let (at, next) = if first == second { (0, first + 1) } else { (1, first) };
            let object = &mut found[at];
            object.data = Some([("count".to_owned(), next.to_string())].into());
            api.update(object).await.map(drop)
        };
        let done: Result<(), Error> = step.await;
        let pause = if done.is_ok() { 1 } else { 30 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

/// Lists all pairs of all tenants page by page until told to stop. Gives how many whole lists
/// there were.
pub(crate) async fn page(client: Client, stop: CancellationToken) -> usize {
    let all = client.all().collection::<ConfigMap>();
    let mut lists = 0;
    'lists: while !stop.is_cancelled() {
        let mut options = ListOptions::labelled(LABEL);
        options.limit = Some(1);
        let mut counts: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut at = None;
        loop {
            let Ok(page) = all.list(&options).await else {
                // Too old, moved, or nobody there: from the beginning.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue 'lists;
            };
            assert!(page.items.len() <= 1);
            let first = at.get_or_insert_with(|| page.resource_version.clone());
            assert_eq!(*first, page.resource_version, "pages of two moments");
            for it in &page.items {
                counts.entry(it.tenant.to_string()).or_default().push(count_of(&it.object));
            }
            match page.continue_token {
                Some(token) => options.continue_token = Some(token),
                None => break,
            }
        }
        for (tenant, counts) in &counts {
            if let [first, second] = counts[..] {
                let fits = first == second || first == second + 1;
                assert!(fits, "tenant {tenant}: {first} and {second} were never there together");
                lists += 1;
            }
        }
    }
    lists
}
