//! The model: who may what, as `docs/security.md` says it.
//!
//! It knows nothing of the server: rules are upstream's default roles, read plainly from their
//! table, and everything else is a cell of the document.

use std::collections::{BTreeMap, BTreeSet};

const DOCUMENT: &str = include_str!("../../../docs/security.md");
const ROLES: [&str; 2] = [
    include_str!("../../../api/tables/default-rbac.tsv"),
    include_str!("../../../api/tables/insula-rbac.tsv"),
];

/// See the module.
pub(crate) struct Model {
    pub(crate) people: Vec<Person>,
    /// What everyone has.
    known: Right,
    /// Kinds and verbs of which agents have their own alone.
    own: Vec<(BTreeSet<String>, BTreeSet<String>)>,
    pub(crate) paths: Vec<(String, String)>,
    roles: Roles,
}

/// A row of the table.
#[derive(Debug, Clone)]
pub(crate) struct Person {
    pub(crate) name: String,
    /// Empty for who is nobody.
    pub(crate) home: String,
    pub(crate) user: String,
    pub(crate) group: String,
    /// At home, of the fleet, of another tenant, of all.
    cells: [String; 4],
}

/// What a request is about.
#[derive(Debug, Clone)]
pub(crate) struct Asked<'a> {
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) is_fleets: bool,
    /// `all` for all of them.
    pub(crate) tenant: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Unknown,
    Denied,
    LetIn,
}

/// What a cell says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Right {
    Unknown,
    Nothing,
    Everything,
    Role { name: String, within: Option<String> },
    Verbs { kind: String, verbs: Vec<String> },
}

/// Rules by role; each is verbs, groups and resources.
type Roles = BTreeMap<String, Vec<Rule>>;

#[derive(Debug, Clone)]
struct Rule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    is_limited: bool,
}

/// Rows of the table whose head begins with `first`, and which has `columns` columns.
fn table(first: &str, columns: usize) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim().trim_matches('|').split('|').map(|it| it.trim().to_owned()).collect()
    };
    let mut lines = DOCUMENT.lines();
    lines
        .by_ref()
        .find(|line| line.starts_with('|') && cells(line)[0] == first)
        .unwrap_or_else(|| panic!("no table of {first:?}"));
    let rows: Vec<_> = lines.skip(1).take_while(|line| line.starts_with('|')).map(cells).collect();
    assert!(!rows.is_empty() && rows.iter().all(|it| it.len() == columns), "{first:?}: {rows:?}");
    rows
}

fn words(text: &str) -> Vec<String> {
    text.split([',', ' ']).filter(|it| !it.is_empty()).map(str::to_owned).collect()
}

fn right(cell: &str) -> Right {
    match cell.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["401"] => Right::Unknown,
        ["nothing"] => Right::Nothing,
        ["everything"] => Right::Everything,
        ["role", name] => Right::Role { name: (*name).into(), within: None },
        ["role", name, "in", namespace] => {
            Right::Role { name: (*name).into(), within: Some((*namespace).into()) }
        }
        [kind, verbs @ ..] if kind.ends_with(':') => Right::Verbs {
            kind: kind.trim_end_matches(':').into(),
            verbs: verbs.iter().map(|it| (*it).into()).collect(),
        },
        _ => panic!("what is {cell:?}"),
    }
}

impl Model {
    pub(crate) fn read() -> Self {
        let people = table("who", 6).into_iter().map(|row| {
            let [name, is, cells @ ..] = <[String; 6]>::try_from(row).unwrap();
            let is = is.split_once(',').map_or((&*is, ""), |(is, more)| (is, more));
            let (home, user) = is.0.split_once('/').unwrap_or_default();
            let group = is.1.trim().strip_prefix("group ").unwrap_or_default();
            let (home, user, group) = (home.into(), user.into(), group.into());
            Person { name, home, user, group, cells }
        });
        let own = table("kind", 3).into_iter().map(|row| {
            (words(&row[0]).into_iter().collect(), words(&row[1]).into_iter().collect())
        });
        let paths = table("path", 2).into_iter().flat_map(|row| {
            let who = row[1].clone();
            words(&row[0]).into_iter().map(move |path| (path, who.clone()))
        });
        Self {
            people: people.collect(),
            known: right(&table("everyone", 2)[0][1]),
            own: own.collect(),
            paths: paths.collect(),
            roles: roles(),
        }
    }

    /// What is to come of a request for a resource.
    pub(crate) fn outcome(&self, who: &Person, it: &Asked<'_>) -> Outcome {
        let is_home = it.tenant == who.home;
        let of_platform = who.home == "system";
        let cell = match (it.is_fleets, it.tenant) {
            // Of the platform's users it does not matter by which path they ask.
            (true, _) if of_platform || is_home => &who.cells[1],
            (_, "all") => &who.cells[3],
            _ if is_home => &who.cells[0],
            _ => &who.cells[2],
        };
        let mut rights = vec![cell.as_str()];
        if let Some((tenant, in_it)) = cell.split_once(": ")
            && tenant == it.tenant
        {
            rights = vec![in_it];
        } else if let Some((tenant, _)) = cell.split_once(": ")
            && !it.is_fleets
        {
            assert_ne!(tenant, it.tenant);
            rights.clear();
        }
        let rights: Vec<Right> = rights.into_iter().map(right).collect();
        if rights.contains(&Right::Unknown) {
            return Outcome::Unknown;
        }
        let has_known = is_home || of_platform;
        let known = has_known.then_some(&self.known);
        let is_let = rights.iter().chain(known).any(|it_right| self.grants(it_right, it));
        match is_let && !(who.group == "system:nodes" && self.is_others(it)) {
            true => Outcome::LetIn,
            false => Outcome::Denied,
        }
    }

    /// Whether it is of a kind of which agents have their own alone. What the test plants is no
    /// agent's.
    fn is_others(&self, it: &Asked<'_>) -> bool {
        let kind = match it.subresource {
            "" => it.resource.to_owned(),
            sub => format!("{}/{sub}", it.resource),
        };
        self.own.iter().any(|(kinds, verbs)| kinds.contains(&kind) && verbs.contains(it.verb))
    }

    fn grants(&self, right: &Right, it: &Asked<'_>) -> bool {
        match right {
            Right::Unknown | Right::Nothing => false,
            Right::Everything => true,
            Right::Role { name, within } => {
                within.as_ref().is_none_or(|within| within == it.namespace)
                    && self.roles[name].iter().any(|rule| rule.allows(it))
            }
            Right::Verbs { kind, verbs } => {
                it.group.is_empty()
                    && it.resource == kind
                    && it.subresource.is_empty()
                    && verbs.iter().any(|verb| verb == it.verb)
            }
        }
    }
}

impl Rule {
    fn allows(&self, it: &Asked<'_>) -> bool {
        let has = |list: &[String], what: &str| list.iter().any(|x| x == "*" || x == what);
        let target = match it.subresource {
            "" => it.resource.to_owned(),
            sub => format!("{}/{sub}", it.resource),
        };
        // Of names the model knows nothing: no default role that it uses has any.
        !self.is_limited
            && has(&self.verbs, it.verb)
            && has(&self.groups, it.group)
            && has(&self.resources, &target)
    }
}

fn roles() -> Roles {
    let list = |text: &str| -> Vec<String> { text.split(',').map(str::to_owned).collect() };
    let mut roles = Roles::new();
    // Which label a role gathers, and which ones it has.
    let (mut gathers, mut labels) = (BTreeMap::new(), BTreeMap::new());
    let lines = ROLES.iter().flat_map(|it| it.lines());
    for line in lines.filter(|it| it.starts_with("ClusterRole\t")) {
        let mut columns: Vec<&str> = line.split('\t').collect();
        columns.resize(9, "");
        let [_, _, name, has, groups, resources, names, _, verbs] = columns[..] else { panic!() };
        let name = name.to_owned();
        if let Some(key) = has.strip_suffix("=true") {
            labels.insert(name.clone(), key.to_owned());
        }
        let role = roles.entry(name.clone()).or_default();
        if let Some(selector) = groups.strip_prefix("aggregates ") {
            let key = selector.split('"').find(|it| it.contains("aggregate-to")).unwrap();
            gathers.insert(name, key.to_owned());
        } else if !resources.is_empty() {
            role.push(Rule {
                verbs: list(verbs),
                groups: list(groups),
                resources: list(resources),
                is_limited: !names.is_empty(),
            });
        }
    }
    // Twice, because what is gathered may gather.
    for _ in 0..2 {
        for (name, key) in &gathers {
            let from = labels.iter().filter(|(_, has)| *has == key).map(|(from, _)| from);
            let rules: Vec<Rule> = from.flat_map(|from| roles[from].clone()).collect();
            roles.insert(name.clone(), rules);
        }
    }
    roles
}
