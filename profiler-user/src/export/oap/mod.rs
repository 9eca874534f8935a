//! SkyWalking's OAP: what it asks for, and what of a recording it is sent.
//!
//! Pure, time is a parameter; but for `client` and what is under it (`wire`, `tls`), the one place
//! with a network, and `spool` with a disk. tokio lives here only, on a thread of its own.

pub mod backoff;
pub mod batch;
pub mod certificate;
pub mod check;
pub mod client;
pub mod commands;
pub mod config;
pub mod continuous;
pub mod ebpf_tasks;
pub mod failure;
#[cfg(test)]
mod faults;
pub mod identity;
mod on_cpu;
pub mod queue;
pub mod registry;
pub mod rest;
pub mod serve;
pub mod service;
pub mod snapshots;
pub mod span_events;
pub mod spool;
pub mod symbols;
pub mod tap;
pub mod tls;
pub mod trace_tasks;
pub mod waiting;
pub mod wall_clock;
mod wire;
