//! Pure decoders of CPython's objects over any [`crate::memory::Bytes`].

pub mod objects;
