//! Quotas of tenants: whose they are to write, and what pods have to say because of them.
//!
//! What they limit is decided where it is written, see [`crate::quota`].

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::Value;

use crate::{admission::Admission, error::Result, quota};

/// Who may write which quota.
pub(in crate::admission) fn check<'a>(
    admission: &'a Admission<'a>,
    it: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    quota::check(admission, it).boxed()
}

/// What a pod has to say.
pub(in crate::admission) fn check_pod<'a>(
    admission: &'a Admission<'a>,
    it: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    quota::check_pod(admission, it).boxed()
}
