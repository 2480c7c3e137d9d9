//! The targets, by what they feed.

mod cel;
mod custom;
mod decode;
mod ownership;
mod patches;
mod sealed;
mod server;
mod streams;
mod words;

use crate::Target;

/// All of them, by name.
pub const ALL: &[Target] = &[
    Target { name: "apply", run: ownership::apply },
    Target { name: "cel", run: cel::expressions },
    Target { name: "certificates", run: words::certificates },
    Target { name: "channels", run: streams::channels },
    Target { name: "crd", run: custom::definitions },
    Target { name: "fieldsets", run: ownership::sets },
    Target { name: "frames", run: streams::frames },
    Target { name: "json", run: decode::json },
    Target { name: "jsonpath", run: custom::paths },
    Target { name: "patches", run: patches::patches },
    Target { name: "paths", run: words::paths },
    Target { name: "protobuf", run: decode::protobuf },
    Target { name: "requests", run: server::requests },
    Target { name: "scalars", run: words::scalars },
    Target { name: "sealed", run: sealed::values },
    Target { name: "selectors", run: words::selectors },
    Target { name: "tokens", run: server::tokens },
    Target { name: "yaml", run: decode::yaml },
];
