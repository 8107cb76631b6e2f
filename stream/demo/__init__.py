"""The demo on one machine: a local Kafka, a short training, the daemon and a log played to it."""
