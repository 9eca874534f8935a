//! The one unwinder: a chain of interpreter frames, step by step.
