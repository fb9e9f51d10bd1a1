#!/usr/bin/env python3
"""The device code through nvcc: `build` writes cubins and PTX, `check` holds the machine code to its limits.

Called by scripts/build-kernels and scripts/check-kernels, which say how. Start at `main`; what a kernel is held to is
in `COUNTS` (at least), `FORBIDDEN` (never) and `judge`. Nothing here asks for a GPU or a driver, and no number here was
measured on one: occupancy is computed from the compiler's figures and the architecture's published limits.
"""

import argparse
import concurrent.futures
import ctypes
import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEVICE_CODE = ROOT / "kernels" / "cu"
LIMITS = DEVICE_CODE / "limits.toml"
FIXTURES = ROOT / "tests" / "kernel-gate"
LANGUAGE = "-std=c++17"  # as kernels/src/cuda/compile.rs tells NVRTC
ARCHITECTURES = ["sm_80", "sm_90"]

# Instructions that a kernel was written around: column of the table -> opcodes.
COUNTS = {
    "mma_bf16": re.compile(r"HMMA\.16816\.F32\.BF16\b"),
    "mma_tf32": re.compile(r"HMMA\.\d+\.F32\.TF32\b"),
    "ldmatrix": re.compile(r"LDSM\b"),
    "cp_async": re.compile(r"LDGSTS\b"),
    "load16": re.compile(r"LDG\.E.*\.128\b"),
    "store16": re.compile(r"STG\.E.*\.128\b"),
}
# What no kernel may hold: local memory is a register too few or an array indexed at run time; an atomic addition of
# floats makes a sum depend on the order in which blocks come.
FORBIDDEN = {
    "local loads and stores": re.compile(r"(LDL|STL)\b"),
    "atomics on floats": re.compile(r"(ATOM|RED)[GS]?\..*\b(BF16|F16|F32|F64)"),
}

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[\dT]+\s+)?([A-Z][A-Z0-9_.]+)")


@dataclasses.dataclass(frozen=True)
class Multiprocessor:
    """What blocks share (CUDA C++ Programming Guide, "Compute Capabilities"), the same registers and warps in both."""

    shared: int  # bytes, 1 KiB of each resident block's goes to the system
    registers: int = 65536
    warps: int = 64
    blocks: int = 32
    partitions: int = 4

    def blocks_of(self, threads: int, registers: int, shared: int) -> int:
        """Blocks that are resident together: by warps, registers (256 a warp at a time) and shared memory (128 bytes)."""
        warps = -(-threads // 32)
        per_warp = -(-registers * 32 // 256) * 256
        by_registers = self.registers // self.partitions // per_warp * self.partitions // warps
        by_shared = self.shared // (-(-(shared + 1024) // 128) * 128)
        return min(self.blocks, self.warps // warps, by_registers, by_shared)


MULTIPROCESSORS = {"sm_80": Multiprocessor(shared=164 << 10), "sm_90": Multiprocessor(shared=228 << 10)}


@dataclasses.dataclass
class Kernel:
    """What the compiler made of one entry for one architecture."""

    registers: int = 0
    shared: int = 0
    stack: int = 0
    spilled: int = 0
    threads: int = 0
    dynamic: bool = False
    counts: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One limit that one kernel breaks."""

    kernel: str
    arch: str
    what: str
    said: str

    def __str__(self) -> str:
        return f"{self.kernel}, {self.arch}: {self.what}: {self.said}"


class Failed(Exception):
    """A tool that failed, with its words."""


@dataclasses.dataclass(frozen=True)
class Toolkit:
    """The compiler's folder, and where headers are beside the sources."""

    home: pathlib.Path
    includes: tuple[pathlib.Path, ...] = ()

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess:
        path = self.home / "bin" / program
        try:
            done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, check=False)
        except OSError as error:
            raise Failed(f"{path}: {error.strerror}") from error
        if done.returncode != 0:
            raise Failed(f"{program} {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}".rstrip())
        return done

    def compile(self, source: pathlib.Path, arch: str, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path, str]:
        """PTX, cubin, and the assembler's report of one module."""
        ptx, cubin = (folder / f"{source.stem}-{arch}.{kind}" for kind in ("ptx", "cubin"))
        includes = [f"-I{folder}" for folder in self.includes]
        self.run("nvcc", LANGUAGE, "-Werror", "all-warnings", *includes, f"-arch={arch.replace('sm', 'compute')}", "-ptx", source, "-o", ptx)
        return ptx, cubin, self.run("ptxas", "-v", f"-arch={arch}", ptx, "-o", cubin).stderr

    def nvrtc(self, source: pathlib.Path, headers: dict[str, str]) -> None:
        """Compiles a module as the launcher does at first use, to PTX: no header of the host or of CUDA is there."""
        try:
            # NVRTC opens its built-in functions by name alone: they must be loaded already.
            for file in sorted((self.home / "lib64").glob("libnvrtc-builtins.so.13.*")):
                ctypes.CDLL(str(file))
            library = ctypes.CDLL(str(self.home / "lib64" / "libnvrtc.so.13"))
        except OSError as error:
            raise Failed(str(error)) from error
        strings = lambda texts: (ctypes.c_char_p * len(texts))(*[text.encode() for text in texts])
        program, text = ctypes.c_void_p(), source.read_text(encoding="utf-8").encode()
        bodies, names = strings(list(headers.values())), strings(list(headers))
        if library.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), len(headers), bodies, names):
            raise Failed(f"no program of {source.name}")
        options = ["--gpu-architecture=compute_80", "-" + LANGUAGE]
        code, size = library.nvrtcCompileProgram(program, len(options), strings(options)), ctypes.c_size_t()
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value + 1)
        library.nvrtcGetProgramLog(program, log)
        library.nvrtcDestroyProgram(ctypes.byref(program))
        if code != 0:
            raise Failed(f"error {code}\n{log.value.decode()}".rstrip())


# ---- Reading what the compiler made -----------------------------------------------------------------------------


def read_assembler(report: str, kernels: dict[str, Kernel]) -> None:
    """Registers, memory and spills, from `ptxas -v`."""
    kernel = Kernel()
    for line in report.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)'", line):
            kernel = kernels.setdefault(found[1], Kernel())
        # Functions that an entry calls are told of below it: they are its own.
        if found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernel.stack += int(found[1])
            kernel.spilled += int(found[2]) + int(found[3])
        if found := re.search(r"Used (\d+) registers", line):
            kernel.registers = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            kernel.shared = int(shared[1]) if shared else 0


def read_ptx(text: str, kernels: dict[str, Kernel]) -> None:
    """Threads of a block as __launch_bounds__ says, and whether a launch brings shared memory."""
    names = re.findall(r"^\.extern \.shared .*?(\w+)\[\];", text, re.M)
    entries = re.split(r"^\.visible \.entry ", text, flags=re.M)[1:]
    for entry in entries:
        kernel = kernels[re.match(r"\w+", entry)[0]]
        threads = re.search(r"^\.maxntid (\d+)(?:, (\d+), (\d+))?", entry, re.M)
        kernel.threads = int(threads[1]) * int(threads[2] or 1) * int(threads[3] or 1) if threads else 0
        kernel.dynamic = any(re.search(rf"(?<![.\w$]){name}\b", entry) for name in names)


def read_machine_code(text: str, kernels: dict[str, Kernel]) -> None:
    """Counts instructions, from `nvdisasm`."""
    sections = re.split(r"^\s*\.section\s+\.text\.([\w$]+),.*$", text, flags=re.M)
    for name, body in zip(sections[1::2], sections[2::2]):
        if name not in kernels:
            continue
        opcodes = [found[1] for line in body.splitlines() if (found := INSTRUCTION.match(line))]
        if not opcodes:
            raise Failed(f"nvdisasm: no instruction of {name} was understood")
        for what, opcode in (COUNTS | FORBIDDEN).items():
            kernels[name].counts[what] = sum(bool(opcode.match(each)) for each in opcodes)


def measure(tools: Toolkit, source: pathlib.Path, arch: str) -> dict[str, Kernel]:
    """Every entry of a module for an architecture."""
    kernels: dict[str, Kernel] = {}
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin, report = tools.compile(source, arch, pathlib.Path(folder))
        read_assembler(report, kernels)
        read_ptx(ptx.read_text(encoding="utf-8"), kernels)
        read_machine_code(tools.run("nvdisasm", "-c", cubin).stdout, kernels)
    return kernels


# ---- The table ----------------------------------------------------------------------------------------------------


def warps(kernel: Kernel, arch: str, dynamic: int) -> int:
    """Warps of this kernel that are resident on a multiprocessor, when nothing else is."""
    blocks = MULTIPROCESSORS[arch].blocks_of(max(kernel.threads, 1), kernel.registers, kernel.shared + dynamic)
    return blocks * -(-kernel.threads // 32)


def row_of(kernel: Kernel, arch: str, dynamic: int) -> dict[str, int]:
    """Limits that this kernel meets. Registers in steps of 8, as they are given out: within one, occupancy is the same."""
    row = {"threads": kernel.threads, "registers": -(-kernel.registers // 8) * 8, "shared": kernel.shared}
    row["warps"] = warps(kernel, arch, dynamic)
    return row | {what: count for what, count in kernel.counts.items() if what in COUNTS and count}


def judge(name: str, arch: str, kernel: Kernel, row: dict | None, dynamic: int) -> list[Finding]:
    """What is wrong with a kernel; `row` is what the table says of it on this architecture."""
    found = []
    fail = lambda what, said: found.append(Finding(name, arch, what, said))
    never = {"stack bytes": kernel.stack, "spilled bytes": kernel.spilled}
    never |= {what: kernel.counts.get(what, 0) for what in FORBIDDEN}
    for what, got in never.items():
        if got:
            fail(what, f"{got}, must be 0")
    if not kernel.threads:
        fail("threads", "no __launch_bounds__")
    if kernel.dynamic != bool(dynamic):
        wanted = "write the most that a launch asks for as dynamic_shared" if kernel.dynamic else "the kernel uses none"
        fail("dynamic_shared", f"{dynamic} in the table: {wanted}")
    if row is None:
        fail("table", "the kernel is not in the table")
        return found
    if kernel.threads and kernel.threads != row["threads"]:
        fail("threads", f"{kernel.threads}, the table has {row['threads']}")
    for what, got in {"registers": kernel.registers, "shared": kernel.shared}.items():
        if got > row[what]:
            fail(what, f"{got}, at most {row[what]}")
    for what, got in ({"warps": warps(kernel, arch, dynamic)} | kernel.counts).items():
        if got < row.get(what, 0):
            fail(what, f"{got}, at least {row[what]}")
    return found


HEAD = """\
# What the machine code of every kernel is held to, by scripts/check-kernels (nvcc 13.0); written by its --update.
# The same, without a column, for all: no spills, no stack, no local memory, no atomics on floats.
#   dynamic_shared  bytes, the most that a launch asks for; by hand, from the operation's gpu.rs
#   threads         of a block, the most that a launch asks for: __launch_bounds__, exactly
#   registers       of a thread, at most; in the steps of 8 in which they are given out
#   shared          static bytes of a block, at most
#   warps           resident on a multiprocessor of 64, at least; computed from the four above, never measured
#   mma_bf16, mma_tf32, ldmatrix, cp_async, load16, store16
#                   instructions in the code, at least: tensor core, ldmatrix, asynchronous copy, 16-byte access
"""


def write_table(path: pathlib.Path, table: dict) -> None:
    """One section a kernel, one line an architecture."""
    lines = [HEAD]
    for module, kernels in sorted(table.items()):
        for name, kernel in sorted(kernels.items()):
            lines.append(f"[{module}.{name}]")
            if "dynamic_shared" in kernel:
                lines.append(f"dynamic_shared = {kernel['dynamic_shared']}")
            for arch in sorted(set(kernel) - {"dynamic_shared"}):
                lines.append(f"{arch} = {{ {', '.join(f'{k} = {v}' for k, v in kernel[arch].items())} }}")
            lines.append("")
    part = path.with_suffix(".part")
    part.write_text("\n".join(lines), encoding="utf-8")
    part.replace(path)


# ---- Checks -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Outcome:
    """Findings of a folder of device code, the table that it would meet, and what every kernel is."""

    findings: list[Finding]
    table: dict
    kernels: dict[tuple[str, str, str], Kernel]  # module, kernel, architecture


def pick(folder: pathlib.Path, modules: list[str]) -> list[pathlib.Path]:
    """The sources of these modules, or of all; the longest first, so that the processes end together."""
    sources = sorted(folder.glob("*.cu"), key=lambda source: -source.stat().st_size)
    if unknown := set(modules) - {source.stem for source in sources} or ({folder.name} if not sources else set()):
        raise Failed(f"{folder}: no module {', '.join(sorted(unknown))}")
    return [source for source in sources if not modules or source.stem in modules]


def examine(sources: list[pathlib.Path], limits: pathlib.Path, tools: Toolkit, jobs: int) -> Outcome:
    """Compiles modules by nvcc for every architecture and by NVRTC, and compares with the table."""
    folder = sources[0].parent
    headers = {file.name: file.read_text(encoding="utf-8") for where in (folder, *tools.includes) for file in where.glob("*.cuh")}
    old = tomllib.loads(limits.read_text(encoding="utf-8")) if limits.is_file() else {}
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        tasks = {(source.stem, arch): pool.submit(measure, tools, source, arch) for source in sources for arch in ARCHITECTURES}
        nvrtc = {source: pool.submit(tools.nvrtc, source, headers) for source in sources}
    outcome = Outcome([], {}, {})
    for (module, arch), task in sorted(tasks.items()):
        try:
            kernels = task.result()
        except Failed as error:
            outcome.findings.append(Finding(module, arch, "compilation", str(error)))
            continue
        for name, kernel in sorted(kernels.items()):
            before = old.get(module, {}).get(name, {})
            dynamic = before.get("dynamic_shared", 0)
            outcome.findings += judge(f"{module}.{name}", arch, kernel, before.get(arch), dynamic)
            row = outcome.table.setdefault(module, {}).setdefault(name, {})
            row[arch] = row_of(kernel, arch, dynamic)
            if kernel.dynamic:
                row["dynamic_shared"] = dynamic
            outcome.kernels[module, name, arch] = kernel
    for source, task in nvrtc.items():
        if error := task.exception():
            outcome.findings.append(Finding(source.stem, "compute_80", "NVRTC", str(error)))
    failed = {finding.kernel for finding in outcome.findings if finding.what == "compilation"}
    judged = {source.stem for source in sources} - failed
    for module, kernels in old.items():
        if module not in judged and (folder / f"{module}.cu").is_file():
            outcome.table[module] = kernels
            continue
        for name in kernels:
            if name not in outcome.table.get(module, {}):
                outcome.findings.append(Finding(f"{module}.{name}", "all", "table", "there is no such kernel"))
    return outcome


# What the gate must find in tests/kernel-gate, on both architectures, and nothing else.
SEEDED = {
    "gate.spills": {"stack bytes", "spilled bytes", "local loads and stores"},
    "gate.indexed": {"stack bytes", "local loads and stores"},
    "gate.scalar": {"mma_bf16", "ldmatrix", "cp_async"},
    "gate.narrow": {"load16", "store16"},
    "gate.grown": {"registers", "warps"},
    "gate.roomy": {"shared"},
    "gate.crowded": {"warps"},
    "gate.adds": {"atomics on floats"},
    "gate.unbounded": {"threads"},
    "gate.unsized": {"dynamic_shared"},
    "gate.unlisted": {"table"},
}


def self_test(tools: Toolkit, jobs: int) -> list[str]:
    """The gate on kernels with seeded bugs: what it missed, and what it found without reason."""
    tools = dataclasses.replace(tools, includes=(DEVICE_CODE,))
    outcome = examine(pick(FIXTURES, []), FIXTURES / "limits.toml", tools, jobs)
    found = {(finding.kernel, finding.arch, finding.what) for finding in outcome.findings}
    said = {finding.kernel: finding.said for finding in outcome.findings}
    wanted = {(kernel, arch, what) for kernel, all in SEEDED.items() for arch in ARCHITECTURES for what in all}
    wanted |= {("gate.gone", "all", "table"), ("host", "compute_80", "NVRTC")}
    wrong = [f"self-test: not found: {', '.join(each)}" for each in sorted(wanted - found)]
    wrong += [f"self-test: found without reason: {', '.join(each)}" for each in sorted(found - wanted)]
    if "host.cu(2)" not in said.get("host", ""):
        wrong.append(f"self-test: NVRTC failed in another way: {said.get('host')}")
    return wrong


def print_list(outcome: Outcome) -> None:
    """Every kernel in a table for people."""
    columns = ["kernel", "arch", "threads", "registers", "shared", "dynamic", "warps of 64", *COUNTS]
    rows = []
    for (module, name, arch), kernel in sorted(outcome.kernels.items()):
        dynamic = outcome.table[module][name].get("dynamic_shared", 0)
        numbers = [kernel.threads, kernel.registers, kernel.shared, dynamic, warps(kernel, arch, dynamic)]
        rows.append([f"{module}.{name}", arch, *map(str, numbers + [kernel.counts[what] for what in COUNTS])])
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        print("  ".join(f"{cell:<{w}}" if i < 2 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths))).rstrip())


def check(options: argparse.Namespace, tools: Toolkit) -> int:
    """The gate: 0 if every kernel of the folder is within its limits and the gate finds its own seeded bugs."""
    began, limits = time.monotonic(), options.sources / LIMITS.name
    wrong = [] if options.no_self_test else self_test(tools, options.jobs)
    outcome = examine(pick(options.sources, options.modules), limits, tools, options.jobs)
    if options.update:
        write_table(limits, outcome.table)
        outcome = examine_again(outcome)
    if options.list:
        print_list(outcome)
    for line in [*wrong, *map(str, outcome.findings)]:
        print(f"check-kernels: {line}", file=sys.stderr)
    number = f"{len({(module, name) for module, name, _ in outcome.kernels})} kernels"
    number += f" of {len({module for module, _, _ in outcome.kernels})} modules"
    seconds = time.monotonic() - began
    if wrong or outcome.findings:
        print(f"check-kernels: {len(wrong) + len(outcome.findings)} findings in {number}, {seconds:.0f} s", file=sys.stderr)
        if outcome.findings and not options.update:
            print(f"check-kernels: if they are meant: scripts/check-kernels --update, and commit {LIMITS.name}", file=sys.stderr)
        return 1
    print(f"check-kernels: {number} within limits on {', '.join(ARCHITECTURES)}, {seconds:.0f} s")
    return 0


def examine_again(outcome: Outcome) -> Outcome:
    """Findings that a new table does not mend."""
    findings = [finding for finding in outcome.findings if finding.what in {"compilation", "NVRTC"}]
    for (module, name, arch), kernel in outcome.kernels.items():
        row = outcome.table[module][name]
        findings += judge(f"{module}.{name}", arch, kernel, row[arch], row.get("dynamic_shared", 0))
    return dataclasses.replace(outcome, findings=findings)


# ---- Building -----------------------------------------------------------------------------------------------------


def header_order() -> list[str]:
    """The headers as kernels/src/gpu/source.rs lists them, which decides the number in a cubin's name."""
    text = (ROOT / "kernels" / "src" / "gpu" / "source.rs").read_text(encoding="utf-8")
    found = re.search(r"^headers! \{(.*?)^\}", text, re.M | re.S)
    if not found:
        raise Failed("kernels/src/gpu/source.rs: no headers")
    return re.findall(r'"([^"]+)"', found[1])


def stems(sources: list[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Of `<module>-<arch>-<number>.cubin`, as `cubin_name` of kernels/src/cuda/compile.rs, what is around the architecture."""
    crc = 0
    for name in header_order():
        crc = zlib.crc32((DEVICE_CODE / name).read_bytes(), crc)
    return {source: f"{source.stem}-{{}}-{zlib.crc32(source.read_bytes(), crc):08x}" for source in sources}


def build(options: argparse.Namespace, tools: Toolkit) -> int:
    """Cubins under the names that the launcher looks for, PTX beside them."""
    began, out = time.monotonic(), options.out
    names = stems(pick(DEVICE_CODE, options.modules))
    if options.names:
        print("\n".join(name.format(arch) + ".cubin" for name in names.values() for arch in options.arch))
        return 0
    out.mkdir(parents=True, exist_ok=True)

    def one(source: pathlib.Path, arch: str) -> None:
        with tempfile.TemporaryDirectory(dir=out, prefix=".part.") as folder:
            ptx, cubin, _ = tools.compile(source, arch, pathlib.Path(folder))
            ptx.replace(out / (names[source].format(arch.replace("sm", "compute")) + ".ptx"))
            cubin.replace(out / (names[source].format(arch) + ".cubin"))

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        tasks = [pool.submit(one, source, arch) for source in names for arch in options.arch]
        for task in tasks:
            task.result()
    print(f"build-kernels: {len(names)} modules for {', '.join(options.arch)}, {time.monotonic() - began:.0f} s", file=sys.stderr)
    print(out)
    return 0


def main() -> int:
    """`kernels.py build|check --home DIR …`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=["build", "check"])
    parser.add_argument("modules", nargs="*")
    parser.add_argument("--home", type=pathlib.Path, default=pathlib.Path("."))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sources", type=pathlib.Path, default=DEVICE_CODE)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--no-self-test", action="store_true")
    parser.add_argument("--arch", type=lambda text: text.split(","), default=ARCHITECTURES)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--names", action="store_true")
    options = parser.parse_intermixed_args()
    try:
        return {"build": build, "check": check}[options.verb](options, Toolkit(options.home))
    except Failed as error:
        print(f"{options.verb}-kernels: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
