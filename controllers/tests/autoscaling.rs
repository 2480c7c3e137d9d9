//! Workloads that follow what is measured, by a tenant's own servers of metrics.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod cloud;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use insula_api::names::TenantName;
use insula_client::{DeleteOptions, Kind, Patch, ResourceRef, Tenanted};
use insula_controllers::Config;
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus},
    core::v1::{Event, Pod, Service},
    discovery::v1::EndpointSlice,
};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::{Value, json};

use self::cloud::Cloud;

/// What a server of metrics answers: the path without its query, and the answer.
type Answer = dyn Fn(&str) -> Option<Value> + Send + Sync;

/// An address of this machine that is not its loopback, which endpoints may not have.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: this only asks which way it would go.
    socket.connect("192.0.2.1:9").unwrap();
    socket.local_addr().unwrap().ip()
}

/// Answers one request of a connection.
fn answer(stream: TcpStream, config: Arc<ServerConfig>, answers: &Answer) -> std::io::Result<()> {
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        stream.read_line(&mut header)?;
        if header.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
    }
    stream.read_exact(&mut vec![0; length])?;
    let path = line.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default().replace("%2A", "*");
    let (code, body) = match answers(&path) {
        Some(body) => ("200 OK", body),
        None => {
            let message = "the server could not find the metric";
            (
                "404 Not Found",
                json!({
                    "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound",
                    "code": 404, "message": message,
                }),
            )
        }
    };
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {code}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    let stream = stream.get_mut();
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    stream.conn.send_close_notify();
    stream.flush()
}

/// Runs until the test ends; returns its port.
fn serve(answers: Arc<Answer>) -> u16 {
    let key = KeyPair::generate().unwrap();
    let names = vec!["ext.default.svc".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind((own_address(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (config, answers) = (config.clone(), answers.clone());
            // A client that goes away early is its own affair.
            thread::spawn(move || drop(answer(stream, config, &*answers)));
        }
    });
    port
}

/// A tenant with a server of all metrics, and what that says.
struct Measured {
    cloud: Cloud,
    acme: TenantName,
    said: Arc<Mutex<Said>>,
}

#[derive(Default)]
struct Said {
    /// The pods there are.
    pods: Vec<String>,
    /// What they use together, in MiB.
    memory: usize,
    /// What each has, of `packets`.
    packets: usize,
    /// Of service `web`, `requests`.
    requests: usize,
    /// What is in the `queue`.
    queue: usize,
}

impl Said {
    fn answer(&self, path: &str) -> Option<Value> {
        let path = path.strip_prefix("/apis/")?;
        let now = "2100-01-01T00:00:00Z";
        let items: Vec<Value> = match path {
            "metrics.k8s.io/v1beta1/namespaces/default/pods" => {
                let each = self.memory / self.pods.len().max(1);
                let usage = json!({"memory": format!("{each}Mi")});
                let containers = json!([{"name": "c", "usage": usage}]);
                let of = |name: &String| {
                    json!({
                        "metadata": {"name": name, "namespace": "default"}, "timestamp": now,
                        "window": "30s", "containers": containers,
                    })
                };
                self.pods.iter().map(of).collect()
            }
            "custom.metrics.k8s.io/v1beta1/namespaces/default/pods/*/packets" => {
                let of = |name: &String| {
                    json!({
                        "describedObject": {"kind": "Pod", "name": name}, "timestamp": now,
                        "metricName": "packets", "value": self.packets.to_string(),
                    })
                };
                self.pods.iter().map(of).collect()
            }
            "custom.metrics.k8s.io/v1beta1/namespaces/default/services/web/requests" => {
                vec![json!({
                    "describedObject": {"kind": "Service", "name": "web"}, "timestamp": now,
                    "metricName": "requests", "value": self.requests.to_string(),
                })]
            }
            "external.metrics.k8s.io/v1beta1/namespaces/default/queue" => vec![
                json!({"metricName": "queue", "timestamp": now, "value": self.queue.to_string()}),
            ],
            // What there is, for who asks whether it is there.
            _ => {
                let (group, version) = path.split_once('/')?;
                let is_root = !version.contains('/') && version == "v1beta1";
                return is_root.then(|| {
                    json!({
                        "kind": "APIResourceList", "apiVersion": "v1", "resources": [],
                        "groupVersion": format!("{group}/{version}"),
                    })
                });
            }
        };
        Some(json!({"items": items, "metadata": {}}))
    }
}

impl Measured {
    async fn start() -> Self {
        let cloud = Cloud::start(1).await;
        let mut config = Config::new("the root of trust");
        config.autoscale_every = Duration::from_millis(300);
        cloud.run_controllers(config);
        cloud.run_pods();
        let acme = cloud.tenant("acme").await;
        let said = Arc::<Mutex<Said>>::default();
        let answers = said.clone();
        let port = serve(Arc::new(move |path: &str| answers.lock().unwrap().answer(path)));
        let service = json!({
            "metadata": {"name": "ext"},
            "spec": {"ports": [{"port": 443, "targetPort": port}]},
        });
        cloud.create::<Service>(&acme, "default", service).await;
        let slice = json!({
            "metadata": {"name": "ext-1", "labels": {"kubernetes.io/service-name": "ext"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": port}],
            "endpoints": [{"addresses": [own_address()]}],
        });
        cloud.create::<EndpointSlice>(&acme, "default", slice).await;
        let it = Self { cloud, acme, said };
        for group in ["metrics.k8s.io", "custom.metrics.k8s.io", "external.metrics.k8s.io"] {
            it.register(group).await;
        }
        it
    }

    async fn register(&self, group: &str) {
        let resource = ResourceRef {
            group: "apiregistration.k8s.io".into(),
            version: "v1".into(),
            plural: "apiservices".into(),
            kind: "APIService".into(),
            namespaced: false,
        };
        let name = format!("v1beta1.{group}");
        let registration = json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": name},
            "spec": {
                "group": group, "version": "v1beta1", "insecureSkipTLSVerify": true,
                "groupPriorityMinimum": 100, "versionPriority": 100,
                "service": {"namespace": "default", "name": "ext"},
            },
        });
        let api = self.cloud.client.tenant(&self.acme).resource::<Raw>(resource, None);
        api.create(&serde_json::from_value(registration).unwrap()).await.unwrap();
        let available = async || {
            let it = api.get(&name).await.unwrap();
            it.object.rest["status"]["conditions"][0]["status"] == "True"
        };
        self.cloud.until(&format!("{name} is available"), available).await;
    }

    async fn get<K: Kind>(&self, name: &str) -> Tenanted<K> {
        let api = self.cloud.client.tenant(&self.acme).namespaced::<K>("default");
        api.get(name).await.unwrap()
    }

    async fn change(&self, patch: Value) {
        let api = self.cloud.client.tenant(&self.acme);
        let api = api.namespaced::<HorizontalPodAutoscaler>("default");
        api.patch("web", &Patch::Merge(patch)).await.unwrap();
    }

    /// Waits until there are to be so many pods; meanwhile those that are there are measured.
    async fn until_replicas(&self, expected: i32) {
        let holds = async || {
            let pods = self.cloud.list::<Pod>(&self.acme, "default").await;
            let names = pods.iter().filter(|it| !it.is_deleting());
            self.said.lock().unwrap().pods = names.map(|it| it.name().to_owned()).collect();
            let web = self.get::<Deployment>("web").await;
            web.object.spec.unwrap().replicas == Some(expected)
        };
        self.cloud.until(&format!("{expected} replicas"), holds).await;
    }

    async fn status(&self) -> HorizontalPodAutoscalerStatus {
        let it = self.get::<HorizontalPodAutoscaler>("web").await;
        it.object.status.unwrap_or_default()
    }

    /// Waits for a condition to have a reason; returns its status and message.
    async fn until_condition(&self, type_: &str, reason: &str) -> (String, String) {
        let mut found = None;
        let holds = async || {
            let all = self.status().await.conditions.unwrap_or_default();
            let it = all.into_iter().find(|it| it.type_ == type_);
            found = it.filter(|it| it.reason.as_deref() == Some(reason));
            found.is_some()
        };
        self.cloud.until(&format!("{type_} is {reason}"), holds).await;
        let found = found.unwrap();
        (found.status, found.message.unwrap())
    }

    async fn until_told(&self, reason: &str, message: &str) {
        let holds = async || {
            let events = self.cloud.list::<Event>(&self.acme, "default").await;
            events.iter().any(|it| {
                it.reason.as_deref() == Some(reason) && it.message.as_deref() == Some(message)
            })
        };
        self.cloud.until(&format!("{reason}: {message}"), holds).await;
    }
}

/// An object of a kind that has no type here.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Raw {
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    #[serde(flatten)]
    rest: Value,
}

impl insula_client::Object for Raw {
    fn meta(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
        &mut self.metadata
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workloads_follow_what_is_measured() {
    let it = Measured::start().await;
    it.said.lock().unwrap().memory = 200;
    let container = json!({
        "name": "c", "image": "i", "resources": {"requests": {"memory": "100Mi"}},
    });
    let web = json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]},
            },
        },
    });
    it.cloud.create::<Deployment>(&it.acme, "default", web).await;
    let target = |name: &str| json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": name});
    let autoscaler = json!({
        "metadata": {"name": "web"},
        "spec": {
            "scaleTargetRef": target("absent"), "minReplicas": 1, "maxReplicas": 8,
            "metrics": [{"type": "Resource", "resource": {
                "name": "memory", "target": {"type": "Utilization", "averageUtilization": 50},
            }}],
        },
    });
    it.cloud.create::<HorizontalPodAutoscaler>(&it.acme, "default", autoscaler).await;
    let (status, message) = it.until_condition("AbleToScale", "FailedGetScale").await;
    assert_eq!(status, "False");
    let expected = "the HPA controller was unable to get the target's current scale: ";
    assert!(message.starts_with(expected), "{message}");

    it.change(json!({"spec": {"scaleTargetRef": target("web")}})).await;
    it.until_replicas(4).await;
    let metric = "memory resource utilization (percentage of request)";
    let message = format!("New size: 4; reason: {metric} above target");
    it.until_told("SuccessfulRescale", &message).await;
    let (status, message) = it.until_condition("ScalingActive", "ValidMetricFound").await;
    assert_eq!(status, "True");
    let expected =
        format!("the HPA was able to successfully calculate a replica count from {metric}");
    assert_eq!(message, expected);
    it.until_replicas(4).await;
    it.until_condition("ScalingLimited", "DesiredWithinRange").await;
    let holds = async || {
        let status = it.status().await;
        status.current_replicas == Some(4) && status.desired_replicas == 4
    };
    it.cloud.until("the status says so", holds).await;
    assert!(it.status().await.last_scale_time.is_some());
    let current = it.status().await.current_metrics.unwrap_or_default();
    assert_eq!(current[0].type_, "Resource");
    assert!(current[0].resource.as_ref().unwrap().current.average_utilization.is_some());

    // The metric that asks for most counts.
    {
        let mut said = it.said.lock().unwrap();
        (said.packets, said.requests, said.queue) = (10, 30, 30);
    }
    let service = json!({"kind": "Service", "name": "web", "apiVersion": "v1"});
    it.change(json!({"spec": {"metrics": [
        {"type": "Pods", "pods": {
            "metric": {"name": "packets"},
            "target": {"type": "AverageValue", "averageValue": "10"},
        }},
        {"type": "Object", "object": {
            "metric": {"name": "requests"}, "describedObject": service,
            "target": {"type": "AverageValue", "averageValue": "6"},
        }},
        {"type": "External", "external": {
            "metric": {"name": "queue"}, "target": {"type": "AverageValue", "averageValue": "5"},
        }},
    ]}}))
    .await;
    it.until_replicas(6).await;
    let message = "New size: 6; reason: external metric queue(nil) above target";
    it.until_told("SuccessfulRescale", message).await;
    it.change(json!({"spec": {"maxReplicas": 3}})).await;
    it.until_replicas(3).await;
    let reason = "Current number of replicas above Spec.MaxReplicas";
    it.until_told("SuccessfulRescale", &format!("New size: 3; reason: {reason}")).await;
    it.until_condition("ScalingLimited", "TooManyReplicas").await;

    // Of what nobody measures nothing follows.
    it.change(json!({"spec": {"metrics": [{"type": "External", "external": {
        "metric": {"name": "odd"}, "target": {"type": "Value", "value": "5"},
    }}]}}))
    .await;
    let (status, message) = it.until_condition("ScalingActive", "FailedGetExternalMetric").await;
    assert_eq!(status, "False");
    let expected = "the HPA was unable to compute the replica count: failed to get external metric \
                    odd: unable to get external metric default/odd/nil: unable to fetch metrics \
                    from external metrics API: ";
    assert!(message.starts_with(expected), "{message}");
    it.until_replicas(3).await;

    // Another autoscaler of the same pods: neither does anything until one of them goes.
    let other = json!({
        "metadata": {"name": "other"},
        "spec": {"scaleTargetRef": target("web"), "minReplicas": 1, "maxReplicas": 3},
    });
    it.cloud.create::<HorizontalPodAutoscaler>(&it.acme, "default", other).await;
    let (status, message) = it.until_condition("ScalingActive", "AmbiguousSelector").await;
    assert_eq!(status, "False");
    let expected = "pods by selector app=web are controlled by multiple HPAs: \
                    [default/other default/web]";
    assert_eq!(message, expected);
    it.until_told("AmbiguousSelector", expected).await;
    let api = it.cloud.client.tenant(&it.acme).namespaced::<HorizontalPodAutoscaler>("default");
    api.delete("other", &DeleteOptions::default()).await.unwrap();
    it.until_condition("ScalingActive", "FailedGetExternalMetric").await;
    it.cloud.end().await;
}
