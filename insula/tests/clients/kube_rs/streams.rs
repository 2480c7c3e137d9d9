//! Logs, exec, attach and port-forward of a pod that runs, over WebSockets.

use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{AttachParams, AttachedProcess, DeleteParams, EvictParams, LogParams, PostParams},
    runtime::wait::{await_condition, conditions},
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{client_of, soon};
use crate::harness::Cloud;

/// All that a process writes, and whether it ended well.
async fn output(mut process: AttachedProcess) -> (String, String, String) {
    let (mut out, mut errors) = (String::new(), String::new());
    let (mut stdout, mut stderr) = (process.stdout().unwrap(), process.stderr().unwrap());
    let status = process.take_status().unwrap();
    let both =
        futures::future::join(stdout.read_to_string(&mut out), stderr.read_to_string(&mut errors));
    let (read, read_errors) = both.await;
    read.unwrap();
    read_errors.unwrap();
    let status = status.await.unwrap();
    process.join().await.unwrap();
    (out, errors, status.status.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_running_pod() {
    let cloud = Cloud::with_node();
    let (acme, _) = cloud.tenants();
    acme.until(&["get", "serviceaccount", "default"], |_| true);
    let pods: Api<Pod> = Api::default_namespaced(client_of(&acme).await);
    let served = "mkdir /w; echo hello >/w/index.html; httpd -p 8080 -h /w; echo first; \
                  while read line; do echo \"heard $line\"; done";
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "p" },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "c",
                "image": "localhost/insula/busybox:1",
                "command": ["sh", "-c", served],
                "stdin": true,
            }],
        },
    }))
    .unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let running = await_condition(pods.clone(), "p", conditions::is_pod_running());
    soon("running pod", running).await.unwrap();

    let mut log = pods
        .log_stream("p", &LogParams { follow: true, ..LogParams::default() })
        .await
        .unwrap()
        .lines();
    assert_eq!(soon("line", log.try_next()).await.unwrap().unwrap(), "first");

    let both = AttachParams::default().stdin(false);
    let found =
        pods.exec("p", ["sh", "-c", "echo out; echo err >&2; exit 3"], &both).await.unwrap();
    let found = soon("end of a command", output(found)).await;
    assert_eq!(found, ("out\n".into(), "err\n".into(), "Failure".into()));

    let mut cat = pods.exec("p", ["cat"], &AttachParams::default().stdin(true)).await.unwrap();
    let mut stdin = cat.stdin().unwrap();
    stdin.write_all(b"through a pipe\n").await.unwrap();
    stdin.flush().await.unwrap();
    let mut echoed = [0; 15];
    let mut stdout = cat.stdout().unwrap();
    soon("echo", stdout.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(&echoed, b"through a pipe\n");
    cat.abort();

    let mut attached = pods.attach("p", &AttachParams::default().stdin(true)).await.unwrap();
    let mut stdin = attached.stdin().unwrap();
    stdin.write_all(b"you\n").await.unwrap();
    stdin.flush().await.unwrap();
    assert_eq!(soon("line", log.try_next()).await.unwrap().unwrap(), "heard you");
    attached.abort();

    let mut forwarded = pods.portforward("p", &[8080]).await.unwrap();
    let mut stream = forwarded.take_stream(8080).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon("answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.ends_with("hello\n"), "{answer}");
    forwarded.abort();

    pods.evict("p", &EvictParams::default()).await.unwrap();
    let gone = await_condition(pods.clone(), "p", |it: Option<&Pod>| it.is_none());
    soon("end of the pod", gone).await.unwrap();
    assert!(pods.delete("p", &DeleteParams::default()).await.is_err());
}
