"""Train, repair and dissect image classifiers that learn shortcuts."""

import os

# Fresh memory for every batch costs more page faults than work; torch asks for huge pages if told
# to, which the kernel grants where it can. On a CPU this alone makes the input path twice as fast.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
