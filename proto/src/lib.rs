//! The wire protocols that greenscope speaks, as generated code.
//!
//! SkyWalking's (`skywalking.v3`): what its OAP takes from an eBPF agent, and what it asks for.
#![forbid(unsafe_code)]

#[expect(
    missing_docs,
    unused_qualifications,
    reason = "generated: what a name does not say stands in the .proto file"
)]
#[cfg_attr(
    feature = "server",
    expect(non_camel_case_types, reason = "generated: a type for each method, by its name")
)]
#[path = "generated/skywalking_v3.rs"]
pub mod skywalking;
