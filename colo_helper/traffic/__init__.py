"""The proxy at work: a guest's packets between its device model, its copy and the network."""
