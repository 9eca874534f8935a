//! The wire protocols that greenscope speaks: none yet.
//!
//! SkyWalking's come with the exporter that needs them (ARCHITECTURE.md, "Rooms").
#![forbid(unsafe_code)]
