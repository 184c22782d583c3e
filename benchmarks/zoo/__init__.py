"""Models for MNIST that an evaluator is tried on: `broken` ones hide a base that is not robust, `genuine` ones nothing.

Each model is a function without arguments, ``--model zoo.broken:NAME`` from the folder ``benchmarks``. What they stand
on is trained by ``python benchmarks/validity.py --train``.
"""
