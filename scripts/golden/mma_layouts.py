#!/usr/bin/env python3
"""Makes kernels/emulator/tests/golden/layouts.txt: which lane holds what of mma and ldmatrix fragments, after CuTe.

Evaluates the layouts of CuTe's MMA_Traits and Copy_Traits in a small host program. Needs g++, the headers of a CUDA
toolkit (--cuda, its include folder) and CUTLASS 4.2.0: `pip install nvidia-cutlass==4.2.0.0` into any environment and run
this with its Python, or name the include folder with --cutlass.

One line for each operand and lane: `name lane row:column ...`, in the order of the lane's values. For ldmatrix a value
is `lane:element`, the lane that brought the row's address and the 16-bit element of that row.
"""

import argparse
import importlib.util
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = ROOT / "kernels" / "emulator" / "tests" / "golden" / "layouts.txt"

PROGRAM = r"""
#include <cstdio>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
using namespace cute;

// (lane, value) -> index of a column-major matrix of `rows` rows.
template <class Layout> void operand(const char* name, Layout layout, int rows) {
  for (int lane = 0; lane < 32; lane++) {
    printf("%s %d", name, lane);
    for (int value = 0; value < int(size<1>(layout)); value++) {
      int at = layout(lane, value);
      printf(" %d:%d", at % rows, at / rows);
    }
    printf("\n");
  }
}

template <class Atom> void operands(const char* name) {
  using Traits = MMA_Traits<Atom>;
  char operand_name[64];
  snprintf(operand_name, 64, "%s.a", name), operand(operand_name, typename Traits::ALayout{}, 16);
  snprintf(operand_name, 64, "%s.bt", name), operand(operand_name, typename Traits::BLayout{}, 8);
  snprintf(operand_name, 64, "%s.d", name), operand(operand_name, typename Traits::CLayout{}, 16);
}

// Both layouts lead to bits of the 8x8 tiles; a row is the 128 bits of one source lane.
template <class Atom> void matrix(const char* name) {
  typename Copy_Traits<Atom>::DstLayout to;
  for (int lane = 0; lane < 32; lane++) {
    printf("%s %d", name, lane);
    for (int bit = 0; bit < int(size<1>(to)); bit += 16) {
      int at = to(lane, bit);
      printf(" %d:%d", at / 128, at % 128 / 16);
    }
    printf("\n");
  }
}

int main() {
  operands<SM80_16x8x16_F32BF16BF16F32_TN>("mma_bf16_16816");
  operands<SM80_16x8x8_F32TF32TF32F32_TN>("mma_tf32_1688");
  matrix<SM75_U32x1_LDSM_N>("ldmatrix_x1");
  matrix<SM75_U32x2_LDSM_N>("ldmatrix_x2");
  matrix<SM75_U32x4_LDSM_N>("ldmatrix_x4");
  matrix<SM75_U16x2_LDSM_T>("ldmatrix_x1_trans");
  matrix<SM75_U16x4_LDSM_T>("ldmatrix_x2_trans");
  matrix<SM75_U16x8_LDSM_T>("ldmatrix_x4_trans");
}
"""


def installed_cutlass() -> pathlib.Path | None:
    """The include folder inside the installed nvidia-cutlass."""
    found = importlib.util.find_spec("cutlass_library")
    return pathlib.Path(found.origin).parent / "source" / "include" if found and found.origin else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cutlass", type=pathlib.Path, default=installed_cutlass(), help="default: nvidia-cutlass of this Python")
    parser.add_argument("--cuda", type=pathlib.Path, required=True, help="include folder of a CUDA toolkit")
    parser.add_argument("--out", type=pathlib.Path, default=TABLE)
    options = parser.parse_args()
    if not options.cutlass:
        parser.error("no nvidia-cutlass here: name its include folder with --cutlass")
    with tempfile.TemporaryDirectory() as folder:
        source, program = pathlib.Path(folder, "layouts.cpp"), pathlib.Path(folder, "layouts")
        source.write_text(PROGRAM)
        includes = [f"-I{options.cutlass}", f"-I{options.cuda}", f"-I{options.cuda / 'cccl'}"]
        subprocess.run(["g++", "-std=c++17", "-w", *includes, str(source), "-o", str(program)], check=True)
        table = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    head = "# Made by scripts/golden/mma_layouts.py from CUTLASS 4.2.0; do not edit.\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(head + table)


if __name__ == "__main__":
    main()
