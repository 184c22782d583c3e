"""What one worker knows: models, attacks, evaluators and the schema of results (torch and numpy)."""

import os

# MKL chooses its matrix kernels by the alignment of the operands, so that a row's result depends on
# its position in the batch (a Linear(50, 7) changed 416 of 768 rows when the batch was permuted).
# Its strict mode makes a row's bits independent of position and batch size. MKL reads the variable
# when it is first used, so it is set here, before
# anything of brittle imports torch; a notebook that has computed with torch already is too late.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

# torch's OpenMP threads spin while they wait, which starves whoever shares the processors: two trainings at
# once on two cores took 95 s an epoch, and 24 s with threads that sleep; alone, sleeping costs nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
