//! Asks a container's gRPC server for its health.

use std::{net::IpAddr, time::Duration};

use tonic::transport::Endpoint;

use self::grpc::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

#[allow(clippy::all, missing_debug_implementations, unreachable_pub, reason = "generated code")]
mod grpc {
    tonic::include_proto!("grpc.health.v1");
}

/// `Ok` if the server says that it serves. The error is a text for users.
pub(crate) async fn check(
    host: IpAddr,
    port: i32,
    service: &str,
    limit: Duration,
) -> Result<(), String> {
    let authority = match host {
        IpAddr::V4(host) => format!("http://{host}:{port}"),
        IpAddr::V6(host) => format!("http://[{host}]:{port}"),
    };
    let endpoint = Endpoint::from_shared(authority).map_err(|error| error.to_string())?;
    let ask = async {
        let channel = endpoint.connect().await.map_err(|error| insula_client::chain(&error))?;
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = HealthClient::new(channel).check(request).await;
        let status = answer.map_err(|status| status.message().to_owned())?.into_inner().status();
        match status {
            ServingStatus::Serving => Ok(()),
            other => Err(format!("service unhealthy (responded with {:?})", other.as_str_name())),
        }
    };
    match tokio::time::timeout(limit, ask).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("timeout: health rpc did not complete within {}s", limit.as_secs())),
    }
}
