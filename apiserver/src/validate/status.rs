//! What a status may not say.
//!
//! Counts are a table. What jobs are told more is in [`super::job_status`]; pods and requests for
//! certificates have their own in [`super::pod_updates`] and [`super::certificates`].

use insula_api::{object, resources::Resource, schema::TypeId};
use serde_json::Value;

use super::{
    Errors, certificates,
    formats::{Format, sloppy_address},
    job_status, pod_updates,
    rule::{NEGATIVE, quantity},
    updates::list,
};
use crate::error::FieldError;

/// The counts of a status.
struct Counts {
    group: &'static str,
    resource: &'static str,
    /// None of them is below zero.
    fields: &'static [&'static str],
    /// What counts only some of what `replicas` counts.
    some: &'static [&'static str],
    /// How messages call what available ones are some of, if they are any.
    ready: &'static str,
}

/// What counts some of the replicas of a set.
const OF_A_SET: &[&str] = &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];

const COUNTS: &[Counts] = &[
    Counts {
        group: "",
        resource: "replicationcontrollers",
        fields: &[
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "observedGeneration",
        ],
        some: OF_A_SET,
        ready: "readyReplicas",
    },
    Counts {
        group: "apps",
        resource: "daemonsets",
        fields: &[
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            COLLISIONS,
        ],
        some: &[],
        ready: "",
    },
    Counts {
        group: "apps",
        resource: "deployments",
        fields: &[
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            COLLISIONS,
        ],
        some: &["updatedReplicas", "readyReplicas", "availableReplicas"],
        ready: "readyReplicas",
    },
    Counts {
        group: "apps",
        resource: "replicasets",
        fields: &[
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "observedGeneration",
            "terminatingReplicas",
        ],
        some: OF_A_SET,
        ready: "readyReplicas",
    },
    Counts {
        group: "apps",
        resource: "statefulsets",
        fields: &[
            "replicas",
            "readyReplicas",
            "currentReplicas",
            "updatedReplicas",
            "availableReplicas",
            "observedGeneration",
            COLLISIONS,
        ],
        some: &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"],
        ready: "status.readyReplicas",
    },
    Counts {
        group: "autoscaling",
        resource: "horizontalpodautoscalers",
        fields: &["currentReplicas", "desiredReplicas"],
        some: &[],
        ready: "",
    },
    Counts {
        group: "batch",
        resource: "jobs",
        fields: &["active", "succeeded", "failed", "ready", "terminating"],
        some: &[],
        ready: "",
    },
    Counts {
        group: "policy",
        resource: "poddisruptionbudgets",
        fields: &["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"],
        some: &[],
        ready: "",
    },
];

/// How often a name was taken: it only grows.
const COLLISIONS: &str = "collisionCount";

/// What a write of the status may not do.
pub(super) fn update(
    resource: &Resource,
    id: TypeId,
    old: &Value,
    new: &Value,
    errors: &mut Errors,
) {
    let of = (&*resource.group, &*resource.name);
    if let Some(counts) = COUNTS.iter().find(|it| (it.group, it.resource) == of) {
        self::counts(counts, &old["status"], &new["status"], errors);
    }
    match of {
        ("", "namespaces") => phase(new, errors),
        ("", "persistentvolumeclaims") => claim(&new["status"], errors),
        ("", "pods") => pod_updates::status(old, new, errors),
        ("", "services") => {
            let is_balanced = object::text(new, &["spec", "type"]) == "LoadBalancer";
            if !is_balanced && !ingress(new).is_empty() {
                let why = "may only be used when `spec.type` is 'LoadBalancer'";
                errors.push(FieldError::forbidden(INGRESS, why));
            } else {
                addresses(old, new, true, errors);
            }
        }
        ("batch", "jobs") => job_status::update(id, old, new, errors),
        ("certificates.k8s.io", "certificatesigningrequests") => {
            certificates::update(old, new, false, errors);
        }
        ("networking.k8s.io", "ingresses") => addresses(old, new, false, errors),
        _ => (),
    }
}

/// A count; what is not there counts nothing.
pub(super) fn count(status: &Value, field: &str) -> i64 {
    status.get(field).and_then(Value::as_i64).unwrap_or(0)
}

fn counts(counts: &Counts, old: &Value, new: &Value, errors: &mut Errors) {
    let mut wrong = |field: &str, why: &str| {
        let shown = count(new, field).into();
        errors.push(FieldError::invalid(format!("status.{field}"), &shown, why));
    };
    for field in counts.fields.iter().filter(|field| count(new, field) < 0) {
        wrong(field, NEGATIVE);
    }
    for field in counts.some.iter().filter(|field| count(new, "replicas") < count(new, field)) {
        wrong(field, "cannot be greater than status.replicas");
    }
    if !counts.ready.is_empty() && count(new, "readyReplicas") < count(new, "availableReplicas") {
        wrong("availableReplicas", &format!("cannot be greater than {}", counts.ready));
    }
    let is_less = match (old.get(COLLISIONS), new.get(COLLISIONS)) {
        (Some(_), None) => true,
        _ => count(new, COLLISIONS) < count(old, COLLISIONS),
    };
    if counts.fields.contains(&COLLISIONS) && old.get(COLLISIONS).is_some() && is_less {
        wrong(COLLISIONS, "cannot be decremented");
    }
}

/// Only a deletion ends a namespace.
fn phase(new: &Value, errors: &mut Errors) {
    let (allowed, why) = match object::is_deleting(new) {
        true => ("Terminating", "may only be 'Terminating' if `deletionTimestamp` is not empty"),
        false => ("Active", "may only be 'Active' if `deletionTimestamp` is empty"),
    };
    let phase = object::text(new, &["status", "phase"]);
    if phase != allowed {
        errors.push(FieldError::invalid("status.Phase", &phase.into(), why));
    }
}

/// What a claim got is an amount.
fn claim(status: &Value, errors: &mut Errors) {
    for (name, amount) in status.get("capacity").and_then(Value::as_object).into_iter().flatten() {
        if let Some(parsed) = quantity(amount).filter(|it| it.is_negative()) {
            let at = format!("status.capacity[{name}]");
            let shown = parsed.value().into();
            errors.push(FieldError::invalid(at, &shown, "must be a valid resource quantity"));
        }
    }
}

const INGRESS: &str = "status.loadBalancer.ingress";

fn ingress(it: &Value) -> &[Value] {
    list(&it["status"]["loadBalancer"], "ingress")
}

/// Where something is reached from outside. `has_modes`: and how its address is to be taken.
fn addresses(old: &Value, new: &Value, has_modes: bool, errors: &mut Errors) {
    let known: Vec<&str> = ingress(old).iter().map(|it| object::text(it, &["ip"])).collect();
    for (index, it) in ingress(new).iter().enumerate() {
        let at = |field: &str| format!("{INGRESS}[{index}].{field}");
        let (ip, name) = (object::text(it, &["ip"]), object::text(it, &["hostname"]));
        if !ip.is_empty() && !known.contains(&ip) {
            for why in Format::Ip.check(ip) {
                errors.push(FieldError::invalid(at("ip"), &ip.into(), &why));
            }
        }
        match it.get("ipMode").filter(|_| has_modes) {
            Some(_) if ip.is_empty() => {
                let why = "may not be specified when `ip` is not set";
                errors.push(FieldError::forbidden(at("ipMode"), why));
            }
            Some(mode) if mode != "VIP" && mode != "Proxy" => {
                errors.push(FieldError::unsupported(at("ipMode"), mode, &["Proxy", "VIP"]));
            }
            _ => (),
        }
        if name.is_empty() {
            continue;
        }
        for why in Format::Subdomain.check(name) {
            errors.push(FieldError::invalid(at("hostname"), &name.into(), &why));
        }
        if sloppy_address(name).is_some() {
            let why = "must be a DNS name, not an IP address";
            errors.push(FieldError::invalid(at("hostname"), &name.into(), why));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{compare, served};

    #[track_caller]
    fn check(
        of: (&str, &str, &str),
        old: serde_json::Value,
        mut new: serde_json::Value,
        expected: &[&str],
    ) {
        let served = served(of.0, of.1, of.2);
        crate::strategy::normalize(&served, &mut new);
        compare(&super::super::update(&served, "status", &old, &new), expected);
    }

    #[test]
    fn counts_go_together() {
        let of = |status: serde_json::Value| json!({ "status": status });
        let deployments = ("apps", "v1", "deployments");
        check(
            deployments,
            of(json!({})),
            of(
                json!({"replicas": 1, "readyReplicas": 2, "availableReplicas": 3, "updatedReplicas": -1}),
            ),
            &[
                "status.updatedReplicas: Invalid value: -1: must be greater than or equal to 0",
                "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas",
                "status.availableReplicas: Invalid value: 3: cannot be greater than status.replicas",
                "status.availableReplicas: Invalid value: 3: cannot be greater than readyReplicas",
            ],
        );
        let collided = of(json!({"collisionCount": 2}));
        check(deployments, of(json!({})), collided.clone(), &[]);
        for (new, shown) in [(json!({"collisionCount": 1}), 1), (json!({}), 0)] {
            let told = format!("status.collisionCount: Invalid value: {shown}: cannot be decr");
            check(deployments, collided.clone(), of(new), &[&told]);
        }
        check(
            ("apps", "v1", "statefulsets"),
            of(json!({})),
            of(json!({"replicas": 1, "readyReplicas": 1, "availableReplicas": 2})),
            &[
                "status.availableReplicas: Invalid value: 2: cannot be greater than status.replicas",
                "status.availableReplicas: Invalid value: 2: cannot be greater than status.readyReplicas",
            ],
        );
        check(
            ("policy", "v1", "poddisruptionbudgets"),
            of(json!({})),
            of(json!({"currentHealthy": -1})),
            &["status.currentHealthy: Invalid value: -1: must be greater than or equal to 0"],
        );
    }

    #[test]
    fn namespaces_end_by_deletion_alone() {
        let of = |metadata: serde_json::Value, phase: &str| json!({"metadata": metadata, "status": {"phase": phase}});
        let namespaces = ("", "v1", "namespaces");
        let (live, going) = (
            json!({"name": "n"}),
            json!({"name": "n", "deletionTimestamp": "2024-01-01T00:00:00Z"}),
        );
        check(namespaces, of(live.clone(), "Active"), of(live.clone(), "Active"), &[]);
        check(
            namespaces,
            of(live.clone(), "Active"),
            of(live, "Terminating"),
            &["status.Phase: Invalid value: \"Terminating\": may only be 'Active' if"],
        );
        check(
            namespaces,
            of(going.clone(), "Terminating"),
            of(going, "Active"),
            &["status.Phase: Invalid value: \"Active\": may only be 'Terminating' if"],
        );
    }

    #[test]
    fn addresses_are_checked() {
        let of = |kind: &str, ingress: serde_json::Value| json!({"spec": {"type": kind}, "status": {"loadBalancer": {"ingress": ingress}}});
        let services = ("", "v1", "services");
        check(
            services,
            of("ClusterIP", json!([])),
            of("ClusterIP", json!([{"ip": "1.2.3.4"}])),
            &["status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'Load"],
        );
        let ingress = json!([
            {"ip": "1.2.3"}, {"ip": "1.2.3.4", "ipMode": "No"}, {"ipMode": "VIP"},
            {"hostname": "A_"}, {"hostname": "1.2.3.4"}, {"ip": "010.1.1.1"},
        ]);
        let told = [
            "status.loadBalancer.ingress[0].ip: Invalid value: \"1.2.3\": must be a valid IP address",
            "status.loadBalancer.ingress[1].ipMode: Unsupported value: \"No\": supported values: \"Proxy\", \"VIP\"",
            "status.loadBalancer.ingress[2].ipMode: Forbidden: may not be specified when `ip` is not set",
            "status.loadBalancer.ingress[3].hostname: Invalid value: \"A_\": a lowercase RFC 1123",
            "status.loadBalancer.ingress[4].hostname: Invalid value: \"1.2.3.4\": must be a DNS name, not",
        ];
        let known = of("LoadBalancer", json!([{"ip": "010.1.1.1"}]));
        check(services, known, of("LoadBalancer", ingress), &told);
        check(
            ("networking.k8s.io", "v1", "ingresses"),
            json!({}),
            json!({"status": {"loadBalancer": {"ingress": [{"ip": "1.2.3"}]}}}),
            &told[..1],
        );
    }

    #[test]
    fn a_balanced_address_has_a_mode() {
        let served = served("", "v1", "services");
        let mut it = json!({"spec": {"type": "LoadBalancer"}, "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}, {"hostname": "a.b"}]}}});
        crate::strategy::normalize(&served, &mut it);
        let ingress = json!([{"ip": "1.2.3.4", "ipMode": "VIP"}, {"hostname": "a.b"}]);
        assert_eq!(it["status"]["loadBalancer"]["ingress"], ingress);
    }
}
