"""The collectives of compiled programs; that they are those of a mesh is in `test_on_meshes.py`."""

from types import SimpleNamespace

import jax

from optfn.testing import Collective, collectives

TEXT = """
  %all-gather.1 = bf16[8,16]{1,0} all-gather(%p0), dimensions={0}
  %r = (f32[4]{0}, u32[2]{0}, pred[]) all-reduce-start(%p1, %p2, %p3), to_apply=%sum
  %s = f32[] add(%all-reduce.3, %p4)
"""


def test_each_has_its_kind_and_the_bytes_of_its_results():
    found = collectives(SimpleNamespace(as_text=lambda: TEXT))
    assert found == [Collective("all-gather", 256), Collective("all-reduce", 25)]


def test_a_program_for_one_device_has_none():
    assert collectives(jax.jit(lambda x: x + 1).lower(1.0).compile()) == []
