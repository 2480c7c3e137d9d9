//! Policies that change objects.

use futures::{FutureExt as _, future::BoxFuture};
use http::StatusCode;
use insula_api::object;
use insula_cel::Value as Cel;
use serde_json::{Value, json};

use super::{
    Context, bindings_of,
    params::{self, Found},
    patches,
    variables::Computed,
    written::{Binding, Mutation, Policy},
};
use crate::{
    admission::{
        Admission,
        reinvoke::Round,
        rules::{Meant, compiled::Entry, expression::BUDGET},
    },
    error::{ApiError, Result},
};

/// One policy for this request: with a binding, and perhaps a parameter.
struct Invocation<'a> {
    policy: &'a Entry<Policy>,
    binding: &'a Entry<Binding>,
    meant: Meant,
    param: Option<Value>,
}

impl Invocation<'_> {
    /// Tells it apart from others.
    fn id(&self) -> String {
        let param = self.param.as_ref();
        let namespace = param.map(object::namespace).unwrap_or_default();
        let name = param.map(object::name).unwrap_or_default();
        format!("{}/{}/{namespace}/{name}", self.policy.name, self.binding.name)
    }
}

/// What refuses a request, of policies that are not to be ignored.
#[derive(Default)]
struct Failures {
    list: Vec<String>,
    is_invalid: bool,
}

impl Failures {
    fn add(&mut self, policy: &Entry<Policy>, binding: Option<&str>, why: &str, is_invalid: bool) {
        if !policy.compiled.fails {
            return;
        }
        if self.list.is_empty() {
            self.is_invalid = is_invalid;
        }
        self.list.push(match binding {
            Some(binding) => {
                format!("policy '{}' with binding '{binding}' denied request: {why}", policy.name)
            }
            None => format!("policy {:?} denied request: {why}", policy.name),
        });
    }

    fn into_result(self, admission: &Admission<'_>, it: &Value) -> Result<()> {
        let Some(first) = self.list.first() else { return Ok(()) };
        let mut error = admission.forbidden(Some(it), "admission request denied by policy");
        error.message.clone_from(first);
        error.code = StatusCode::FORBIDDEN;
        if self.is_invalid {
            error.reason = "Invalid";
        }
        if let Some(details) = &mut error.details {
            let causes = self.list.iter().map(|it| json!({ "message": it }));
            details["causes"] = causes.collect::<Vec<_>>().into();
        }
        Err(error)
    }
}

/// Has all policies of the tenant change the object that are about it.
pub(in crate::admission) fn mutate<'a>(
    admission: &'a Admission<'a>,
    it: &'a mut Value,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let found = admission.server.rules.mutating_policies.of(admission).await?;
        let Some((policies, bindings)) = found else { return Ok(()) };
        let mut failures = Failures::default();
        let mut invocations = Vec::new();
        for policy in policies.iter() {
            let mut own = bindings_of(policy, &bindings).peekable();
            if own.peek().is_none() {
                continue;
            }
            let own: Vec<&Entry<Binding>> = own.collect();
            invocations.extend(find(admission, policy, &own, it, &mut failures).await?);
        }
        if !invocations.is_empty() {
            admission.begin_round(Round::Policies, it);
            for invocation in &invocations {
                let id = invocation.id();
                let changed = run(admission, invocation, &id, it, &mut failures).await?;
                if let Some(changed) = changed {
                    let is_reinvoked = invocation.policy.compiled.is_reinvoked;
                    admission.done(Round::Policies, &id, changed, is_reinvoked);
                }
            }
            admission.end_round(Round::Policies, it);
        }
        failures.into_result(admission, it)
    }
    .boxed()
}

/// The invocations of one policy.
async fn find<'a>(
    admission: &Admission<'_>,
    policy: &'a Entry<Policy>,
    bindings: &[&'a Entry<Binding>],
    it: &Value,
    failures: &mut Failures,
) -> Result<Vec<Invocation<'a>>> {
    let mut list = Vec::new();
    let of_policy = |why: &str| format!("failed to configure policy: {why}");
    let of_binding = |why: &str| format!("failed to configure binding: {why}");
    let meant = match policy.compiled.matching.meant(admission, Some(it)).await {
        Ok(Some(meant)) => meant,
        Ok(None) => return Ok(list),
        Err(error) => {
            failures.add(policy, None, &of_policy(&error.message), false);
            return Ok(list);
        }
    };
    let served = match &policy.compiled.params {
        None => None,
        Some(kind) => match params::resource_of(admission, kind).await? {
            Some(served) => Some(served),
            None => {
                let (api_version, kind) = (&kind.api_version, &kind.kind);
                let why = format!(
                    "failed to find resource referenced by paramKind: '{api_version}, Kind={kind}'"
                );
                failures.add(policy, None, &of_policy(&why), false);
                return Ok(list);
            }
        },
    };
    for binding in bindings {
        match binding.compiled.matches(admission, Some(it)).await {
            Ok(true) => (),
            Ok(false) => continue,
            Err(error) => {
                failures.add(policy, Some(&binding.name), &of_binding(&error.message), false);
                continue;
            }
        }
        let wanted = binding.compiled.params.as_ref();
        let params = match params::find(admission, served.as_ref(), wanted).await? {
            Found::NotNeeded => vec![None],
            Found::All(all) => all.into_iter().map(Some).collect(),
            Found::Unusable(why) => {
                failures.add(policy, Some(&binding.name), &of_binding(&why), false);
                continue;
            }
        };
        let each = params.into_iter();
        list.extend(each.map(|param| Invocation { policy, binding, meant: meant.clone(), param }));
    }
    Ok(list)
}

/// Runs one invocation. Says whether it changed the object, if it was its turn.
async fn run(
    admission: &Admission<'_>,
    invocation: &Invocation<'_>,
    id: &str,
    it: &mut Value,
    failures: &mut Failures,
) -> Result<Option<bool>> {
    let Invocation { policy, binding, meant, param } = invocation;
    let mut fail = |why: &str| failures.add(policy, Some(&binding.name), why, true);
    let needs_judge = policy.compiled.needs_judge();
    let mut changed = false;
    for (index, mutation) in policy.compiled.mutations.iter().enumerate() {
        // Each sees what those before it have made.
        let context = Context::new(admission, meant, Some(it), needs_judge).await?;
        if index == 0 {
            match policy.compiled.conditions.hold(&context.variables(admission, param.as_ref())) {
                Ok(true) => (),
                Ok(false) => return Ok(None),
                Err(why) => {
                    fail(&why);
                    return Ok(None);
                }
            }
            if !admission.is_due(Round::Policies, id) {
                return Ok(None);
            }
        }
        admission.go_on().await?;
        let made = evaluate(admission, &policy.compiled, mutation, &context, param.as_ref(), meant);
        match made {
            Ok(Some(made)) => {
                let taken = admission.take(meant, &context.shown.object, made, it).await;
                changed |= taken.map_err(|error| ApiError::internal(error.message))?;
            }
            Ok(None) => (),
            Err(why) => fail(&why),
        }
    }
    Ok(Some(changed))
}

/// What a mutation makes of the object; `None` if it leaves it as it is.
fn evaluate(
    admission: &Admission<'_>,
    policy: &Policy,
    mutation: &Mutation,
    context: &Context<'_>,
    param: Option<&Value>,
    meant: &Meant,
) -> Result<Option<Value>, String> {
    let values = context.variables(admission, param);
    let computed = Computed::new(&policy.variables, values, BUDGET);
    let (Mutation::Apply(expression) | Mutation::Patch(expression)) = mutation;
    if let Some(error) = expression.error() {
        return Err(error.to_owned());
    }
    let found: Cel<'_> = computed.run(expression).map_err(|error| error.to_string())??;
    match mutation {
        Mutation::Apply(_) => {
            patches::apply(meant, admission.has_own_kind(), &context.shown.object, &found).map(Some)
        }
        Mutation::Patch(_) => patches::patch(&context.shown.object, &found),
    }
}
