//! kube-rs as its users have it: watchers, reflectors, controllers, custom resources made from
//! Rust types, and streams of pods, in an ordinary tenant.

mod boat;
mod calls;
mod controller;
mod following;
mod streams;

use std::{future::Future, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::harness::Kubectl;

/// How long the world may take to become as expected.
const EVENTUALLY: Duration = Duration::from_secs(120);

/// A client of whoever a kubeconfig is for.
async fn client_of(user: &Kubectl) -> Client {
    let kubeconfig = Kubeconfig::read_from(user.kubeconfig()).unwrap();
    let options = KubeConfigOptions::default();
    Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap()).unwrap()
}

/// What comes in time.
#[track_caller]
fn soon<F: Future>(what: &'static str, it: F) -> impl Future<Output = F::Output> {
    let place = std::panic::Location::caller();
    let it = Box::pin(it);
    async move {
        let found = tokio::time::timeout(EVENTUALLY, it).await;
        found.unwrap_or_else(|_| panic!("{place}: still no {what}"))
    }
}
