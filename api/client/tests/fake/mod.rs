//! An API server that says what a script tells it to, and remembers what it was asked.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a wrong script fails the test")]

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Ready,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use insula_client::{Client, Sent};
use serde_json::{Value, json};
use tokio::sync::mpsc;

type AnswerBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) uri: String,
    pub(crate) accept: String,
    pub(crate) user_agent: String,
    pub(crate) content_type: String,
    pub(crate) fence: String,
    pub(crate) body: Value,
}

#[derive(Default)]
struct State {
    script: VecDeque<Response<AnswerBody>>,
    asked: Vec<Asked>,
}

/// The server. Clones share the script.
#[derive(Clone, Default)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
}

impl Fake {
    pub(crate) fn client(&self) -> Client {
        Client::in_process(self.clone(), "test/1").unwrap()
    }

    /// Answers the next unanswered request.
    pub(crate) fn answer(&self, code: u16, body: Value) {
        self.push(
            code,
            Full::from(body.to_string()).map_err(|never| match never {}).boxed_unsync(),
        );
    }

    /// Answers the next request with a stream that the caller feeds, until it drops the handle.
    pub(crate) fn stream(&self) -> Stream {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let frames = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        self.push(200, StreamBody::new(frames).boxed_unsync());
        Stream { sender }
    }

    fn push(&self, code: u16, body: AnswerBody) {
        let response = Response::builder().status(code).body(body).unwrap();
        self.state.lock().unwrap().script.push_back(response);
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.lock().unwrap().asked.clone()
    }

    /// Waits until `n` requests were asked in all.
    pub(crate) async fn wait_asked(&self, n: usize) -> Vec<Asked> {
        let wait = async {
            while self.asked().len() < n {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        let limit = std::time::Duration::from_secs(600);
        tokio::time::timeout(limit, wait).await.unwrap_or_else(|_| panic!("{:#?}", self.asked()));
        self.asked()
    }
}

impl tower::Service<Request<Sent>> for Fake {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future =
        futures::future::Either<Ready<Result<Self::Response, Infallible>>, Pin<Box<Never>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Sent>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let header = |name: &str| {
            parts.headers.get(name).map(|it| it.to_str().unwrap().to_owned()).unwrap_or_default()
        };
        // Bodies that the client sends are there at once.
        let body = futures::FutureExt::now_or_never(body.collect()).unwrap().unwrap().to_bytes();
        let mut state = self.state.lock().unwrap();
        state.asked.push(Asked {
            method: parts.method.to_string(),
            uri: parts.uri.to_string(),
            accept: header("accept"),
            user_agent: header("user-agent"),
            content_type: header("content-type"),
            fence: header("insula-fence"),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        });
        match state.script.pop_front() {
            Some(response) => futures::future::Either::Left(std::future::ready(Ok(response))),
            None => futures::future::Either::Right(Box::pin(std::future::pending())),
        }
    }
}

type Never = std::future::Pending<Result<Response<AnswerBody>, Infallible>>;

/// The server's end of a watch.
pub(crate) struct Stream {
    sender: mpsc::UnboundedSender<Result<Frame<Bytes>, std::io::Error>>,
}

impl Stream {
    pub(crate) fn event(&self, kind: &str, object: Value) {
        self.raw(format!("{}\n", json!({"type": kind, "object": object})));
    }

    pub(crate) fn bookmark(&self, version: &str) {
        self.event("BOOKMARK", json!({"metadata": {"resourceVersion": version}}));
    }

    pub(crate) fn raw(&self, text: impl Into<Bytes>) {
        self.sender.send(Ok(Frame::data(text.into()))).unwrap();
    }

    /// Breaks the connection.
    pub(crate) fn cut(self) {
        self.sender.send(Err(std::io::ErrorKind::ConnectionReset.into())).unwrap();
    }
}

pub(crate) fn config_map(name: &str, uid: &str, version: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "tenant": "acme", "namespace": "ns", "name": name, "uid": uid,
            "resourceVersion": version,
        },
    })
}

pub(crate) fn list(version: &str, next: Option<&str>, items: &[Value]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMapList",
        "metadata": {"resourceVersion": version, "continue": next},
        "items": items,
    })
}

pub(crate) fn status(code: u16, reason: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "reason": reason, "code": code, "message": reason})
}
