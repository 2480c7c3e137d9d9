//! From the claims of a token to who somebody is.

use std::collections::BTreeMap;

use insula_api::names::TenantName;
use insula_cel::{Decl, Value as Cel, decl::DeclKind};
use serde_json::{Value, json};

use crate::{
    admission::rules::expression::{Expression, OutOfBudget},
    identity::{Identity, RESERVED},
};

/// What all expressions of one provider may cost for one token.
const BUDGET: u64 = 4_000_000;
/// Most values of one extra, and longest in all, in bytes.
const MAX_VALUES: usize = 64;
const MAX_EXTRA: usize = 16 * 1024;

/// Why claims name nobody.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimsError {
    #[error("the claim {claim:?} is not {required:?}")]
    Value { claim: String, required: String },
    #[error("{0}")]
    Rule(String),
    #[error("expression {source_text:?}: {why}")]
    Expression { source_text: String, why: String },
    #[error(transparent)]
    Budget(#[from] OutOfBudget),
    #[error("{0} is no text, or is not there")]
    NoText(String),
    #[error("{0} is neither a text nor a list of texts")]
    NoTexts(String),
    #[error("the mail address is not verified")]
    Unverified,
    #[error("{0:?} begins as only names of the platform do")]
    Reserved(String),
    #[error("the extra values are too many or too long")]
    TooMuch,
}

/// Where a part of an identity comes from.
#[derive(Debug)]
pub(super) enum Mapped {
    Claim { claim: String, prefix: String },
    Expression(Expression),
}

/// What must hold of claims.
#[derive(Debug)]
pub(super) enum Rule {
    Value { claim: String, required: String },
    Expression { expression: Expression, message: String },
}

/// What must hold of a user.
#[derive(Debug)]
pub(super) struct UserRule {
    pub(super) expression: Expression,
    pub(super) message: String,
}

/// Something more that is known of a user.
#[derive(Debug)]
pub(super) struct Extra {
    pub(super) key: String,
    pub(super) expression: Expression,
}

/// All that a provider's claims pass.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) claims: Vec<Rule>,
    pub(super) username: Option<Mapped>,
    pub(super) groups: Option<Mapped>,
    pub(super) uid: Option<Mapped>,
    pub(super) extra: Vec<Extra>,
    pub(super) users: Vec<UserRule>,
}

/// Claims while they are looked at.
struct Looking<'a> {
    json: &'a Value,
    variables: Vec<(&'a str, Cel<'a>)>,
    left: u64,
}

static DYN: Decl = Decl { kind: DeclKind::Dyn, max_size: None };

impl Rules {
    /// Who the holder of `claims` is in `tenant`.
    pub(super) fn identity(
        &self,
        tenant: &TenantName,
        claims: &Value,
    ) -> Result<Identity, ClaimsError> {
        let mut looking = Looking {
            json: claims,
            variables: vec![("claims", Cel::of_json(claims, &DYN))],
            left: BUDGET,
        };
        for rule in &self.claims {
            match rule {
                Rule::Value { claim, required } => {
                    if claims.get(claim).and_then(Value::as_str) != Some(required) {
                        let (claim, required) = (claim.clone(), required.clone());
                        return Err(ClaimsError::Value { claim, required });
                    }
                }
                Rule::Expression { expression, message } => {
                    holds(expression, message, &looking.variables, &mut looking.left)?;
                }
            }
        }
        let user = looking.text(self.username.as_ref(), "username")?;
        let user = user.filter(|it| !it.is_empty());
        let user = user.ok_or_else(|| ClaimsError::NoText("username".to_owned()))?;
        let groups = looking.texts(self.groups.as_ref())?;
        for name in groups.iter().chain([&user]) {
            if name.starts_with(RESERVED) {
                return Err(ClaimsError::Reserved(name.clone()));
            }
        }
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        let mut identity = Identity::new(tenant.clone(), &user, &groups);
        identity.uid = looking.text(self.uid.as_ref(), "uid")?.unwrap_or_default();
        identity.extra = looking.extra(&self.extra)?;
        if !self.users.is_empty() {
            let shown = json!({
                "username": identity.user, "uid": identity.uid,
                // That everybody is in one group more is no business of the provider's.
                "groups": groups, "extra": identity.extra,
            });
            let variables = [("user", Cel::of_json(&shown, &DYN))];
            for UserRule { expression, message } in &self.users {
                holds(expression, message, &variables, &mut looking.left)?;
            }
        }
        Ok(identity)
    }
}

/// Runs a rule, and says why it does not hold.
fn holds<'a>(
    expression: &'a Expression,
    message: &str,
    variables: &[(&'a str, Cel<'a>)],
    left: &mut u64,
) -> Result<(), ClaimsError> {
    match expression.eval(&variables, left)? {
        Ok(Cel::Bool(true)) => Ok(()),
        Ok(_) if message.is_empty() => {
            Err(ClaimsError::Rule(format!("{:?} does not hold", expression.source)))
        }
        Ok(_) => Err(ClaimsError::Rule(message.to_owned())),
        Err(why) => Err(ClaimsError::Expression { source_text: expression.source.clone(), why }),
    }
}

impl<'a> Looking<'a> {
    fn eval(&mut self, expression: &'a Expression) -> Result<Cel<'a>, ClaimsError> {
        expression
            .eval(&self.variables.as_slice(), &mut self.left)?
            .map_err(|why| ClaimsError::Expression { source_text: expression.source.clone(), why })
    }

    fn text(&mut self, of: Option<&'a Mapped>, what: &str) -> Result<Option<String>, ClaimsError> {
        let no_text = || ClaimsError::NoText(what.to_owned());
        match of {
            None => Ok(None),
            Some(Mapped::Claim { claim, prefix }) => {
                if claim == "email"
                    && self.json.get("email_verified").is_some_and(|it| *it != Value::Bool(true))
                {
                    return Err(ClaimsError::Unverified);
                }
                let text = self.json.get(claim).and_then(Value::as_str).ok_or_else(no_text)?;
                if text.is_empty() {
                    return Err(no_text());
                }
                Ok(Some(format!("{prefix}{text}")))
            }
            Some(Mapped::Expression(expression)) => {
                let found = self.eval(expression)?;
                Ok(Some(found.as_text().ok_or_else(no_text)?.to_owned()))
            }
        }
    }

    fn texts(&mut self, of: Option<&'a Mapped>) -> Result<Vec<String>, ClaimsError> {
        match of {
            None => Ok(Vec::new()),
            Some(Mapped::Claim { claim, prefix }) => {
                let found = match self.json.get(claim) {
                    // Who is in no group has no claim.
                    None => return Ok(Vec::new()),
                    Some(it) => texts(&Cel::of_json(it, &DYN)),
                };
                let found = found.ok_or_else(|| ClaimsError::NoTexts(claim.clone()))?;
                Ok(found.into_iter().map(|it| format!("{prefix}{it}")).collect())
            }
            Some(Mapped::Expression(expression)) => {
                let found = texts(&self.eval(expression)?);
                found.ok_or_else(|| ClaimsError::NoTexts(expression.source.clone()))
            }
        }
    }

    fn extra(&mut self, of: &'a [Extra]) -> Result<BTreeMap<String, Vec<String>>, ClaimsError> {
        let mut extra = BTreeMap::new();
        let mut bytes = 0;
        for Extra { key, expression } in of {
            let found = texts(&self.eval(expression)?);
            let found = found.ok_or_else(|| ClaimsError::NoTexts(expression.source.clone()))?;
            bytes += found.iter().map(String::len).sum::<usize>();
            if MAX_VALUES < found.len() || MAX_EXTRA < bytes {
                return Err(ClaimsError::TooMuch);
            }
            if !found.is_empty() {
                extra.insert(key.clone(), found);
            }
        }
        Ok(extra)
    }
}

/// A text, or a list of texts; empty ones count for nothing.
fn texts(found: &Cel<'_>) -> Option<Vec<String>> {
    let items = match found {
        Cel::Null => Vec::new(),
        Cel::Text(text) => vec![text.clone().into_owned()],
        other => {
            let items = other.items()?;
            let items = items.iter().map(|it| it.as_text().map(str::to_owned));
            items.collect::<Option<_>>()?
        }
    };
    Some(items.into_iter().filter(|it| !it.is_empty()).collect())
}
