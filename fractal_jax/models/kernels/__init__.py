"""Pallas TPU kernels for what a fractal has: very many very short sequences.

| file | what |
|---|---|
| attention.py | the attention half of a block |
| mlp.py | its MLP half |
| pixel_nats.py | the whole pixel level: conditions and values to nats |
| pixel_draw.py | the whole pixel level: conditions to values |
| geometry.py | how sequences lie in the rows that these work on |
| values.py | what they compute with: functions of arrays in VMEM |
| calls.py | how they are called: resident weights, gradients, the mesh |
| blocks.py | where layers and levels meet them |
| proof.py | whether they are right on the chip at hand |

Each kernel has `xla` beside it, the same function without kernels. Random draws
are the same on both, results are to rounding.
"""
