//! The harness of the live tests: targets with books, recordings, comparisons.
//!
//! A test starts a target program of `tests/targets`, records it with the real
//! binary, and compares the json with the books that the target kept of itself.
//! In reading order: [`runner`] names and counts the cases, [`place`] says where
//! binary and Pythons are, [`target`] and [`recording`] are the two processes,
//! [`book`] and [`profile`] their two views, and [`compare`] holds them together.
#![forbid(unsafe_code)]

pub mod book;
pub mod compare;
pub mod deadline;
pub mod graphql;
pub mod http;
pub mod judge;
pub mod kind;
pub mod label;
pub mod oap;
pub mod place;
pub mod postgres;
pub mod process;
pub mod profile;
pub mod reader;
pub mod recording;
pub mod refusing;
pub mod runner;
pub mod shop;
pub mod spans;
pub mod stream;
pub mod target;
pub mod traced;
pub mod works;
