"""The check of what XLA makes of a step for a GPU: on a program written by hand, and on steps if it is installed."""

import json
import os
import subprocess
import sys

import pytest

from agop_jax.core.errors import UserError
from benchmarks import compile_gpu, costs, h100, hlo

# 2 x 4 x 4 x 8 floats are 1,024 bytes, a kernel of 3 x 3 x 8 x 8 is 2,304 bytes
PROGRAM = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[2,4,4,8]{3,2,1,0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused_transpose (p: f32[3,3,8,8]) -> f32[8,3,3,8] {
  %p = f32[3,3,8,8]{3,2,1,0} parameter(0)
  ROOT %turned = f32[8,3,3,8]{3,2,1,0} transpose(%p), dimensions={3,0,1,2}
}

%fused_sum (q: f32[2,4,4,8]) -> f32[8] {
  %q = f32[2,4,4,8]{3,2,1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %reduced = f32[8]{0} reduce(%q, %zero), dimensions={0,1,2}, to_apply=%add
}

%body (state: (s32[], f32[2,4,4,8])) -> (s32[], f32[2,4,4,8]) {
  %state = (s32[], f32[2,4,4,8]{3,2,1,0}) parameter(0)
  %number = s32[] get-tuple-element(%state), index=0
  %x = f32[2,4,4,8]{3,2,1,0} get-tuple-element(%state), index=1
  %kernel = f32[8,3,3,8]{3,2,1,0} constant({...})
  %looped = (f32[2,4,4,8]{3,2,1,0}, u8[0]{0}) custom-call(%x, %kernel), custom_call_target="__cudnn$convForward"
  %next = f32[2,4,4,8]{3,2,1,0} get-tuple-element(%looped), index=0
  ROOT %done = (s32[], f32[2,4,4,8]{3,2,1,0}) tuple(%number, %next)
}

ENTRY %main (images: f32[2,4,4,8], weight: f32[3,3,8,8]) -> f32[8] {
  %images = f32[2,4,4,8]{3,2,1,0} parameter(0), metadata={op_name="images"}
  %weight = f32[3,3,8,8]{3,2,1,0} parameter(1)
  %wrapped = f32[8,3,3,8]{3,2,1,0} fusion(%weight), kind=kInput, calls=%fused_transpose
  %conv = (f32[2,4,4,8]{3,2,1,0}, u8[0]{0}) custom-call(%images, %wrapped), operand_precision={highest,highest}, \
custom_call_target="__cudnn$convForward"
  %out = f32[2,4,4,8]{3,2,1,0} get-tuple-element(%conv), index=0
  %copied = f32[2,4,4,8]{3,2,1,0} copy(%out)
  %start = (s32[], f32[2,4,4,8]{3,2,1,0}) tuple(%number.1, %copied)
  %loop = (s32[], f32[2,4,4,8]{3,2,1,0}) while(%start), condition=%check, body=%body
  %last = f32[2,4,4,8]{3,2,1,0} get-tuple-element(%loop), index=1
  ROOT %result = f32[8]{0} fusion(%last), kind=kInput, calls=%fused_sum
}
"""


def test_a_program_is_read():
    program = hlo.Program(PROGRAM)
    assert [one.name for one in program.steps] == ["looped", "wrapped", "conv", "copied", "result"]
    assert [one.name for one in program.cudnn] == ["looped", "conv"]
    assert [one.name for one in program.looped_convolutions] == ["looped"]
    assert [one.name for one in program.imprecise] == ["looped"]
    assert program.moved == {"wrapped": 2 * 2304, "copied": 2 * 1024}
    assert program.moved_besides({3 * 3 * 8 * 8}) == {"copied": 2 * 1024}
    # both convolutions read images and a kernel and write images; the sum reads images and writes 8 numbers
    assert program.bytes == 2 * (2 * 1024 + 2304) + 2 * 2304 + 2 * 1024 + 1024 + 32


def test_faults_are_told():
    faults = list(compile_gpu.faults_of(hlo.Program(PROGRAM), exact=True, kernels=set()))
    assert [fault.split(",")[0] for fault in faults] == [
        "1 products in a loop",
        "1 products below the highest precision",
        "more than 1% of the bytes only move",
    ]
    plain = "ENTRY %main (x: f64[2]) -> f64[2] {\n  ROOT %y = f64[2]{0} convolution(%x, %x)\n}\n"
    faults = list(compile_gpu.faults_of(hlo.Program(plain), exact=False, kernels=set()))
    assert faults == ["1 products outside cuDNN, such as y", "arrays in float64"]


def test_bytes_of_types():
    assert hlo.array_bytes("(pred[3]{0}, bf16[2,5]{1,0}, s32[], f8e4m3fn[7]{0}, u8[0]{0})") == 3 + 20 + 4 + 7


def test_memory_of_the_cost_model():
    """VGG11 at 224 x 224: five sizes of maps, and 64 channels of the first are the largest."""
    maps = 64 * 224**2 + 128 * 112**2 + 2 * 256 * 56**2 + 2 * 512 * 28**2 + 2 * 512 * 14**2 + 10
    counted = costs.count(compile_gpu.Case("gram", "vgg11", 10).model, 224)
    assert counted.memory(3, 2) == 3 * 4 * (maps + 2 * 64 * 224**2)


def test_without_the_compiler_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(h100.importlib.util, "find_spec", lambda name: None)
    h100.mesh.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'jax\[cuda12\]==\d[\d.]*'$"):
        compile_gpu.main(["--quick", f"--out={tmp_path}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.skipif(not h100.can_compile(), reason="needs jax[cuda12]")
def test_steps_compile_for_a_gpu(tmp_path):
    """In a process of its own, since the compiler for GPUs stays in the one that uses it."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\n")
    command = [sys.executable, "-m", "benchmarks.compile_gpu", "--quick", f"--out={tmp_path}", f"--page={page}"]
    subprocess.run(command, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    table = json.loads((tmp_path / "compile_gpu.json").read_text())
    assert [row["convolutions of cuDNN"] > 0 for row in table["rows"]] == [True, True]
    assert (tmp_path / "compile_gpu.md").read_text() in page.read_text()
