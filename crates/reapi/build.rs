//! Compiles the protocol definitions of `proto/` without an external compiler.

use std::error::Error;

const FILES: [&str; 6] = [
    "build/bazel/remote/execution/v2/remote_execution.proto",
    "build/bazel/remote/asset/v1/remote_asset.proto",
    "gloriousflywheel/worker/v1/worker.proto",
    "google/bytestream/bytestream.proto",
    "google/devtools/build/v1/publish_build_event.proto",
    "google/rpc/error_details.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");

    let mut messages = tonic_prost_build::Config::new();
    // Names let messages be packed into `Any`, with the domain that every client expects.
    messages.enable_type_names().type_name_domain(["."], "type.googleapis.com");

    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".build.bazel.remote.execution.v2.Digest", "crate::WireDigest")
        .include_file("protocol.rs")
        .compile_fds_with_config(protox::compile(FILES, ["proto"])?, messages)?;
    Ok(())
}
