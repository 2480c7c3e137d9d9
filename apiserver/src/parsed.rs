//! Parsed objects that were looked at lately: what every write looks up again (its namespace, its
//! account, classes, limits) is parsed once for as long as nobody changes it.
//!
//! Values in memory never change, they are replaced. A parsed object belongs to the very text it
//! was made of, packed or not, and keeps it: while it is here, no other can have its address. What
//! is sealed is parsed each time: nothing that was opened is kept.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use insula_api::object;
use insula_partition::text::Text;
use serde_json::Value;

/// How many objects are kept at most. One that falls on another's slot takes its place.
const SLOTS: usize = 2048;
/// Larger objects are parsed each time, so that what is kept stays below some 80 MiB.
const LARGEST: usize = 8 << 10;

/// See the module.
pub(crate) struct Parsed {
    slots: Box<[ArcSwapOption<Slot>]>,
}

#[derive(Debug)]
struct Slot {
    value: Text,
    object: Arc<Value>,
}

impl Slot {
    fn is_of(&self, value: &Text) -> bool {
        self.value.place() == value.place()
    }
}

impl std::fmt::Debug for Parsed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parsed").finish_non_exhaustive()
    }
}

impl Default for Parsed {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| ArcSwapOption::empty()).collect() }
    }
}

impl Parsed {
    /// The object of a stored value, without its managers.
    pub(crate) fn of(&self, value: &Text) -> Result<Arc<Value>, serde_json::Error> {
        let place = value.place().filter(|_| value.len() <= LARGEST);
        let Some((address, _)) = place else {
            return Ok(Arc::new(object::parse(&value.bytes())?));
        };
        let slot = &self.slots[slot_of(address)];
        if let Some(known) = slot.load().as_ref().filter(|it| it.is_of(value)) {
            return Ok(known.object.clone());
        }
        let object = Arc::new(object::parse(&value.bytes())?);
        slot.store(Some(Arc::new(Slot { value: value.clone(), object: object.clone() })));
        Ok(object)
    }
}

/// Addresses of values differ most above their alignment: Fibonacci hashing spreads them.
fn slot_of(address: usize) -> usize {
    let spread = (address as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (spread >> 53) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Text {
        text.to_owned().into()
    }

    #[test]
    fn is_parsed_once_while_it_is_the_same() {
        let parsed = Parsed::default();
        let it = value(r#"{"kind":"A"}"#);
        let first = parsed.of(&it).unwrap();
        assert!(Arc::ptr_eq(&first, &parsed.of(&it.clone()).unwrap()));
        assert_eq!(*first, serde_json::json!({"kind": "A"}));
    }

    #[test]
    fn another_value_is_never_taken_for_it() {
        let parsed = Parsed::default();
        // Many more than there are slots, each freed at once: addresses and slots come again.
        for number in 0..4 * SLOTS {
            let it = value(&format!(r#"{{"number":{number:05}}}"#).replace(":0", ":10"));
            let whole: Value = serde_json::from_slice(&it.bytes()).unwrap();
            assert_eq!(*parsed.of(&it).unwrap(), whole);
        }
    }

    #[test]
    fn what_is_large_or_broken_is_not_kept() {
        let parsed = Parsed::default();
        let large = value(&format!(r#"{{"text":"{}"}}"#, "x".repeat(LARGEST)));
        let first = parsed.of(&large).unwrap();
        assert!(!Arc::ptr_eq(&first, &parsed.of(&large).unwrap()));
        assert!(parsed.of(&value("{")).is_err());
        assert!(parsed.slots.iter().all(|it| it.load().is_none()));
    }
}
