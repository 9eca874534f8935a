//! The types of a target's greenlets, read once each while it lives.

use profiler_common::address::Addr;
use rustc_hash::FxHashMap;

use crate::{
    memory::LiveProcess,
    target::{self, Target, TypeInfo},
};

/// The types seen, by address.
#[derive(Debug, Default)]
pub(super) struct Types(FxHashMap<Addr, Option<TypeInfo>>);

impl Types {
    /// What the type is, if it could be read.
    pub(super) fn get(
        &mut self,
        memory: &mut LiveProcess,
        target: &Target,
        address: Addr,
    ) -> Option<&TypeInfo> {
        self.0.entry(address).or_insert_with(|| target::type_info(memory, target, address).ok()).as_ref()
    }

    /// Whether greenlets of this type are hubs.
    pub(super) fn is_hub(&mut self, memory: &mut LiveProcess, target: &Target, address: Addr) -> bool {
        self.get(memory, target, address).is_some_and(|info| info.is_hub)
    }

    /// The type's name.
    pub(super) fn name(
        &mut self,
        memory: &mut LiveProcess,
        target: &Target,
        address: Addr,
    ) -> Option<String> {
        self.get(memory, target, address).map(|info| info.name.clone())
    }
}
