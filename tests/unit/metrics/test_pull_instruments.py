from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from imageservice import progress
from imageservice.progress import PullObserver
from metrics import pull_instruments
from metrics.instruments import Instruments


def values(instruments):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(instruments.exposition().decode())
        for sample in family.samples
        if "_image_" in sample.name and "le" not in sample.labels
    }


def test_the_labels_are_the_words_of_the_image_service():
    assert pull_instruments.STAGES == progress.PULL_STAGES
    assert pull_instruments.OUTCOMES == progress.LAYER_OUTCOMES
    assert pull_instruments.RETRIES == progress.RETRY_REASONS


def test_every_series_is_there_before_anything_has_happened():
    found = values(Instruments("1"))
    assert all(value == 0 for value in found.values())
    for stage in progress.PULL_STAGES:
        assert ("podwright_image_pull_stage_duration_seconds_count", stage) in found
    for outcome in progress.LAYER_OUTCOMES:
        assert ("podwright_image_layers_total", outcome) in found
    for reason in progress.RETRY_REASONS:
        assert ("podwright_image_pull_retries_total", reason) in found
    for name in ("stalls", "resumes", "resumed_bytes", "bytes"):
        assert (f"podwright_image_pull_{name}_total",) in found


def test_what_the_image_service_tells_is_counted():
    instruments = Instruments("1")
    observer: PullObserver = instruments.pulls
    observer.stage_ended("download", duration_s=2.0)
    observer.stage_ended("download", duration_s=1.0)
    observer.layer_ended("reused")
    observer.asked_again("throttled")
    observer.transfer_stalled()
    observer.transfer_resumed(held_bytes=700)
    observer.transfer_resumed(held_bytes=7)
    found = values(instruments)
    assert found["podwright_image_pull_stage_duration_seconds_count", "download"] == 2
    assert found["podwright_image_pull_stage_duration_seconds_sum", "download"] == 3.0
    assert found["podwright_image_layers_total", "reused"] == 1
    assert found["podwright_image_pull_retries_total", "throttled"] == 1
    assert found["podwright_image_pull_stalls_total",] == 1
    assert found["podwright_image_pull_resumes_total",] == 2
    assert found["podwright_image_pull_resumed_bytes_total",] == 707
