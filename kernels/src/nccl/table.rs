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
            Err(error) => why = why.or(Some(words(&error))),
        }
    }
    Err(Error::Missing { library, tried: names.join(", "), why: why.unwrap_or_default() })
}

/// The loader's own words, which libloading keeps one level down.
fn words(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_says_what_was_tried_and_why() {
        let missing = open("Nothing", &["libmyriad-none.so.9", "libmyriad-none.so"]).unwrap_err();
        let text = missing.to_string();
        let tried = "Nothing cannot be loaded (tried libmyriad-none.so.9, libmyriad-none.so): ";
        assert!(text.starts_with(tried), "{text}");
        assert!(text.contains("libmyriad-none.so.9: cannot open shared object file"), "{text}");
    }

    #[test]
    fn a_missing_function_is_an_error() {
        let c = open("C", &["libc.so.6"]).unwrap();
        // SAFETY: never called; the first does not exist, the second is of this type.
        let (absent, present) = unsafe {
            (
                function::<unsafe extern "C" fn()>("C", c, "myriad_has_no_such_function"),
                function::<unsafe extern "C" fn() -> i32>("C", c, "getpid"),
            )
        };
        let symbol = "myriad_has_no_such_function";
        assert_eq!(absent.unwrap_err(), Error::Symbol { library: "C", symbol });
        assert!(present.is_ok());
    }
}
