//! Machine code of the modules: built beforehand, kept from an earlier first use, or compiled now by NVRTC.
//!
//! A cached file is named by module, architecture and a hash of everything that decides its content, and begins
//! with a hash of the rest: a stale one is not found, a torn one is not believed. Start at [`Compiler::image`].

use super::libraries;
use crate::error::{Error, Result};
use crate::gpu::source::{HEADERS, Module};
use cudarc::nvrtc::{result, sys};
use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Bytes of a BLAKE3 hash.
const HASH: usize = blake3::OUT_LEN;
/// Language of the device code.
const LANGUAGE: &str = "--std=c++17";

/// Where compiled modules come from.
#[derive(Debug, Clone, Default)]
pub struct Compiler {
    /// Folder of files from earlier first uses.
    pub cache: Option<PathBuf>,
    /// Folder of cubins built beforehand.
    pub cubins: Option<PathBuf>,
}

/// What NVRTC is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Machine code of this architecture, ten times major plus minor.
    Cubin(u32),
    /// PTX of this older architecture, for a device that is newer than the compiler.
    Ptx(u32),
}

impl Target {
    /// The compiler's name for it.
    fn architecture(self) -> String {
        match self {
            Self::Cubin(sm) => format!("sm_{sm}"),
            Self::Ptx(compute) => format!("compute_{compute}"),
        }
    }
}

/// Name of a module's prebuilt cubin: the number is the CRC-32 of all headers and then the module as they lie in
/// `kernels/cu`, in the order of [`HEADERS`], so that cubins of other sources are not taken.
pub fn cubin_name(module: &Module, sm: u32) -> String {
    let mut crc = crc32fast::Hasher::new();
    for (_, text) in HEADERS {
        crc.update(text.as_bytes());
    }
    crc.update(module.text.as_bytes());
    format!("{}-sm_{sm}-{:08x}.cubin", module.name, crc.finalize())
}

impl Compiler {
    /// Machine code (or PTX that ends in zero) of a module for a device.
    ///
    /// # Errors
    /// [`Error::Backend`] when NVRTC is needed and missing, or with its log.
    pub fn image(&self, module: &Module, (major, minor): (u32, u32)) -> Result<Vec<u8>> {
        let sm = 10 * major + minor;
        if let Some(folder) = &self.cubins
            && let Ok(image) = fs::read(folder.join(cubin_name(module, sm)))
        {
            return Ok(image);
        }
        let nvrtc = Nvrtc::open()?;
        let target = nvrtc.target(sm)?;
        let Some(folder) = &self.cache else { return nvrtc.compile(module, target) };
        let file = folder.join(cache_name(module, target, nvrtc.version));
        if let Some(image) = read_checked(&file) {
            return Ok(image);
        }
        let image = nvrtc.compile(module, target)?;
        write_checked(&file, &image).map_err(|error| Error::Backend {
            op: module.name,
            what: format!("{}: {error}", file.display()),
        })?;
        Ok(image)
    }
}

/// Name of a cached file: all that decides its content, each part with its length.
fn cache_name(module: &Module, target: Target, version: (i32, i32)) -> String {
    let mut hash = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for (name, text) in HEADERS {
        part(name.as_bytes());
        part(text.as_bytes());
    }
    part(module.text.as_bytes());
    part(target.architecture().as_bytes());
    part(LANGUAGE.as_bytes());
    part(format!("{version:?}").as_bytes());
    let hex = hash.finalize().to_hex();
    format!("{}-{}-{}.bin", module.name, target.architecture(), &hex[..32])
}

/// The content of a file that is whole.
fn read_checked(file: &Path) -> Option<Vec<u8>> {
    let mut bytes = fs::read(file).ok()?;
    let image = bytes.split_off(HASH.min(bytes.len()));
    (bytes == blake3::hash(&image).as_bytes()).then_some(image)
}

/// Writes beside the file and renames: ranks that start together do not see each other's halves.
fn write_checked(file: &Path, image: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut whole = tempfile::NamedTempFile::new_in(folder)?;
    whole.write_all(blake3::hash(image).as_bytes())?;
    whole.write_all(image)?;
    whole.as_file().sync_all()?;
    whole.persist(file).map(|_: File| ()).map_err(|error| error.error)
}

/// NVRTC, found and asked for its version.
#[derive(Debug, Clone, Copy)]
struct Nvrtc {
    version: (i32, i32),
}

impl Nvrtc {
    fn open() -> Result<Self> {
        if !libraries().nvrtc {
            let what =
                "libnvrtc.so.13 not found: install NVRTC of CUDA 13 or give a folder of cubins";
            return Err(Error::Backend { op: "compile", what: what.into() });
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the library is there; it writes one int behind each pointer.
        unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result().map_err(failed)?;
        Ok(Self { version: (major, minor) })
    }

    /// Machine code if the compiler knows the device, else PTX of the newest architecture before it.
    fn target(self, sm: u32) -> Result<Target> {
        let mut count = 0;
        // SAFETY: the library writes one int.
        unsafe { sys::nvrtcGetNumSupportedArchs(&raw mut count) }.result().map_err(failed)?;
        let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: the library writes as many ints as it has just said.
        unsafe { sys::nvrtcGetSupportedArchs(known.as_mut_ptr()) }.result().map_err(failed)?;
        choose_target(&known, sm).ok_or_else(|| Error::Backend {
            op: "compile",
            what: format!("NVRTC {:?} knows no architecture up to sm_{sm}", self.version),
        })
    }

    fn compile(self, module: &Module, target: Target) -> Result<Vec<u8>> {
        let text = |s: &str| {
            CString::new(s).map_err(|error| Error::Backend {
                op: module.name,
                what: format!("device code: {error}"),
            })
        };
        let (source, file) = (text(module.text)?, text(&format!("{}.cu", module.name))?);
        let names = HEADERS.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>>>()?;
        let texts = HEADERS.iter().map(|(_, body)| text(body)).collect::<Result<Vec<_>>>()?;
        let pointers = |all: &[CString]| all.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (name_pointers, text_pointers) = (pointers(&names), pointers(&texts));
        let mut handle = std::ptr::null_mut();
        // SAFETY: every pointer is to a string that ends in zero and outlives the program; both arrays have as many
        // entries as is said.
        unsafe {
            let headers = c_int::try_from(HEADERS.len()).unwrap_or(0);
            let (bodies, includes) = (text_pointers.as_ptr(), name_pointers.as_ptr());
            let (source, file) = (source.as_ptr(), file.as_ptr());
            sys::nvrtcCreateProgram(&raw mut handle, source, file, headers, bodies, includes)
        }
        .result()
        .map_err(failed)?;
        Program(handle).build(module.name, target)
    }
}

/// A program of NVRTC, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    fn build(self, module: &'static str, target: Target) -> Result<Vec<u8>> {
        let options = [format!("--gpu-architecture={}", target.architecture()), LANGUAGE.into()];
        // SAFETY: the program was created and is destroyed by `drop` alone.
        if let Err(error) = unsafe { result::compile_program(self.0, &options) } {
            // SAFETY: as above.
            let log = unsafe { result::get_program_log(self.0) }.unwrap_or_default();
            let log = String::from_utf8_lossy(bytemuck::cast_slice(&log)).into_owned();
            let what = format!("{error:?}\n{}", log.trim_end_matches('\0'));
            return Err(Error::Backend { op: module, what });
        }
        if let Target::Ptx(_) = target {
            // SAFETY: as above; the text ends in zero.
            let ptx = unsafe { result::get_ptx(self.0) }.map_err(failed)?;
            return Ok(bytemuck::cast_slice(&ptx).to_vec());
        }
        let mut size = 0;
        // SAFETY: the program is compiled; the library writes one size.
        unsafe { sys::nvrtcGetCUBINSize(self.0, &raw mut size) }.result().map_err(failed)?;
        let mut image = vec![0u8; size];
        // SAFETY: the buffer has the size just told.
        unsafe { sys::nvrtcGetCUBIN(self.0, image.as_mut_ptr().cast::<c_char>()) }
            .result()
            .map_err(failed)?;
        Ok(image)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program was created and is destroyed once, here.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Machine code for a known architecture, else PTX of the newest before it.
fn choose_target(known: &[c_int], sm: u32) -> Option<Target> {
    let older = known.iter().filter_map(|&a| u32::try_from(a).ok()).filter(|&a| a <= sm).max()?;
    Some(if older == sm { Target::Cubin(sm) } else { Target::Ptx(older) })
}

fn failed(error: result::NvrtcError) -> Error {
    // SAFETY: NVRTC returns a constant text that ends in zero.
    let text = unsafe { CStr::from_ptr(sys::nvrtcGetErrorString(error.0)) };
    Error::Backend { op: "compile", what: format!("NVRTC: {}", text.to_string_lossy()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::source::{MODULES, module};

    const MODULE: Module = Module { name: "m", text: "extern \"C\" __global__ void k() {}" };

    #[test]
    fn a_cached_file_is_named_by_all_that_decides_it() {
        let name = cache_name(&MODULE, Target::Cubin(90), (13, 0));
        assert!(name.starts_with("m-sm_90-") && name.ends_with(".bin"), "{name}");
        assert_eq!(name, cache_name(&MODULE, Target::Cubin(90), (13, 0)));
        for other in [
            cache_name(&Module { text: "", ..MODULE }, Target::Cubin(90), (13, 0)),
            cache_name(&MODULE, Target::Cubin(80), (13, 0)),
            cache_name(&MODULE, Target::Ptx(90), (13, 0)),
            cache_name(&MODULE, Target::Cubin(90), (13, 1)),
        ] {
            assert_ne!(name, other);
        }
    }

    #[test]
    fn a_prebuilt_cubin_is_taken_only_for_these_sources() {
        let folder = tempfile::tempdir().unwrap();
        let compiler = Compiler { cache: None, cubins: Some(folder.path().into()) };
        let file = folder.path().join(cubin_name(&MODULE, 90));
        File::create(file).unwrap().write_all(b"cubin").unwrap();
        assert_eq!(compiler.image(&MODULE, (9, 0)).unwrap(), b"cubin");
        let other = Module { text: "other", ..MODULE };
        assert_ne!(compiler.image(&other, (9, 0)).ok(), Some(b"cubin".to_vec()));
        assert_ne!(compiler.image(&MODULE, (8, 0)).ok(), Some(b"cubin".to_vec()));
    }

    #[test]
    fn the_script_that_builds_cubins_names_them_so() {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/kernels.py");
        let mut python = std::process::Command::new("python3");
        let output = python.arg(scripts).args(["build", "--names", "--arch", "sm_90"]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut named: Vec<_> = str::from_utf8(&output.stdout).unwrap().lines().collect();
        let mut wanted: Vec<_> = MODULES.iter().map(|module| cubin_name(module, 90)).collect();
        named.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(named, wanted);
    }

    #[test]
    fn a_torn_file_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep").join("a.bin");
        assert_eq!(read_checked(&file), None);
        write_checked(&file, b"image").unwrap();
        assert_eq!(read_checked(&file).as_deref(), Some(&b"image"[..]));
        let whole = fs::read(&file).unwrap();
        for torn in [&whole[..whole.len() - 1], &whole[..HASH], &whole[..3], &[][..]] {
            File::create(&file).unwrap().write_all(torn).unwrap();
            assert_eq!(read_checked(&file), None, "{} bytes", torn.len());
        }
    }

    #[test]
    fn a_device_newer_than_the_compiler_gets_its_newest_ptx() {
        let known = [75, 80, 86, 90];
        assert_eq!(choose_target(&known, 90), Some(Target::Cubin(90)));
        assert_eq!(choose_target(&known, 89), Some(Target::Ptx(86)));
        assert_eq!(choose_target(&known, 120), Some(Target::Ptx(90)));
        assert_eq!(choose_target(&known, 70), None);
    }

    #[test]
    fn nvrtc_compiles_every_module() {
        if !libraries().nvrtc {
            eprintln!("SKIPPED: no libnvrtc on the library path");
            return;
        }
        // Machine code of one: assembling all takes most of a minute, and scripts/check-kernels does it.
        let nvrtc = Nvrtc::open().unwrap();
        for module in MODULES {
            let ptx = nvrtc.compile(module, Target::Ptx(80)).unwrap_or_else(|e| panic!("{e}"));
            assert!(ptx.ends_with(&[0]), "{} is text that ends in zero", module.name);
            let contains = |word: &[u8]| ptx.windows(word.len()).any(|w| w == word);
            assert!(contains(b".visible .entry"), "{} has kernels", module.name);
        }
        let folder = tempfile::tempdir().unwrap();
        let compiler = Compiler { cache: Some(folder.path().into()), cubins: None };
        let rope = module("rope").unwrap();
        let image = compiler.image(rope, (8, 0)).unwrap_or_else(|error| panic!("{error}"));
        assert!(image.starts_with(b"\x7fELF"), "machine code");
        assert_eq!(compiler.image(rope, (8, 0)).unwrap(), image, "from the cache");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let broken = Module { text: "#include \"common.cuh\"\nthis is not C++", ..MODULE };
        let error = compiler.image(&broken, (8, 0)).expect_err("it does not compile").to_string();
        assert!(error.contains("m.cu(2)"), "the log names the line: {error}");
    }
}
