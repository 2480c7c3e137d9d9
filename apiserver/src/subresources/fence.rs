//! `fence`: from now on nobody writes for what a holder has claimed, but that holder.
//!
//! A claim in a `SlotTable` says who cares for which slots, and in which epoch. It counts in a
//! partition once the partition keeps that epoch ([`insula_partition::epochs`]). Whoever claimed
//! something has it fenced everywhere before it begins, and reads everything anew after that.
//!
//! Nothing is raised that the stored table does not say, and of that only what the caller names as
//! its own: who was replaced gets nothing by asking late. The order of the two reads matters: a
//! partition that somebody once was let into by an older claim is in every map that is read after
//! a newer one.

use std::time::Duration;

use futures::future::join_all;
use insula_api::{
    object,
    schema::Gvk,
    slots::{self, Block},
};
use insula_partition::{
    epochs::{self, Epoch},
    store::{ReadAt, StoreError},
};
use serde_json::{Value, json};

use crate::{
    Server,
    call::Call,
    error::{ApiError, FieldError, Result},
    read,
};

/// How long one partition may take; the others do not wait for it for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// Fences what the holder that the body names has claimed in the table of the path.
pub(crate) async fn fence(server: &Server, call: &Call, body: &[u8]) -> Result<Value> {
    let kind = Gvk::new("insula.io", "v1", "SlotFence");
    let mut request = call.decode(&kind, body)?;
    super::admit(server, call, kind, &mut request).await?;
    let holder = object::text(&request, &["spec", "holder"]);
    if holder.is_empty() {
        let errors = [FieldError::required("spec.holder", "")];
        return Err(ApiError::invalid("insula.io", "SlotFence", "", &errors));
    }
    // The newest map, and after it the newest table; see the module.
    let newest = server.partitions.change_map(|map| Ok(map.clone())).await;
    let map = newest.map_err(|error| ApiError::unavailable(error.to_string()))?;
    let name = &call.path.name;
    let (_, store) = call.served.place(&server.partitions, call.tenant()?, "", name);
    let table = read::get(&call.served, &*store, &call.key(name)?, name, ReadAt::Latest).await?;
    let table: Value = serde_json::from_slice(&table.value.bytes()).map_err(ApiError::internal)?;
    let claimed = claimed(name, &table, holder)?;
    let raised = join_all(map.partitions().iter().map(|partition| {
        let store = server.partitions.store(partition);
        let claimed = &claimed;
        async move {
            let outcome = match store {
                Some(store) => {
                    tokio::time::timeout(PATIENCE, epochs::raise(&*store, claimed)).await
                }
                None => Ok(Err(StoreError::Unavailable {
                    reason: "it is not open yet".into(),
                    source: None,
                })),
            };
            (partition, outcome)
        }
    }))
    .await;
    let (mut unreached, mut newest) = (Vec::new(), 0);
    for (partition, outcome) in raised {
        match outcome {
            Ok(Ok(newer)) => {
                newest = newer.iter().map(|epoch| epoch.number).fold(newest, u64::max);
            }
            Ok(Err(error)) => {
                tracing::warn!(partition, holder, %error, "epochs could not be raised");
                unreached.push(partition.as_str());
            }
            Err(_) => unreached.push(partition.as_str()),
        }
    }
    request["status"] = json!({"unreached": unreached, "newest": newest});
    Ok(request)
}

/// The epochs that `holder` has claims in.
fn claimed(name: &str, table: &Value, holder: &str) -> Result<Vec<Epoch>> {
    let mut claimed = Vec::new();
    let claims = table["spec"]["claims"].as_array().into_iter().flatten();
    for claim in claims.filter(|claim| claim["holder"] == holder) {
        let number = claim["epoch"].as_u64().unwrap_or(0);
        let ranges = claim["slots"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let blocks = slots::blocks(ranges)
            .map_err(|error| ApiError::internal(format!("SlotTable {name}: {error}")))?;
        let of = |block: Block| Epoch { task: block.task(name).into(), number };
        claimed.extend(blocks.into_iter().map(of));
    }
    Ok(claimed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_has_what_the_table_says() {
        let table = json!({"spec": {"epoch": 7, "claims": [
            {"holder": "a", "epoch": 5, "slots": ["0-127", "192-255"]},
            {"holder": "b", "epoch": 6, "slots": ["128-191"]},
            {"holder": "a", "epoch": 7, "slots": ["16320-16383"]},
        ]}});
        let found: Vec<_> = claimed("t", &table, "a")
            .unwrap()
            .into_iter()
            .map(|epoch| format!("{}={}", epoch.task, epoch.number))
            .collect();
        assert_eq!(found, ["t.0=5", "t.1=5", "t.3=5", "t.255=7"]);
        assert!(claimed("t", &table, "c").unwrap().is_empty());
        let wrong = json!({"spec": {"claims": [{"holder": "a", "epoch": 5, "slots": ["0-1"]}]}});
        assert!(claimed("t", &wrong, "a").is_err());
    }
}
