//! Generates the messages and the clients of `open_inference.proto` and of `tfserving/`, without `protoc`.
//!
//! Also writes the file descriptors, which gRPC reflection serves. No server is generated: ours is a
//! method table that decodes lazily.

use prost::Message;
use std::{env, error::Error, fs, path::Path};

const SOURCES: [&str; 2] = ["proto/open_inference.proto", "proto/tfserving/serving.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for source in SOURCES.iter().chain(&["proto/tfserving/tensorflow.proto", "proto/tfserving/error.proto"]) {
        println!("cargo::rerun-if-changed={source}");
    }
    let descriptors = protox::compile(SOURCES, ["proto"])?;
    let out = env::var("OUT_DIR")?;
    fs::write(Path::new(&out).join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_server(false)
        // Tests bring their own channel; the library must not depend on tonic's transport.
        .build_transport(false)
        // Raw tensors are cut out of the received message and not copied.
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
