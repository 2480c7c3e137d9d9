//! Which functions there are, and of which types.

use std::sync::LazyLock;

use crate::decl::Type;

/// One way to call a function.
#[derive(Debug)]
pub(crate) struct Signature {
    /// With its namespace, as in `math.greatest`.
    pub name: &'static str,
    /// Of what it is a method, if it is one.
    pub target: Option<Type>,
    pub arguments: Vec<Type>,
    pub result: Type,
}

/// `target.name(arguments) result`, or `name(arguments) result`; namespaces are behind a colon.
const TABLE: &str = "
size(string) int
size(bytes) int
size(list<T>) int
size(map<T,U>) int
string.size() int
bytes.size() int
list<T>.size() int
map<T,U>.size() int
type(dyn) type
dyn(dyn) dyn
matches(string,string) bool
int(dyn) int
uint(dyn) uint
double(dyn) double
string(dyn) string
bool(dyn) bool
bytes(dyn) bytes
duration(dyn) duration
timestamp(dyn) timestamp
string.startsWith(string) bool
string.endsWith(string) bool
string.contains(string) bool
string.matches(string) bool
string.find(string) string
string.findAll(string) list<string>
string.findAll(string,int) list<string>
string.lowerAscii() string
string.upperAscii() string
string.trim() string
string.reverse() string
string.charAt(int) string
string.indexOf(string) int
string.indexOf(string,int) int
string.lastIndexOf(string) int
string.lastIndexOf(string,int) int
string.substring(int) string
string.substring(int,int) string
string.replace(string,string) string
string.replace(string,string,int) string
string.split(string) list<string>
string.split(string,int) list<string>
string.format(list<dyn>) string
list<T>.isSorted() bool
list<T>.sum() T
list<T>.min() T
list<T>.max() T
list<T>.indexOf(T) int
list<T>.lastIndexOf(T) int
list<T>.distinct() list<T>
list<T>.sort() list<T>
list<T>.reverse() list<T>
list<T>.slice(int,int) list<T>
list<T>.flatten() list<dyn>
list<T>.first() optional<T>
list<T>.last() optional<T>
list<string>.join() string
list<string>.join(string) string
timestamp.getFullYear() int
timestamp.getFullYear(string) int
timestamp.getMonth() int
timestamp.getMonth(string) int
timestamp.getDate() int
timestamp.getDate(string) int
timestamp.getDayOfMonth() int
timestamp.getDayOfMonth(string) int
timestamp.getDayOfWeek() int
timestamp.getDayOfWeek(string) int
timestamp.getDayOfYear() int
timestamp.getDayOfYear(string) int
timestamp.getHours() int
timestamp.getHours(string) int
timestamp.getMinutes() int
timestamp.getMinutes(string) int
timestamp.getSeconds() int
timestamp.getSeconds(string) int
timestamp.getMilliseconds() int
timestamp.getMilliseconds(string) int
duration.getHours() int
duration.getMinutes() int
duration.getSeconds() int
duration.getMilliseconds() int
optional<T>.hasValue() bool
optional<T>.value() T
optional<T>.or(optional<T>) optional<T>
optional<T>.orValue(T) T
optional:none() optional<dyn>
optional:of(T) optional<T>
optional:ofNonZeroValue(T) optional<T>
math:greatest(dyn) dyn
math:greatest(dyn,dyn) dyn
math:greatest(dyn,dyn,dyn) dyn
math:greatest(dyn,dyn,dyn,dyn) dyn
math:least(dyn) dyn
math:least(dyn,dyn) dyn
math:least(dyn,dyn,dyn) dyn
math:least(dyn,dyn,dyn,dyn) dyn
math:ceil(double) double
math:floor(double) double
math:round(double) double
math:trunc(double) double
math:isNaN(double) bool
math:isInf(double) bool
math:isFinite(double) bool
math:abs(T) T
math:sign(T) T
sets:contains(list<T>,list<T>) bool
sets:equivalent(list<T>,list<T>) bool
sets:intersects(list<T>,list<T>) bool
base64:encode(bytes) string
base64:decode(string) bytes
strings:quote(string) string
isQuantity(string) bool
quantity(string) quantity
quantity.compareTo(quantity) int
quantity.isGreaterThan(quantity) bool
quantity.isLessThan(quantity) bool
quantity.add(quantity) quantity
quantity.add(int) quantity
quantity.sub(quantity) quantity
quantity.sub(int) quantity
quantity.sign() int
quantity.isInteger() bool
quantity.asInteger() int
quantity.asApproximateFloat() double
isIP(string) bool
ip(string) ip
ip:isCanonical(string) bool
ip.family() int
ip.isUnspecified() bool
ip.isLoopback() bool
ip.isLinkLocalMulticast() bool
ip.isLinkLocalUnicast() bool
ip.isGlobalUnicast() bool
isCIDR(string) bool
cidr(string) cidr
cidr.containsIP(string) bool
cidr.containsIP(ip) bool
cidr.containsCIDR(string) bool
cidr.containsCIDR(cidr) bool
cidr.ip() ip
cidr.masked() cidr
cidr.prefixLength() int
isURL(string) bool
url(string) url
url.getScheme() string
url.getHost() string
url.getHostname() string
url.getPort() string
url.getEscapedPath() string
url.getQuery() map<string,list<string>>
isSemver(string) bool
isSemver(string,bool) bool
semver(string) semver
semver(string,bool) semver
semver.major() int
semver.minor() int
semver.patch() int
semver.compareTo(semver) int
semver.isGreaterThan(semver) bool
semver.isLessThan(semver) bool
format:named(string) optional<format>
format:dns1123Label() format
format:dns1123Subdomain() format
format:dns1035Label() format
format:dns1123LabelPrefix() format
format:dns1123SubdomainPrefix() format
format:dns1035LabelPrefix() format
format:qualifiedName() format
format:labelValue() format
format:uri() format
format:uuid() format
format:byte() format
format:date() format
format:datetime() format
format.validate(string) optional<list<string>>
jsonpatch:escapeKey(string) string
authorizer.path(string) pathcheck
authorizer.group(string) groupcheck
authorizer.serviceAccount(string,string) authorizer
groupcheck.resource(string) resourcecheck
resourcecheck.subresource(string) resourcecheck
resourcecheck.namespace(string) resourcecheck
resourcecheck.name(string) resourcecheck
resourcecheck.fieldSelector(string) resourcecheck
resourcecheck.labelSelector(string) resourcecheck
resourcecheck.check(string) decision
pathcheck.check(string) decision
decision.allowed() bool
decision.reason() string
decision.errored() bool
decision.error() string
";

/// All of them.
pub(crate) fn all() -> &'static [Signature] {
    static ALL: LazyLock<Vec<Signature>> =
        LazyLock::new(|| TABLE.lines().filter_map(signature).collect());
    &ALL
}

fn signature(line: &'static str) -> Option<Signature> {
    let (head, rest) = line.split_once('(')?;
    let (arguments, result) = rest.split_once(')')?;
    let (target, name) = match head.rsplit_once('.') {
        Some((target, name)) => (Some(kind(target)?), name),
        None => (None, head),
    };
    Some(Signature {
        name,
        target,
        arguments: split(arguments).into_iter().map(kind).collect::<Option<_>>()?,
        result: kind(result.trim())?,
    })
}

/// Parts between commas that are in no brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut out) = (0, 0, Vec::new());
    for (at, letter) in text.char_indices() {
        match letter {
            '<' => depth += 1,
            '>' => depth -= 1,
            ',' if depth == 0 => {
                out.push(&text[start..at]);
                start = at + 1;
            }
            _ => (),
        }
    }
    if start < text.len() {
        out.push(&text[start..]);
    }
    out
}

fn kind(text: &str) -> Option<Type> {
    if let Some((outer, inner)) = text.split_once('<') {
        let inner = split(inner.strip_suffix('>')?);
        let inner: Vec<Type> = inner.into_iter().map(kind).collect::<Option<_>>()?;
        return match (outer, inner.as_slice()) {
            ("list", [item]) => Some(Type::List(Box::new(item.clone()))),
            ("optional", [item]) => Some(Type::Optional(Box::new(item.clone()))),
            ("map", [key, value]) => {
                Some(Type::Map(Box::new(key.clone()), Box::new(value.clone())))
            }
            _ => None,
        };
    }
    Some(match text {
        "dyn" => Type::Dyn,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::Text,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        "type" => Type::Kind,
        "quantity" => Type::Library("kubernetes.Quantity"),
        "ip" => Type::Library("net.IP"),
        "cidr" => Type::Library("net.CIDR"),
        "url" => Type::Library("kubernetes.URL"),
        "semver" => Type::Library("kubernetes.Semver"),
        "format" => Type::Library("kubernetes.NamedFormat"),
        "authorizer" => Type::Library(crate::authorizer::AUTHORIZER),
        "pathcheck" => Type::Library(crate::authorizer::PATH_CHECK),
        "groupcheck" => Type::Library(crate::authorizer::GROUP_CHECK),
        "resourcecheck" => Type::Library(crate::authorizer::RESOURCE_CHECK),
        "decision" => Type::Library(crate::authorizer::DECISION),
        "T" => Type::Any(0),
        "U" => Type::Any(1),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_read() {
        let rows = TABLE.lines().filter(|it| !it.is_empty()).count();
        assert_eq!(all().len(), rows);
    }
}
