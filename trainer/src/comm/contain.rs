//! Panics that are not the end of the job.

use std::cell::Cell;
use std::panic::{UnwindSafe, catch_unwind};

thread_local! {
    static CONTAINED: Cell<u32> = const { Cell::new(0) };
}

/// Runs `f` and turns a panic into its message.
///
/// For foreign code known to panic on hostile input (a reader of weight files). Under MPI any other panic ends the
/// whole job at once, before unwinding, so plain `catch_unwind` is too late there. Covers this thread only: `f` must
/// not hand work to other threads.
///
/// # Errors
/// The panic's message, if `f` panicked.
pub fn contain_panic<T>(f: impl FnOnce() -> T + UnwindSafe) -> Result<T, String> {
    CONTAINED.with(|depth| depth.set(depth.get() + 1));
    let result = catch_unwind(f);
    CONTAINED.with(|depth| depth.set(depth.get() - 1));
    result.map_err(|payload| message(payload.as_ref()))
}

/// Whether a panic on this thread will be caught by [`contain_panic`]; asked by the MPI panic hook.
#[cfg(feature = "mpi")]
pub(super) fn contained() -> bool {
    CONTAINED.with(|depth| depth.get() > 0)
}

/// The text of a panic.
pub(super) fn message(payload: &(dyn std::any::Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (None, Some(text)) => text.clone(),
        (None, None) => "a panic without a message".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_value_and_message() {
        assert_eq!(contain_panic(|| 3), Ok(3));
        assert_eq!(contain_panic(|| -> u8 { panic!("bad {}", 7) }), Err("bad 7".to_owned()));
        let nested = contain_panic(|| contain_panic(|| -> u8 { panic!("in") }));
        assert_eq!(nested, Ok(Err("in".to_owned())));
        assert_eq!(CONTAINED.with(Cell::get), 0);
    }
}
