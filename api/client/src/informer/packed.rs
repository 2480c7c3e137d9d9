//! Objects that nobody looks at lie packed.
//!
//! A typed object takes several times the room of its JSON, and objects of one resource have most
//! of their JSON alike. So what was not looked at lately lies as JSON without what it has in common
//! with a template, which is one of the resource's objects; who looks at it has it decoded. A
//! [`Slot`] is one object in either form, [`Packer`] turns one into the other.

use std::sync::Arc;

use insula_api::names::TenantName;
use lz4_flex::block;
use parking_lot::Mutex;

use crate::{Object, Tenanted};

/// A template that was useful this often is kept through as many objects that it does not fit.
const MOST_CREDIT: u8 = 32;
/// Longer templates gain nothing more: LZ4 looks back no further, in bytes.
const LONGEST_TEMPLATE: usize = 64 << 10;

/// An object as what differs from a template.
#[derive(Debug)]
struct Packed {
    template: Arc<[u8]>,
    bytes: Box<[u8]>,
    /// Of the JSON that it was made of.
    length: u32,
}

/// Packs objects of one resource.
#[derive(Debug, Default)]
pub(super) struct Packer {
    template: Mutex<Template>,
}

#[derive(Debug)]
struct Template {
    text: Arc<[u8]>,
    /// How much longer it is kept if it fits nothing.
    credit: u8,
}

impl Default for Template {
    fn default() -> Self {
        Self { text: Arc::from([]), credit: 0 }
    }
}

impl Packer {
    /// `None` if it cannot be written as JSON.
    fn pack<K: Object>(&self, object: &Tenanted<K>) -> Option<Packed> {
        let text = match serde_json::to_vec(&object.object) {
            Ok(text) => text,
            Err(error) => {
                tracing::error!(%error, key = %object.key(), "an object cannot be packed");
                return None;
            }
        };
        let length = u32::try_from(text.len()).ok()?;
        let template = self.template.lock().text.clone();
        let bytes = block::compress_with_dict(&text, &template);
        self.learn(&text, bytes.len() <= text.len() / 2);
        Some(Packed { template, bytes: bytes.into(), length })
    }

    /// Keeps a template that fits, and takes another where it does not.
    fn learn(&self, text: &[u8], fits: bool) {
        let mut template = self.template.lock();
        if fits && !template.text.is_empty() {
            template.credit = template.credit.saturating_add(1).min(MOST_CREDIT);
        } else if 0 < template.credit {
            template.credit -= 1;
        } else {
            *template =
                Template { text: text[..text.len().min(LONGEST_TEMPLATE)].into(), credit: 1 };
        }
    }
}

impl Packed {
    /// `None` if memory is damaged.
    fn unpack<K: Object>(&self, tenant: &TenantName) -> Option<Tenanted<K>> {
        let text = block::decompress_with_dict(&self.bytes, self.length as usize, &self.template);
        let read = text
            .map_err(|error| error.to_string())
            .and_then(|text| String::from_utf8(text).map_err(|error| error.to_string()))
            // As what servers say is read: that is compiled anyway.
            .and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
        match read {
            Ok(object) => Some(Tenanted { tenant: tenant.clone(), object }),
            Err(error) => {
                tracing::error!(%error, "a packed object cannot be read");
                None
            }
        }
    }
}

/// One object. At least one of the forms is there.
#[derive(Debug)]
pub(super) struct Slot<K> {
    plain: Option<Arc<Tenanted<K>>>,
    packed: Option<Packed>,
    /// Whether it was looked at since it was last asked to pack itself.
    was_used: bool,
}

impl<K: Object> Slot<K> {
    pub(super) fn new(object: Arc<Tenanted<K>>) -> Self {
        Self { plain: Some(object), packed: None, was_used: false }
    }

    pub(super) fn is_plain(&self) -> bool {
        self.plain.is_some()
    }

    /// The object, which stays in the form that it has.
    pub(super) fn peek(&self, tenant: &TenantName) -> Option<Arc<Tenanted<K>>> {
        match &self.plain {
            Some(object) => Some(object.clone()),
            None => self.packed.as_ref()?.unpack(tenant).map(Arc::new),
        }
    }

    /// The object, which is then plain for a while.
    pub(super) fn look(&mut self, tenant: &TenantName) -> Option<Arc<Tenanted<K>>> {
        self.was_used = true;
        self.plain = self.peek(tenant);
        self.plain.clone()
    }

    /// Lies packed from now on, unless it was looked at since the last time it was asked to, or
    /// cannot be packed; says whether it does.
    pub(super) fn put_away(&mut self, packer: &Packer) -> bool {
        if std::mem::take(&mut self.was_used) {
            return false;
        }
        if let (Some(plain), None) = (&self.plain, &self.packed) {
            self.packed = packer.pack(plain);
        }
        if self.packed.is_some() {
            self.plain = None;
        }
        self.plain.is_none()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    fn pod(n: u32) -> Arc<Tenanted<Pod>> {
        let name = format!("web-{n}");
        let object = serde_json::from_value(json!({
            "metadata": {
                "name": name, "namespace": "shop", "uid": format!("{:032x}", u128::from(n) * 977),
                "labels": {"app": "web", "pod-template-hash": "5f6c7d8"},
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web",
                    "uid": "1b4e28ba-2fa1-11d2-883f-0016d3cca427", "controller": true}],
            },
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            ]},
        }));
        Arc::new(Tenanted { tenant: TenantName::system(), object: object.unwrap() })
    }

    #[test]
    fn what_is_packed_is_what_it_was_and_takes_little() {
        let packer = Packer::default();
        for n in 0..100 {
            let object = pod(n);
            let plain = serde_json::to_vec(&object.object).unwrap().len();
            let mut slot = Slot::new(object.clone());
            assert!(slot.put_away(&packer));
            let packed = slot.packed.as_ref().unwrap().bytes.len();
            assert!(n == 0 || packed * 3 < plain, "{n}: {packed} of {plain}");
            assert_eq!(slot.peek(&object.tenant).unwrap(), object);
            assert!(!slot.is_plain(), "peeking leaves it packed");
            assert_eq!(slot.look(&object.tenant).unwrap(), object);
            assert!(slot.is_plain());
        }
    }

    #[test]
    fn what_is_looked_at_stays_once_longer() {
        let (packer, object) = (Packer::default(), pod(1));
        let mut slot = Slot::new(object.clone());
        slot.look(&object.tenant);
        assert!(!slot.put_away(&packer));
        assert!(slot.put_away(&packer));
    }

    #[test]
    fn a_template_that_fits_nothing_any_more_is_replaced() {
        let packer = Packer::default();
        for n in 0..10 {
            packer.pack(&pod(n)).unwrap();
        }
        let other = |n: usize| {
            let mut other = (*pod(0)).clone();
            let labels = (0..40).map(|i| (format!("{i}-{i}"), (i * i * 977).to_string()));
            other.object.metadata.labels = Some(labels.collect());
            other.object.metadata.name = Some(format!("other-{n}"));
            other
        };
        let first = packer.pack(&other(0)).unwrap().bytes.len();
        for n in 1..50 {
            packer.pack(&other(n)).unwrap();
        }
        let last = packer.pack(&other(50)).unwrap().bytes.len();
        assert!(last * 3 < first, "{last} after {first}");
    }
}
