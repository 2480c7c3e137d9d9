//! What a tenant says of providers: read, checked and compiled.

use std::{collections::BTreeSet, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use insula_api::{names::TenantName, object};
use insula_cel::{
    Decl,
    decl::{DeclKind, Fields},
};
use jsonwebtoken::{Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::Value;

use super::{
    ProviderError,
    claims::{Extra, Mapped, Rule, Rules, UserRule},
    keys::{ALGORITHMS, Keys},
};
use crate::{
    Server,
    admission::rules::expression::{Expression, Wants},
    error::FieldError,
    identity::Identity,
    outbound::Trust,
    registry::Served,
};

pub(crate) const GROUP: &str = "insula.io";
pub(crate) const RESOURCE: &str = "authenticationconfigurations";
/// The one that a tenant has.
pub(crate) const NAME: &str = "default";

/// Most providers of a tenant, and most of what each may have.
const MAX_PROVIDERS: usize = 16;
const MAX_LIST: usize = 64;
/// Longest text of each kind, in bytes.
const MAX_TEXT: usize = 2048;
const MAX_EXPRESSION: usize = 10 * 1024;
const MAX_BUNDLE: usize = 256 * 1024;
/// By how many seconds the clocks of providers may differ.
const LEEWAY: u64 = 10;

/// Whether `served` holds what tenants say of providers.
pub(crate) fn holds(served: &Served) -> bool {
    served.resource.group == GROUP && served.resource.name == RESOURCE
}

/// What a tenant says.
#[derive(Debug)]
pub(crate) struct Configuration {
    providers: Vec<Arc<Provider>>,
}

/// One provider.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) issuer: String,
    audiences: Vec<String>,
    rules: Rules,
    keys: Result<Arc<Keys>, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    jwt: Vec<Jwt>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Jwt {
    issuer: Issuer,
    claim_validation_rules: Vec<ClaimRule>,
    claim_mappings: Mappings,
    user_validation_rules: Vec<ClaimRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Issuer {
    url: String,
    #[serde(rename = "discoveryURL")]
    discovery_url: String,
    certificate_authority: String,
    audiences: Vec<String>,
    audience_match_policy: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ClaimRule {
    claim: String,
    required_value: String,
    expression: String,
    message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Mappings {
    username: Mapping,
    groups: Mapping,
    uid: Mapping,
    extra: Vec<ExtraMapping>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Mapping {
    claim: String,
    prefix: Option<String>,
    expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ExtraMapping {
    key: String,
    value_expression: String,
}

fn claims() -> Vec<(&'static str, Decl)> {
    vec![("claims", Decl::of(DeclKind::Map(Arc::new(Decl::of(DeclKind::Dyn)))))]
}

fn user() -> Vec<(&'static str, Decl)> {
    let text = || Decl::of(DeclKind::Text);
    let texts = || Decl::of(DeclKind::List(Arc::new(text())));
    let fields = [
        ("username", text()),
        ("uid", text()),
        ("groups", texts()),
        ("extra", Decl::of(DeclKind::Map(Arc::new(texts())))),
    ];
    let fields = fields.map(|(name, it)| (name.to_owned(), (name.to_owned(), it)));
    let fields = Fields { name: "kubernetes.UserInfo".into(), fields: fields.into() };
    vec![("user", Decl::of(DeclKind::Object(Arc::new(fields))))]
}

impl Configuration {
    /// Compiles an object that was let in.
    pub(super) fn compile(it: &Value) -> Result<Self, serde_json::Error> {
        let spec: Spec = match it.get("spec") {
            Some(spec) => Spec::deserialize(spec)?,
            None => Spec::default(),
        };
        let providers = spec.jwt.into_iter().take(MAX_PROVIDERS);
        Ok(Self { providers: providers.map(|it| Arc::new(Provider::new(it))).collect() })
    }

    pub(super) fn provider(&self, issuer: &str) -> Option<&Arc<Provider>> {
        self.providers.iter().find(|it| it.issuer == issuer)
    }
}

impl Mapping {
    fn compile(self) -> Option<Mapped> {
        match (self.claim.is_empty(), self.expression.is_empty()) {
            (false, _) => {
                Some(Mapped::Claim { claim: self.claim, prefix: self.prefix.unwrap_or_default() })
            }
            (true, false) => Some(Mapped::Expression(anything(&self.expression))),
            (true, true) => None,
        }
    }
}

fn anything(source: &str) -> Expression {
    Expression::new(source, &claims(), Wants::Anything)
}

impl Provider {
    fn new(it: Jwt) -> Self {
        let Issuer { url, discovery_url, certificate_authority, audiences, .. } = it.issuer;
        let bundle = Some(STANDARD.encode(&certificate_authority));
        let bundle = bundle.filter(|_| !certificate_authority.trim().is_empty());
        let trust = Trust::bundle(bundle.as_deref()).map_err(|error| error.to_string());
        let discovery = match discovery_url.is_empty() {
            true => format!("{}/.well-known/openid-configuration", url.trim_end_matches('/')),
            false => discovery_url,
        };
        let keys = trust.map(|trust| Arc::new(Keys::new(url.clone(), discovery, trust)));
        let rule = |it: ClaimRule| match it.expression.is_empty() {
            true => Rule::Value { claim: it.claim, required: it.required_value },
            false => Rule::Expression {
                expression: Expression::new(&it.expression, &claims(), Wants::Bool),
                message: it.message,
            },
        };
        let extra =
            |it: ExtraMapping| Extra { expression: anything(&it.value_expression), key: it.key };
        let rules = Rules {
            claims: it.claim_validation_rules.into_iter().map(rule).collect(),
            username: it.claim_mappings.username.compile(),
            groups: it.claim_mappings.groups.compile(),
            uid: it.claim_mappings.uid.compile(),
            extra: it.claim_mappings.extra.into_iter().map(extra).collect(),
            users: it.user_validation_rules.into_iter().map(user_rule).collect(),
        };
        Self { issuer: url, audiences, rules, keys }
    }

    /// Whom a token names, which says that it is of this provider.
    pub(super) async fn holder(
        &self,
        server: &Server,
        tenant: &TenantName,
        token: &str,
    ) -> Result<Identity, ProviderError> {
        let issuer = || self.issuer.clone();
        let invalid = |source| ProviderError::Token { issuer: issuer(), source };
        let header = decode_header(token).map_err(invalid)?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(ProviderError::Algorithm(header.alg));
        }
        let keys = self.keys.as_ref();
        let keys =
            keys.map_err(|why| ProviderError::Broken { issuer: issuer(), why: why.clone() })?;
        let found = keys.find(server, tenant, header.kid.as_deref(), header.alg).await;
        let found = found.map_err(|source| ProviderError::Keys { issuer: issuer(), source })?;
        let mut validation = Validation::new(header.alg);
        validation.set_audience(&self.audiences);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY;
        let mut outcome = Err(jsonwebtoken::errors::ErrorKind::InvalidSignature.into());
        for key in &found {
            outcome = decode::<Value>(token, key, &validation);
            if outcome.is_ok() {
                break;
            }
        }
        let claims = outcome.map_err(invalid)?.claims;
        let identity = self.rules.identity(tenant, &claims);
        let identity =
            identity.map_err(|source| ProviderError::Claims { issuer: issuer(), source })?;
        identity.check().map_err(|source| ProviderError::Nobody { issuer: issuer(), source })?;
        Ok(identity)
    }
}

fn user_rule(it: ClaimRule) -> UserRule {
    UserRule {
        expression: Expression::new(&it.expression, &user(), Wants::Bool),
        message: it.message,
    }
}

/// What is wrong with an object.
pub(crate) fn check(it: &Value) -> Vec<FieldError> {
    let mut findings = Findings(Vec::new());
    if object::name(it) != NAME {
        let why = format!("a tenant has one, and its name is {NAME:?}");
        findings.invalid("metadata.name", object::name(it), &why);
    }
    let spec = match it.get("spec").map(Spec::deserialize) {
        Some(Ok(spec)) => spec,
        Some(Err(error)) => {
            findings.0.push(FieldError::invalid_whole("spec", &error.to_string()));
            return findings.0;
        }
        None => Spec::default(),
    };
    findings.at_most("spec.jwt", spec.jwt.len(), MAX_PROVIDERS);
    let mut known = BTreeSet::new();
    for (index, it) in spec.jwt.iter().take(MAX_PROVIDERS).enumerate() {
        let at = format!("spec.jwt[{index}]");
        if !it.issuer.url.is_empty() && !known.insert(it.issuer.url.as_str()) {
            let value = it.issuer.url.as_str().into();
            findings.0.push(FieldError::duplicate(format!("{at}.issuer.url"), &value));
        }
        findings.provider(&at, it);
    }
    findings.0
}

struct Findings(Vec<FieldError>);

impl Findings {
    fn invalid(&mut self, at: &str, value: &str, why: &str) {
        self.0.push(FieldError::invalid(at, &value.into(), why));
    }

    fn required(&mut self, at: &str, why: &str) {
        self.0.push(FieldError::required(at, why));
    }

    fn at_most(&mut self, at: &str, found: usize, limit: usize) {
        if limit < found {
            self.0.push(FieldError::too_many(at, found, limit));
        }
    }

    fn short(&mut self, at: &str, text: &str, limit: usize) {
        if limit < text.len() {
            self.0.push(FieldError::too_long(at, limit));
        }
    }

    fn provider(&mut self, at: &str, it: &Jwt) {
        self.issuer(&format!("{at}.issuer"), &it.issuer);
        let rules = [
            ("claimValidationRules", &it.claim_validation_rules),
            ("userValidationRules", &it.user_validation_rules),
        ];
        for (field, rules) in rules {
            let at = format!("{at}.{field}");
            self.at_most(&at, rules.len(), MAX_LIST);
            for (index, rule) in rules.iter().take(MAX_LIST).enumerate() {
                self.rule(&format!("{at}[{index}]"), rule, field == "userValidationRules");
            }
        }
        let (at, mappings) = (format!("{at}.claimMappings"), &it.claim_mappings);
        let username = &mappings.username;
        if username.claim.is_empty() && username.expression.is_empty() {
            self.required(&format!("{at}.username"), "claim or expression is required");
        }
        self.mapping(&format!("{at}.username"), username, true);
        self.mapping(&format!("{at}.groups"), &mappings.groups, true);
        self.mapping(&format!("{at}.uid"), &mappings.uid, false);
        self.verified_email(&at, it);
        self.at_most(&format!("{at}.extra"), mappings.extra.len(), MAX_LIST);
        let mut keys = BTreeSet::new();
        for (index, extra) in mappings.extra.iter().take(MAX_LIST).enumerate() {
            let at = format!("{at}.extra[{index}]");
            self.extra_key(&format!("{at}.key"), &extra.key);
            if !keys.insert(extra.key.as_str()) {
                let value = extra.key.as_str().into();
                self.0.push(FieldError::duplicate(format!("{at}.key"), &value));
            }
            self.expression(
                &format!("{at}.valueExpression"),
                &extra.value_expression,
                &claims(),
                Wants::Anything,
            );
        }
    }

    fn issuer(&mut self, at: &str, it: &Issuer) {
        self.url(&format!("{at}.url"), &it.url);
        if it.url.is_empty() {
            self.required(&format!("{at}.url"), "URL is required");
        }
        self.url(&format!("{at}.discoveryURL"), &it.discovery_url);
        if !it.discovery_url.is_empty() && it.discovery_url == it.url {
            let why = "discoveryURL must be different from URL";
            self.invalid(&format!("{at}.discoveryURL"), &it.discovery_url, why);
        }
        let bundle = &it.certificate_authority;
        self.short(&format!("{at}.certificateAuthority"), bundle, MAX_BUNDLE);
        if !bundle.is_empty()
            && (!bundle.contains("-----BEGIN CERTIFICATE-----")
                || Trust::bundle(Some(&STANDARD.encode(bundle))).is_err())
        {
            let why = "data does not contain any valid RSA or ECDSA certificates";
            self.0.push(FieldError::invalid_whole(format!("{at}.certificateAuthority"), why));
        }
        let audiences = format!("{at}.audiences");
        if it.audiences.is_empty() {
            self.required(&audiences, "at least one audience is required");
        }
        self.at_most(&audiences, it.audiences.len(), MAX_LIST);
        for (index, audience) in it.audiences.iter().take(MAX_LIST).enumerate() {
            let at = format!("{audiences}[{index}]");
            self.short(&at, audience, MAX_TEXT);
            if audience.is_empty() {
                self.required(&at, "audience can't be empty");
            }
        }
        let policy = &*it.audience_match_policy;
        let at = format!("{at}.audienceMatchPolicy");
        match (it.audiences.len(), policy) {
            (0 | 1, "") | (_, "MatchAny") => (),
            (_, "") => self.required(&at, "must be MatchAny for multiple audiences"),
            _ => self.0.push(FieldError::unsupported(at, &policy.into(), &["MatchAny"])),
        }
    }

    fn url(&mut self, at: &str, text: &str) {
        if text.is_empty() {
            return;
        }
        self.short(at, text, MAX_TEXT);
        let url: Option<http::Uri> = text.parse().ok();
        let Some(url) = url.filter(|it| it.host().is_some()) else {
            return self.invalid(at, text, "not a URL");
        };
        if url.scheme_str() != Some("https") {
            self.invalid(at, text, "URL scheme must be https");
        }
        if url.authority().is_some_and(|it| it.as_str().contains('@')) {
            self.invalid(at, text, "URL must not contain a username or password");
        }
        if url.query().is_some() {
            self.invalid(at, text, "URL must not contain a query");
        }
        if text.contains('#') {
            self.invalid(at, text, "URL must not contain a fragment");
        }
    }

    fn rule(&mut self, at: &str, it: &ClaimRule, is_of_user: bool) {
        self.short(&format!("{at}.message"), &it.message, MAX_TEXT);
        self.short(&format!("{at}.claim"), &it.claim, MAX_TEXT);
        self.short(&format!("{at}.requiredValue"), &it.required_value, MAX_TEXT);
        let expression = format!("{at}.expression");
        match (it.claim.is_empty(), it.expression.is_empty()) {
            (true, false) => {
                let declared = if is_of_user { user() } else { claims() };
                self.expression(&expression, &it.expression, &declared, Wants::Bool);
            }
            (_, true) if is_of_user => self.required(&expression, "expression is required"),
            (true, true) => self.required(at, "claim or expression is required"),
            (false, false) => self.invalid(at, &it.claim, "claim and expression can't both be set"),
            (false, true) if !it.message.is_empty() => {
                self.invalid(
                    &format!("{at}.message"),
                    &it.message,
                    "message can't be set when claim is set",
                );
            }
            (false, true) => (),
        }
    }

    fn mapping(&mut self, at: &str, it: &Mapping, may_have_prefix: bool) {
        let prefix = it.prefix.as_deref();
        self.short(&format!("{at}.claim"), &it.claim, MAX_TEXT);
        self.short(&format!("{at}.prefix"), prefix.unwrap_or_default(), MAX_TEXT);
        let at_prefix = format!("{at}.prefix");
        if !it.claim.is_empty() && !it.expression.is_empty() {
            return self.invalid(at, &it.claim, "claim and expression can't both be set");
        }
        if !it.expression.is_empty() {
            if prefix.is_some() {
                let why = "prefix can't be set when expression is set";
                self.invalid(&at_prefix, prefix.unwrap_or_default(), why);
            }
            self.expression(
                &format!("{at}.expression"),
                &it.expression,
                &claims(),
                Wants::Anything,
            );
        }
        match (it.claim.is_empty(), prefix) {
            (false, None) if may_have_prefix => {
                let why = "prefix is required when claim is set. It can be set to an empty string to disable prefixing";
                self.required(&at_prefix, why);
            }
            (true, Some(prefix)) if it.expression.is_empty() => {
                self.invalid(
                    &at_prefix,
                    prefix,
                    "non-empty claim name is required when prefix is set",
                );
            }
            (_, Some(prefix)) if prefix.starts_with(crate::identity::RESERVED) => {
                self.invalid(
                    &at_prefix,
                    prefix,
                    "names that begin with \"system:\" are the platform's",
                );
            }
            _ => (),
        }
    }

    /// Who is known by a mail address that nobody has looked at is anybody.
    fn verified_email(&mut self, at: &str, it: &Jwt) {
        let source = &it.claim_mappings.username.expression;
        let rules = it.claim_validation_rules.iter().map(|it| &it.expression);
        let extra = it.claim_mappings.extra.iter().map(|it| &it.value_expression);
        let mut all = rules.chain(extra).chain([source]);
        if source.contains("claims.email") && !all.any(|it| it.contains("claims.email_verified")) {
            let why = "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression";
            self.invalid(&format!("{at}.username.expression"), source, why);
        }
    }

    fn extra_key(&mut self, at: &str, key: &str) {
        let (domain, path) = key.split_once('/').unwrap_or_default();
        self.short(at, key, MAX_TEXT);
        if domain.is_empty() || path.is_empty() || key != key.to_lowercase() {
            return self.invalid(
                at,
                key,
                "must be a lower-case domain-prefixed path (such as \"acme.io/foo\")",
            );
        }
        let is_below = |of: &str| domain == of || domain.ends_with(&format!(".{of}"));
        if ["kubernetes.io", "k8s.io", "insula.io"].into_iter().any(is_below) {
            self.invalid(at, key, "the domain is reserved");
        }
    }

    fn expression(&mut self, at: &str, source: &str, declared: &[(&str, Decl)], wants: Wants) {
        if source.is_empty() {
            return self.required(at, "expression is required");
        }
        if MAX_EXPRESSION < source.len() {
            return self.short(at, source, MAX_EXPRESSION);
        }
        if let Some(error) = Expression::new(source, declared, wants).error() {
            self.invalid(at, source, error);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        json!({"metadata": {"name": "default"}, "spec": {"jwt": [{
            "issuer": {"url": "https://issuer.example.com", "audiences": ["insula"]},
            "claimMappings": {
                "username": {"claim": "sub", "prefix": "idp:"},
                "groups": {"expression": "claims.roles.split(',')"},
                "extra": [{"key": "example.com/team", "valueExpression": "claims.?team.orValue('')"}],
            },
            "claimValidationRules": [
                {"claim": "hd", "requiredValue": "example.com"},
                {"expression": "claims.exp - claims.nbf <= 86400", "message": "too long"},
            ],
            "userValidationRules": [{"expression": "!user.username.startsWith('x')"}],
        }]}})
    }

    #[track_caller]
    fn wrong(path: &str, value: Value, expected: &str) {
        let mut it = good();
        *it.pointer_mut(path).unwrap() = value;
        let found = check(&it);
        assert!(
            found.iter().any(|it| format!("{}: {}", it.field, it.message).contains(expected)),
            "{found:?}"
        );
    }

    #[test]
    fn what_may_be_configured() {
        assert_eq!(check(&good()), []);
        let compiled = Configuration::compile(&good()).unwrap();
        assert!(compiled.provider("https://issuer.example.com").is_some());
        assert!(compiled.provider("https://other.example.com").is_none());
        wrong("/metadata/name", json!("mine"), "metadata.name");
        let first = |rest: &str| format!("/spec/jwt/0/{rest}");
        wrong(&first("issuer/url"), json!("http://a"), "scheme must be https");
        wrong(&first("issuer/url"), json!("https://a?b"), "query");
        wrong(&first("issuer/url"), json!("https://u:p@a"), "username");
        wrong(&first("issuer/audiences"), json!([]), "at least one audience");
        wrong(&first("issuer/audiences"), json!(["a", "b"]), "MatchAny");
        wrong(&first("claimMappings/username"), json!({}), "claim or expression");
        wrong(&first("claimMappings/username"), json!({"claim": "sub"}), "prefix is required");
        wrong(&first("claimMappings/username/prefix"), json!("system:"), "are the platform's");
        wrong(
            &first("claimMappings/username"),
            json!({"expression": "claims.email"}),
            "claims.email_verified",
        );
        wrong(&first("claimMappings/groups/expression"), json!("claims."), "Syntax error");
        wrong(&first("claimMappings/extra/0/key"), json!("x.kubernetes.io/a"), "reserved");
        wrong(&first("claimValidationRules/1/expression"), json!("1"), "bool");
        wrong(&first("userValidationRules/0/expression"), json!("claims.a"), "undeclared");
        let mut twice = good();
        let one = twice["spec"]["jwt"][0].clone();
        twice["spec"]["jwt"] = json!(vec![one; 17]);
        let found = check(&twice);
        assert!(found.iter().any(|it| it.reason == "FieldValueDuplicate"), "{found:?}");
        assert!(found.iter().any(|it| it.reason == "FieldValueTooMany"), "{found:?}");
    }
}
