"""Snippets in, answers out: the same as in Python, alone or beside others."""

import asyncio
import io
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from accm_core.learning.checkpoint import Model
from accm_core.learning.classify import classify_columns, place_heads
from accm_core.learning.encoder import EncoderConfig, SpikeEncoder, embed_snippets
from accm_core.learning.heads import Heads, HeadsConfig
from accm_core.learning.lessons import read_pretrained
from accm_core.models import remove_model, store_model
from service import batcher, inference
from service.batcher import Batcher
from service.errors import ServiceError
from service.inference import Inference

CPU = torch.device("cpu")
CHANNELS = [["b", "a", None], ["c", None, None]]


def make_model(seed=0, units=("7", "8")):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = SpikeEncoder(EncoderConfig(3, 40, 5, width=4), 2.5)
        heads = Heads(HeadsConfig("binary", encoder.config.num_features, units)) if units else None
    card = {"kind": "finetuned", "num_before": 14, "sampling_frequency": 20_000.0, "units": []}
    for name, channels in zip(units, CHANNELS, strict=bool(units)):
        card["units"].append({"name": name, "channels": channels, "peak_delay_ms": 0.0})
    return Model(encoder, heads, card, torch.zeros(len(units), 3, 40) if units else None)


@pytest.fixture(autouse=True)
def registry(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCM_DATA", str(tmp_path))
    store_model(make_model(), "tuned")
    return tmp_path / "models"


@pytest.fixture
def service():
    made = Inference("cpu")
    yield made
    made.close()


def snippets(number, num_samples=40, num_channels=3, seed=0):
    shape = (number, num_samples, num_channels)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_bytes(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def to_array(body):
    return np.load(io.BytesIO(body), allow_pickle=False)


def refused(call, status, message):
    with pytest.raises(ServiceError, match=message) as caught:
        asyncio.run(call)
    assert caught.value.status == status


class TestAnswers:
    def test_embeddings_of_the_model_of_the_package(self, service):
        model = read_pretrained()
        rows = snippets(7, model.window.num_samples, model.encoder.config.num_channels)
        answer = to_array(asyncio.run(service.embed(to_bytes(rows))))
        assert answer.dtype == np.float32
        np.testing.assert_array_equal(answer, embed_snippets(model.encoder, rows, CPU))

    def test_fewer_channels_are_as_silent_ones(self, service):
        rows = snippets(4)
        rows[:, :, 1:] = 0
        few = asyncio.run(service.embed(to_bytes(rows[:, :, :1].astype("<f8")), "tuned"))
        assert few == asyncio.run(service.embed(to_bytes(rows), "tuned"))

    def test_probabilities(self, service):
        model, rows = make_model(), snippets(6)
        answer = to_array(asyncio.run(service.classify(to_bytes(rows), "tuned")))
        placed = place_heads(model, ("a", "b", "c"), model.window, CPU)
        np.testing.assert_array_equal(answer, classify_columns(placed, rows, CPU))
        # by hand: the second unit looks at the third column alone
        alone = np.pad(rows[:, :, 2:], ((0, 0), (0, 0), (0, 2))).transpose(0, 2, 1)
        with torch.inference_mode():
            features = model.encoder.represent(torch.from_numpy(np.ascontiguousarray(alone)))
            expected = model.heads.probability(features)[:, 1].numpy()
        np.testing.assert_allclose(answer[:, 1], expected, atol=1e-6)

    def test_no_snippets(self, service):
        assert to_array(asyncio.run(service.embed(to_bytes(snippets(0)), "tuned"))).shape == (0, 5)
        assert to_array(asyncio.run(service.classify(to_bytes(snippets(0)), "tuned"))).shape == (0, 2)

    def test_the_same_alone_and_among_others(self, service, monkeypatch):
        bodies = [to_bytes(snippets(number, seed=number)) for number in range(1, 40)]
        sizes = []
        compute = Batcher._compute_parts
        monkeypatch.setattr(
            Batcher, "_compute_parts", lambda self, parts: sizes.append(len(parts)) or compute(self, parts)
        )

        async def together():
            calls = [service.embed(body, "tuned") for body in bodies]
            calls += [service.classify(body, "tuned") for body in bodies]
            return await asyncio.gather(*calls)

        async def apart():
            return [await service.embed(body, "tuned") for body in bodies] + [
                await service.classify(body, "tuned") for body in bodies
            ]

        both = asyncio.run(together())
        assert max(sizes) > 5
        for ours, theirs in zip(both, asyncio.run(apart()), strict=True):
            np.testing.assert_allclose(to_array(ours), to_array(theirs), atol=1e-5)


class TestModels:
    def test_a_changed_file_is_read_again_and_a_removed_one_is_gone(self, service):
        body = to_bytes(snippets(3))

        async def ask():
            return to_array(await service.embed(body, "tuned"))

        async def run():
            first = await ask()
            np.testing.assert_array_equal(await ask(), first)
            store_model(make_model(seed=1), "tuned", overwrite=True)
            assert np.abs(await ask() - first).max() > 1e-3
            remove_model("tuned")
            with pytest.raises(ServiceError, match="There is no model 'tuned'") as caught:
                await ask()
            assert caught.value.status == 404

        asyncio.run(run())

    def test_so_many_are_kept(self, service, monkeypatch):
        monkeypatch.setattr(inference, "MAX_MODELS", 2)
        for name in "abc":
            store_model(make_model(), name)
        body = to_bytes(snippets(1))

        async def run():
            for name in ("a", "b", "a", "c"):
                await service.embed(body, name)

        asyncio.run(run())
        assert list(service._models) == ["a", "c"]

    @pytest.mark.parametrize(
        "name", ["none", "../models/tuned", "a/b", "", "tuned.safetensors", "\0", "x" * 300]
    )
    def test_no_model(self, service, name):
        refused(service.classify(to_bytes(snippets(1)), name), 404, "There is no model")

    def test_what_is_no_model(self, service, registry):
        (registry / "foreign.safetensors").write_bytes(b"\x80\x04pickle")
        refused(
            service.embed(to_bytes(snippets(1)), "foreign"),
            409,
            "'foreign' cannot be used: .*no model of accm",
        )

    def test_a_model_without_heads(self, service):
        store_model(make_model(units=()), "plain")
        refused(service.classify(to_bytes(snippets(1)), "plain"), 400, "'plain' knows no units")


class TestRefusals:
    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            (
                (2, 39, 3),
                "39 samples of 3 channels; .* takes 40 samples at 20000 Hz, 14 of them before",
            ),
            ((2, 40, 4), "40 samples of 4 channels; .* of 1 to 3 channels, nearest first"),
        ],
    )
    def test_shapes_to_embed(self, service, shape, message):
        refused(service.embed(to_bytes(np.zeros(shape, np.float32)), "tuned"), 400, message)

    @pytest.mark.parametrize("num_channels", [2, 4])
    def test_shapes_to_classify(self, service, num_channels):
        message = "of 3 channels, in the order of 'channels' in GET /models/tuned"
        refused(service.classify(to_bytes(snippets(1, 40, num_channels)), "tuned"), 400, message)

    def test_what_is_no_array(self, service):
        refused(service.embed(b"{}", "tuned"), 400, "no .npy file of snippets")

    def test_in_parts_it_is_the_same(self, service, monkeypatch):
        body = to_bytes(snippets(50))
        whole = asyncio.run(service.embed(body, "tuned")), asyncio.run(service.classify(body, "tuned"))
        monkeypatch.setattr(inference, "BATCH_ROWS", 7)
        sizes = []
        submit = Batcher.submit
        monkeypatch.setattr(
            Batcher, "submit", lambda self, rows: sizes.append(len(rows)) or submit(self, rows)
        )
        parts = asyncio.run(service.embed(body, "tuned")), asyncio.run(service.classify(body, "tuned"))
        assert sizes == [7] * 7 + [1] + [7] * 7 + [1]
        for ours, theirs in zip(parts, whole, strict=True):
            np.testing.assert_allclose(to_array(ours), to_array(theirs), atol=1e-5)

    def test_answers_that_are_too_large(self, service, monkeypatch):
        monkeypatch.setattr(inference, "MAX_ANSWER_BYTES", 10 * 5 * 4)
        assert to_array(asyncio.run(service.embed(to_bytes(snippets(10)), "tuned"))).shape == (10, 5)
        refused(service.embed(to_bytes(snippets(11)), "tuned"), 413, "would have 220 bytes; the limit is 200")
        refused(service.classify(to_bytes(snippets(26)), "tuned"), 413, "26 snippets would have 208 bytes")

    def test_too_much_at_once(self, service, monkeypatch):
        body = to_bytes(snippets(100))
        monkeypatch.setattr(inference, "OVERHEAD_BYTES", 0)
        monkeypatch.setattr(inference, "MAX_WAITING_BYTES", 3 * len(body))

        async def run():
            return await asyncio.gather(
                *[service.embed(body, "tuned") for _ in range(5)], return_exceptions=True
            )

        answers = asyncio.run(run())
        assert [isinstance(answer, bytes) for answer in answers] == [True] * 3 + [False] * 2
        assert [answer.status for answer in answers[3:]] == [429, 429]
        # all of it is given back, also after refusals; and a large one alone is taken
        refused(service.embed(b"x" * 10, "tuned"), 400, "no .npy")
        monkeypatch.setattr(inference, "MAX_WAITING_BYTES", 10)
        assert asyncio.run(service.embed(body, "tuned")) == answers[0]


class TestBatcher:
    @pytest.fixture
    def executor(self):
        with ThreadPoolExecutor(1) as made:
            yield made

    def test_what_comes_meanwhile_goes_together_and_no_more_than_so_much(self, executor, monkeypatch):
        monkeypatch.setattr(batcher, "BATCH_ROWS", 5)
        go, sizes = threading.Event(), []

        def double(rows):
            sizes.append(len(rows))
            go.wait(10)
            return 2 * rows

        async def run():
            made = Batcher(double, executor, asyncio.Lock())
            first = asyncio.create_task(made.submit(np.arange(1)))
            await asyncio.sleep(0.01)
            others = [asyncio.create_task(made.submit(np.arange(k))) for k in (2, 2, 3, 9, 1)]
            await asyncio.sleep(0.01)
            others[1].cancel()  # its caller has gone
            go.set()
            answers = await asyncio.gather(first, *others, return_exceptions=True)
            assert isinstance(answers.pop(2), asyncio.CancelledError)
            return answers

        answers = asyncio.run(run())
        assert sizes == [1, 5, 9, 1]
        for answer, number in zip(answers, (1, 2, 3, 9, 1), strict=True):
            np.testing.assert_array_equal(answer, 2 * np.arange(number))

    def test_a_failure_is_told_and_the_next_are_answered(self, executor):
        def fail_once(rows, failures=iter([True])):  # noqa: B008  one for all calls
            if next(failures, False):
                raise RuntimeError("out of memory")
            return rows

        async def run():
            made = Batcher(fail_once, executor, asyncio.Lock())
            with pytest.raises(RuntimeError, match="out of memory"):
                await made.submit(np.arange(2))
            assert (await made.submit(np.arange(2))).tolist() == [0, 1]

        asyncio.run(run())


def test_torch_is_not_imported_before_it_is_needed():
    code = "import sys, service.inference; service.inference.Inference('cpu'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
