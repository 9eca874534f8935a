//! Pure decoders of CPython's objects over any [`profiler_common::memory::Memory`].
