"""Gradients one can see: expressions as graphs of gates, run forward and backward, in text and as a drawing.

    gates, functions     every operation with its `forward` and `backward`
    graph                a graph that sorts itself topologically, and backpropagation in a few lines
    parser, reader       expressions as they are typed; values: those of their names
    text, drawing        what one sees; layout says where the drawing's nodes stand
    element, nudge, cost one entry's derivation, what a nudge does, what both passes cost

>>> from lmtrain.explain import explain
>>> explanation = explain("u @ sigmoid(W @ x + b)", u=[1, 2], W=[[1, 0], [0, 1]], x=[0, 0], b=[0, 0])
>>> float(explanation.value)
1.5
>>> explanation.gradients["b"].tolist()
[0.25, 0.5]
"""

from lmtrain.explain.explanation import Explanation, explain
from lmtrain.explain.functions import (
    Exp,
    Largest,
    Log,
    MatrixProduct,
    Negate,
    Relu,
    Sigmoid,
    Smallest,
    Softmax,
    Sum,
    Tanh,
    Transpose,
)
from lmtrain.explain.gates import Add, Divide, Gate, GateError, Maximum, Minimum, Multiply, Power, Subtract
from lmtrain.explain.graph import Graph, Node
from lmtrain.explain.parser import parse
from lmtrain.explain.source import ExpressionError

__all__ = [
    "Add", "Divide", "Exp", "Explanation", "ExpressionError", "Gate", "GateError", "Graph", "Largest", "Log", "MatrixProduct",
    "Maximum", "Minimum", "Multiply", "Negate", "Node", "Power", "Relu", "Sigmoid", "Smallest", "Softmax", "Subtract", "Sum",
    "Tanh", "Transpose", "explain", "parse",
]  # fmt: skip
