//! What a person sees in the terminal.

pub mod progress;
pub mod summary;
