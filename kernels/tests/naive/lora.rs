//! Grouped LoRA, one element at a time (written with the op).
