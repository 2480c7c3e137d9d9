//! Compiles the runtime interfaces in `proto/`, without a `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["runtime_v1.proto", "containerd_events.proto", "grpc_health_v1.proto"];
    for file in files {
        println!("cargo::rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .client_mod_attribute(
            ".",
            "#[allow(clippy::allow_attributes_without_reason, reason = \"generated code\")]",
        )
        .compile_fds(descriptors)?;
    Ok(())
}
