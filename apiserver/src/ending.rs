//! How a request ends: counted once and written down once, whoever ends it and whenever.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};

use crate::{
    Server,
    audit::{self, Outcome, Trail, policy::Stage},
    body::{self, Body},
    compress::Whole,
    metrics::LongRunning,
    record::Record,
};

/// The code of what nobody waits for any more. No client ever sees it.
const CLIENT_IS_GONE: u16 = 499;

/// A request that is being answered. Dropped before it is, its client is gone.
pub(crate) struct Open {
    server: Arc<Server>,
    pub record: Record,
    is_answered: bool,
}

impl Open {
    pub(crate) fn new(server: Arc<Server>, record: Record) -> Self {
        Self { server, record, is_answered: false }
    }

    /// Counts and writes down what came of the request. What goes on is followed to its end.
    pub(crate) fn answered(mut self, mut response: Response<Body>) -> Response<Body> {
        self.is_answered = true;
        let Self { server, record, .. } = &self;
        let whole = response.extensions().get::<Whole>().map(|it| it.0.clone());
        let (code, took) = (response.status(), record.started.elapsed());
        server.metrics.record(&record.labels, code.as_u16(), took, whole.as_ref().map(Bytes::len));
        if record.is_elsewhere {
            return response;
        }
        if let Ok(id) = HeaderValue::from_str(&record.id) {
            response.headers_mut().insert(audit::ID, id);
        }
        let wants_answer = record.trail.as_ref().is_some_and(Trail::wants_answer);
        let outcome = Outcome { code, body: whole.filter(|_| wants_answer || !code.is_success()) };
        let is_open = code.is_success() || code == StatusCode::SWITCHING_PROTOCOLS;
        if !record.goes_on() || !is_open {
            self.write(Stage::ResponseComplete, &outcome);
            return response;
        }
        self.write(Stage::ResponseStarted, &outcome);
        let gauge = record.long_running(server);
        let end = End { open: self, outcome, _gauge: gauge };
        match response.extensions_mut().remove::<Lasting>() {
            Some(lasting) => lasting.ends_with(end),
            None => return response.map(|body| body::with_end(body, end)),
        }
        response
    }

    fn write(&self, stage: Stage, outcome: &Outcome) {
        if let Some(audit) = &self.server.audit {
            audit.write(&self.record, stage, Some(outcome));
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        let took = self.record.started.elapsed();
        self.server.metrics.record(&self.record.labels, CLIENT_IS_GONE, took, None);
        if let Ok(code) = StatusCode::from_u16(CLIENT_IS_GONE)
            && !self.record.is_elsewhere
        {
            self.write(Stage::ResponseComplete, &Outcome { code, body: None });
        }
    }
}

/// An answer that goes on; dropped when it has ended.
struct End {
    open: Open,
    outcome: Outcome,
    _gauge: Option<LongRunning>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.open.write(Stage::ResponseComplete, &self.outcome);
    }
}

/// A connection that goes on in another protocol: whoever carries it holds this as long, and
/// puts it into the extensions of the answer.
#[derive(Clone, Default)]
pub(crate) struct Lasting(Arc<OnceLock<End>>);

impl Lasting {
    fn ends_with(self, end: End) {
        // An answer is given once.
        let _ = self.0.set(end);
    }
}
