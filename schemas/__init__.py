"""What crosses the wire: events in, recommendation lists out, dead letters aside."""
