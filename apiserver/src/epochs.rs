//! In whose place a write is made: the header `Insula-Fence: TASK=EPOCH`.
//!
//! A replica of the controllers says with each write for which block of slots, and in which epoch
//! of it, it writes; see [`insula_partition::epochs`]. It can only make a write fail that would
//! have been made, but what it tells of who is there is the platform's.

use http::HeaderMap;
use insula_partition::epochs::Epoch;

use crate::{
    error::{ApiError, Result},
    identity::Identity,
};

/// The header.
pub(crate) const HEADER: &str = "insula-fence";
/// What the answer to a write of an old epoch gives as its reason.
pub(crate) const SUPERSEDED: &str = "Superseded";

/// Longest name of a task, in bytes.
const MAX_TASK: usize = 128;

/// What the headers say, which only users of the platform may.
pub(crate) fn asked(headers: &HeaderMap, caller: &Identity) -> Result<Option<Epoch>> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    if !caller.tenant.is_system() {
        let why = format!("header {HEADER} is the platform's");
        return Err(ApiError::forbidden("", "", "", &why));
    }
    let epoch = value.to_str().ok().and_then(read).ok_or_else(|| {
        ApiError::bad_request(format!("header {HEADER} is not of the form TASK=EPOCH"))
    })?;
    Ok(Some(epoch))
}

/// Reads `TASK=EPOCH`.
pub(crate) fn read(text: &str) -> Option<Epoch> {
    let (task, number) = text.split_once('=')?;
    let number = number.parse().ok()?;
    let is_name = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-');
    let valid = (1..=MAX_TASK).contains(&task.len()) && task.bytes().all(is_name);
    valid.then(|| Epoch { task: task.into(), number })
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;

    use super::*;

    #[track_caller]
    fn check(tenant: &str, value: &str, expected: std::result::Result<(&str, u64), u16>) {
        let caller = Identity::new(TenantName::parse(tenant).unwrap(), "u", &[]);
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, value.parse().unwrap());
        let found = asked(&headers, &caller).map(Option::unwrap);
        let found = found.map_err(|error| error.code.as_u16());
        assert_eq!(found.as_ref().map(|it| (&*it.task, it.number)), expected.as_ref().copied());
    }

    #[test]
    fn only_the_platform_writes_in_epochs() {
        check("system", "controllers.17=42", Ok(("controllers.17", 42)));
        check("acme", "controllers.17=42", Err(403));
        for wrong in ["", "=", "=1", "x", "x=", "x=-1", "x=1=2", "a/b=1", "x=99999999999999999999"]
        {
            check("system", wrong, Err(400));
        }
    }
}
