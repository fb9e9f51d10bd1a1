//! Function tables of foreign libraries: every symbol is looked up when the library is opened, so a library that is
//! missing or too old is an error there and never a panic in the middle of a step.
#![expect(unsafe_code, reason = "loading a library and typing its functions")]

use super::error::{Error, Result};
use libloading::Library;

/// Opens the first of `names` that can be loaded, for good: a GPU library leaves threads behind, so it is never unloaded.
pub(super) fn open(library: &'static str, names: &[&str]) -> Result<&'static Library> {
    let mut why = None;
    for name in names {
        // SAFETY: the names are those of NVIDIA's libraries, whose initialisers have no preconditions.
        match unsafe { Library::new(*name) } {
            Ok(found) => return Ok(Box::leak(Box::new(found))),
            Err(error) => why = why.or(Some(error.to_string())),
        }
    }
    Err(Error::Missing { library, tried: names.join(", "), why: why.unwrap_or_default() })
}

/// The function `symbol`, as a pointer of type `F`.
///
/// # Safety
/// `F` is the function's C type.
pub(super) unsafe fn function<F: Copy>(
    library: &'static str,
    from: &Library,
    symbol: &'static str,
) -> Result<F> {
    // SAFETY: the caller vouches for the type; the library is never unloaded.
    let found = unsafe { from.get::<F>(symbol.as_bytes()) };
    found.map(|f| *f).map_err(|_| Error::Symbol { library, symbol })
}

/// A struct of typed function pointers, and `load`, which finds them all.
macro_rules! table {
    ($name:ident of $library:literal in $names:expr; $($field:ident = $symbol:literal ($($arg:ty),*) $(-> $out:ty)?;)*) => {
        /// The functions called here, as the library's header declares them.
        #[derive(Debug)]
        pub(super) struct $name {
            $(pub(super) $field: unsafe extern "C" fn($($arg),*) $(-> $out)?,)*
        }

        impl $name {
            pub(super) fn load() -> Result<Self> {
                let from = super::table::open($library, $names)?;
                Ok(Self {
                    // SAFETY: the types are those of the library's header.
                    $($field: unsafe { super::table::function($library, from, $symbol) }?,)*
                })
            }
        }
    };
}
pub(super) use table;
