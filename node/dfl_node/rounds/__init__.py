"""What a node decides in a job: pure state machines, without clock or I/O."""
