//! SkyWalking's OAP: what it asks for, and what of a recording it is sent.
//!
//! Pure so far: no network and no clock, time is a parameter.

pub mod batch;
pub mod commands;
pub mod continuous;
pub mod ebpf_tasks;
pub mod identity;
pub mod queue;
pub mod registry;
pub mod service;
pub mod snapshots;
pub mod span_events;
pub mod symbols;
pub mod trace_tasks;
pub mod wall_clock;
