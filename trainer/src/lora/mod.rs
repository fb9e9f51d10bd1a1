//! lora (head to be written by its owner)
