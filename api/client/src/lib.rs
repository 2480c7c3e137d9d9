//! The API client of controllers, schedulers and node agents: tenant-aware, typed, over HTTP or
//! in process.
//!
//! ```text
//! Client ── tenant(t) ──> Scope ── api::<K>() / namespaced::<K>(ns) ──> Api<K>         get, write
//!        └─ all()     ──> AllTenants ── collection::<K>() ──────────> Collection<K>  list, watch
//!                                                                       └─ Informer<K>
//! ```
//!
//! Every request uses the prefix form of the request path (`/tenants/{t}/api/...`), so the tenant
//! is in one place only. [`AllTenants`] can list and watch but has no verbs that write: an object
//! belongs to one tenant, and a write says which.
//!
//! [`Client::ask`] and [`Client::follow`] send any path as it is, for who measures a server.
//!
//! # Invariants
//!
//! * An object never travels without its tenant: whatever is read is a [`Tenanted`].
//! * A `resourceVersion` is a text. Only [`Informer`] looks inside, to tell a replayed event of
//!   the same object from a new one.
//! * Every answer and every watch event is bounded in size, every request but a watch in time.

mod api;
mod backoff;
mod client;
mod discovery;
mod error;
mod events;
pub mod fence;
mod informer;
mod kinds;
pub mod metrics;
mod multiplexed;
mod object;
mod options;
mod path;
mod raw;
mod said;
mod selectors;
pub mod tap;
mod tenanted;
mod watch;

pub use self::{
    api::{Api, Collection, Deleted, Page},
    backoff::Backoff,
    client::{AllTenants, Client, ClientError, Download, Scope},
    discovery::{Discovered, Discovery},
    error::{Error, Retry, chain},
    events::{EventRecorder, EventType},
    informer::{Change, IndexId, Informer, InformerBuilder},
    kinds::{ControllerInstance, NoStatus, Partition, SchedulerInstance, SlotTable, Tenant},
    object::{Kind, Object, ObjectKey, PartialObject, ResourceRef, newer_version},
    options::{
        DeleteOptions, ListOptions, Patch, PatchOptions, Propagation, WatchOptions, WriteOptions,
    },
    raw::{Answer, Content, Follow},
    said::Sent,
    selectors::compile,
    tenanted::Tenanted,
    watch::{Watch, WatchEvent},
};
