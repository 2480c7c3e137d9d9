//! shim
use std::fmt;
#[derive(Debug, Clone)]
pub struct Quantity(String);
#[derive(Debug, thiserror::Error)]
#[error("bad quantity")]
pub struct QuantityError;
impl Quantity {
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        Ok(Self(text.to_owned()))
    }
}
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
