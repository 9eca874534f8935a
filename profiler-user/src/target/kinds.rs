//! What the types of a target are: greenlets, hubs, and their names.

use std::sync::Arc;

use profiler_common::{address::Addr, fault::Fault};
use rustc_hash::FxHashMap;

use super::Target;
use crate::{
    memory::Bytes,
    python::{class, field, objects::ObjectLayout},
};

/// Types remembered; beyond it all are forgotten.
const MAX_TYPES: usize = 65_536;
/// gevent's scheduler, by module and name.
/// <https://github.com/gevent/gevent/blob/26.9.0/src/gevent/hub.py#L373>
const HUB: (&str, &str) = ("gevent.hub", "Hub");

/// What a type is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeInfo {
    /// Its qualified name, without the module.
    pub name: String,
    /// Its module; empty when it does not say.
    pub module: String,
    /// Whether it is `greenlet.greenlet` or derived from it.
    pub is_greenlet: bool,
    /// Whether it is gevent's hub or derived from it.
    pub is_hub: bool,
}

/// Looks at a type.
///
/// # Errors
///
/// [`Fault::ReadState`] when it cannot be read.
pub fn type_info(memory: &mut impl Bytes, target: &Target, at: Addr) -> Result<TypeInfo, Fault> {
    let objects = &target.python.objects;
    let bases = class::bases(memory, objects, at)?;
    let greenlet_type = target.greenlet.as_ref().map(|greenlet| greenlet.greenlet_type);
    let is_greenlet = greenlet_type.is_some_and(|wanted| bases.contains(&wanted));
    let class = class::read(memory, objects, at)?;
    // Whether a base is a hub matters for greenlets alone.
    let mut is_hub = false;
    if is_greenlet {
        for base in bases {
            let base = class::read(memory, objects, base)?;
            is_hub |= (base.module.as_str(), base.qualname.as_str()) == HUB;
        }
    }
    Ok(TypeInfo { name: class.qualname, module: class.module, is_greenlet, is_hub })
}

/// What is known of the types of one target, by address.
///
/// A heap type that is freed gives its address back: keep this for as long as one
/// enumeration or one recording, not longer.
#[derive(Debug, Default)]
pub struct Kinds {
    greenlets: FxHashMap<u64, bool>,
    infos: FxHashMap<u64, Arc<TypeInfo>>,
}

impl Kinds {
    /// Whether objects of this type are greenlets; one that cannot be read is not.
    pub(super) fn is_greenlet(
        &mut self,
        memory: &mut impl Bytes,
        objects: &ObjectLayout,
        greenlet_type: Addr,
        at: u64,
    ) -> bool {
        if let Some(known) = self.greenlets.get(&at) {
            return *known;
        }
        if self.greenlets.len() >= MAX_TYPES {
            self.greenlets.clear();
        }
        // Not by way of all bases: the chain of most types is short and shared.
        let mut here = Addr(at);
        let mut answer = false;
        for _ in 0..64 {
            if here == greenlet_type {
                answer = true;
            }
            if answer || here.is_null() {
                break;
            }
            here = memory.pointer(field(here, objects.type_base)).unwrap_or(Addr::NULL);
        }
        self.greenlets.insert(at, answer);
        answer
    }

    /// What a type is, looked at once.
    ///
    /// # Errors
    ///
    /// As [`type_info`].
    pub fn get(
        &mut self,
        memory: &mut impl Bytes,
        target: &Target,
        at: Addr,
    ) -> Result<Arc<TypeInfo>, Fault> {
        if let Some(known) = self.infos.get(&at.0) {
            return Ok(Arc::clone(known));
        }
        if self.infos.len() >= MAX_TYPES {
            self.infos.clear();
        }
        let info = Arc::new(type_info(memory, target, at)?);
        self.infos.insert(at.0, Arc::clone(&info));
        Ok(info)
    }
}
