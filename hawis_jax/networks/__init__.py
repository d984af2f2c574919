"""Networks: width vectors, layers, masked binary ResNets, reference nets."""
