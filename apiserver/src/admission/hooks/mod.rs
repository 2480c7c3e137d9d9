//! A tenant's webhooks: asked in the order of their configurations' names.
//!
//! Those that change objects are asked one after the other, each seeing what the others made of
//! it; those that only refuse are asked all at once. What a webhook may change is the object but
//! not who it is, and what it makes of it is read again as if a client had sent it.

mod ask;
mod review;

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};
use http::StatusCode;
use insula_api::selector::LabelSelector;
use insula_custom::definition::ClientConfig;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::Semaphore, time::Instant};

use self::ask::Failure;
use super::{
    Admission, Step,
    reinvoke::Round,
    rules::{
        Meant, Rule, Selectors,
        compiled::{Compiled, Entries},
        conditions::{Conditions, MatchCondition},
        scope::{NOTHING, Scope},
    },
};
use crate::{
    error::{ApiError, Result},
    metrics::{Asked, Rejection},
    outbound::{OutboundError, Trust},
    patch,
};

/// Most webhooks that one request is shown to at once.
const AT_ONCE: usize = 16;

/// One webhook, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Written {
    name: String,
    client_config: ClientConfig,
    rules: Vec<Rule>,
    failure_policy: Option<String>,
    match_policy: Option<String>,
    namespace_selector: Option<LabelSelector>,
    object_selector: Option<LabelSelector>,
    side_effects: Option<String>,
    timeout_seconds: Option<u64>,
    admission_review_versions: Vec<String>,
    match_conditions: Vec<MatchCondition>,
    reinvocation_policy: Option<String>,
}

/// One webhook, ready to be asked.
#[derive(Debug)]
pub(super) struct Hook {
    name: String,
    configuration: String,
    /// Tells it apart from others of the same name.
    id: String,
    client: ClientConfig,
    trust: Result<Trust, OutboundError>,
    rules: Vec<Rule>,
    selectors: Selectors,
    conditions: Conditions,
    is_exact: bool,
    /// Whether a request is let through if the webhook cannot be asked.
    is_ignorable: bool,
    side_effects: Option<String>,
    timeout: Duration,
    versions: Vec<String>,
    is_reinvoked: bool,
}

/// The webhooks of one configuration.
pub(super) type Hooks = Vec<Hook>;

/// Compiles a configuration.
pub(super) fn compile(configuration: &Value) -> Result<Hooks, serde_json::Error> {
    let name = insula_api::object::name(configuration);
    let uid = insula_api::object::uid(configuration);
    let list = configuration.get("webhooks").and_then(Value::as_array);
    let each = list.into_iter().flatten().map(Written::deserialize).enumerate();
    each.map(|(index, it)| Ok(Hook::new(name, format!("{uid}/{index}"), it?))).collect()
}

impl Hook {
    fn new(configuration: &str, id: String, it: Written) -> Self {
        let is_ignorable = it.failure_policy.as_deref() == Some("Ignore");
        Self {
            id,
            configuration: configuration.to_owned(),
            trust: Trust::bundle(it.client_config.ca_bundle.as_deref()),
            client: it.client_config,
            selectors: Selectors::new(it.namespace_selector.as_ref(), it.object_selector.as_ref()),
            conditions: Conditions::new(&it.match_conditions, !is_ignorable, false),
            rules: it.rules,
            is_exact: it.match_policy.as_deref() == Some("Exact"),
            is_ignorable,
            side_effects: it.side_effects,
            timeout: Duration::from_secs(it.timeout_seconds.unwrap_or(10).clamp(1, 30)),
            versions: it.admission_review_versions,
            is_reinvoked: it.reinvocation_policy.as_deref() == Some("IfNeeded"),
            name: it.name,
        }
    }

    /// As what the webhook is asked about the object, if it is.
    async fn meant(&self, admission: &Admission<'_>, it: Option<&Value>) -> Result<Option<Meant>> {
        let Some(meant) = admission.meant(&self.rules, self.is_exact, it).await? else {
            return Ok(None);
        };
        if !admission.is_selected(&self.selectors, it).await? {
            return Ok(None);
        }
        if self.conditions.is_empty() {
            return Ok(Some(meant));
        }
        let shown = Shown::new(admission, &meant, it).await?;
        let judge = match self.conditions.uses("authorizer") {
            true => Some(admission.judge().await?),
            false => None,
        };
        let request = Value::Object(admission.request(&meant, it));
        let scope = Scope {
            object: &shown.object,
            old: &shown.old,
            request: &request,
            params: None,
            namespace: &NOTHING,
            judge: judge.as_ref(),
            check: admission.check(),
        };
        match self.conditions.hold(&scope.variables()) {
            Ok(true) => Ok(Some(meant)),
            Ok(false) => Ok(None),
            Err(why) => Err(admission.forbidden(it, &why)),
        }
    }

    fn failed(&self, why: &str) -> ApiError {
        ApiError::internal(format!("failed calling webhook {:?}: {why}", self.name))
    }

    /// Counts a question, and what came of it.
    fn count(
        &self,
        admission: &Admission<'_>,
        step: Step,
        begun: Instant,
        failure: Option<&Failure>,
    ) {
        let (name, operation) = (self.name.as_str(), admission.operation);
        let admissions = admission.server.metrics.admissions();
        let rejection = failure.map(|failure| match failure {
            Failure::Refused(error) if error.reason == "InternalError" => Rejection::Internal,
            Failure::Refused(error) => Rejection::Said(error.code.as_u16()),
            Failure::Unreachable(_) => Rejection::Calling,
        });
        let is_open = rejection == Some(Rejection::Calling) && self.is_ignorable;
        let code = match rejection {
            None => StatusCode::OK.as_u16(),
            Some(Rejection::Said(code)) => code,
            Some(Rejection::Calling) => StatusCode::SERVICE_UNAVAILABLE.as_u16(),
            Some(Rejection::Internal) => 0,
        };
        let is_refused = rejection.is_some() && !is_open;
        admissions.asked(Asked { name, step, operation, code, is_refused, took: begun.elapsed() });
        match rejection {
            Some(_) if is_open => admissions.failed_open(name, step),
            Some(why) => admissions.rejected(name, step, operation, why),
            None => (),
        }
    }

    /// Whether a request that changes nothing may be shown to it.
    fn check_dry_run(&self, admission: &Admission<'_>) -> Result<(), Failure> {
        match self.side_effects.as_deref() {
            _ if !admission.dry_run => Ok(()),
            Some("None" | "NoneOnDryRun") => Ok(()),
            None => Err(Failure::Unreachable("Webhook SideEffects is nil".into())),
            Some(_) => {
                let why = format!("admission webhook {:?} does not support dry run", self.name);
                Err(Failure::Refused(ApiError::bad_request(why)))
            }
        }
    }
}

/// The objects of a request, as a webhook is shown them.
pub(super) struct Shown {
    pub object: Value,
    pub old: Value,
}

impl Shown {
    pub(super) async fn new(
        admission: &Admission<'_>,
        meant: &Meant,
        it: Option<&Value>,
    ) -> Result<Self> {
        let object = match it {
            Some(it) => admission.shown_as(meant, it).await?,
            None => Value::Null,
        };
        let old = match admission.old {
            Some(old) => admission.shown_as(meant, old).await?,
            None => Value::Null,
        };
        Ok(Self { object, old })
    }
}

/// The webhooks of one kind of a tenant that may be asked about this request.
async fn hooks_of(
    admission: &Admission<'_>,
    compiled: &Compiled<Hooks>,
) -> Result<Option<Entries<Hooks>>> {
    // They could never be repaired if they were in their own way.
    if admission.is_about_rules() {
        return Ok(None);
    }
    let found = compiled.of(admission.server, admission.tenant()?).await?;
    match found {
        Some(found) if admission.is_under_own_rules().await? => Ok(Some(found)),
        _ => Ok(None),
    }
}

/// Has all webhooks change the object that want to.
pub(super) fn mutate<'a>(
    admission: &'a Admission<'a>,
    it: &'a mut Value,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let compiled = &admission.server.rules.mutating_webhooks;
        let Some(entries) = hooks_of(admission, compiled).await? else { return Ok(()) };
        let round = admission.begin_round(Round::Webhooks, it);
        let hooks = entries.iter().flat_map(|entry| &entry.compiled);
        for (index, hook) in hooks.enumerate() {
            let object = Some(&*it).filter(|it| !it.is_null());
            let Some(meant) = hook.meant(admission, object).await? else { continue };
            if !admission.is_due(Round::Webhooks, &hook.id) {
                continue;
            }
            let begun = Instant::now();
            let asked = mutate_by(admission, hook, &meant, it, round, index).await;
            hook.count(admission, Step::Admit, begun, asked.as_ref().err());
            let changed = match asked {
                Ok(changed) => changed,
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::Unreachable(why)) if hook.is_ignorable => {
                    tracing::warn!(webhook = hook.name, why, "failing open");
                    let key = format!(
                        "failed-open.mutation.webhook.admission.k8s.io/round_{round}_index_{index}"
                    );
                    admission.call.remarks.annotate(key, || hook.name.clone());
                    false
                }
                Err(Failure::Unreachable(why)) => return Err(hook.failed(&why)),
            };
            admission.done(Round::Webhooks, &hook.id, changed, hook.is_reinvoked);
        }
        admission.end_round(Round::Webhooks, it);
        Ok(())
    }
    .boxed()
}

async fn mutate_by(
    admission: &Admission<'_>,
    hook: &Hook,
    meant: &Meant,
    it: &mut Value,
    round: usize,
    index: usize,
) -> Result<bool, Failure> {
    hook.check_dry_run(admission)?;
    let object = Some(&*it).filter(|it| !it.is_null());
    let shown = Shown::new(admission, meant, object).await?;
    let answer = hook.ask(admission, meant, &shown, true).await?;
    let mut changed = false;
    if let Some(operations) = &answer.patch {
        if object.is_none() {
            let why = format!(
                "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                hook.name
            );
            return Err(Failure::Refused(ApiError::internal(why)));
        }
        let mut patched = shown.object.clone();
        patch::run(&mut patched, operations).map_err(|error| ApiError::internal(error.message))?;
        changed = admission.take(meant, &shown.object, patched, it).await?;
        let key = format!("patch.webhook.admission.k8s.io/round_{round}_index_{index}");
        admission.call.remarks.annotate(key, || {
            let told = json!({
                "configuration": hook.configuration, "webhook": hook.name, "patch": operations,
                "patchType": "JSONPatch",
            });
            told.to_string()
        });
    }
    let key = format!("mutation.webhook.admission.k8s.io/round_{round}_index_{index}");
    admission.call.remarks.annotate(key, || {
        let told = json!({
            "configuration": hook.configuration, "webhook": hook.name, "mutated": changed,
        });
        told.to_string()
    });
    Ok(changed)
}

/// Asks all webhooks that may refuse, at the same time.
pub(super) fn validate<'a>(
    admission: &'a Admission<'a>,
    it: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let compiled = &admission.server.rules.validating_webhooks;
        let Some(entries) = hooks_of(admission, compiled).await? else { return Ok(()) };
        let mut asked = Vec::new();
        for hook in entries.iter().flat_map(|entry| &entry.compiled) {
            if let Some(meant) = hook.meant(admission, it).await? {
                asked.push((hook, meant));
            }
        }
        // What each is asked is made when its turn comes.
        let turns = &Semaphore::new(AT_ONCE);
        let each = asked.iter().enumerate().map(|(index, (hook, meant))| async move {
            let _turn = turns.acquire().await;
            let begun = Instant::now();
            let asked = validate_by(admission, hook, meant, it).await;
            hook.count(admission, Step::Validate, begun, asked.as_ref().err());
            match asked {
                Ok(()) => Ok(()),
                Err(Failure::Refused(error)) => Err(error),
                Err(Failure::Unreachable(why)) if hook.is_ignorable => {
                    tracing::warn!(webhook = hook.name, why, "failing open");
                    let key = format!(
                        "failed-open.validating.webhook.admission.k8s.io/round_0_index_{index}"
                    );
                    admission.call.remarks.annotate(key, || hook.name.clone());
                    Ok(())
                }
                Err(Failure::Unreachable(why)) => Err(hook.failed(&why)),
            }
        });
        futures::future::join_all(each).await.into_iter().collect()
    }
    .boxed()
}

async fn validate_by(
    admission: &Admission<'_>,
    hook: &Hook,
    meant: &Meant,
    it: Option<&Value>,
) -> Result<(), Failure> {
    hook.check_dry_run(admission)?;
    let shown = Shown::new(admission, meant, it).await?;
    hook.ask(admission, meant, &shown, false).await.map(|_| ())
}
