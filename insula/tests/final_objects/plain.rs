//! Takes out of objects what differs by chance.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::Kubectl;

/// All objects, when nothing has changed for a while.
pub(crate) fn settled(user: &Kubectl, kinds: &str) -> Vec<Value> {
    let begun = Instant::now();
    let mut last = String::new();
    let mut since = Instant::now();
    loop {
        let text = user.ok(&["get", kinds, "-A", "-o", "json"]);
        if text != last {
            (last, since) = (text, Instant::now());
        }
        if Duration::from_secs(8) < since.elapsed() || Duration::from_secs(90) < begun.elapsed() {
            let list: Value = serde_json::from_str(&last).unwrap();
            return list["items"].as_array().unwrap().clone();
        }
        thread::sleep(Duration::from_millis(500));
    }
}

fn text<'a>(it: &'a Value, pointer: &str) -> &'a str {
    it.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Names that were drawn or hashed, and addresses, with what they are called instead.
fn names(objects: &[Value]) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    let of = |kind: &'static str| objects.iter().filter(move |it| it["kind"] == kind);
    // Templates have numbers in the order in which they were rolled out.
    let mut sets: Vec<&Value> = of("ReplicaSet").collect();
    let revision = |it: &Value| {
        let number = it["metadata"]["annotations"]["deployment.kubernetes.io/revision"].as_str();
        number.and_then(|it| it.parse::<u32>().ok()).unwrap_or(0)
    };
    sets.sort_by_key(|it| (text(it, "/metadata/ownerReferences/0/name").to_owned(), revision(it)));
    for (n, set) in sets.iter().enumerate() {
        let hash = set["metadata"]["labels"]["pod-template-hash"].as_str();
        names.extend(hash.map(|it| (it.to_owned(), format!("template{n:02}"))));
    }
    let mut revisions: Vec<&Value> = of("ControllerRevision").collect();
    revisions.sort_by_key(|it| {
        (text(it, "/metadata/ownerReferences/0/name").to_owned(), it["revision"].as_u64())
    });
    for (n, revision) in revisions.iter().enumerate() {
        let labels = &revision["metadata"]["labels"];
        let hash = labels["controller-revision-hash"].as_str();
        let hash = hash.or_else(|| labels["controller.kubernetes.io/hash"].as_str());
        let hash = hash.map(|it| it.rsplit('-').next().unwrap_or(it).to_owned());
        names.extend(hash.map(|it| (it, format!("revision{n:02}"))));
    }
    let mut drawn: Vec<&Value> =
        objects.iter().filter(|it| it["metadata"]["generateName"].is_string()).collect();
    drawn.sort_by_key(|it| {
        let began = replaced(text(it, "/metadata/generateName"), &names);
        let index = text(it, "/metadata/annotations/batch.kubernetes.io~1job-completion-index");
        (
            it["kind"].as_str().unwrap_or_default().to_owned(),
            began,
            index.to_owned(),
            text(it, "/metadata/creationTimestamp").to_owned(),
            text(it, "/metadata/name").to_owned(),
        )
    });
    let mut n_of: BTreeMap<String, u32> = BTreeMap::new();
    for it in drawn {
        let began = text(it, "/metadata/generateName");
        let n = n_of.entry(format!("{}{began}", it["kind"])).or_default();
        let suffix = text(it, "/metadata/name").trim_start_matches(began).to_owned();
        // Those of stateful sets are not drawn.
        if suffix.len() == 5 {
            names.insert(suffix, format!("drawn{n}"));
            *n += 1;
        }
    }
    names
}

fn replaced(text: &str, names: &BTreeMap<String, String>) -> String {
    names.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn is_time(text: &str) -> bool {
    let is_date = text.len() >= 10
        && text.bytes().take(10).enumerate().all(|(n, it)| match n {
            4 | 7 => it == b'-',
            _ => it.is_ascii_digit(),
        });
    is_date
        && (text.len() == 10
            || text.len() >= 20 && text.as_bytes()[10] == b'T' && text.ends_with('Z'))
}

fn is_address(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok() && !text.starts_with("192.0.2.1")
}

fn is_uid(text: &str) -> bool {
    text.len() == 36 && text.matches('-').count() == 4
}

fn clean(it: &mut Value, names: &BTreeMap<String, String>) {
    match it {
        Value::Object(map) => {
            for key in ["resourceVersion", "managedFields", "uid", "creationTimestamp", "renewTime"]
            {
                map.remove(key);
            }
            if map.contains_key("nodeName") {
                map.insert("nodeName".to_owned(), json!("a node"));
            }
            let last = map.keys().find(|it| it.contains("last-applied")).cloned();
            last.and_then(|it| map.remove(&it));
            let entries = std::mem::take(map).into_iter().map(|(key, mut value)| {
                clean(&mut value, names);
                (replaced(&key, names), value)
            });
            *map = entries.collect();
        }
        Value::Array(all) => all.iter_mut().for_each(|it| clean(it, names)),
        Value::String(text) if is_time(text) => *text = "a time".to_owned(),
        Value::String(text) if is_address(text) => *text = "an address".to_owned(),
        Value::String(text) if is_uid(text) => *text = "a uid".to_owned(),
        Value::String(text) if text.starts_with("kube-api-access-") => {
            *text = stem(text).to_owned()
        }
        Value::String(text) if text.starts_with("node-") => *text = "a node".to_owned(),
        Value::String(text) => *text = replaced(text, names),
        _ => (),
    }
}

/// A word without what was drawn or hashed at its end.
fn stem(word: &str) -> &str {
    let is_drawn = |end: &str| {
        matches!(end.len(), 5 | 8..=10)
            && end.bytes().all(|it| b"bcdfghjklmnpqrstvwxz2456789".contains(&it))
    };
    match word.rsplit_once('-') {
        Some((stem_of, end)) if is_drawn(end) || end.starts_with("drawn") => stem(stem_of),
        _ => word,
    }
}

/// What an event says, without how often and about whom of several that are alike.
fn event(it: &Value) -> String {
    // Of many that are alike one is made in the end; so steps have no numbers.
    let message =
        text(it, "/message").trim().trim_start_matches("(combined from similar events): ");
    let message = if text(it, "/reason") == "ScalingReplicaSet" {
        message.split(" from ").next().unwrap_or_default()
    } else {
        message
    };
    let words: Vec<&str> = message.split(' ').map(stem).collect();
    format!(
        "Event {} {} {} {}: {}",
        text(it, "/involvedObject/kind"),
        stem(text(it, "/involvedObject/name")),
        text(it, "/type"),
        text(it, "/reason"),
        words.join(" "),
    )
}

/// What is there, or who made it, has nothing to do with controllers.
fn is_beside(it: &Value) -> bool {
    let of = text(it, "/involvedObject/kind");
    text(it, "/reason").contains("Schedul")
        || matches!(of, "Node" | "Lease")
        || text(it, "/metadata/name") == "kubernetes"
        || text(it, "/metadata/name") == "extension-apiserver-authentication"
}

/// Objects by kind and name, without what differs by chance. Events that are not of controllers
/// are left out.
pub(crate) fn plain(mut objects: Vec<Value>) -> BTreeMap<String, Value> {
    let names = names(&objects);
    objects.iter_mut().for_each(|it| clean(it, &names));
    let mut all = BTreeMap::new();
    for mut it in objects {
        if is_beside(&it) {
            continue;
        }
        if it["kind"] == "Event" {
            let source = it["source"]["component"].clone();
            all.insert(event(&it), source);
            continue;
        }
        if matches!(text(&it, "/kind"), "EndpointSlice" | "ReplicaSet") {
            // How many steps it took is by chance; that the last of them was seen is not.
            let generation = it["metadata"]["generation"].take();
            match it.pointer_mut("/status/observedGeneration") {
                Some(seen) if *seen == generation => *seen = json!(null),
                Some(_) => it["metadata"]["generation"] = generation,
                None => (),
            }
        }
        // Whether the last step was one of those that are timed is by chance.
        if let Some(metadata) = it["metadata"].as_object_mut()
            && let Some(annotations) =
                metadata.get_mut("annotations").and_then(Value::as_object_mut)
            && annotations.remove("endpoints.kubernetes.io/last-change-trigger-time").is_some()
            && annotations.is_empty()
        {
            metadata.remove("annotations");
        }
        if text(&it, "/metadata/name") == "kube-root-ca.crt" {
            // Each says in its own words what it is for.
            (it["data"], it["metadata"]["annotations"]) = (json!(null), json!(null));
        }
        for list in ["/status/conditions", "/subsets/0/addresses", "/endpoints"] {
            if let Some(all) = it.pointer_mut(list).and_then(Value::as_array_mut) {
                all.sort_by_cached_key(Value::to_string);
            }
        }
        let key = format!(
            "{} {}/{}",
            text(&it, "/kind"),
            text(&it, "/metadata/namespace"),
            text(&it, "/metadata/name")
        );
        all.insert(key, it);
    }
    all
}
