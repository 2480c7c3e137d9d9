//! The Kubernetes version whose API this server speaks.

use serde_json::{Value, json};

pub(crate) const GIT_VERSION: &str = "v1.36.2+insula";

/// Of this program; set by who builds it (see the Makefile).
const COMMIT: Option<&str> = option_env!("INSULA_COMMIT");
const BUILT: Option<&str> = option_env!("INSULA_BUILT");

/// `/version`.
pub(crate) fn document() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": GIT_VERSION,
        "gitCommit": COMMIT.unwrap_or("unknown"), "gitTreeState": "clean",
        "buildDate": BUILT.unwrap_or("1970-01-01T00:00:00Z"),
        "goVersion": "none", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, go_arch()),
        "emulationMajor": "1", "emulationMinor": "36",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
    })
}

fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
