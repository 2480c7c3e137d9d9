//! The ports of a service, as one of its pods has them.

use k8s_openapi::{
    api::core::v1::{Pod, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};

/// The port of `pod` that a port of a service leads to; `None` if it has none of that name.
pub(super) fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let spec = pod.spec.as_ref()?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut ports = containers.flat_map(|it| it.ports.iter().flatten());
    let found = ports.find(|it| {
        it.name.as_deref() == Some(name) && it.protocol.as_deref().unwrap_or("TCP") == protocol
    })?;
    Some(found.container_port)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn numbers_and_names() {
        let pod = json!({"spec": {"containers": [
            {"name": "a", "ports": [{"name": "web", "containerPort": 81, "protocol": "UDP"}]},
            {"name": "b", "ports": [{"name": "web", "containerPort": 8080}]},
        ]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let target = |port: Value| target(&serde_json::from_value(port).unwrap(), &pod);
        assert_eq!(target(json!({"port": 80})), Some(80));
        assert_eq!(target(json!({"port": 80, "targetPort": 90})), Some(90));
        assert_eq!(target(json!({"port": 80, "targetPort": "web"})), Some(8080));
        let udp = json!({"port": 80, "targetPort": "web", "protocol": "UDP"});
        assert_eq!(target(udp), Some(81));
        assert_eq!(target(json!({"port": 80, "targetPort": "other"})), None);
    }
}
