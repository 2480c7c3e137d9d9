//! Requests as they are: any path, sent once, whatever is answered.
//!
//! For who measures a server, and for servers that know no tenants: nothing is added to the path,
//! no refusal is sent again.

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use insula_api::lines::Lines;
use kube::client::Body;

use crate::{
    Client, Error,
    client::{checked, describe, failure, read},
    watch::MAX_EVENT,
};

const JSON: &str = "application/json";

/// What was answered, be it a success or not.
#[derive(Debug, Clone)]
pub struct Answer {
    pub code: StatusCode,
    pub body: Bytes,
}

impl Answer {
    /// The failure that this answer is; `None` for a success.
    pub fn error(&self) -> Option<Error> {
        (!self.code.is_success()).then(|| failure(self.code, &self.body))
    }
}

/// The content type of a body, and the body.
pub type Content = (&'static str, Bytes);

impl Client {
    /// Sends a request once and reads the whole answer, within the client's limit of time.
    pub async fn ask(
        &self,
        method: &Method,
        path: &str,
        content: Option<Content>,
    ) -> Result<Answer, Error> {
        let exchange = async {
            let response = self.send(method, path, JSON, content).await?;
            let code = response.status();
            let body = read(response, &describe(method, path)).await?;
            Ok(Answer { code, body })
        };
        tokio::time::timeout(self.timeout(), exchange).await.unwrap_or_else(|_| {
            let (request, seconds) = (describe(method, path), self.timeout().as_secs());
            Err(Error::Timeout { request, seconds })
        })
    }

    /// Begins to read lines from `path`, such as the events of a watch.
    pub async fn follow(&self, path: &str) -> Result<Follow, Error> {
        let request = describe(&Method::GET, path);
        let sent = self.send(&Method::GET, path, JSON, None);
        let response = tokio::time::timeout(self.timeout(), sent).await.unwrap_or_else(|_| {
            let seconds = self.timeout().as_secs();
            Err(Error::Timeout { request: request.clone(), seconds })
        })?;
        let body = checked(response, &request).await?.into_body();
        Ok(Follow::new(body, request))
    }
}

/// Lines as they arrive. Dropping it ends the request.
#[derive(Debug)]
pub struct Follow {
    body: Body,
    lines: Lines,
    request: String,
}

impl Follow {
    pub(crate) fn new(body: Body, request: String) -> Self {
        Self { body, lines: Lines::new(MAX_EVENT), request }
    }

    /// The failure to make sense of a line.
    pub(crate) fn undecoded(&self, source: serde_json::Error) -> Error {
        Error::Decode { request: self.request.clone(), source }
    }

    /// The next line that is not blank; `None` at the end. Dropping the returned future loses
    /// nothing.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(line) = self.lines.pop() {
                return Ok(Some(line));
            }
            let broken =
                |source| Error::Body { request: self.request.clone(), limit: MAX_EVENT, source };
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(source)) => return Err(broken(Box::new(source))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.lines.push(&data).map_err(|source| broken(Box::new(source)))?;
                    }
                }
            }
        }
    }
}
