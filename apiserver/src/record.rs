//! What is remembered of one request, for metrics and for the audit log.

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use http::request::Parts;
use insula_api::path::ResourcePath;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::{
    Server,
    aggregation::delegate::Delegated,
    audit::{self, Trail},
    call::Call,
    error::Result,
    fair::{Fair, Lasting, Pass, Told},
    identity::Identity,
    metrics::{Labels, LongRunning},
    registry::Whose,
    remarks::Remarks,
};

/// See the module. Filled in as the request comes along.
#[derive(Debug)]
pub(crate) struct Record {
    pub id: String,
    pub labels: Labels,
    pub started: Instant,
    pub received: Timestamp,
    pub address: Option<IpAddr>,
    /// As it was asked for.
    pub uri: String,
    /// Without what names the tenant, if it is not about a resource.
    pub path: String,
    pub agent: String,
    method: String,
    /// Whoever answers has a record of its own.
    pub is_elsewhere: bool,
    /// The rules allow it.
    pub was_let_in: bool,
    pub who: Option<Who>,
    /// What it is about, if it is about a resource.
    pub about: Option<Box<About>>,
    /// The body, if the audit log wants it.
    pub body: Option<Bytes>,
    /// What is said of it beside its answer.
    pub remarks: Arc<Remarks>,
    /// How much is logged, once that is known.
    pub trail: Option<Trail>,
    /// What lets it on among others, and what says so in its answer.
    pub pass: Option<Pass>,
    pub told: Told,
    /// One of those that go on, if it does.
    pub lasting: Option<Lasting>,
}

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub identity: Identity,
    /// Who acts as that identity, if it is somebody else.
    pub impersonator: Option<Identity>,
    pub whose: Whose,
}

impl Who {
    /// Whose credentials were shown.
    pub(crate) fn behind(&self) -> &Identity {
        self.impersonator.as_ref().unwrap_or(&self.identity)
    }
}

/// The object of a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct About {
    /// Empty until it is known.
    pub verb: &'static str,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
}

impl From<&ResourcePath> for About {
    fn from(path: &ResourcePath) -> Self {
        Self {
            verb: "",
            group: path.group.clone(),
            version: path.version.clone(),
            resource: path.resource.clone(),
            subresource: path.subresource.clone(),
            namespace: path.namespace.clone(),
            name: path.name.clone(),
        }
    }
}

impl Record {
    pub(crate) fn new(head: &Parts, address: Option<IpAddr>) -> Self {
        Self {
            id: audit::id(&head.headers),
            labels: Labels::plain(&head.method),
            started: Instant::now(),
            received: Timestamp::now(),
            address,
            uri: head.uri.path_and_query().map_or("/", |it| it.as_str()).to_owned(),
            path: head.uri.path().to_owned(),
            agent: audit::agent(&head.headers),
            method: head.method.as_str().to_lowercase(),
            is_elsewhere: false,
            was_let_in: false,
            who: None,
            about: None,
            body: None,
            remarks: Arc::default(),
            trail: None,
            pass: None,
            told: Told::default(),
            lasting: None,
        }
    }

    /// What is known once the gate has let a call in.
    pub(crate) fn admitted(&mut self, call: &Call) {
        self.was_let_in = true;
        self.labels = Labels::of(call);
        self.remarks = call.remarks.clone();
        if let Some(about) = &mut self.about {
            about.verb = call.verb;
            about.name.clone_from(&call.path.name);
        }
    }

    /// What is known once the gate has let a request go on to an extension server.
    pub(crate) fn delegated(&mut self, it: &Delegated, upgrades: bool) {
        self.was_let_in = true;
        self.labels.component = "aggregator";
        if upgrades {
            self.labels.verb = "CONNECT";
        } else if it.verb == "watch" {
            self.labels.verb = "WATCH";
        }
        if let Some(about) = &mut self.about {
            about.verb = it.verb;
        }
    }

    /// The verb, as rules name it.
    pub(crate) fn verb(&self) -> &str {
        let known = self.about.as_ref().map(|it| it.verb).filter(|it| !it.is_empty());
        known.unwrap_or(match (&*self.method, &self.about) {
            // Refused before it was looked at more closely.
            ("post", Some(_)) => "create",
            ("put", Some(_)) => "update",
            (other, _) => other,
        })
    }

    /// Counts a request that goes on among those of its tenant, if it does.
    pub(crate) fn begins_to_last(&mut self, fair: &Fair) -> Result<()> {
        if self.goes_on()
            && let Some(pass) = &self.pass
        {
            self.lasting = fair.lasting(pass)?;
        }
        Ok(())
    }

    /// Counts a request that goes on for as long as its client likes.
    pub(crate) fn long_running(&self, server: &Arc<Server>) -> Option<LongRunning> {
        self.goes_on().then(|| LongRunning::new(server, &self.labels))
    }

    /// Whether its answer goes on for as long as its client likes.
    pub(crate) fn goes_on(&self) -> bool {
        matches!(self.labels.verb, "WATCH" | "CONNECT") || self.labels.subresource == "log"
    }
}
