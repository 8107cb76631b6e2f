"""Every setting: its type, its bounds, its default and what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from mtgr.errors import InputError
from mtgr.requests import Strategy
from stream.settings.secret import Secret

Text = Annotated[str, Meta(min_length=1, max_length=1024)]
TopicName = Annotated[str, Meta(min_length=1, max_length=249, pattern=r"^[a-zA-Z0-9._-]+\Z")]
Positive = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Milliseconds = Annotated[int, Meta(ge=0, le=86_400_000)]
Duration = Annotated[float, Meta(gt=0, le=86_400)]


class KafkaSettings(Struct, frozen=True, kw_only=True):
    """How to reach the Kafka cluster, and as whom."""

    bootstrap_servers: Text = "localhost:9092"
    """Brokers to ask first: host:port, several separated by commas."""
    group_id: Text = "mtgr-stream"
    """Consumer group: daemons of one group share the partitions of the events topic."""
    group_instance_id: Text | None = None
    """Name of this daemon in its group: restarted within the session's timeout, it gets its own partitions back."""
    client_id: Text = "mtgr-stream"
    """Name of this client in the broker's logs, quotas and metrics."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Encryption and authentication of the connection."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    """How it is proved who connects; required by the SASL protocols."""
    sasl_username: Text | None = None
    """User name for PLAIN and SCRAM."""
    sasl_password: Secret | None = None
    """Password for PLAIN and SCRAM; shown masked. Better kept in a file or the environment than in the settings."""
    sasl_password_file: Path | None = None
    """File that holds the password for SASL (one line), instead of `sasl_password`."""
    sasl_oauthbearer_token_file: Path | None = None
    """File that holds the token for OAUTHBEARER (one line), read anew at every connection."""
    sasl_oauthbearer_provider: Annotated[str, Meta(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")] | None = None
    """Function that gives the token for OAUTHBEARER at every connection, plain or async: package.module:function."""
    ssl_ca_location: Path | None = None
    """PEM file of the authorities trusted for TLS; the system's own where unset."""
    ssl_certificate_location: Path | None = None
    """PEM file of this client's certificate and the chain above it, for brokers that ask for one."""
    ssl_key_location: Path | None = None
    """PEM file of the private key of `ssl_certificate_location`."""
    ssl_key_password: Secret | None = None
    """Password of an encrypted `ssl_key_location`; shown masked."""
    ssl_key_password_file: Path | None = None
    """File that holds that password (one line), instead of `ssl_key_password`."""
    connect_timeout_seconds: Duration = 60.0
    """Give up with an error when no broker has answered for this long."""
    session_timeout_ms: Annotated[int, Meta(ge=1_000, le=1_800_000)] = 10_000
    """A daemon silent for this long loses its partitions to the others of its group."""
    rebalance_timeout_ms: Annotated[int, Meta(ge=1_000, le=3_600_000)] = 60_000
    """A rebalance waits this long for a daemon to hand its partitions over."""
    max_poll_interval_ms: Annotated[int, Meta(ge=1_000, le=86_400_000)] = 300_000
    """A daemon that asks for no events for this long leaves its group; it asks while lists take long, too."""
    max_poll_records: Annotated[int, Meta(ge=1, le=1_000_000)] = 4_000
    """Records folded before lists and commits have their turn."""
    compression: Literal["none", "snappy", "gzip", "lz4", "zstd"] = "none"
    """Compression of what is produced."""


class TopicSettings(Struct, frozen=True, kw_only=True):
    """Names and shape of the topics."""

    events: TopicName = "user-events"
    """Topic that events are read from, keyed by user id."""
    lists: TopicName = "recommendations"
    """Topic that recommendation lists are written to, keyed by user id."""
    dead_letters: TopicName = "user-events.dlq"
    """Topic for records that could not be served, with the reason in their headers."""
    changelog: TopicName | None = None
    """Compacted topic that backs the state; `<group_id>-changelog` where unset."""
    videos: TopicName | None = None
    """Compacted topic of videos, keyed by video id, that join the checkpoint's catalog; none where unset."""
    partitions: Annotated[int, Meta(ge=1, le=100_000)] = 6
    """Partitions of the topics when they are created; the changelog always has those of the events topic."""
    replication_factor: Annotated[int, Meta(ge=1, le=32_767)] = 1
    """Copies of each partition when the topics are created."""


class ModelSettings(Struct, frozen=True, kw_only=True):
    """Which model makes the lists."""

    checkpoint: Path | None = None
    """Directory of the checkpoint (config.json, model.safetensors, catalog)."""


class GeneratorSettings(Struct, frozen=True, kw_only=True):
    """What runs the model, and how much of the machine it may take."""

    kind: Literal["vllm", "server", "torch"] = "vllm"
    """vllm: an engine of this daemon; server: `mtgr-stream serve` at `url`; torch: the reference model."""
    url: Text | None = None
    """Address of the server, http://host:port; only for kind "server"."""
    list_length: Annotated[int, Meta(ge=1, le=1_000)] = 10
    """Videos in a list."""
    strategy: Strategy = "topk"
    """topk: the likeliest next videos, each by itself; slate: video by video, as if those before had been watched."""
    max_batch_users: Annotated[int, Meta(ge=1, le=65_536)] = 64
    """Users whose lists are made in one batch."""
    max_concurrent_batches: Annotated[int, Meta(ge=1, le=1_024)] = 4
    """Batches at the generator at once: a user who is due need not wait for those before."""
    kv_cache_gib: Annotated[float, Meta(gt=0, le=4_096)] | None = None
    """Memory for the KV cache of each device, in GiB; where unset, 1 on a CPU, on a GPU what the weights leave."""
    memory_utilization: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Share of a GPU's memory the engine takes, 0.9 where unset."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Number format of weights and activations; auto is bfloat16 on a GPU and for a checkpoint in awq, else float32."""
    quantization: Literal["fp8", "fp8_per_channel", "fp8_per_block"] | None = None
    """Keep the weights of linears in FP8: one scale for all, each channel or each block; on a CPU by channel only."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Number format of the KV cache; fp8 on a GPU only."""
    tensor_parallel_size: Annotated[int, Meta(ge=1, le=64)] = 1
    """Devices that share each layer of the model."""
    replicas: Annotated[int, Meta(ge=1, le=64)] = 1
    """Engines among which users are divided; each takes `tensor_parallel_size` devices."""
    request_timeout_seconds: Duration = 60.0
    """A batch that takes longer counts as a failure of the engine."""
    max_restarts: Annotated[int, Meta(ge=0, le=1_000)] = 5
    """Restarts of a failed engine in a row before the daemon stops."""


class TriggerSettings(Struct, frozen=True, kw_only=True):
    """When a user is due a fresh list."""

    min_events: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    """New events before the quiet period counts; with fewer, a list waits for `max_wait_ms`."""
    quiet_period_ms: Milliseconds = 50
    """A list is due when no event of the user came for this long."""
    max_wait_ms: Milliseconds = 500
    """A list is due this long after the first unserved event, however many follow."""


class StateSettings(Struct, frozen=True, kw_only=True):
    """Users' sequences on this machine."""

    directory: Path = Path(".state")
    """Directory of the local state; kept over restarts, so that only the changelog's tail is restored."""
    max_events: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """Events kept for a user; the checkpoint's own limit where unset."""
    ttl_days: Annotated[float, Meta(gt=0, le=36_500)] | None = None
    """Users silent for longer, by the time of the stream, are forgotten; nobody where unset."""
    max_partition_mebibytes: Annotated[int, Meta(ge=1, le=1_048_576)] | None = None
    """State of a partition, uncompressed, in MiB, above which the most silent users are forgotten; any if unset."""
    cache_mebibytes: Annotated[int, Meta(ge=1, le=1_048_576)] = 256
    """Memory for sequences kept at hand, in MiB."""
    store_mebibytes: Annotated[int, Meta(ge=8, le=1_048_576)] = 128
    """Memory for RocksDB, its block cache and write buffers, of all partitions together, in MiB."""


class StreamSettings(Struct, frozen=True, kw_only=True):
    """Commits, limits and the end."""

    delivery: Literal["at_least_once", "exactly_once"] = "at_least_once"
    """exactly_once: lists, state and offsets in one transaction, seen once by consumers that read what is committed."""
    transaction_timeout_ms: Annotated[int, Meta(ge=1_000, le=900_000)] = 60_000
    """Kafka ends a transaction that takes longer; consumers of lists wait that long for those of a dead daemon."""
    commit_interval_ms: Annotated[int, Meta(ge=1, le=60_000)] = 100
    """Time between commit cycles: state, lists, dead letters, then offsets."""
    max_in_flight_mebibytes: Annotated[int, Meta(ge=1, le=1_048_576)] = 64
    """Fetched but uncommitted events, in MiB, above which partitions are paused."""
    max_owed_requests: Positive = 20_000
    """Lists owed above which partitions are paused."""
    drain_deadline_seconds: Annotated[float, Meta(ge=0, le=3_600)] = 20.0
    """Time to finish owed lists on shutdown or revocation; what is left stays owed."""
    max_event_bytes: Annotated[int, Meta(ge=1, le=134_217_728)] = 65_536
    """Longer event values are dead-lettered unread."""
    dead_letter_share_limit: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """The daemon stops when more than this share of recent records are dead letters; 1 never stops it."""
    dead_letter_window: Positive = 1_000
    """Records over which the share of dead letters is taken."""


class HttpSettings(Struct, frozen=True, kw_only=True):
    """Where /healthz, /readyz and /metrics are served."""

    host: Text = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8080
    """Port to listen on; 0 takes a free one and logs it."""


class LogSettings(Struct, frozen=True, kw_only=True):
    """What is logged to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level logged."""
    format: Literal["auto", "json", "console"] = "auto"
    """json: one object a line; console: for people; auto: console on a terminal, json elsewhere."""


class Settings(Struct, frozen=True, kw_only=True):
    """All settings; `load_settings` reads and checks them."""

    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    model: ModelSettings = ModelSettings()
    generator: GeneratorSettings = GeneratorSettings()
    trigger: TriggerSettings = TriggerSettings()
    state: StateSettings = StateSettings()
    stream: StreamSettings = StreamSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()

    @property
    def changelog_topic(self) -> str:
        """The compacted topic that backs the state."""
        return self.topics.changelog or f"{self.kafka.group_id}-changelog"

    def require_checkpoint(self) -> Path:
        """The checkpoint's directory; raises InputError where none is set."""
        if self.model.checkpoint is None:
            raise InputError(
                "model.checkpoint is not set: name a checkpoint directory in the settings file, in "
                "MTGR_STREAM__MODEL__CHECKPOINT or by --set model.checkpoint=DIR"
            )
        return self.model.checkpoint
