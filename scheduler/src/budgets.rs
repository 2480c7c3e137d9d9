//! How many pods may be ended: disruption budgets.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use insula_api::selector::Selector;
use insula_client::{ObjectKey, Tenanted};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::pod::{Shape, compile};

#[derive(Debug)]
struct Budget {
    selector: Selector,
    n_allowed: i32,
    /// Names of pods whose ending has been allowed already, and is counted.
    disrupted: BTreeSet<String>,
}

/// All budgets.
#[derive(Debug, Default)]
pub(crate) struct Budgets {
    budgets: BTreeMap<ObjectKey, Budget>,
    version: u64,
}

impl Budgets {
    /// Notes a budget, or that it is gone.
    pub(crate) fn put(&mut self, key: &ObjectKey, budget: Option<&Tenanted<PodDisruptionBudget>>) {
        let made = budget.and_then(|it| {
            let selector = compile(it.spec.as_ref()?.selector.as_ref()?)?;
            let status = it.status.as_ref();
            // One that selects all by selecting nothing counts for no pod here, as upstream.
            (!selector.is_empty()).then(|| Budget {
                selector,
                n_allowed: status.and_then(|it| it.disruptions_allowed).unwrap_or(0),
                disrupted: status
                    .and_then(|it| it.disrupted_pods.as_ref())
                    .map(|it| it.keys().cloned().collect())
                    .unwrap_or_default(),
            })
        });
        self.version += 1;
        match made {
            Some(budget) => self.budgets.insert(key.clone(), budget),
            None => self.budgets.remove(key),
        };
    }

    /// Grows with every change.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Which of these pods, ended one after the other, would be too many for some budget.
    pub(crate) fn violated(&self, pods: &[(ObjectKey, Arc<Shape>)]) -> Vec<bool> {
        let mut left: HashMap<&ObjectKey, i32> =
            self.budgets.iter().map(|(key, budget)| (key, budget.n_allowed)).collect();
        pods.iter()
            .map(|(pod, shape)| {
                let mut is_too_many = false;
                let first = ObjectKey::new(&shape.tenant, &shape.namespace, "");
                for (key, budget) in self.budgets.range(first..) {
                    if key.tenant != shape.tenant || key.namespace != shape.namespace {
                        break;
                    }
                    if !budget.selector.matches(&shape.labels)
                        || budget.disrupted.contains(&*pod.name)
                    {
                        continue;
                    }
                    if let Some(left) = left.get_mut(key) {
                        *left = left.saturating_sub(1);
                        is_too_many |= *left < 0;
                    }
                }
                is_too_many
            })
            .collect()
    }
}
