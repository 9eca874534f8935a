//! Memory of a process: the live one, or a recorded snapshot.
