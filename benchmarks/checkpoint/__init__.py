"""What a checkpoint costs: Everstep beside its peers, the same state, the same object store."""
