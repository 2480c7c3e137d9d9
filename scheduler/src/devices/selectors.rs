//! What classes and requests say of the devices that will do: expressions in CEL.
//!
//! They come from tenants and are asked of every device there is, so they are bounded as in the
//! API server: by what one may cost, and by how many are kept ready.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use insula_api::quantity::Quantity;
use insula_cel::{
    Budget, Decl, Program, Type, Value,
    decl::{DeclKind, Fields},
    value::Key,
};
use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};
use parking_lot::Mutex;

/// What one evaluation may cost; upstream's `CELSelectorExpressionMaxCost`.
const MAX_COST: u64 = 1_000_000;
/// Expressions that are kept compiled. There are about as many as there are classes.
const MAX_PROGRAMS: usize = 1024;
/// The name of the type that `device` has in messages.
const TYPE: &str = "kubernetes.DRADevice";

/// Whether a device will do, or why that cannot be said.
pub(crate) type Answer = Result<bool, Arc<str>>;

/// Compiled expressions.
#[derive(Debug)]
pub(crate) struct Selectors {
    device: Decl,
    programs: Mutex<HashMap<Arc<str>, Arc<Compiled>>>,
}

type Compiled = Result<Program, Arc<str>>;

impl Default for Selectors {
    fn default() -> Self {
        let text = || Decl::of(DeclKind::Text).at_most(Some(63));
        let by_domain = |value: Decl| {
            let names = Decl::of(DeclKind::Map(Arc::new(value))).at_most(Some(32));
            Decl::of(DeclKind::Map(Arc::new(names))).at_most(Some(32))
        };
        let quantity = Decl::of(DeclKind::Type(Type::Library("kubernetes.Quantity")));
        let fields = [
            ("driver", text()),
            ("allowMultipleAllocations", Decl::of(DeclKind::Bool)),
            ("attributes", by_domain(Decl::of(DeclKind::Dyn).at_most(Some(64)))),
            ("capacity", by_domain(quantity)),
        ];
        let fields = fields.map(|(name, decl)| (name.to_owned(), (name.to_owned(), decl)));
        let fields = Fields { name: TYPE.to_owned(), fields: fields.into() };
        Self { device: Decl::of(DeclKind::Object(Arc::new(fields))), programs: Mutex::default() }
    }
}

impl Selectors {
    fn program(&self, expression: &Arc<str>) -> Arc<Compiled> {
        let mut programs = self.programs.lock();
        if let Some(it) = programs.get(expression) {
            return it.clone();
        }
        if MAX_PROGRAMS <= programs.len() {
            programs.clear();
        }
        let compiled = Program::compile(expression, &[("device", self.device.clone())])
            .map_err(|error| format!("CEL compile error: {error}").into());
        let compiled = Arc::new(compiled);
        programs.insert(expression.clone(), compiled.clone());
        compiled
    }

    /// Whether an expression holds for a device of a driver.
    pub(crate) fn matches(&self, expression: &Arc<str>, driver: &str, device: &Device) -> Answer {
        let compiled = self.program(expression);
        let program = match &*compiled {
            Ok(program) => program,
            Err(error) => return Err(error.clone()),
        };
        let failed = |why: &dyn std::fmt::Display| Arc::from(format!("CEL runtime error: {why}"));
        let variable = variable(program, driver, device).map_err(|why| failed(&why))?;
        match program.eval(&[("device", variable)], &mut Budget::new(MAX_COST)) {
            Ok(Value::Bool(it)) => Ok(it),
            Ok(other) => Err(failed(&format!("result of type {} is no bool", other.kind()))),
            Err(error) => Err(failed(&error)),
        }
    }
}

fn map<'a>(entries: BTreeMap<String, Value<'a>>) -> Value<'a> {
    Value::Map(Arc::new(entries.into_iter().map(|(key, it)| (Key::Text(key), it)).collect()))
}

type ByDomain<'a> = BTreeMap<String, BTreeMap<String, Value<'a>>>;

/// Puts a value where expressions look for it. A name without a domain is of the driver's.
fn put<'a>(to: &mut ByDomain<'a>, driver: &str, name: &str, value: Value<'a>) {
    let (domain, id) = name.split_once('/').unwrap_or((driver, name));
    to.entry(domain.to_owned()).or_default().insert(id.to_owned(), value);
}

/// `device`, for one program. Domains that the program speaks of are there, though empty, so that
/// it can ask for what is in them.
fn variable<'a>(program: &Program, driver: &str, device: &'a Device) -> Result<Value<'a>, String> {
    let asked = || program.texts().into_iter().map(|it| (it.to_owned(), BTreeMap::new()));
    let (mut attributes, mut capacity): (ByDomain<'_>, ByDomain<'_>) =
        (asked().collect(), asked().collect());
    for (name, it) in device.attributes.iter().flatten() {
        let value = attribute(it).ok_or_else(|| format!("attribute {name}: unsupported value"))?;
        put(&mut attributes, driver, name, value);
    }
    for (name, it) in device.capacity.iter().flatten() {
        let quantity =
            Quantity::parse(&it.value.0).map_err(|error| format!("capacity {name}: {error}"))?;
        put(&mut capacity, driver, name, Value::Quantity(Arc::new(quantity)));
    }
    let nested = |it: ByDomain<'a>| map(it.into_iter().map(|(key, it)| (key, map(it))).collect());
    let may_share = device.allow_multiple_allocations == Some(true);
    Ok(map(BTreeMap::from([
        ("driver".to_owned(), Value::text(driver.to_owned())),
        ("allowMultipleAllocations".to_owned(), Value::Bool(may_share)),
        ("attributes".to_owned(), nested(attributes)),
        ("capacity".to_owned(), nested(capacity)),
    ])))
}

fn attribute(it: &DeviceAttribute) -> Option<Value<'_>> {
    if let Some(it) = it.int {
        return Some(Value::Int(it));
    }
    if let Some(it) = it.bool {
        return Some(Value::Bool(it));
    }
    if let Some(it) = &it.string {
        return Some(Value::text(it.as_str()));
    }
    Value::semver(it.version.as_ref()?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(expression: &str, expected: Result<bool, &str>) {
        let device: Device = serde_json::from_value(json!({
            "name": "d",
            "attributes": {
                "model": {"string": "a100"}, "index": {"int": 3},
                "other.example.com/good": {"bool": true}, "driver": {"version": "1.10.0"},
            },
            "capacity": {"memory": {"value": "40Gi"}},
        }))
        .unwrap();
        let found = Selectors::default().matches(&expression.into(), "gpus.example.com", &device);
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{expression}"),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
            (found, expected) => panic!("{expression}: {found:?}, not {expected:?}"),
        }
    }

    #[test]
    fn expressions_see_what_drivers_say() {
        check("device.driver == 'gpus.example.com'", Ok(true));
        check("device.attributes['gpus.example.com'].model == 'a100'", Ok(true));
        check("device.attributes['gpus.example.com'].index > 3", Ok(false));
        check("device.attributes['other.example.com'].good", Ok(true));
        check("has(device.attributes['nobody.example.com'].x)", Ok(false));
        check("'x' in device.attributes['nobody.example.com']", Ok(false));
        check(
            "device.capacity['gpus.example.com'].memory.compareTo(quantity('30Gi')) > 0",
            Ok(true),
        );
        check(
            "device.attributes['gpus.example.com'].driver.isGreaterThan(semver('1.9.0'))",
            Ok(true),
        );
        check(
            "cel.bind(it, device.attributes['gpus.example.com'], it.index == 3 && it.model == 'a100')",
            Ok(true),
        );
        check("!device.allowMultipleAllocations", Ok(true));
    }

    #[test]
    fn what_cannot_be_said_is_an_error() {
        check("device.attributes['gpus.example.com'].unknown == 1", Err("CEL runtime error"));
        check("device.nothing", Err("CEL compile error"));
        check("device.driver", Err("is no bool"));
        check("[1].map(x, [1].map(y, x)).size() == 1 ||", Err("CEL compile error"));
    }
}
