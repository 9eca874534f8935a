//! Where the instances of a class have their attributes.

use profiler_common::{
    address::Addr,
    fault::Fault,
    label::{ATTRIBUTES, NO_ATTRIBUTE, Place, SHAPES, Shape, VALUE_WORDS},
};

use super::Look;
use crate::{
    memory::Bytes,
    python::{dict, field, text},
};

/// `Py_TPFLAGS_MANAGED_DICT`: instances have their values where the chains look.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/object.h#L649>
const MANAGED_DICT: u64 = 1 << 4;

/// A place of a chain in the making.
pub(super) struct Places {
    /// Every class has every attribute by now.
    pub(super) whole: bool,
}

impl Places {
    /// The place where instances of one of `classes` stand, of which `names` are asked for.
    ///
    /// A class whose instances are laid out otherwise is left out: they have no label.
    pub(super) fn make<M: Bytes>(
        &mut self,
        look: &mut Look<'_, M>,
        classes: &[Option<Addr>],
        names: &[&str],
    ) -> Result<Place, Fault> {
        let mut place = Place::default();
        let mut shapes = Vec::with_capacity(SHAPES);
        for class in classes.iter().copied().flatten().take(SHAPES) {
            let objects = *look.objects();
            let flags = look.memory.word(field(class, objects.type_flags))?;
            let size = look.memory.word(field(class, objects.type_basicsize))?;
            let Some(size) = u16::try_from(size).ok().filter(|size| size % 8 == 0 && *size <= 48) else {
                continue;
            };
            if flags & MANAGED_DICT == 0 || place.inline_values != 0 && place.inline_values != size {
                continue;
            }
            place.inline_values = size;
            let at = self.attributes(look, class, names)?;
            let first = if objects.inline_values_flag == 0 {
                0
            } else {
                (u32::from(size) + objects.values_items) / 8
            };
            let last = at.iter().filter(|at| **at != NO_ATTRIBUTE).max();
            let words = last.map_or(0, |last| u32::from(*last) + 1) + first;
            match u16::try_from(words) {
                Ok(words) if usize::from(words) <= VALUE_WORDS => place.words = place.words.max(words),
                _ => continue,
            }
            shapes.push(Shape { class, at });
        }
        if place.words == 0 {
            self.whole = false;
        }
        // The type and the mark of valid values are read with them.
        place.words = place.words.max(4);
        for (to, shape) in place.shapes.iter_mut().zip(shapes) {
            *to = shape;
        }
        Ok(place)
    }

    fn attributes<M: Bytes>(
        &mut self,
        look: &mut Look<'_, M>,
        class: Addr,
        names: &[&str],
    ) -> Result<[u8; ATTRIBUTES], Fault> {
        let objects = *look.objects();
        let mut at = [NO_ATTRIBUTE; ATTRIBUTES];
        let keys = look.memory.pointer(field(class, objects.heap_cached_keys))?;
        if keys.is_null() {
            self.whole = false;
            return Ok(at);
        }
        let keys = dict::keys(look.memory, &objects, keys)?;
        let keys: Vec<String> = keys
            .into_iter()
            .map(|key| text::string(look.memory, &objects, key).unwrap_or_default())
            .collect();
        for (at, name) in at.iter_mut().zip(names) {
            match keys.iter().position(|key| key == name).and_then(|at| u8::try_from(at).ok()) {
                Some(found) => *at = found,
                // Not before the first instance has it; or never, in this version.
                None => self.whole = false,
            }
        }
        Ok(at)
    }
}
