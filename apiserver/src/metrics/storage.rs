//! What lies in the storage, read when somebody asks.

use std::collections::BTreeMap;

use insula_metrics::{Collector, write::Writer};
use insula_partition::store::{ReadAt, StoreStats};
use prometheus_client::encoding::DescriptorEncoder;

use crate::Server;

/// See the module.
#[derive(Debug)]
pub(super) struct Stored {
    partitions: Vec<(String, StoreStats)>,
    /// Objects of built-in resources, in all partitions together.
    objects: BTreeMap<(String, String), u64>,
    /// Tenants of which something is remembered that was made of their objects.
    remembered: usize,
}

impl Stored {
    pub(super) async fn read(server: &Server) -> Self {
        let mut partitions = Vec::new();
        let mut objects = BTreeMap::new();
        for name in server.partitions.names() {
            let Some(store) = server.partitions.store(&name) else { continue };
            partitions.push((name.to_string(), store.stats()));
            // Others tell what is theirs.
            if !server.partitions.is_local(&name) {
                continue;
            }
            for served in server.registry.all() {
                if served.other.is_some() || served.is_view() || !served.resource.is_stored() {
                    continue;
                }
                // Of a store that cannot be read there is nothing to tell.
                let Ok(snapshot) = store.read(&served.collection, ReadAt::Any).await else { break };
                let key = (served.resource.group.clone(), served.resource.name.clone());
                *objects.entry(key).or_default() += snapshot.len() as u64;
            }
        }
        let remembered = server.memories().iter().map(|it| it.len()).max().unwrap_or_default();
        Self { partitions, objects, remembered }
    }
}

impl Collector for Stored {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut writer = Writer(encoder);
        let mut family =
            writer.gauges("apiserver_resource_objects", "Objects of built-in resources")?;
        for ((group, resource), count) in &self.objects {
            family.number(&[("group", group), ("resource", resource)], *count)?;
        }
        let mut family =
            writer.gauges("apiserver_storage_objects", "Objects of built-in resources")?;
        for ((group, resource), count) in &self.objects {
            // As upstream writes both in one.
            let resource = match group.as_str() {
                "" => resource.clone(),
                group => format!("{resource}.{group}"),
            };
            family.number(&[("resource", &resource)], *count)?;
        }
        let help = "Tenants that asked lately, and of which compiled rules are remembered";
        writer.gauges("insula_tenants_remembered", help)?.number(&[], self.remembered as u64)?;
        let each = |stats: fn(&StoreStats) -> u64| {
            self.partitions.iter().map(move |(name, it)| (name, stats(it)))
        };
        type Number = fn(&StoreStats) -> u64;
        let name = "apiserver_storage_size_bytes";
        let mut family = writer.gauges(name, "Bytes of the files of databases")?;
        for (partition, stats) in &self.partitions {
            if let Some(size) = stats.disk {
                family.number(&[("storage_cluster_id", partition)], size)?;
            }
        }
        let families: [(&str, &str, Number); 3] = [
            ("insula_partition_objects", "Live objects", |it| it.objects),
            ("insula_partition_bytes", "Bytes of live objects", |it| it.bytes),
            ("insula_partition_revision", "Newest revision", |it| it.revision.0),
        ];
        for (name, help, number) in families {
            let mut family = writer.gauges(name, help)?;
            for (partition, value) in each(number) {
                family.number(&[("partition", partition)], value)?;
            }
        }
        Ok(())
    }
}
