//! One end of a node feed, as an agent has it.

use std::{collections::BTreeSet, convert::Infallible, path::Path, time::Duration};

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use insula_client::{Client, Error, Follow};
use serde_json::{Value, json};

const PATH: &str = "/insula/nodefeed";
const WITHIN: Duration = Duration::from_secs(60);

/// See the module.
pub(crate) struct Feed {
    say: Sender<Bytes>,
    heard: Follow,
}

impl Feed {
    pub(crate) async fn open(kubeconfig: &Path, open: Value) -> Result<Self, Error> {
        let client = Client::from_kubeconfig(kubeconfig, "test").await.unwrap();
        let (mut say, body) = Channel::<Bytes, Infallible>::new(4);
        say.send_data(format!("{open}\n").into()).await.unwrap();
        let heard = client.converse(PATH, body).await?;
        Ok(Self { say, heard })
    }

    pub(crate) async fn next(&mut self) -> Option<Value> {
        let line = tokio::time::timeout(WITHIN, self.heard.next()).await.unwrap();
        Some(serde_json::from_slice(&line.unwrap()?).unwrap())
    }

    /// The error that it ends with, which nothing follows.
    pub(crate) async fn end(mut self) -> Value {
        loop {
            let it = self.next().await.unwrap();
            if it["type"] == "ERROR" {
                assert!(self.next().await.is_none());
                return it["object"].clone();
            }
        }
    }

    /// What is told until so many things were and a bookmark after them, and what that says.
    pub(crate) async fn told(&mut self, count: usize) -> (BTreeSet<String>, String) {
        let mut told = BTreeSet::new();
        loop {
            let it = self.next().await.unwrap();
            let object = &it["object"];
            let meta = &object["metadata"];
            let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
            if it["type"] == "BOOKMARK" {
                if count <= told.len() {
                    return (told, text(&meta["resourceVersion"]));
                }
                continue;
            }
            // What controllers say of a node is not what this is about.
            if it["type"] == "MODIFIED" && object["kind"] == "Node" {
                continue;
            }
            let parts = [&it["type"], &object["kind"], &meta["tenant"], &meta["name"]].map(text);
            told.insert(parts.join(" "));
        }
    }

    /// Says one thing.
    pub(crate) async fn say(&mut self, it: &Value) {
        self.say.send_data(format!("{it}\n").into()).await.unwrap();
    }

    /// Says that the nodes live; returns what is answered.
    pub(crate) async fn beat(&mut self) -> Value {
        self.say(&json!({"beat": {}})).await;
        loop {
            let it = self.next().await.unwrap();
            if it["type"] == "BEAT" {
                return it["object"].clone();
            }
        }
    }
}
