"""Models that leave the package: plain weights with a script of their own, ONNX graphs, and the card that goes with them."""
