"""Seconds of a program compiled for a TPU, from its text alone.

tests/stored/tpu_program.txt is what libtpu made for a v5e:2x2 of three layers
in a loop (level 0), a kernel, a choice of two (level 1), and a sum over all
devices; tpu_schedule.txt is the schedule of the kernel. Both without what is
not read.
"""

import pathlib

import numpy as np
import pytest

from benchmarks import gpu_static
from fractal_jax.planning import estimate

STORED = pathlib.Path(__file__).parent / 'stored'
PROGRAM = (STORED / 'tpu_program.txt').read_text()
SCHEDULE = (STORED / 'tpu_schedule.txt').read_text()
V5E = estimate.CHIPS['v5e']


def test_a_schedule_counts_its_loop():
  """43 bundles, of which the 22 from 0xd to 0x22 run four times."""
  assert estimate.bundles(SCHEDULE) == 43 + 3 * 22


def cycles(schedules, shares=None):
  """{(level, operation): cycles} of the program, and the estimate."""
  found = estimate.of_program(PROGRAM, schedules, V5E, shares)
  return {k: v[0] * V5E.clock for k, v in found.seconds.items()}, found


def test_cycles_by_level_and_operation():
  found, whole = cycles({'mlp_forward_64.1': 109}, {'level 1': [0.25, 0.75]})
  # The loop runs three times; what has no name there is of its level.
  assert found['level 0', 'product'] == pytest.approx(3 * 7012)
  assert found['level 0', 'copy'] == pytest.approx(3 * 2946)
  # 256 rows on each device, 64 a block.
  assert found['level 1', 'mlp_forward'] == pytest.approx(4 * 109)
  # Of the two branches, the second one is taken three times out of four.
  fusions = 0.25 * (6862 + 1841 + 2980) + 0.75 * 4044
  assert found['level 1', 'fusion'] == pytest.approx(fusions)
  assert found['elsewhere', 'reduce'] == pytest.approx(3980)
  assert not whole.unknown
  assert whole.total[0] * V5E.clock == pytest.approx(sum(found.values()))
  alike, _ = cycles({}, None)
  fusions = 0.5 * (6862 + 1841 + 2980 + 4044)
  assert alike['level 1', 'fusion'] == pytest.approx(fusions)


def test_the_cores_of_a_chip_share_a_kernel():
  chip = estimate.CHIPS['v5p']
  found = estimate.of_program(PROGRAM, {'mlp_forward_64.1': 109}, chip)
  seconds = found.seconds['level 1', 'mlp_forward']
  assert seconds[0] * chip.clock == pytest.approx(2 * 109)


def test_what_is_no_product_goes_at_the_speed_of_hbm():
  _, found = cycles({})
  by_cycles, at_speed = found.seconds['level 0', 'product']
  assert by_cycles == at_speed
  # 512 KiB in and out: 256 x 512 float32 from one layout to the other.
  at_speed = found.seconds['elsewhere', 'copy'][1]
  assert at_speed == pytest.approx(2 * 256 * 512 * 4 / V5E.hbm)


def test_a_kernel_without_a_schedule_is_named():
  found, whole = cycles({})
  assert whole.unknown == ('mlp_forward',)
  assert ('level 1', 'mlp_forward') not in found


def test_collectives_are_counted_apart():
  """512 float32 to be summed: there and back."""
  _, found = cycles({})
  assert found.network == 2 * 512 * 4


@pytest.mark.parametrize(
  'text, size',
  [
    ('bf16[3,512,512]{2,1,0:T(8,128)(2,1)}', 3 * 512 * 512 * 2),
    ('f32[21,3]{1,0:T(8,128)}', 24 * 128 * 4),
    ('f32[21,3]{0,1:T(8,128)}', 8 * 128 * 4),  # the first axis is the minor
    ('(s32[]{:T(128)}, pred[5]{0:T(512)})', 4 + 512),
    ('u8[10,10]', 100),
  ],
)
def test_bytes_are_those_of_whole_tiles(text, size):
  assert estimate.bytes_of(text) == size


MOVED = """
%part (stack: f32[9,64], at: s32[]) -> bf16[64] {
  %stack = f32[9,64]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %slice = f32[1,64]{1,0} dynamic-slice(%stack, %at), dynamic_slice_sizes={1,64}
  %flat = f32[64]{0} bitcast(%slice)
  ROOT %cast = bf16[64]{0} convert(%flat)
}

%put (new: bf16[64], stack: f32[9,64], at: s32[]) -> f32[9,64] {
  %new = bf16[64]{0} parameter(0)
  %stack = f32[9,64]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %cast = f32[64]{0} convert(%new)
  %row = f32[1,64]{1,0} bitcast(%cast)
  ROOT %out = f32[9,64]{1,0} dynamic-update-slice(%stack, %row, %at)
}

%all (x: f32[9,64]) -> (f32[9,64], f32[9]) {
  %x = f32[9,64]{1,0} parameter(0)
  %twice = f32[9,64]{1,0} add(%x, %x)
  %sum = f32[9]{0} reduce(%twice), dimensions={1}
  ROOT %both = (f32[9,64]{1,0}, f32[9]{0}) tuple(%twice, %sum)
}

ENTRY %main (stack: f32[9,64], at: s32[]) -> f32[9,64] {
  %stack = f32[9,64]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %a = bf16[64]{0} fusion(%stack, %at), kind=kLoop, calls=%part
  %b = f32[9,64]{1,0} fusion(%a, %stack, %at), kind=kLoop, calls=%put
  %c = (f32[9,64]{1,0}, f32[9]{0}) fusion(%b), kind=kInput, calls=%all
  %d = f32[2,64]{1,0} slice(%b), slice={[0:2], [0:64]}
  %e = f32[9,64]{1,0} dynamic-update-slice(%b, %d, %at)
  ROOT %f = f32[9,64]{1,0} custom-call(%e), custom_call_target="__cublas$gemm"
}
"""


def test_of_what_is_sliced_or_replaced_a_part_is_moved():
  moved = {
    estimate.NAMED.match(x.line).group(1): (x.kind, estimate.moved_bytes(x))
    for x in estimate.operations(MOVED)
    if x.kind != 'parameter'
  }
  row, stack, number = 64 * 4, 9 * 64 * 4, 4
  assert moved == {
    'a': ('fusion', row + row // 2 + number),
    'b': ('fusion', row // 2 + row + number),
    'c': ('fusion', 2 * stack + 9 * 4),
    'd': ('slice', 4 * row),
    'e': ('dynamic-update-slice', 4 * row),
    'f': ('product', 2 * stack),
  }


def test_bytes_are_summed_by_level_and_place():
  """As benchmarks/gpu_static.py lists them, most bytes first."""
  named = 'op_name="jit(step)/level_1/while/body/blocks/mlp/add"'
  text = MOVED.replace('calls=%put', f'calls=%put, metadata={{{named}}}')
  text = text.replace('calls=%part', f'calls=%part, metadata={{{named}}}')
  rows = gpu_static.moved(text)
  assert [x[0] for x in rows] == sorted((x[0] for x in rows), reverse=True)
  row = 64 * 4
  found = {x[1:3]: (x[0], x[3]) for x in rows}
  both = 2 * (row + row // 2 + 4)
  assert found['level 1', 'fusion blocks/mlp/add'] == (both, 2)
  assert found['elsewhere', 'product '][1] == 1
  assert not any('parameter' in x[2] for x in rows)


def test_schedules_are_read_by_name_and_removed(tmp_path):
  """Those of kernels; the dump has files of all operations."""
  (tmp_path / '12-mlp_forward_64.1-03-final_bundles.txt').write_text(SCHEDULE)
  (tmp_path / '12-copy.3-03-final_bundles.txt').write_text(SCHEDULE)
  other = (
    tmp_path / '12-mlp_forward_64.1-02-schedule-analysis_final_bundles.txt'
  )
  other.write_text(SCHEDULE)
  assert estimate.schedules(tmp_path) == {'mlp_forward_64.1': 109}
  assert not list(tmp_path.iterdir())


def test_kernels_alike_have_one_schedule():
  """libtpu writes it once: here, of another instruction."""
  lines = [x for x in PROGRAM.splitlines() if 'mlp_forward_64.1 =' in x]
  (line,) = lines
  text = f'{line}\n{line.replace("%mlp_forward_64.1", "%mlp_forward_64.2")}'
  found = estimate.kernel_calls(text, {'mlp_forward_64.2': 7})
  assert found == dict.fromkeys(
    ('mlp_forward_64.1', 'mlp_forward_64.2'),
    estimate.KernelCall('mlp_forward', 7, 4),
  )
  other = line.replace('f32[256,512]{1,0}}', 'f32[512,512]{1,0}}')
  assert other != line
  text = f'{other}\n{line.replace("%mlp_forward_64.1", "%mlp_forward_64.2")}'
  found = estimate.kernel_calls(text, {'mlp_forward_64.2': 7})
  assert found['mlp_forward_64.1'].cycles is None
  assert found['mlp_forward_64.1'].blocks == 8


def test_a_loop_without_a_known_count_asks_its_condition():
  comps = estimate.computations(PROGRAM)
  (line,) = [x for x in PROGRAM.splitlines() if ' while(' in x]
  assert estimate.trips(line, comps) == 3
  line += ', backend_config={"known_trip_count":{"n":"11"}}'
  assert estimate.trips(line, comps) == 11


def test_estimates_add_up():
  seconds = {('level 0', 'a'): np.array([1, 0.5]), ('', 'b'): np.ones(2)}
  np.testing.assert_allclose(estimate.Estimate(seconds).total, [2, 1.5])
  assert not estimate.Estimate({}).total.any()
