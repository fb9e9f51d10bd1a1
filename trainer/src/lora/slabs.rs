//! Which slot of the adapter slabs is whose: the host's description of four device buffers.

use super::Error;
use crate::ids::Slot;
use std::collections::BTreeSet;
use std::ops::Range;

/// Slots of equal capacity in each of the slabs (parameters, gradients, m, v), `num_slots · capacity` f32 each.
///
/// The buffers themselves belong to whoever trains; this knows only offsets and who may use which.
#[derive(Debug, Clone)]
pub struct Slabs {
    num_slots: u32,
    capacity: usize,
    free: BTreeSet<Slot>,
}

impl Slabs {
    /// Slots for adapters of up to `capacity` parameters, all free.
    ///
    /// # Errors
    /// [`Error::Range`] when there is no slot, the capacity is zero, or a slab could not be addressed.
    pub fn new(num_slots: u32, capacity: usize) -> Result<Self, Error> {
        let bytes = capacity.checked_mul(num_slots as usize).and_then(|n| n.checked_mul(4));
        if num_slots == 0 || capacity == 0 || bytes.is_none_or(|b| isize::try_from(b).is_err()) {
            return Err(Error::Range {
                field: "slabs",
                got: format!("{num_slots} slots of {capacity}"),
                expected: "at least one slot and parameter, and an addressable size",
            });
        }
        Ok(Self { num_slots, capacity, free: (0..num_slots).map(Slot).collect() })
    }

    /// Number of slots.
    pub fn num_slots(&self) -> u32 {
        self.num_slots
    }

    /// Elements of one slot.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Elements of one slab.
    pub fn slab_len(&self) -> usize {
        self.num_slots as usize * self.capacity
    }

    /// Slots free now.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// First element of a slot in each slab.
    pub fn offset(&self, slot: Slot) -> usize {
        slot.0 as usize * self.capacity
    }

    /// Elements of a slot in each slab.
    pub fn range(&self, slot: Slot) -> Range<usize> {
        self.offset(slot)..self.offset(slot) + self.capacity
    }

    /// Whether nobody has the slot.
    pub fn is_free(&self, slot: Slot) -> bool {
        self.free.contains(&slot)
    }

    /// Takes the lowest free slot.
    pub fn take(&mut self) -> Option<Slot> {
        self.free.pop_first()
    }

    /// Gives a slot back.
    ///
    /// # Errors
    /// [`Error::SlotNotHeld`] when it is free already or does not exist.
    pub fn release(&mut self, slot: Slot) -> Result<(), Error> {
        if slot.0 < self.num_slots && self.free.insert(slot) {
            return Ok(());
        }
        Err(Error::SlotNotHeld { slot })
    }

    /// What a slot must be overwritten with when a user takes it: the adapter, then zeros to the slot's end, so that
    /// nothing of the user before survives. An empty `adapter` gives the image for gradients, m and v.
    ///
    /// *Writes* `image` (one slot long) `=`.
    ///
    /// # Errors
    /// [`Error::Length`] when the image is not one slot or the adapter is longer.
    pub fn image(&self, adapter: &[f32], image: &mut [f32]) -> Result<(), Error> {
        let expected = self.capacity;
        if image.len() != expected {
            return Err(Error::Length { what: "slot image", expected, got: image.len() });
        }
        if adapter.len() > expected {
            return Err(Error::Length { what: "adapter for a slot", expected, got: adapter.len() });
        }
        let (head, tail) = image.split_at_mut(adapter.len());
        head.copy_from_slice(adapter);
        tail.fill(0.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn lowest_slot_first_and_none_twice() {
        let mut slabs = Slabs::new(3, 20).unwrap();
        assert_eq!((slabs.capacity(), slabs.slab_len()), (20, 60));
        assert_eq!([slabs.take(), slabs.take(), slabs.take()], [0, 1, 2].map(|s| Some(Slot(s))));
        assert_eq!(slabs.take(), None);
        slabs.release(Slot(2)).unwrap();
        slabs.release(Slot(0)).unwrap();
        assert_eq!(slabs.release(Slot(0)), Err(Error::SlotNotHeld { slot: Slot(0) }));
        assert_eq!(slabs.release(Slot(3)), Err(Error::SlotNotHeld { slot: Slot(3) }));
        assert_eq!((slabs.take(), slabs.num_free()), (Some(Slot(0)), 1));
        assert_eq!(slabs.range(Slot(2)), 40..60);
    }

    #[test]
    fn a_poisoned_slot_is_wholly_overwritten() {
        let slabs = Slabs::new(1, 20).unwrap();
        let mut image = vec![f32::NAN; 20];
        slabs.image(&[1.0; 5], &mut image).unwrap();
        assert_eq!(image[..5], [1.0; 5]);
        assert!(image[5..].iter().all(|v| v.to_bits() == 0));
        assert!(slabs.image(&[1.0; 21], &mut image).is_err());
        assert!(slabs.image(&[], &mut image[1..]).is_err());
    }

    #[test]
    fn impossible_sizes() {
        assert!(Slabs::new(0, 20).is_err());
        assert!(Slabs::new(1, 0).is_err());
        assert!(Slabs::new(u32::MAX, usize::MAX / 8).is_err());
    }
}
