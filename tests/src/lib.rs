//! The harness of the live tests.
#![forbid(unsafe_code)]
