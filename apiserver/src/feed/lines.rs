//! What an agent says on its feed, a line at a time.

use std::time::Duration;

use http_body_util::BodyExt as _;
use insula_api::lines::Lines;
use serde::Deserialize;

use crate::{
    body::Body,
    error::{ApiError, Result},
    measured::Told,
};

/// The longest line: the names of as many nodes as a feed may have.
const LONGEST: usize = 4 << 20;
/// How long the first one may take.
const WITHIN: Duration = Duration::from_secs(60);

/// One thing that is said.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum Said {
    Open(Open),
    /// The nodes live.
    #[serde(deserialize_with = "nothing")]
    Beat,
    /// What the nodes and their pods use.
    Usage(Told),
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Open {
    pub(super) nodes: Vec<String>,
    /// What the last bookmark said.
    #[serde(default)]
    pub(super) at: Option<String>,
}

/// `{}`, which may become more.
fn nothing<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<(), D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(drop)
}

/// All that is said.
pub(super) struct Saying {
    body: Body,
    lines: Lines,
}

impl Saying {
    pub(super) fn new(body: Body) -> Self {
        Self { body, lines: Lines::new(LONGEST) }
    }

    /// The first thing, which does not take for ever.
    pub(super) async fn first(&mut self) -> Result<Option<Said>> {
        let waited = tokio::time::timeout(WITHIN, self.next()).await;
        waited.unwrap_or_else(|_| Err(ApiError::timeout("Timeout: nothing was said", 1)))
    }

    /// The next thing; `None` at the end. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<Said>> {
        loop {
            if let Some(line) = self.lines.pop() {
                let said = serde_json::from_slice(&line);
                return said.map(Some).map_err(|error| {
                    ApiError::bad_request(format!("this cannot be said on a feed: {error}"))
                });
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            // Who hangs up in the middle of it has said enough.
            let Ok(frame) = frame else { return Ok(None) };
            let Ok(data) = frame.into_data() else { continue };
            self.lines.push(&data).map_err(|_| ApiError::too_large(LONGEST))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::full;

    #[tokio::test]
    async fn lines_are_read_one_by_one() {
        let text = "\n{\"open\":{\"nodes\":[\"n\"],\"at\":\"p1=1\"}}\n{\"beat\":{}}\n{\"beat\":{}";
        let mut saying = Saying::new(full(text));
        let open = Open { nodes: vec!["n".to_owned()], at: Some("p1=1".to_owned()) };
        assert_eq!(saying.first().await.unwrap(), Some(Said::Open(open)));
        assert_eq!(saying.next().await.unwrap(), Some(Said::Beat));
        assert_eq!(saying.next().await.unwrap(), None, "a line has an end");
    }

    #[tokio::test]
    async fn nonsense_is_refused() {
        for text in ["{}\n", "1\n", "{\"open\":{}}\n", "{\"opne\":{\"nodes\":[]}}\n"] {
            let error = Saying::new(full(text)).next().await.unwrap_err();
            assert_eq!(error.reason, "BadRequest", "{text}");
        }
        let long = full(vec![b'x'; LONGEST + 1]);
        assert_eq!(Saying::new(long).next().await.unwrap_err().code, 413);
    }
}
