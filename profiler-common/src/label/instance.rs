//! The attributes of an instance, wherever its version keeps them.

use super::{
    ATTRIBUTES, Blank, Chain, LabelConfig, NO_ATTRIBUTE, Place, PlaceOf, SHAPES, VALUE_WORDS, chain::pointer,
    state,
};
use crate::{address::Addr, layout::ABSENT, memory::Memory};

/// Bytes before an instance that are looked at: two of the collector's words, and two with
/// pointers.
/// <https://github.com/python/cpython/blob/v3.11.7/Include/internal/pycore_object.h#L253>
const BEFORE: u16 = 32;

impl Chain {
    /// The object at `at` is an instance.
    #[inline(always)]
    pub(super) const fn instance(&mut self, place: PlaceOf) -> u32 {
        self.place = place as u32;
        state::INSTANCE
    }

    /// An instance's class, and where its values are.
    ///
    /// <https://github.com/python/cpython/blob/v3.12.1/Include/internal/pycore_object.h#L372>
    #[inline(always)]
    pub(super) fn in_instance<M: Memory>(
        &mut self,
        config: &LabelConfig,
        memory: &mut M,
    ) -> Result<u32, Blank> {
        let layout = &config.layout;
        let place = self.place(config)?;
        if layout.values_valid != ABSENT {
            self.fill(memory, place)?;
            self.find_shape(self.value(layout.object_type), place)?;
            let valid = place.inline_values.wrapping_add(layout.values_valid);
            if self.value(valid) >> ((valid & 7) * 8) & 0xff == 0 {
                return Err(Blank::OwnDictionary);
            }
            self.first = u64::from(place.inline_values.wrapping_add(layout.values_items)) >> 3;
            return self.got(config);
        }
        self.read_words(memory, Addr(self.at.0.wrapping_sub(BEFORE.into())))?;
        self.find_shape(self.word(BEFORE.wrapping_add(layout.object_type)), place)?;
        let own = self.word(BEFORE.wrapping_sub(layout.managed_dict));
        let values = if layout.managed_values != 0 {
            self.word(BEFORE.wrapping_sub(layout.managed_values))
        } else if own & 1 == 1 {
            // The tag is bit 0, and the pointer is one less than the values'.
            own.wrapping_add(1)
        } else {
            0
        };
        if values != 0 {
            self.at = Addr(values).at(layout.values_items);
            return Ok(state::VALUES);
        }
        if own == 0 {
            return Err(Blank::Unreadable);
        }
        self.at = Addr(own);
        Ok(state::OWN_DICT)
    }

    /// A dictionary over the same values, or one of its own.
    #[inline(always)]
    pub(super) fn in_own_dict<M: Memory>(
        &mut self,
        config: &LabelConfig,
        memory: &mut M,
    ) -> Result<u32, Blank> {
        let values = pointer(memory, self.at.at(config.layout.dict_values))?;
        if values.is_null() {
            return Err(Blank::OwnDictionary);
        }
        self.at = values.at(config.layout.values_items);
        Ok(state::VALUES)
    }

    #[inline(always)]
    pub(super) fn in_values<M: Memory>(
        &mut self,
        config: &LabelConfig,
        memory: &mut M,
    ) -> Result<u32, Blank> {
        let place = self.place(config)?;
        self.fill(memory, place)?;
        self.first = 0;
        self.got(config)
    }

    #[inline(always)]
    pub(super) fn place<'c>(&self, config: &'c LabelConfig) -> Result<&'c Place, Blank> {
        config.places.get(self.place as usize).ok_or(Blank::Unreadable)
    }

    #[inline(always)]
    pub(super) fn fill<M: Memory>(&mut self, memory: &mut M, place: &Place) -> Result<(), Blank> {
        let Some(values) = self.values.first_chunk_mut::<VALUE_WORDS>() else {
            return Err(Blank::Unreadable);
        };
        // Not beyond the object.
        memory.read_part(self.at, values, u32::from(place.words) * 8).map_err(|_| Blank::Unreadable)
    }

    #[inline(always)]
    pub(super) fn value(&self, offset: u16) -> u64 {
        self.values.get(offset as usize >> 3 & 7).copied().unwrap_or_default()
    }

    #[inline(always)]
    pub(super) fn find_shape(&mut self, class: u64, place: &Place) -> Result<(), Blank> {
        self.shape = SHAPES as u32;
        for (number, shape) in place.shapes.iter().enumerate() {
            if class != 0 && shape.class.0 == class {
                self.shape = number as u32;
            }
        }
        let Some(shape) = place.shapes.get(self.shape as usize) else {
            return Err(Blank::Unreported);
        };
        let [first, ..] = shape.at;
        if first == NO_ATTRIBUTE { Err(Blank::Unready) } else { Ok(()) }
    }

    /// The attribute with that number of the instance that was read; null if it has none.
    #[inline(always)]
    pub(super) fn attribute(&self, place: &Place, number: usize) -> Addr {
        let Some(shape) = place.shapes.get(self.shape as usize & (SHAPES - 1)) else {
            return Addr::NULL;
        };
        let at = shape.at.get(number & (ATTRIBUTES - 1)).copied().unwrap_or(NO_ATTRIBUTE);
        if at == NO_ATTRIBUTE {
            return Addr::NULL;
        }
        let index = (self.first as usize).wrapping_add(at as usize) & 31;
        Addr(self.values.get(index).copied().unwrap_or_default())
    }
}
