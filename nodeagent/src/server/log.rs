//! `containerLogs`: what a container has written.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ContainerStatus;
use tokio::sync::mpsc;

use super::{
    answer::{Body, Refusal, text},
    route,
};
use crate::{
    logs::{self, LogOptions},
    node::Node,
    pod::{container::log_path, plan::containers, snapshot::Snapshot},
    pods::PodView,
};

/// Blocks of log between the file and a slow client.
const MAX_WAITING: usize = 4;

pub(super) async fn serve(
    node: &Node,
    pod: PodView,
    container: &str,
    query: Option<&str>,
) -> Result<Response<Body>, Refusal> {
    let (options, previous) = options(query, Timestamp::now())?;
    let spec = pod.pod.spec.as_ref();
    let is_known = spec.is_some_and(|spec| containers(spec).any(|(_, it)| it.name == container));
    let name = &pod.key.name;
    if !is_known {
        let message = format!("container {container:?} is not valid for pod {name:?}");
        return Err(Refusal::bad_request(message));
    }
    let Some((id, attempt)) = chosen(&pod.snapshot.borrow(), container, previous) else {
        return Err(Refusal::bad_request(if previous {
            format!("previous terminated container {container:?} in pod {name:?} not found")
        } else {
            let waits = waiting_reason(&pod, container);
            format!("container {container:?} in pod {name:?} is waiting to start: {waits}")
        }));
    };
    let path =
        node.config.pod_logs_dir.join(pod.key.log_directory()).join(log_path(container, attempt));
    if !tokio::fs::try_exists(&path).await.unwrap_or(false) {
        // A container that never wrote may have none; one that was removed has none any more.
        return Ok(text(StatusCode::OK, ""));
    }
    let (sink, mut source) = mpsc::channel(MAX_WAITING);
    let (snapshot, container) = (pod.snapshot.clone(), container.to_owned());
    // Ends with its reader, which is this response's body.
    tokio::spawn(logs::read(
        path,
        options,
        move || {
            // Without its worker the pod is gone.
            if snapshot.has_changed().is_err() {
                return false;
            }
            let snapshot = snapshot.borrow();
            let view = snapshot.containers.get(&container);
            view.is_some_and(|it| it.is_running && it.current.as_ref().is_some_and(|it| it.0 == id))
        },
        sink,
    ));
    let blocks = futures::stream::poll_fn(move |context| source.poll_recv(context));
    let frames = blocks.map(|block| block.map(Frame::<Bytes>::data));
    let mut response = text(StatusCode::OK, "");
    *response.body_mut() = StreamBody::new(frames).boxed_unsync();
    Ok(response)
}

/// The instance that is meant. Of a container that waits for its restart, the one that ended is
/// both the newest and the one before.
fn chosen(snapshot: &Snapshot, container: &str, previous: bool) -> Option<(String, u32)> {
    let view = snapshot.containers.get(container)?;
    let current = view.current.clone();
    if !previous {
        return current;
    }
    let last = status_of(snapshot, container)
        .and_then(|it| it.last_state.as_ref()?.terminated.as_ref()?.container_id.as_deref());
    let is_last = |(id, _): &(String, u32)| last.is_some_and(|last| last.ends_with(id.as_str()));
    current.filter(is_last).or_else(|| view.previous.clone())
}

fn status_of<'a>(snapshot: &'a Snapshot, container: &str) -> Option<&'a ContainerStatus> {
    let status = &snapshot.status;
    let all = [&status.container_statuses, &status.init_container_statuses];
    all.into_iter().flatten().flatten().find(|it| it.name == container)
}

fn waiting_reason(pod: &PodView, container: &str) -> String {
    let snapshot = pod.snapshot.borrow();
    let waiting = status_of(&snapshot, container)
        .and_then(|it| it.state.as_ref()?.waiting.as_ref()?.reason.clone());
    waiting.unwrap_or_else(|| "ContainerCreating".to_owned())
}

/// What of the log is wanted, and whether of the instance before.
fn options(query: Option<&str>, now: Timestamp) -> Result<(LogOptions, bool), Refusal> {
    let mut options = LogOptions {
        follow: route::flag(query, "follow"),
        timestamps: route::flag(query, "timestamps"),
        ..LogOptions::default()
    };
    for (name, value) in route::parameters(query) {
        let invalid = || Refusal::bad_request(format!("{name}: invalid value {value:?}"));
        let number = || value.parse::<u64>().map_err(|_| invalid());
        match name.as_str() {
            "tailLines" => options.tail_lines = Some(number()?),
            "limitBytes" => options.limit_bytes = Some(number()?),
            "sinceSeconds" => {
                let since = now.checked_sub(Duration::from_secs(number()?));
                options.since = Some(since.map_err(|_| invalid())?);
            }
            "sinceTime" => options.since = Some(value.parse().map_err(|_| invalid())?),
            "stream" => {
                options.is_stderr = match value.as_str() {
                    "Stdout" => Some(false),
                    "Stderr" => Some(true),
                    "All" | "" => None,
                    _ => return Err(invalid()),
                };
            }
            _ => {}
        }
    }
    Ok((options, route::flag(query, "previous")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::snapshot::ContainerView;

    #[test]
    fn the_instance_before() {
        let of = |state, last: &str, previous| {
            let status = json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "",
                "ready": false, "restartCount": 1, "state": state,
                "lastState": {"terminated": {"exitCode": 1, "containerID": last}}}]});
            let view = ContainerView {
                current: Some(("b".to_owned(), 1)),
                is_running: true,
                previous: Some(("a".to_owned(), 0)),
            };
            let snapshot = Snapshot {
                status: serde_json::from_value(status).unwrap(),
                containers: [("c".to_owned(), view)].into(),
                ..Snapshot::default()
            };
            chosen(&snapshot, "c", previous).unwrap().0
        };
        let (running, waiting) = (json!({"running": {}}), json!({"waiting": {}}));
        assert_eq!(of(running.clone(), "containerd://a", false), "b");
        assert_eq!(of(running, "containerd://a", true), "a");
        assert_eq!(of(waiting.clone(), "containerd://b", false), "b");
        assert_eq!(of(waiting, "containerd://b", true), "b");
    }

    #[test]
    fn queries() {
        let now = Timestamp::from_second(1000).unwrap();
        let of = |query| options(Some(query), now).map_err(|_| ());
        let (found, previous) =
            of("follow=true&tailLines=5&sinceSeconds=10&previous=true").unwrap();
        assert!(found.follow && previous && !found.timestamps);
        assert_eq!(found.tail_lines, Some(5));
        assert_eq!(found.since, Timestamp::from_second(990).ok());
        assert_eq!(of("stream=Stderr").unwrap().0.is_stderr, Some(true));
        for bad in ["tailLines=-1", "tailLines=x", "sinceTime=yesterday", "stream=stdin"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
