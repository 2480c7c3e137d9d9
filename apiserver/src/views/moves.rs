//! Moves of tenants and slots between partitions.

use insula_partition::{
    map::MapError,
    partitions::{ChangeError, Partitions},
    store::StoreError,
};
use serde_json::Value;

use super::Made;
use crate::error::{ApiError, Result};

pub(super) async fn make(_: &Partitions) -> Result<Vec<Made>, StoreError> {
    Ok(Vec::new())
}

pub(super) async fn check(_: &Partitions, _: Option<&Value>, _: Option<&Value>) -> Result<()> {
    Err(ApiError::method_not_allowed())
}

pub(super) async fn write(
    _: &Partitions,
    name: &str,
    _: Option<&Value>,
    _: Option<&Value>,
) -> Result<(), ChangeError> {
    Err(MapError::NoMove(name.into()).into())
}
