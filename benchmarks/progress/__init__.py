"""How fast progress travels: from a training through the control plane to those who watch."""
