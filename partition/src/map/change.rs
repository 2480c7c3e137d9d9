//! Every way in which a map becomes the next one.
//!
//! Each gives a whole new map with the next epoch, or says why not. A change that changes
//! nothing gives the same map with the same epoch.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Backend, MapError, Moving, PartitionInfo, PartitionMap, Scope, ServerInfo, Shard, Slots, names,
};

impl PartitionMap {
    fn changed(
        &self,
        change: impl FnOnce(&mut Self) -> Result<(), MapError>,
    ) -> Result<Self, MapError> {
        let mut next = self.clone();
        change(&mut next)?;
        if next == *self {
            return Ok(next);
        }
        next.epoch += 1;
        next.check()?;
        Ok(next)
    }

    /// Gives a map that was not stored yet to a cluster that is there already.
    pub(crate) fn set_cluster(&mut self, cluster: &str) {
        self.cluster = cluster.into();
    }

    /// With a server of that name and address; a new one gets the next id.
    pub fn with_server(&self, name: &str, address: &str) -> Result<Self, MapError> {
        self.changed(|map| {
            match map.servers.iter_mut().find(|server| server.name == name) {
                Some(server) => server.address = address.into(),
                None => {
                    let (id, name) = (map.next_server, name.to_owned());
                    map.next_server += 1;
                    map.servers.push(ServerInfo {
                        id,
                        name,
                        address: address.into(),
                        ready: vec![],
                    });
                }
            }
            Ok(())
        })
    }

    /// With a server that has nothing yet. If there was one of that name it is another one now:
    /// what the former one promised as a member must not be held against it.
    pub fn with_new_server(&self, name: &str, address: &str) -> Result<Self, MapError> {
        self.changed(|map| {
            let former = map.servers.iter().find(|server| server.name == name).map(|it| it.id);
            map.servers.retain(|server| server.name != name);
            let id = map.next_server;
            map.next_server += 1;
            let (name, address) = (name.to_owned(), address.to_owned());
            map.servers.push(ServerInfo { id, name, address, ready: Vec::new() });
            for info in std::iter::once(&mut map.meta).chain(&mut map.partitions) {
                if former.is_some_and(|former| info.first.contains(&former)) {
                    info.first.clear();
                }
            }
            Ok(())
        })
    }

    /// What a server serves from its own memory.
    pub fn with_ready(&self, name: &str, mut ready: Vec<String>) -> Result<Self, MapError> {
        ready.sort();
        self.changed(|map| {
            let server = map.servers.iter_mut().find(|server| server.name == name);
            server.ok_or_else(|| MapError::UnknownServer(name.into()))?.ready = ready;
            Ok(())
        })
    }

    /// Without a server that will not come back. It is no member of anything any more.
    pub fn without_server(&self, name: &str) -> Result<Self, MapError> {
        self.known_server(name)?;
        self.changed(|map| {
            map.servers.retain(|server| server.name != name);
            for info in std::iter::once(&mut map.meta).chain(&mut map.partitions) {
                let before = info.servers.len();
                info.servers.retain(|server| server != name);
                if info.servers.len() != before {
                    info.first.clear();
                    info.settled.clear();
                }
                if before != 0 && info.servers.is_empty() {
                    return Err(MapError::NoMember(info.name.clone()));
                }
            }
            Ok(())
        })
    }

    /// With one more partition, which owns nothing yet.
    pub fn with_partition(&self, mut info: PartitionInfo) -> Result<Self, MapError> {
        if info.backend == Backend::Embedded && info.servers.is_empty() {
            return Err(MapError::NoMember(info.name));
        }
        if info.filling && info.draining {
            return Err(MapError::Draining(info.name));
        }
        if info.backend == Backend::Embedded {
            let id = |name: &String| self.known_server(name).map(|server| server.id);
            info.first = info.servers.iter().map(id).collect::<Result<_, _>>()?;
        }
        self.changed(|map| {
            map.partitions.push(info);
            map.names = names(&map.partitions);
            Ok(())
        })
    }

    /// Without a partition that owns nothing any more.
    pub fn without_partition(&self, name: &str) -> Result<Self, MapError> {
        let at = self.known(name)?;
        let in_use = |what: String| MapError::InUse { name: name.into(), what };
        let slots = self.slots_of(name);
        if slots != 0 {
            return Err(in_use(format!("{slots} slots")));
        }
        if let Some((tenant, _)) = self.pins.iter().find(|(_, partition)| *partition == name) {
            return Err(in_use(format!("tenant {tenant}")));
        }
        if let Some(moving) = self.moves.values().find(|it| it.from == name || it.to == name) {
            return Err(moving.busy());
        }
        self.changed(|map| {
            map.partitions.remove(at);
            map.names.remove(at);
            let shift = |owner: &u16| if usize::from(*owner) < at { *owner } else { *owner - 1 };
            map.slots = Arc::new(map.slots.iter().map(shift).collect());
            Ok(())
        })
    }

    /// With a partition that is being drained, or no longer.
    pub fn with_draining(&self, name: &str, draining: bool) -> Result<Self, MapError> {
        let at = self.with_slots(name)?;
        self.changed(|map| {
            let info = &mut map.partitions[at];
            info.draining = draining;
            info.filling &= !draining;
            Ok(())
        })
    }

    /// With a partition to which slots move until it has its share, or no longer.
    pub fn with_filling(&self, name: &str, filling: bool) -> Result<Self, MapError> {
        let at = self.with_slots(name)?;
        if filling && self.partitions[at].draining {
            return Err(MapError::Draining(name.into()));
        }
        self.changed(|map| {
            map.partitions[at].filling = filling;
            Ok(())
        })
    }

    /// Index of a partition that can have slots.
    fn with_slots(&self, name: &str) -> Result<usize, MapError> {
        if name == self.meta.name {
            return Err(MapError::NoSlots(name.into()));
        }
        self.known(name)
    }

    /// With other servers as an embedded partition's members; `meta`'s too.
    pub fn with_members(&self, name: &str, servers: Vec<String>) -> Result<Self, MapError> {
        if servers.is_empty() {
            return Err(MapError::NoMember(name.into()));
        }
        let at = if name == self.meta.name { None } else { Some(self.known(name)?) };
        self.changed(|map| {
            let info = match at {
                None => &mut map.meta,
                Some(at) => &mut map.partitions[at],
            };
            if info.servers != servers {
                info.servers = servers;
                info.first.clear();
                info.settled.clear();
            }
            Ok(())
        })
    }

    /// With the knowledge that a group has just these members; nothing if others are wanted by now.
    pub(crate) fn with_settled(&self, name: &str, servers: &[String]) -> Result<Self, MapError> {
        self.changed(|map| {
            let mut all = std::iter::once(&mut map.meta).chain(&mut map.partitions);
            if let Some(info) = all.find(|info| info.name == name && info.servers == servers) {
                info.settled = servers.to_vec();
            }
            Ok(())
        })
    }

    /// With another etcd's address: the same etcd, reached in another way.
    pub fn with_backend(&self, name: &str, backend: Backend) -> Result<Self, MapError> {
        let at = if name == self.meta.name { None } else { Some(self.known(name)?) };
        self.changed(|map| {
            let info = match at {
                None => &mut map.meta,
                Some(at) => &mut map.partitions[at],
            };
            let same =
                matches!(info.backend, Backend::Embedded) == matches!(backend, Backend::Embedded);
            if !same {
                let what =
                    format!("partition {name} cannot change its kind; add another and drain it");
                return Err(MapError::Etcd(what));
            }
            info.backend = backend;
            Ok(())
        })
    }

    /// A scope of slots, without the tenants that are pinned now.
    pub fn slots_scope(&self, first: u16, last: u16) -> Scope {
        let whole = Scope::slots(first, last);
        let pinned = |name: &&String| whole.contains(Shard::Tenant(name));
        let except: BTreeSet<_> = self.pins.keys().filter(pinned).cloned().collect();
        match whole {
            Scope::Slots(slots) => Scope::Slots(Slots { except, ..slots }),
            tenant @ Scope::Tenant(_) => tenant,
        }
    }

    /// With a move under way. It must be from where its scope is to another, open partition.
    pub fn with_move(&self, id: &str, moving: Moving) -> Result<Self, MapError> {
        self.known(&moving.from)?;
        let to = self.known(&moving.to)?;
        if moving.from == moving.to {
            return Err(MapError::Already { what: moving.scope.to_string(), to: moving.to });
        }
        if self.partitions[to].draining {
            return Err(MapError::Draining(moving.to));
        }
        if let Some(other) = self.moves.values().find(|it| it.scope.overlaps(&moving.scope)) {
            return Err(other.busy());
        }
        if let Scope::Slots(slots) = &moving.scope {
            let Scope::Slots(now) = self.slots_scope(slots.first, slots.last) else {
                return Err(MapError::NoMove(id.into()));
            };
            if now.except != slots.except {
                return Err(MapError::Busy {
                    what: "a pinned tenant".into(),
                    from: moving.from,
                    to: moving.to,
                });
            }
        }
        self.changed(|map| {
            map.moves.insert(id.into(), moving);
            Ok(())
        })
    }

    /// With a move's scope where it moved to. The move stays, see [`Moving`].
    pub fn with_flip(&self, id: &str) -> Result<Self, MapError> {
        let moving = self.moves.get(id).ok_or_else(|| MapError::NoMove(id.into()))?.clone();
        let to = self.known(&moving.to)?;
        self.changed(|map| {
            if let Some(moving) = map.moves.get_mut(id) {
                moving.flipped = true;
            }
            match &moving.scope {
                // Also where its slot says the same: it was put there, and slots move.
                Scope::Tenant(name) => drop(map.pins.insert(name.clone(), moving.to)),
                Scope::Slots(slots) => {
                    let owners = Arc::make_mut(&mut map.slots);
                    for slot in slots.first..=slots.last {
                        owners[usize::from(slot)] = to as u16;
                    }
                }
            }
            Ok(())
        })
    }

    /// Without a move that is not to happen, or has.
    pub fn without_move(&self, id: &str) -> Result<Self, MapError> {
        self.changed(|map| {
            map.moves.remove(id);
            Ok(())
        })
    }

    /// With a tenant on `partition`, or where its slot says if `None`. Moves no data: only for
    /// tenants that have none yet.
    pub fn with_pin(&self, tenant: &str, partition: Option<&str>) -> Result<Self, MapError> {
        if let Some((_, moving)) = self.move_of(Shard::Tenant(tenant)) {
            return Err(moving.busy());
        }
        let known = partition.map(|name| self.known(name)).transpose()?;
        let here = self.owner_of(Shard::Tenant(tenant));
        if let (Some(name), Some(at)) = (partition, known)
            && name != here
            && self.partitions[at].draining
        {
            return Err(MapError::Draining(name.into()));
        }
        self.changed(|map| {
            match partition {
                Some(name) => drop(map.pins.insert(tenant.into(), name.into())),
                None => drop(map.pins.remove(tenant)),
            }
            Ok(())
        })
    }
}
