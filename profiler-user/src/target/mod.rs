//! What a process is: mappings, Python, greenlet, layouts, probe sites.

mod dwarf;
mod extract;
pub mod layouts;

mod layouts_generated;
mod version;

use crate::python::objects;

pub use version::Version;
