//! Fairness: between tenants, and between what one tenant asks.
//!
//! A request passes two places once its caller is known, and before its body is read.
//!
//! * *How many of a tenant's requests are under way*: its own flow schemas and priority levels
//!   decide, as upstream's would on a server of its own (`flows.rs`, `levels.rs`, `config.rs`). One
//!   that finds no seat waits in a queue, or is answered 429. Watches and streams hold a seat only
//!   while they begin, and are counted apart.
//! * *Whose turn it is*: every poll of a request, of the body of a watch or a long answer, and of
//!   a connection (`connection.rs`) is a turn. A tenant that uses less than an eighth of the machine has its turns at once. One that
//!   uses more waits for them in a line with the others that do, by weight (`line.rs`, `turn.rs`).
//!
//! The first bounds what a tenant holds, the second what it keeps others from. Superusers of the
//! platform pass both: whoever has to put things right gets in.
//!
//! # Invariants
//!
//! * Only the second place knows of more than one tenant.
//! * A tenant that uses little takes no lock that is shared with other tenants.

mod account;
mod config;
mod connection;
mod counters;
mod flows;
mod levels;
mod line;
mod pieces;
mod shuffle;
mod turn;
mod used;

use std::{
    num::NonZero,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, Method};
use insula_api::{names::TenantName, path::Place};
use insula_metrics::write::Writer;
use tokio_util::sync::CancellationToken;

use self::{
    account::Accounts,
    counters::{AllCounters, Executing},
    flows::{Flow, Request, Target},
    levels::Seat,
    line::Line,
    turn::{Paced, Turns},
};
pub(crate) use self::{
    account::{Account, Counted, Lasting},
    connection::{Connection, Payer},
    pieces::Pieces,
    turn::{InTurn, without_a_break},
    used::{Amounts, Billed},
};
use crate::{
    Server,
    body::Body,
    error::{ApiError, Result},
    gate,
    identity::Identity,
    registry::Whose,
    request::{DEADLINE, Query, deadline},
};

/// Requests of one tenant that are under way on one server: as many as upstream's servers allow.
const SEATS: u32 = 600;
/// Watches and streams of one tenant on one server.
const LASTING: u32 = 20_000;
/// Requests of one tenant that are at other servers.
const SENT_ON: u32 = 600;
/// A list of so many bytes takes one seat, as upstream's of a hundred objects.
const SEAT_BYTES: u32 = 250_000;
/// Most seats of one request.
const WIDEST: u32 = 10;
/// What a request costs beside its turns and those of its connection, in nanoseconds.
const REQUEST: u64 = 5_000;
/// How much of a list is one object, about, in bytes.
const OBJECT: u32 = 2_500;
/// How often those are forgotten who ask nothing any more.
const TIDY: Duration = Duration::from_secs(60);

/// What a server knows of fairness.
#[derive(Debug)]
pub(crate) struct Fair {
    accounts: Accounts,
    line: Arc<Line>,
    counters: AllCounters,
    began: Instant,
}

impl Default for Fair {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            accounts: Accounts::default(),
            line: Line::new(processors),
            counters: AllCounters::default(),
            began: Instant::now(),
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asks<'a> {
    pub method: &'a Method,
    pub place: &'a Place,
    pub query: &'a Query,
}

/// A request that was let on.
#[derive(Debug)]
pub(crate) struct Pass {
    account: Arc<Account>,
    /// Passes everything.
    is_exempt: bool,
    /// What a list of its resource is learned as.
    learns: Option<String>,
    held: Option<(Option<Seat>, [Option<Counted>; 2], Executing)>,
}

impl Pass {
    /// What follows goes on for as long as its client likes: it holds no seat.
    pub(crate) fn give_seat_back(&mut self) {
        self.held = None;
    }

    /// Who is charged, if anybody is.
    pub(crate) fn account(&self) -> Option<&Arc<Account>> {
        (!self.is_exempt).then_some(&self.account)
    }

    /// Remembers how long the answer to a list was.
    pub(crate) fn learn(&self, bytes: usize) {
        if let Some(resource) = &self.learns {
            self.account.learn_size(resource, bytes);
        }
    }
}

/// Where a request belonged, for its answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told(Option<Arc<Flow>>);

impl Told {
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        if let Some(flow) = &self.0 {
            flow.tell(headers);
        }
    }
}

impl Fair {
    fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What the levels of a tenant share: as many seats as may be taken.
    fn seats_of(&self, account: &Account) -> u32 {
        account.most_under_way().map_or(SEATS, |most| most.max(1))
    }

    /// Requests of a tenant that are under way here, and those that go on.
    pub(crate) fn under_way(&self, tenant: &TenantName) -> [u32; 2] {
        self.accounts.known(tenant).map(|it| it.counts()).unwrap_or_default()
    }

    /// The turns of a request; none if it need not take any.
    pub(crate) fn turns(&self, pass: Option<&Pass>) -> Option<Turns> {
        let pass = pass.filter(|it| !it.is_exempt)?;
        Some(self.turns_of(pass.account.clone()))
    }

    /// The turns of who is charged.
    pub(crate) fn turns_of(&self, account: Arc<Account>) -> Turns {
        Turns::new(self.line.clone(), account)
    }

    /// Whoever sent this request pays for the connection it came over.
    pub(crate) fn bill(&self, payer: &Payer, pass: &Pass) {
        if let Some(account) = pass.account() {
            payer.is(&self.line, account);
        }
    }

    /// A body whose pieces are made when it is the turn of whom it is for.
    pub(crate) fn paced(&self, account: Arc<Account>, body: Body) -> Body {
        Paced::body(self.turns_of(account), body)
    }

    /// The tenants of which anything was asked here lately.
    pub(crate) fn tenants(&self) -> Vec<TenantName> {
        self.accounts.tenants()
    }

    /// The account of one of them.
    pub(crate) fn account(&self, tenant: &TenantName) -> Option<Arc<Account>> {
        self.accounts.known(tenant)
    }

    /// One more request that is sent to another server.
    pub(crate) fn sent_on(&self, tenant: &TenantName) -> Result<Counted> {
        let account = self.accounts.of(tenant);
        account.is_sent_on(SENT_ON).ok_or_else(ApiError::busy)
    }

    /// One more request that goes on.
    pub(crate) fn lasting(&self, pass: &Pass) -> Result<Option<Lasting>> {
        match pass.is_exempt {
            true => Ok(None),
            false => pass.account.goes_on(LASTING).map(Some).ok_or_else(ApiError::busy),
        }
    }

    /// Does what has to be done from time to time.
    pub(crate) async fn look_after(self: Arc<Self>, shutdown: CancellationToken) {
        let tidy = async {
            loop {
                tokio::time::sleep(TIDY).await;
                self.accounts.tidy();
            }
        };
        let both = async { tokio::join!(self.line.look_after(), tidy) };
        shutdown.run_until_cancelled(both).await;
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        self.counters.write(writer)?;
        let [waited, late] = self.line.counts();
        let help = "Turns that tenants waited for which use much of a server";
        writer.counters("insula_turns_waited", help)?.number(&[], waited)?;
        let help = "Turns that were given and not taken in time";
        writer.counters("insula_turns_lost", help)?.number(&[], late)?;
        let help = "Requests and watches that wait for their turn";
        writer.gauges("insula_turns_waiting", help)?.number(&[], self.line.len() as u64)
    }
}

impl ApiError {
    /// The tenant has too much under way, in upstream's words.
    pub(crate) fn busy() -> Self {
        let why = "Too many requests, please try again later.";
        Self { is_plain: true, ..Self::too_many_requests(why, 1) }
    }
}

/// How much of a list is asked for, in bytes, if the last one of its resource had `known`.
fn expected(known: u32, query: &Query) -> u32 {
    let limit = query.get("limit").and_then(|it| it.parse().ok()).filter(|it| 0 < *it);
    limit.map_or(known, |limit: u32| known.min(limit.saturating_mul(OBJECT)))
}

impl Server {
    /// Lets a request of `identity` on, waits, or says that there are too many.
    pub(crate) async fn let_on(
        &self,
        identity: &Identity,
        whose: &Whose,
        asks: Asks<'_>,
        told: &mut Told,
    ) -> Result<Pass> {
        let Asks { method, place, query } = asks;
        // Who asks for a tenant's things uses that tenant's part of the server.
        let tenant = whose.tenant().unwrap_or(&identity.tenant);
        let account = self.fair.accounts.of(tenant);
        let lower;
        let (verb, target, learns) = match place {
            Place::Other(path) => {
                lower = method.as_str().to_ascii_lowercase();
                (lower.as_str(), Target::Path(path), None)
            }
            Place::Resource(path) => {
                let verb = gate::verb(method, path, query).unwrap_or_default();
                let is_whole = ["limit", "continue", "labelSelector", "fieldSelector"]
                    .iter()
                    .all(|it| query.get(it).is_none());
                let learns = (verb == "list" && is_whole).then(|| path.resource.clone());
                (verb, Target::Resource(path), learns)
            }
        };
        let mut width = 1;
        if let (Target::Resource(path), "list" | "watch") = (target, verb) {
            let bytes = expected(account.size_of(&path.resource), query);
            width = (bytes / SEAT_BYTES).clamp(1, WIDEST);
        }
        let request = Request { identity, verb, target };
        let is_exempt = identity.is_superuser();
        let own;
        let flows = match identity.tenant == *tenant {
            true => self.flows_of(tenant, &account).await,
            false => {
                own = self.fair.accounts.of(&identity.tenant);
                self.flows_of(&identity.tenant, &own).await
            }
        };
        if !is_exempt {
            self.fair.line.charge(&account, REQUEST);
            account.used.asked(matches!(verb, "get" | "list" | "watch" | "head"));
        }
        let pass = |held| Pass { account: account.clone(), is_exempt, learns, held };
        let Some(flow) = flows.of(request) else { return Ok(pass(None)) };
        told.0 = Some(flow.clone());
        let patience = deadline(query).unwrap_or(DEADLINE) / 4;
        let begin = self.fair.began.elapsed();
        let seat = match flows.take(flow, request, width, patience).await {
            Ok(seat) => seat,
            Err(why) => {
                flow.counters().rejected(why);
                return Err(ApiError::busy());
            }
        };
        // What a tenant says that nothing bounds is bounded all the same.
        let exempted = match seat.is_none() && !is_exempt {
            true => Some(account.is_exempted(SEATS).ok_or_else(ApiError::busy)?),
            false => None,
        };
        // Levels may lend each other more than there is: the quota is what counts in the end.
        let under_way = match is_exempt {
            true => None,
            false => Some(account.begins().ok_or_else(ApiError::busy)?),
        };
        let waited = self.fair.began.elapsed().saturating_sub(begin);
        let waited = (Duration::from_micros(50) < waited).then_some(waited);
        let held = (seat, [exempted, under_way], flow.counters().dispatched(width, waited));
        Ok(pass(Some(held)))
    }
}
