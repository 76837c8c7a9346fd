"""Prometheus metrics of a worker."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

EVENT_TO_PUBLISH = Histogram(
    "freshet_event_to_publish_seconds",
    "From the broker's timestamp of an event to the acknowledgement of the list made for it.",
    buckets=_SECONDS,
)
STEP = Histogram("freshet_step_seconds", "Time of one step of a micro-batch.", ["step"], buckets=_SECONDS)
BATCH_EVENTS = Histogram(
    "freshet_batch_events", "Events in a micro-batch.", buckets=(1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)
)
FOLDED = Counter("freshet_events_folded_total", "Events folded into user state.")
SKIPPED = Counter("freshet_events_skipped_total", "Events that changed no state.", ["reason"])
STATES_FULL = Counter(
    "freshet_states_full_total", "States written whose history or seen items had no room left (LOG_CHARS)."
)
REFUSED_STATES = Counter(
    "freshet_refused_states_total", "Records of the changelog that a recovery left out, for they are no states."
)
REFUSED = Counter("freshet_refused_records_total", "Outputs that the broker refused as too large.", ["topic"])
DEAD_LETTERS = Counter("freshet_dead_letters_total", "Records sent to the dead-letter topic.", ["reason"])
LISTS = Counter("freshet_lists_published_total", "Recommendation lists published.", ["kind"])
LIVING_LISTS = Counter("freshet_living_lists_total", "Lists made again without their user, and published.", ["cause"])
LIVING_UNCHANGED = Counter(
    "freshet_living_unchanged_total", "Lists made again that came out as they stand, and were not published."
)
LIVING_WAITING = Gauge("freshet_living_waiting_lists", "Lists that wait to be made again.")
LIVING_BEHIND = Gauge("freshet_living_behind_seconds", "How long the list that waits longest has waited.")
LIVING_SHARE = Gauge(
    "freshet_living_version_share", "Share of the lists of users within the horizon that the live version made."
)
LIVING_BYTES = Gauge("freshet_living_record_bytes", "Memory of the record of standing lists.")
LOST = Counter(
    "freshet_lost_events_total", "Source records that retention deleted before they were folded.", ["partition"]
)
LAG = Gauge("freshet_lag_events", "Records behind the end of the source partition.", ["partition"])
MODEL_VERSION = Gauge("freshet_model_version", "Model version that lists are made with.")
CANDIDATE_VERSION = Gauge("freshet_candidate_version", "Model version in shadow or canary; 0 for none.")
CANDIDATE_LISTS = Counter(
    "freshet_candidate_lists_total", "Users whose lists were made with both versions.", ["outcome"]
)
CANDIDATE = Gauge("freshet_candidate", "How the candidate compares (workers/freshet/core/comparison.py).", ["figure"])
BREAKER_OPEN = Gauge(
    "freshet_encoder_breaker_open", "1 while the circuit breaker keeps a version's calls from Triton.", ["version"]
)
COLD_ITEMS = Gauge("freshet_cold_items", "Rankable items that the model version was not trained on.")
BAD_SIDE_INPUTS = Counter("freshet_bad_side_inputs_total", "Unreadable records of side-input topics.", ["topic"])
SKIPPED_TEXTS = Counter(
    "freshet_skipped_texts_total", "Texts of new items that the encoder could not place, though it answered others."
)
FEATURES_RESTORED = Counter(
    "freshet_features_restored_total", "Users whose features were written again after the online store had lost some."
)
FEATURE_RETRIES = Counter("freshet_feature_write_retries_total", "Feature-store writes tried again.")

READ_LISTS = Counter("freshet_lists_read_total", "Lists made for requests.", ["kind"])
REQUESTS = Histogram(
    "freshet_http_request_seconds", "Time of a request to the read service.", ["route", "status"], buckets=_SECONDS
)
STREAMS = Gauge("freshet_http_streams", "Open streams of lists.")
STREAMS_DROPPED = Counter("freshet_http_streams_dropped_total", "Streams ended because their reader was too slow.")

ARCHIVED = Counter("freshet_archived_records_total", "Records in finished files of the archive.", ["topic"])
ARCHIVE_FILES = Counter(
    "freshet_archive_files_total", "Files of the archive: added, merged away, rewritten.", ["change"]
)
ARCHIVE_LOST = Counter(
    "freshet_archive_lost_offsets_total", "Offsets that retention took before they were archived.", ["topic"]
)
ARCHIVE_LAG = Gauge(
    "freshet_archive_lag_records",
    "Records behind the end of the partition, those not in a finished file included.",
    ["topic", "partition"],
)
